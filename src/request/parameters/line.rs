//! The line of settings: `key: value` pairs, values with separators in them quoted as JSON.

use std::borrow::Cow;

/// The `key: value` pairs of the last line, in order; what is no pair is skipped.
pub fn settings(line: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (item, tail) = split_item(rest);
        if let Some((key, value)) = item.split_once(':')
            && is_key(key.trim())
        {
            found.push((key.trim().to_owned(), unquoted(value.trim()).into_owned()));
        }
        rest = tail;
    }
    found
}

/// Splits at the first comma outside a quoted value.
fn split_item(text: &str) -> (&str, &str) {
    let (mut quoted, mut escaped, mut after_colon) = (false, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if quoted => quoted = false,
            '"' if after_colon => quoted = true,
            ',' if !quoted => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
        after_colon = c == ':' || (after_colon && c.is_whitespace());
    }
    (text, "")
}

fn is_key(key: &str) -> bool {
    key.len() >= 2
        && key.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        && key.chars().all(|c| c.is_alphanumeric() || "_ -/".contains(c))
}

pub fn quoted(value: &str) -> Cow<'_, str> {
    if value.contains([',', ':', '\n']) {
        serde_json::Value::from(value).to_string().into()
    } else {
        value.into()
    }
}

fn unquoted(value: &str) -> Cow<'_, str> {
    if value.starts_with('"')
        && let Ok(text) = serde_json::from_str::<String>(value)
    {
        text.into()
    } else {
        value.into()
    }
}
