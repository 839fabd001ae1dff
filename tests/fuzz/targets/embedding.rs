//! A textual inversion: its name, its word and its vectors.

#![no_main]

mod on_disk;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pochade::checkpoint::Checkpoint;
use pochade::prompt::{Embeddings, Tokenizer};

use on_disk::on_disk;

fuzz_target!(|bytes: &[u8]| {
    static TOKENIZER: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::new(Checkpoint::built_in().unwrap().vocabulary()).unwrap());
    let _ = Embeddings::open(&[on_disk(bytes).path().to_owned()], None, &TOKENIZER, 8, 75);
});
