//! The command that goes on where a batch has ended.

use std::borrow::Cow;
use std::ffi::OsString;

/// `words`, the command as it was typed, with `--skip-existing` and the seed that was drawn for it.
pub fn command(words: &[OsString], skip_existing: bool, drawn_seed: Option<u64>) -> String {
    let quoted = |word: &OsString| {
        let word = word.to_string_lossy();
        // Only NUL can't be quoted, and no system's arguments hold one.
        shlex::try_quote(&word).map_or_else(|_| word.clone().into_owned(), Cow::into_owned)
    };
    let mut words: Vec<String> = words.iter().map(quoted).collect();
    // What follows `--` is never a flag.
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let seed = drawn_seed.map(|seed| format!("--seed {seed}"));
    let skip = (!skip_existing).then(|| "--skip-existing".to_owned());
    words.splice(end..end, seed.into_iter().chain(skip));
    words.join(" ")
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
        let resumed = command(&typed, false, Some(5));
        let expected = words(&[
            "pochade",
            "batch",
            "it's.txt",
            "-o",
            "{index:05}.png",
            "--seed",
            "5",
            "--skip-existing",
        ]);
        let read: Vec<OsString> = shlex::split(&resumed).unwrap().into_iter().map(OsString::from).collect();
        assert_eq!(read, expected, "{resumed}");
        let typed = words(&["pochade", "batch", "--skip-existing", "--", "--x"]);
        assert_eq!(command(&typed, true, None), "pochade batch --skip-existing -- --x");
        assert_eq!(command(&typed, true, Some(1)), "pochade batch --skip-existing --seed 1 -- --x");
    }
}
