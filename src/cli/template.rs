//! File name patterns such as `{slug}-{seed}.png`: parsing them and filling them in.

use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};

/// What the placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    pub seed: u64,
    /// 1 for the first picture of a run.
    pub index: u64,
    pub slug: &'a str,
    pub model: &'a str,
    /// What a list calls the item; empty where there is none.
    pub id: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Seed,
    Index,
    Slug,
    Model,
    Id,
    Thousand,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// Numbers are padded with zeros to `width` digits.
    Value {
        placeholder: Placeholder,
        width: usize,
    },
}

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

/// No number needs more digits than a u64 has.
const MAX_WIDTH: usize = 20;

impl Template {
    /// Parses a pattern; `{{` and `}}` are braces.
    ///
    /// # Errors
    /// Names the placeholder that is not known or not closed.
    pub fn parse(pattern: &str) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = pattern;
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                text.push(c);
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let (name, after) =
                    after.split_once('}').with_context(|| format!("'{{' is not closed in '{pattern}'"))?;
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(placeholder(name)?);
                rest = after;
            } else {
                text.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(Self(pieces))
    }

    /// True when nothing in it depends on the picture.
    pub fn is_constant(&self) -> bool {
        self.0.iter().all(|piece| matches!(piece, Piece::Text(_)))
    }

    /// True when the list's name of the item is part of it.
    pub fn names_id(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Value { placeholder: Placeholder::Id, .. }))
    }

    pub fn fill(&self, values: &Values<'_>) -> String {
        let mut filled = String::new();
        for piece in &self.0 {
            // Writing to a String can't fail.
            let _ = match piece {
                Piece::Text(text) => filled.write_str(text),
                Piece::Value { placeholder, width } => match placeholder {
                    Placeholder::Seed => write!(filled, "{:0width$}", values.seed),
                    Placeholder::Index => write!(filled, "{:0width$}", values.index),
                    Placeholder::Slug => filled.write_str(values.slug),
                    Placeholder::Model => filled.write_str(values.model),
                    Placeholder::Id => filled.write_str(values.id),
                    Placeholder::Thousand => {
                        write!(filled, "{:0width$}", values.index.saturating_sub(1) / 1000)
                    }
                },
            };
        }
        filled
    }
}

fn placeholder(text: &str) -> Result<Piece> {
    let (name, width) = match text.split_once(':') {
        Some((name, width)) => (name, Some(width)),
        None => (text, None),
    };
    let placeholder = match name {
        "seed" => Placeholder::Seed,
        "index" => Placeholder::Index,
        "slug" => Placeholder::Slug,
        "model" => Placeholder::Model,
        "id" => Placeholder::Id,
        "thousand" => Placeholder::Thousand,
        _ => bail!(
            "unknown placeholder '{{{text}}}' (one of: {{seed}}, {{index}}, {{thousand}}, {{slug}}, {{model}}, {{id}})"
        ),
    };
    let width = match width {
        None => 0,
        Some(width) => {
            ensure!(
                matches!(placeholder, Placeholder::Seed | Placeholder::Index | Placeholder::Thousand),
                "placeholder '{{{text}}}': only {{seed}}, {{index}} and {{thousand}} have a width"
            );
            let width = width.parse().ok().filter(|&width| width <= MAX_WIDTH);
            width.with_context(|| {
                format!(
                    "placeholder '{{{text}}}': the width is a number up to {MAX_WIDTH}, e.g. {{{name}:03}}"
                )
            })?
        }
    };
    Ok(Piece::Value { placeholder, width })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(pattern: &str) -> String {
        let values = Values { seed: 42, index: 7, slug: "a-cat", model: "pocket", id: "no7" };
        Template::parse(pattern).unwrap().fill(&values)
    }

    #[test]
    fn placeholders_are_filled_in() {
        assert_eq!(fill("{slug}-{seed}.png"), "a-cat-42.png");
        assert_eq!(fill("out/{model}/{index:03}.png"), "out/pocket/007.png");
        assert_eq!(fill("{index:3}{seed:0}é"), "00742é");
        assert_eq!(fill("{{{seed}}}.png"), "{42}.png");
        assert_eq!(fill("{thousand:04}/{id}.png"), "0000/no7.png");
        assert_eq!(fill(""), "");
    }

    #[test]
    fn a_pattern_without_placeholders_is_constant() {
        assert!(Template::parse("a{{b}}.png").unwrap().is_constant());
        assert!(!Template::parse("{seed}").unwrap().is_constant());
    }

    #[test]
    fn mistakes_are_named() {
        for (pattern, part) in [
            ("{prompt}.png", "unknown placeholder '{prompt}'"),
            ("{}.png", "unknown placeholder '{}'"),
            ("{seed", "not closed in '{seed'"),
            ("{slug:3}", "only {seed}, {index} and"),
            ("{seed:x}", "'{seed:x}'"),
            ("{seed:99999999999999999999}", "up to 20"),
        ] {
            let message = Template::parse(pattern).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
