//! A model's byte-pair vocabulary: `vocab.json`, then a NUL, then `merges.txt`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pochade::checkpoint::Vocabulary;
use pochade::prompt::Tokenizer;

fuzz_target!(|text: &str| {
    let (vocab, merges) = text.split_once('\0').unwrap_or((text, ""));
    let vocabulary = Vocabulary { vocab: vocab.to_owned().into(), merges: merges.to_owned().into() };
    let Ok(tokenizer) = Tokenizer::new(&vocabulary) else { return };
    let _ = tokenizer.chunk("a photo of a cat, 3 élan", 75);
    let _ = (tokenizer.comma(), tokenizer.spelling(tokenizer.end()));
});
