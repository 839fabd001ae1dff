//! From a prompt's text to the text embeddings the UNet reads: syntax, tokens, chunks, textual inversions.

mod chunks;
mod embeddings;
mod encode;
mod reading;
mod syntax;
mod tokenizer;

pub use chunks::{Chunks, Token, Weighted};
pub use embeddings::Embeddings;
pub use encode::encode;
pub use reading::{Prompts, Room, Text};
pub use syntax::{LoraTag, take_lora_tags};
pub use tokenizer::Tokenizer;
