//! Which items of a list are one of N processes' own.

use std::fmt;
use std::str::FromStr;

/// Part `part` of `parts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// 1-based.
    part: u64,
    parts: u64,
}

impl Shard {
    pub const WHOLE: Self = Self { part: 1, parts: 1 };

    /// Whether the item at `index`, counting from 0, is this part's: parts take turns, so that neighbours of
    /// one cost are spread evenly.
    pub fn has(self, index: u64) -> bool {
        index % self.parts == self.part - 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(part, parts)| {
            let (part, parts) = (part.parse().ok()?, parts.parse().ok()?);
            (1..=parts).contains(&part).then_some(Self { part, parts })
        });
        parsed.ok_or_else(|| "expected I/N with I from 1 to N, e.g. 1/4".to_owned())
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.part, self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_belongs_to_one_part() {
        for parts in 1..6u64 {
            for index in 0..40 {
                let owners = (1..=parts).filter(|part| Shard { part: *part, parts }.has(index));
                assert_eq!(owners.count(), 1);
            }
        }
    }

    #[test]
    fn parts_count_from_one() {
        assert_eq!("2/3".parse(), Ok(Shard { part: 2, parts: 3 }));
        for wrong in ["0/3", "4/3", "1/0", "1", "/", "-1/2", "1/2/3", "a/b"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
