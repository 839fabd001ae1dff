//! From a prompt's text to the token ids the text encoder reads; no network is run here.

mod tokenizer;

pub use tokenizer::Tokenizer;
