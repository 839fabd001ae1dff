//! Lists of requests, one a line: JSONL whose keys are the long flags, or a prompt per line.

pub mod expand;
mod keys;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, Read};
use std::path::Path;

use super::table::Draft;
use keys::Keys;

/// The longest line that is read, in bytes: far more than any text encoder takes.
pub const MAX_LINE: usize = 1 << 20;

/// How the lines of a list are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// One prompt a line. Blank lines and lines that begin with `#` are left out.
    Text,
}

impl Format {
    /// What a file's name says about it.
    pub fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "txt" | "text" => Some(Self::Text),
            _ => None,
        }
    }

    /// What a list's first bytes say about it: a JSON object begins with a brace and a quote, which no prompt does.
    pub fn of_start(start: &[u8]) -> Self {
        let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
        let mut signs = start.iter().filter(|byte| !byte.is_ascii_whitespace());
        match (signs.next(), signs.next()) {
            (Some(b'{'), Some(b'"' | b'}')) => Self::Jsonl,
            _ => Self::Text,
        }
    }
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// 1-based.
    pub line: u64,
    pub draft: Draft,
    /// A name the list gives the item.
    pub id: Option<String>,
    /// A file name, or a pattern of one.
    pub output: Option<String>,
    /// Of the line's bytes: tells whether a list read a second time is still the same.
    pub fingerprint: u64,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    /// 1-based.
    pub line: u64,
    pub message: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for LineError {}

/// Why a list gives no further item here.
#[derive(Debug)]
pub enum Fault {
    /// The line is wrong; the next ones can be read.
    Line(LineError),
    /// The source can't be read any further.
    Read(io::Error),
}

/// Reads a list item by item, in memory that its longest line bounds.
pub struct List<R> {
    source: R,
    format: Format,
    line: u64,
    bytes: Vec<u8>,
    ended: bool,
}

impl<R: BufRead> List<R> {
    pub fn new(source: R, format: Format) -> Self {
        Self { source, format, line: 0, bytes: Vec::new(), ended: false }
    }

    /// The next line's bytes into `self.bytes`, without its end; false after the last one.
    fn next_line(&mut self) -> io::Result<bool> {
        self.bytes.clear();
        let limit = MAX_LINE as u64 + 2;
        if self.source.by_ref().take(limit).read_until(b'\n', &mut self.bytes)? == 0 {
            return Ok(false);
        }
        self.line += 1;
        if self.bytes.last() == Some(&b'\n') {
            self.bytes.pop();
            if self.bytes.last() == Some(&b'\r') {
                self.bytes.pop();
            }
        } else if self.bytes.len() > MAX_LINE {
            self.skip_line()?;
        }
        if self.line == 1 && self.bytes.starts_with(b"\xef\xbb\xbf") {
            self.bytes.drain(..3);
        }
        Ok(true)
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.source.fill_buf()?;
            let (used, done) = match buffer.iter().position(|&byte| byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.source.consume(used);
            if done {
                return Ok(());
            }
        }
    }

    /// The item on the line just read; none where the line says nothing.
    fn item(&self) -> Result<Option<Item>, String> {
        if self.bytes.len() > MAX_LINE {
            return Err(format!("it is longer than {MAX_LINE} bytes"));
        }
        let text = std::str::from_utf8(&self.bytes)
            .map_err(|error| format!("it is not UTF-8 (byte {})", error.valid_up_to() + 1))?
            .trim();
        if text.is_empty() || (self.format == Format::Text && text.starts_with('#')) {
            return Ok(None);
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let item = Item {
            line: self.line,
            draft: Draft::default(),
            id: None,
            output: None,
            fingerprint: hasher.finish(),
        };
        match self.format {
            Format::Text => {
                let draft = Draft { prompt: Some(text.to_owned()), ..Draft::default() };
                Ok(Some(Item { draft, ..item }))
            }
            Format::Jsonl => {
                let Keys { draft, id, output, .. } = Keys::parse(text)?;
                Ok(Some(Item { draft, id, output, ..item }))
            }
        }
    }
}

impl<R: BufRead> Iterator for List<R> {
    type Item = Result<Item, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.next_line() {
                Ok(true) => match self.item() {
                    Ok(None) => {}
                    Ok(Some(item)) => return Some(Ok(item)),
                    Err(message) => {
                        return Some(Err(Fault::Line(LineError { line: self.line, message })));
                    }
                },
                Ok(false) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(Fault::Read(error)));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Sampler;

    fn read(format: Format, bytes: &[u8]) -> Vec<Result<Item, String>> {
        List::new(bytes, format)
            .map(|item| {
                item.map_err(|fault| match fault {
                    Fault::Line(error) => error.to_string(),
                    Fault::Read(error) => error.to_string(),
                })
            })
            .collect()
    }

    #[test]
    fn a_text_list_is_a_prompt_a_line() {
        let items = read(Format::Text, b"\xef\xbb\xbfa cat\r\n\n  # not this\n  a {dog}  \nlast");
        let items: Vec<_> =
            items.into_iter().map(|item| item.unwrap()).map(|i| (i.line, i.draft.prompt)).collect();
        let expected = [(1, "a cat"), (4, "a {dog}"), (5, "last")];
        assert_eq!(items, expected.map(|(line, prompt)| (line, Some(prompt.to_owned()))));
    }

    #[test]
    fn keys_are_the_long_flags_and_the_records_names() {
        let line = br#"{"prompt":"a","negative":"b","cfg":2.5,"size":"64x128","sampler":"euler","id":7,"output":"x.png","seed":null}"#;
        let item = read(Format::Jsonl, line).remove(0).unwrap();
        assert_eq!((item.id.as_deref(), item.output.as_deref()), (Some("7"), Some("x.png")));
        let draft = Draft {
            prompt: Some("a".into()),
            negative_prompt: Some("b".into()),
            guidance_scale: Some(2.5),
            width: Some(64),
            height: Some(128),
            sampler: Some(Sampler::Euler),
            ..Draft::default()
        };
        assert_eq!(item.draft, draft);
        let names =
            read(Format::Jsonl, br#"{"prompt":"a","negative_prompt":"b","guidance_scale":2}"#).remove(0);
        assert_eq!(names.unwrap().draft.guidance_scale, Some(2.0));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_key() {
        let long = format!("{{\"prompt\":\"{}\"}}", "x".repeat(MAX_LINE));
        let deep = format!("{{\"prompt\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let table: &[(&[u8], &[&str])] = &[
            (br#"{"prompt":"a","stpes":3}"#, &["unknown key 'stpes'", "negative", "cfg", "output"]),
            (br#"{"prompt":"a","steps":"3"}"#, &["key 'steps'", "invalid type"]),
            (br#"{"steps":-3,"width":0.5}"#, &["key 'steps'", "; key 'width'"]),
            (br#"{"seed":18446744073709551616}"#, &["key 'seed'"]),
            (br#"{"steps":1e999}"#, &["number out of range"]),
            (br#"{"sampler":"eular"}"#, &["key 'sampler'", "unknown sampler 'eular'"]),
            (br#"{"prompt":"a","prompt":"b"}"#, &["key 'prompt' comes twice"]),
            (br#"{"size":"64x64","width":8}"#, &["key 'width'", "given twice"]),
            (br#"{"negative":"a","negative_prompt":"b"}"#, &["given twice"]),
            (br#"{"size":"big"}"#, &["key 'size'", "WIDTHxHEIGHT"]),
            (br#"{"id":""}"#, &["key 'id'", "not empty"]),
            (br#"{"output":3}"#, &["key 'output'"]),
            (br#"{"prompt":"a""#, &["EOF"]),
            (br#"["a"]"#, &["expected a JSON object"]),
            (br#""a""#, &["expected a JSON object"]),
            (b"{} {}", &["trailing characters"]),
            (b"{\"prompt\":\"\xff\"}", &["not UTF-8 (byte 12)"]),
            (long.as_bytes(), &["longer than 1048576 bytes"]),
            (deep.as_bytes(), &["recursion limit"]),
        ];
        for (bytes, parts) in table {
            let lines = [b"{\"prompt\":\"a\"}\n", *bytes, b"\n{\"prompt\":\"b\"}"].concat();
            let items = read(Format::Jsonl, &lines);
            assert_eq!(items.len(), 3, "{items:?}");
            let message = items[1].as_ref().unwrap_err();
            for part in ["line 2: "].iter().chain(*parts) {
                assert!(message.contains(part), "no '{part}' in {message}");
            }
            assert_eq!(items[2].as_ref().unwrap().line, 3);
        }
    }

    #[test]
    fn the_format_is_known_by_name_or_start() {
        assert_eq!(Format::of_name(Path::new("a.JSONL")), Some(Format::Jsonl));
        assert_eq!(Format::of_name(Path::new("a.b.txt")), Some(Format::Text));
        assert_eq!(Format::of_name(Path::new("-")), None);
        for (start, format) in [
            ("\u{feff}\n { \"prompt\"", Format::Jsonl),
            ("{}", Format::Jsonl),
            ("{red|green} apple", Format::Text),
            ("", Format::Text),
            ("# list", Format::Text),
        ] {
            assert_eq!(Format::of_start(start.as_bytes()), format, "{start}");
        }
    }
}
