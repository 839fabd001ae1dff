//! A setting and the values it is tried with, and every combination of several.

use std::str::FromStr;

use crate::request::{Draft, FIELDS, Field};

/// One `--vary`.
#[derive(Clone)]
pub struct Variation {
    /// As it was typed.
    pub name: String,
    field: &'static Field,
    pub values: Vec<String>,
}

impl std::fmt::Debug for Variation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={:?}", self.name, self.values)
    }
}

impl FromStr for Variation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected SETTING=VALUE,VALUE,…, e.g. steps=10,20";
        let (name, values) = text.split_once('=').ok_or(expected)?;
        let name = name.trim().trim_start_matches("--").to_owned();
        let key = name.replace('-', "_");
        let field = FIELDS.iter().find(|field| field.long() == Some(&name) || field.key == key);
        let field = field.ok_or_else(|| {
            let known: Vec<&str> = FIELDS.iter().filter_map(Field::long).collect();
            format!("unknown setting '{name}' (one of: {}, prompt)", known.join(", "))
        })?;
        let values = split(values);
        for (at, value) in values.iter().enumerate() {
            let read = (field.set)(&mut Draft::default(), value.as_ref());
            read.map_err(|message| format!("{name} '{value}': {message}"))?;
            if values[..at].contains(value) {
                return Err(format!("{name} has the value '{value}' twice"));
            }
        }
        Ok(Self { name, field, values })
    }
}

/// At commas without a backslash before them.
fn split(text: &str) -> Vec<String> {
    let mut values = vec![String::new()];
    let mut signs = text.chars().peekable();
    while let Some(sign) = signs.next() {
        match (sign, values.last_mut()) {
            ('\\', Some(value)) if signs.peek() == Some(&',') => value.extend(signs.next()),
            (',', _) => values.push(String::new()),
            (sign, Some(value)) => value.push(sign),
            (_, None) => {}
        }
    }
    values
}

/// One value of each variation, by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Combination(pub Vec<usize>);

impl Combination {
    /// All of them, the first of the first values; the first variation's change first.
    pub fn all(variations: &[Variation]) -> Vec<Self> {
        variations.iter().rev().fold(vec![Self(Vec::new())], |combinations, variation| {
            let with = |Self(rest): Self| {
                (0..variation.values.len()).map(move |value| Self([vec![value], rest.clone()].concat()))
            };
            combinations.into_iter().flat_map(with).collect()
        })
    }

    /// The values, in the variations' order.
    pub fn values<'v>(&'v self, variations: &'v [Variation]) -> impl Iterator<Item = (&'v str, &'v str)> {
        let pairs = variations.iter().zip(&self.0);
        pairs.map(|(variation, &at)| (variation.name.as_str(), variation.values[at].as_str()))
    }

    /// What they say of a request.
    ///
    /// # Errors
    /// None in practice: every value has been read before.
    pub fn draft(&self, variations: &[Variation]) -> Result<Draft, String> {
        let mut draft = Draft::default();
        for (variation, &at) in variations.iter().zip(&self.0) {
            (variation.field.set)(&mut draft, variation.values[at].as_ref())?;
        }
        Ok(draft)
    }
}

/// # Errors
/// Names the setting that is varied twice.
pub fn check(variations: &[Variation]) -> Result<(), String> {
    for (at, variation) in variations.iter().enumerate() {
        let overlaps = |other: &&Variation| {
            other.field.covers.iter().any(|covered| variation.field.covers.contains(covered))
        };
        if let Some(other) = variations[..at].iter().find(overlaps) {
            return Err(format!("--vary {} and --vary {} set the same", other.name, variation.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vary(text: &str) -> Variation {
        text.parse().unwrap()
    }

    #[test]
    fn a_variation_is_a_setting_and_its_values() {
        let cache = vary("cache=1,2,auto=0.2");
        assert_eq!((cache.name.as_str(), cache.values.len()), ("cache", 3));
        assert_eq!(vary(r"prompt=a cat\, red,a dog").values, ["a cat, red", "a dog"]);
        assert_eq!(vary("--guidance_scale=2,3").name, "guidance_scale");
        for (wrong, message) in [
            ("steps", "expected SETTING=VALUE"),
            ("stpes=1", "unknown setting 'stpes'"),
            ("steps=1,x", "steps 'x'"),
            ("steps=1,,2", "steps ''"),
            ("cfg=2,2", "twice"),
        ] {
            let error = wrong.parse::<Variation>().unwrap_err();
            assert!(error.contains(message), "{wrong}: {error}");
        }
        let size = [vary("size=64x64,128x64"), vary("width=8,16")];
        assert_eq!(check(&size).unwrap_err(), "--vary size and --vary width set the same");
    }

    #[test]
    fn every_combination_comes_once_and_the_first_variation_changes_first() {
        let variations = [vary("cache=1,2,3"), vary("steps=10,20")];
        let all = Combination::all(&variations);
        let values = |at: usize| all[at].values(&variations).map(|(_, value)| value).collect::<Vec<_>>();
        assert_eq!(all.len(), 6);
        assert_eq!((values(0), values(1), values(3)), (vec!["1", "10"], vec!["2", "10"], vec!["1", "20"]));
        assert_eq!(all[3].draft(&variations).unwrap().steps, Some(20));
    }
}
