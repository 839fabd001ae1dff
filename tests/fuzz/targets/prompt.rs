//! Prompts, their LoRA tags, and the text that AUTOMATIC1111 writes into pictures.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pochade::checkpoint::Checkpoint;
use pochade::prompt::{Prompts, Room, Text, Tokenizer};
use pochade::request::{PromptSyntax, parse_parameters};

fuzz_target!(|text: &str| {
    static TOKENIZER: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::new(Checkpoint::built_in().unwrap().vocabulary()).unwrap());
    for syntax in [PromptSyntax::Weighted, PromptSyntax::Plain] {
        let text = Text {
            prompt: text.to_owned(),
            negative_prompt: Some(text.chars().rev().collect()),
            syntax,
            clip_skip: 1,
            embedding: Vec::new(),
            embedding_dir: None,
            lora: Vec::new(),
            lora_dir: None,
        };
        let _ = Prompts::read(&text, &TOKENIZER, Room { width: 8, positions: 77 });
    }
    let _ = parse_parameters(text);
});
