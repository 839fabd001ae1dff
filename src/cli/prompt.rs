//! Where the prompt comes from: the words typed, stdin, or nowhere.

use std::io::{self, IsTerminal, Read};

use super::exit::Failure;

/// Far more than any text encoder reads; guards against `pochade - < /dev/zero`.
const MAX_BYTES: u64 = 1 << 20;

/// The prompt, or `None` when nothing was typed and another source has one.
///
/// # Errors
/// When there is no prompt at all, or stdin holds no usable one.
pub fn read(words: &[String], other_source: bool) -> Result<Option<String>, Failure> {
    match words {
        [dash] if dash == "-" => from_stdin().map(Some),
        // With --from, a script's stdin is not ours to eat.
        [] if other_source => Ok(None),
        [] if io::stdin().is_terminal() => Err(Failure::usage("no prompt").hint(
            "say what to draw, e.g. `pochade a red apple on a yellow background`; or see `pochade --help`",
        )),
        [] => from_stdin().map(Some),
        words => Ok(Some(words.join(" "))),
    }
}

fn from_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::usage(format!("cannot read the prompt from stdin: {error}")))?;
    decode(bytes)
}

fn decode(bytes: Vec<u8>) -> Result<String, Failure> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Failure::usage(format!("the prompt on stdin is longer than {MAX_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::usage(format!("the prompt on stdin is not UTF-8 (byte {})", at + 1))
            .hint("convert it, e.g. with `iconv -f latin1 -t utf-8`")
    })?;
    let prompt = text.trim_start_matches('\u{feff}').trim();
    if prompt.is_empty() {
        return Err(Failure::usage("the prompt on stdin is empty"));
    }
    Ok(prompt.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_joined() {
        let words = ["a".to_owned(), "red  apple".to_owned()];
        assert_eq!(read(&words, true).unwrap().as_deref(), Some("a red  apple"));
        assert_eq!(read(&[String::new()], false).unwrap().as_deref(), Some(""));
        assert_eq!(read(&[], true).unwrap(), None);
    }

    #[test]
    fn stdin_must_hold_text() {
        assert_eq!(decode(b"\xef\xbb\xbfa cat\r\n".to_vec()).unwrap(), "a cat");
        assert_eq!(decode(b"two\nlines\n".to_vec()).unwrap(), "two\nlines");
        let message = |bytes: &[u8]| decode(bytes.to_vec()).unwrap_err().error.to_string();
        assert!(message(b" \n").contains("empty"));
        assert!(message(b"caf\xe9").contains("not UTF-8 (byte 4)"));
        assert!(message(&vec![b'a'; 1 + (1 << 20)]).contains("longer"));
    }
}
