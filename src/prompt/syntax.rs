//! What brackets, backslashes, `BREAK` and `<lora:…>` mean in a prompt's text; tokens are not known here.

use anyhow::{Context, Result, bail, ensure};

/// What a pair of round brackets multiplies with, and a pair of square ones divides by.
const STEP: f64 = 1.1;

/// No weight is larger: beyond a few units pictures fall apart, and enough brackets would overflow.
const MAX_WEIGHT: f64 = 1000.0;

/// A run of text of one weight, or the word that starts a new chunk.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Text { text: String, weight: f64 },
    Break,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Round,
    Square,
}

/// What a prompt is made of before brackets have found their partners.
#[derive(Debug, PartialEq)]
enum Mark<'a> {
    Text(&'a str),
    Open(Bracket),
    /// A closing bracket as it is spelled, with the weight in front of it: `)`, `]` or `:1.3)`.
    Close(Bracket, Option<f64>, &'a str),
}

/// Reads a prompt as AUTOMATIC1111's `parse_prompt_attention` does: `(x)` weighs 1.1 times as much, `[x]` 1.1
/// times less, `(x:1.3)` as much as it says; brackets nest and multiply, a backslash makes them text. A bracket
/// that is never closed lasts to the end, one that was never opened is text. Neighbours of equal weight are one
/// piece. Unlike there, `BREAK` works within brackets, too.
///
/// Takes time in proportion to the text's length.
///
/// # Errors
/// When nested brackets multiply to more than a thousand.
pub fn parse(text: &str) -> Result<Vec<Piece>> {
    let marks = marks(text);
    let factors = factors(&marks);
    let mut pieces = Vec::new();
    // For each kind the product of all open brackets, one entry for each of them.
    let mut open = [vec![1.0], vec![1.0]];
    let last = |stack: &[f64]| stack.last().copied().unwrap_or(1.0);
    for (mark, factor) in marks.iter().zip(factors) {
        match (mark, factor) {
            (Mark::Open(bracket), factor) => {
                let stack = &mut open[*bracket as usize];
                stack.push(factor.unwrap_or(1.0) * last(stack));
            }
            (Mark::Close(bracket, ..), Some(_)) => {
                open[*bracket as usize].pop();
            }
            (Mark::Text(text) | Mark::Close(_, _, text), _) => {
                let weight = open.iter().map(|stack| last(stack)).product::<f64>();
                ensure!(
                    weight.abs() <= MAX_WEIGHT,
                    "the weights of '{}' multiply to {weight:.0}: the most is {MAX_WEIGHT}",
                    text.chars().take(20).collect::<String>()
                );
                add(&mut pieces, text, weight);
            }
        }
    }
    Ok(pieces)
}

/// For each opening bracket what it multiplies with, and for each closing one that has a partner the same.
fn factors(marks: &[Mark]) -> Vec<Option<f64>> {
    let mut factors = vec![None; marks.len()];
    let (mut round, mut square) = (Vec::new(), Vec::new());
    for (at, mark) in marks.iter().enumerate() {
        match mark {
            Mark::Text(_) => {}
            Mark::Open(bracket) => {
                let (open, factor) = match bracket {
                    Bracket::Round => (&mut round, STEP),
                    Bracket::Square => (&mut square, 1.0 / STEP),
                };
                open.push(at);
                factors[at] = Some(factor);
            }
            Mark::Close(bracket, weight, _) => {
                let open = match bracket {
                    Bracket::Round => round.pop(),
                    Bracket::Square => square.pop(),
                };
                if let Some(open) = open {
                    factors[open] = weight.or(factors[open]);
                    factors[at] = factors[open];
                }
            }
        }
    }
    factors
}

fn marks(text: &str) -> Vec<Mark<'_>> {
    let mut marks = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (mark, length) = match first {
            '\\' => {
                // The backslash goes; before anything but a bracket or another one, it goes alone.
                let escaped = rest[1..].starts_with(['(', ')', '[', ']', '\\']);
                (Mark::Text(&rest[1..1 + usize::from(escaped)]), 1 + usize::from(escaped))
            }
            '(' => (Mark::Open(Bracket::Round), 1),
            '[' => (Mark::Open(Bracket::Square), 1),
            ')' => (Mark::Close(Bracket::Round, None, &rest[..1]), 1),
            ']' => (Mark::Close(Bracket::Square, None, &rest[..1]), 1),
            ':' => match weight(rest) {
                Some((weight, length)) => {
                    (Mark::Close(Bracket::Round, Some(weight), &rest[..length]), length)
                }
                None => (Mark::Text(&rest[..1]), 1),
            },
            _ => {
                let end = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                (Mark::Text(&rest[..end]), end)
            }
        };
        marks.push(mark);
        rest = &rest[length..];
    }
    marks
}

/// The number in `: 1.3 )` at the start of `text`, and the length of all that.
fn weight(text: &str) -> Option<(f64, usize)> {
    let number = text.strip_prefix(':')?.trim_start();
    let end = number.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c)))?;
    let after = number[end..].trim_start().strip_prefix(')')?;
    let weight: f64 = number[..end].parse().ok()?;
    Some((weight, text.len() - after.len()))
}

/// Appends text of one weight, in which each `BREAK` that is a word of its own splits.
fn add(pieces: &mut Vec<Piece>, text: &str, weight: f64) {
    const BREAK: &str = "BREAK";
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut start = 0;
    let mut trimmed = false;
    for (at, _) in text.match_indices(BREAK) {
        let end = at + BREAK.len();
        if text[..at].ends_with(is_word) || text[end..].starts_with(is_word) {
            continue;
        }
        let before = text[start..at].trim_end();
        append(pieces, if trimmed { before.trim_start() } else { before }, weight);
        pieces.push(Piece::Break);
        (start, trimmed) = (end, true);
    }
    let rest = &text[start..];
    append(pieces, if trimmed { rest.trim_start() } else { rest }, weight);
}

fn append(pieces: &mut Vec<Piece>, addition: &str, added_weight: f64) {
    if addition.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Piece::Text { text, weight }) if *weight == added_weight => text.push_str(addition),
        _ => pieces.push(Piece::Text { text: addition.to_owned(), weight: added_weight }),
    }
}

/// A LoRA asked for within a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraTag {
    /// File name without its ending.
    pub name: String,
    pub weight: f64,
}

/// Takes every `<lora:name:weight>` out of a prompt (`<lyco:…>` is the same; the weight may be missing and is
/// then 1).
///
/// # Errors
/// Quotes the tag whose weight is no number, and hypernetworks, which are not supported.
pub fn take_lora_tags(prompt: &str) -> Result<(String, Vec<LoraTag>)> {
    let (mut text, mut tags) = (String::with_capacity(prompt.len()), Vec::new());
    let mut rest = prompt;
    while let Some(start) = rest.find('<') {
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        let kind = ["<lora:", "<lyco:", "<hypernet:"].into_iter().find(|kind| rest.starts_with(kind));
        let Some(kind) = kind else {
            text.push('<');
            rest = &rest[1..];
            continue;
        };
        // Without an end here, no later tag has one either.
        let Some(end) = rest.find('>') else { break };
        let tag = &rest[..=end];
        let shown: String = tag.chars().take(80).collect();
        if kind == "<hypernet:" {
            bail!("the prompt asks for a hypernetwork, which is not supported: take '{shown}' out");
        }
        tags.push(lora_tag(&tag[kind.len()..end]).with_context(|| {
            format!("the prompt's '{shown}' is not understood: write <lora:name> or <lora:name:0.8>")
        })?);
        rest = &rest[end + 1..];
    }
    text.push_str(rest);
    Ok((text, tags))
}

fn lora_tag(inner: &str) -> Option<LoraTag> {
    let (name, weight) = match inner.split_once(':') {
        Some((name, weight)) => (name, weight.trim().parse().ok().filter(|weight: &f64| weight.is_finite())?),
        None => (inner, 1.0),
    };
    let name = name.trim();
    (!name.is_empty()).then(|| LoraTag { name: name.to_owned(), weight })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Texts with weights to three places, `|` for BREAK.
    fn shown(prompt: &str) -> Vec<(String, f64)> {
        let pieces = parse(prompt).unwrap().into_iter();
        pieces
            .map(|piece| match piece {
                Piece::Text { text, weight } => (text, (weight * 1000.0).round() / 1000.0),
                Piece::Break => ("|".to_owned(), 0.0),
            })
            .collect()
    }

    #[test]
    fn weights_are_those_of_automatic1111() {
        for (prompt, expected) in [
            ("", &[][..]),
            ("normal text", &[("normal text", 1.0)]),
            ("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
            ("(unbalanced", &[("unbalanced", 1.1)]),
            ("un)bal]anced", &[("un)bal]anced", 1.0)]),
            (r"\(literal\] \\ \x", &[(r"(literal] \ x", 1.0)]),
            ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
            ("[less] ((more))", &[("less", 0.909), (" ", 1.0), ("more", 1.21)]),
            ("([even])", &[("even", 1.0)]),
            ("(a [b) c] d", &[("a ", 1.1), ("b", 1.0), (" c", 0.909), (" d", 1.0)]),
            ("(x: 0.5 ) [y:2]", &[("x", 0.5), (" ", 1.0), ("y:2", 0.909)]),
            ("(x:-1)(y:+.5)(z:0)", &[("x", -1.0), ("y", 0.5), ("z", 0.0)]),
            ("a:1.3) b", &[("a:1.3) b", 1.0)]),
            ("(a:1.2.3)", &[("a:1.2.3", 1.1)]),
            ("(a:b)", &[("a:b", 1.1)]),
            (
                "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                &[
                    ("a ", 1.0),
                    ("house", 1.573),
                    (" ", 1.1),
                    ("on", 1.0),
                    (" a ", 1.1),
                    ("hill", 0.55),
                    (", sun, ", 1.1),
                    ("sky", 1.464),
                    (".", 1.1),
                ],
            ),
            ("a BREAK b", &[("a", 1.0), ("|", 0.0), ("b", 1.0)]),
            ("(a\nBREAK b) c", &[("a", 1.1), ("|", 0.0), ("b", 1.1), (" c", 1.0)]),
            ("BREAKING unBREAK _BREAK", &[("BREAKING unBREAK _BREAK", 1.0)]),
            ("BREAK BREAK", &[("|", 0.0), ("|", 0.0)]),
            ("é(ü:1.5)漢", &[("é", 1.0), ("ü", 1.5), ("漢", 1.0)]),
        ] {
            let expected: Vec<_> = expected.iter().map(|&(text, weight)| (text.to_owned(), weight)).collect();
            assert_eq!(shown(prompt), expected, "{prompt}");
        }
    }

    #[test]
    fn a_hundred_thousand_brackets_are_read_or_refused() {
        let many = 100_000;
        assert_eq!(parse(&"(".repeat(many)).unwrap(), []);
        assert_eq!(shown(&"()".repeat(many)), []);
        assert_eq!(shown(&")".repeat(many)), [(")".repeat(many), 1.0)]);
        let nested = format!("{}x{}", "[".repeat(many), "]".repeat(many));
        assert_eq!(shown(&nested), [("x".to_owned(), 0.0)]);
        let error = parse(&format!("{}x", "(".repeat(many))).unwrap_err().to_string();
        assert_eq!(error, "the weights of 'x' multiply to inf: the most is 1000");
        assert_eq!(shown("(((x:200):200):0)"), [("x".to_owned(), 0.0)]);
        parse(&": 1".repeat(many)).unwrap();
        take_lora_tags(&"<lora:".repeat(many)).unwrap();
    }

    #[test]
    fn lora_tags_are_taken_out() {
        let (text, tags) = take_lora_tags("a <lora:my style:0.8>cat<lyco:x> < <b>").unwrap();
        assert_eq!(text, "a cat < <b>");
        let tag = |name: &str, weight| LoraTag { name: name.to_owned(), weight };
        assert_eq!(tags, [tag("my style", 0.8), tag("x", 1.0)]);
        for wrong in ["<lora:>", "<lora:x:much>", "<lora:x:1:2>", "<lora:x:inf>", "<hypernet:x:1>"] {
            assert!(take_lora_tags(wrong).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
        assert_eq!(take_lora_tags("<lora:x").unwrap(), ("<lora:x".to_owned(), vec![]));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in r"([()\[\]:\\.0-9<>BREAK \PC]|BREAK|<lora:|:1\.5\)){0,60}") {
            let _ = parse(&text);
            let _ = take_lora_tags(&text);
        }

        /// Without brackets, colons and backslashes nothing is changed.
        #[test]
        fn plain_text_is_one_piece(text in r"[^()\[\]:\\B]{1,60}") {
            prop_assert_eq!(parse(&text).unwrap(), [Piece::Text { text, weight: 1.0 }]);
        }
    }
}
