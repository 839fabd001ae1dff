//! The command that goes on where a batch has ended.

use std::ffi::OsString;

/// `words`, the command as it was typed, with `--skip-existing` and the seed that was drawn for it.
pub fn command(words: &[OsString], skip_existing: bool, drawn_seed: Option<u64>) -> String {
    let mut words: Vec<String> = words.iter().map(|word| quoted(&word.to_string_lossy())).collect();
    // What follows `--` is never a flag.
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let seed = drawn_seed.map(|seed| format!("--seed {seed}"));
    let skip = (!skip_existing).then(|| "--skip-existing".to_owned());
    words.splice(end..end, seed.into_iter().chain(skip));
    words.join(" ")
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<OsString> {
        text.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_command_is_completed_and_quoted() {
        let typed = words(&["pochade", "batch", "it's.txt", "-o", "{index:05}.png"]);
        assert_eq!(
            command(&typed, false, Some(5)),
            r"pochade batch 'it'\''s.txt' -o '{index:05}.png' --seed 5 --skip-existing"
        );
        let typed = words(&["pochade", "batch", "--skip-existing", "--", "--x"]);
        assert_eq!(command(&typed, true, None), "pochade batch --skip-existing -- --x");
        assert_eq!(command(&typed, true, Some(1)), "pochade batch --skip-existing --seed 1 -- --x");
    }
}
