//! Lists of requests, in both spellings, and prompts in them that stand for several.

#![no_main]

use anyhow::bail;
use libfuzzer_sys::fuzz_target;
use pochade::request::list::expand::Pattern;
use pochade::request::list::{Format, List};

fuzz_target!(|bytes: &[u8]| {
    for format in [Format::Jsonl, Format::Text] {
        let mut lines = List::new(bytes, format);
        while let Some(line) = lines.next() {
            let _ = line;
        }
    }
    let mut words = |name: &str| match name {
        "words.txt" => Ok(vec!["a {b|c}".to_owned(), String::new()]),
        _ => bail!("no file"),
    };
    for line in String::from_utf8_lossy(bytes).lines() {
        let Ok(pattern) = Pattern::parse(line, &mut words) else { continue };
        pattern.prompts().take(16).for_each(drop);
    }
});
