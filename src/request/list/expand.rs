//! Prompts that stand for several: `{red|blue}` and `@words.txt`, every combination of them; files are read by the caller.

use anyhow::{Context, Result, bail, ensure};

/// The most prompts that one may stand for.
pub const MAX_PROMPTS: u64 = 1_000_000;

/// How deep choices lie within choices.
const MAX_DEPTH: usize = 16;

/// A prompt with choices in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    /// One of these.
    Choice(Vec<Pattern>),
}

impl Pattern {
    /// Reads `a {red|dark {blue|green}} @things.txt`: one of what stands between braces, one of a file's lines. A
    /// backslash takes the next of `{|}@` literally. `words` gives the lines of a file.
    ///
    /// # Errors
    /// Says which brace lacks its other half, what `words` says, or that there are too many combinations.
    pub fn parse(text: &str, words: &mut dyn FnMut(&str) -> Result<Vec<String>>) -> Result<Self> {
        let mut reader = Reader { rest: text, words, depth: 0, at_start: true };
        let pattern = reader.sequence()?;
        ensure!(reader.rest.is_empty(), "'{}' closes no {{ before it", reader.rest);
        pattern.count().filter(|count| *count <= MAX_PROMPTS).with_context(|| {
            format!("the prompt stands for more than {MAX_PROMPTS} prompts: split it over several lines")
        })?;
        Ok(pattern)
    }

    /// How many prompts it stands for; none where that is beyond counting.
    fn count(&self) -> Option<u64> {
        self.0.iter().try_fold(1, |product: u64, part| product.checked_mul(part.count()?))
    }

    /// All of them, the last choice changing first.
    pub fn prompts(&self) -> impl Iterator<Item = String> + use<> {
        let pattern = self.clone();
        (0..self.count().unwrap_or(0)).map(move |number| {
            let mut prompt = String::new();
            pattern.write(number, &mut prompt);
            prompt
        })
    }

    fn write(&self, mut number: u64, prompt: &mut String) {
        let mut chosen: Vec<u64> = Vec::new();
        for part in self.0.iter().rev() {
            let count = part.count().unwrap_or(1).max(1);
            chosen.push(number % count);
            number /= count;
        }
        for (part, number) in self.0.iter().zip(chosen.into_iter().rev()) {
            part.write(number, prompt);
        }
    }
}

impl Part {
    fn count(&self) -> Option<u64> {
        match self {
            Self::Text(_) => Some(1),
            Self::Choice(patterns) => {
                patterns.iter().try_fold(0, |sum: u64, pattern| sum.checked_add(pattern.count()?))
            }
        }
    }

    fn write(&self, mut number: u64, prompt: &mut String) {
        match self {
            Self::Text(text) => prompt.push_str(text),
            Self::Choice(patterns) => {
                for pattern in patterns {
                    let count = pattern.count().unwrap_or(0);
                    if number < count {
                        return pattern.write(number, prompt);
                    }
                    number -= count;
                }
            }
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
    words: &'a mut dyn FnMut(&str) -> Result<Vec<String>>,
    depth: usize,
    /// Whether a word may begin here.
    at_start: bool,
}

impl<'a> Reader<'a> {
    /// Up to the sign that ends it, which is left.
    fn sequence(&mut self) -> Result<Pattern> {
        let mut parts = Vec::new();
        let mut text = String::new();
        while let Some(sign) = self.rest.chars().next() {
            match sign {
                '}' => break,
                '|' if self.depth > 0 => break,
                '{' => {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                    parts.push(self.choice()?);
                }
                '@' if self.at_start && self.file_name().is_some() => {
                    let name = self.file_name().unwrap_or_default();
                    let lines = (self.words)(name)?;
                    let size = 1 + name.len();
                    ensure!(!lines.is_empty(), "@{name} has no line to choose");
                    parts.push(Part::Text(std::mem::take(&mut text)));
                    let line = |line| Pattern(vec![Part::Text(line)]);
                    parts.push(Part::Choice(lines.into_iter().map(line).collect()));
                    self.skip(size);
                }
                '\\' => {
                    let next = self.rest[1..].chars().next().filter(|next| "{|}@".contains(*next));
                    text.push(next.unwrap_or('\\'));
                    self.skip(1 + next.map_or(0, char::len_utf8));
                }
                sign => {
                    text.push(sign);
                    self.skip(sign.len_utf8());
                    self.at_start = !sign.is_alphanumeric();
                }
            }
        }
        parts.push(Part::Text(text));
        Ok(Pattern(parts))
    }

    fn choice(&mut self) -> Result<Part> {
        let opening = self.rest;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            bail!("braces lie deeper than {MAX_DEPTH} within each other");
        }
        let mut patterns = Vec::new();
        while !self.rest.starts_with('}') {
            ensure!(!self.rest.is_empty(), "no }} closes '{opening}'");
            // The brace that opens, or the bar between two.
            self.skip(1);
            self.at_start = true;
            patterns.push(self.sequence()?);
        }
        self.skip(1);
        self.depth -= 1;
        Ok(Part::Choice(patterns))
    }

    /// `things.txt` of `@things.txt, on a`.
    fn file_name(&self) -> Option<&'a str> {
        let name = self.rest.strip_prefix('@')?;
        let end = name.find(|sign: char| sign.is_whitespace() || ",|{}()[]:@".contains(sign));
        let name = &name[..end.unwrap_or(name.len())];
        name.ends_with(".txt").then_some(name)
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
        self.at_start = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> Result<Vec<String>> {
        let mut words = |name: &str| match name {
            "things.txt" => Ok(vec!["fox".to_owned(), "{owl}".to_owned()]),
            "none.txt" => Ok(Vec::new()),
            name => bail!("there is no {name}"),
        };
        Ok(Pattern::parse(text, &mut words)?.prompts().collect())
    }

    #[test]
    fn every_combination_comes_once() {
        let table: &[(&str, &[&str])] = &[
            ("a fox", &["a fox"]),
            ("", &[""]),
            ("a {red|blue} fox", &["a red fox", "a blue fox"]),
            ("{a|b}{1|2}", &["a1", "a2", "b1", "b2"]),
            ("{a|b {1|2}|}x", &["ax", "b 1x", "b 2x", "x"]),
            ("a @things.txt, big", &["a fox, big", "a {owl}, big"]),
            ("{@things.txt|cat}", &["fox", "{owl}", "cat"]),
            (r"\{a\|b\} me\@things.txt c\d", &["{a|b} me@things.txt c\\d"]),
            ("me@things.txt, @home | b", &["me@things.txt, @home | b"]),
            ("{a}", &["a"]),
        ];
        for (text, prompts) in table {
            assert_eq!(expand(text).unwrap(), *prompts, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, message) in [
            ("a {red|blue fox", "no } closes '{red|blue fox'"),
            ("a red} fox", "'} fox' closes no {"),
            ("@none.txt", "@none.txt has no line"),
            ("@lost.txt", "there is no lost.txt"),
            (&"{a|b}".repeat(64), "stands for more than 1000000 prompts"),
            (&"{a|b}".repeat(30), "stands for more than 1000000 prompts"),
            (&"{".repeat(40), "deeper than 16"),
        ] {
            let error = format!("{:#}", expand(text).unwrap_err());
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
