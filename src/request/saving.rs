//! The settings that save work: which steps are guided, which compute the UNet whole; and what a picture came to.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::limits::{self, MAX_STEPS};

/// How alike both of guidance's answers are when it ends, as a cosine: Castillo et al. 2023.
pub const DEFAULT_LIKENESS: &str = "0.991";

/// How much the outer blocks' features may change before the inner ones are computed anew.
const DEFAULT_CHANGE: f64 = 0.1;

/// A share of the steps, spelled `START..END`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StepRange {
    /// From 0, the first step, to 1, the end of the last.
    pub start: f64,
    pub end: f64,
}

impl StepRange {
    pub(super) const WHOLE: Self = Self { start: 0.0, end: 1.0 };

    /// Whether step `index`, counting from 0, of `total` is part of it: by its middle.
    pub fn contains(self, index: usize, total: usize) -> bool {
        let middle = (index as f64 + 0.5) / total as f64;
        (self.start..self.end).contains(&middle)
    }

    /// # Errors
    /// When it isn't a part of all steps.
    pub fn validate(&self) -> Result<()> {
        let Self { start, end } = *self;
        ensure!(
            (0.0..1.0).contains(&start) && start < end && end <= 1.0,
            "guidance range {self} is no part of 0..1"
        );
        Ok(())
    }
}

impl fmt::Display for StepRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl FromStr for StepRange {
    type Err = Error;

    /// Reads `0.2..0.8`; an end that is left out is that of all steps.
    fn from_str(text: &str) -> Result<Self> {
        let end = |text: &str, open: f64| if text.is_empty() { Ok(open) } else { text.parse() };
        let expected = "expected START..END between 0 and 1, e.g. 0..0.5";
        let (start, last) = text.split_once("..").context(expected)?;
        let range = Self {
            start: end(start.trim(), 0.0).context(expected)?,
            end: end(last.trim(), 1.0).context(expected)?,
        };
        range.validate()?;
        Ok(range)
    }
}

impl TryFrom<String> for StepRange {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<StepRange> for String {
    fn from(range: StepRange) -> Self {
        range.to_string()
    }
}

/// When a step takes what the UNet's inner blocks gave in an earlier one; spelled `N`, `auto` or `auto=CHANGE`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reuse {
    /// In all but every Nth.
    ButEvery(usize),
    /// While what goes into the inner blocks has changed by at most this share since they were computed.
    Within(f64),
}

impl Reuse {
    /// # Errors
    /// Names the number out of range.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::ButEvery(steps) => limits::within("cache", steps, 1..=MAX_STEPS),
            Self::Within(change) => limits::share("cache auto", change, "above 0, up to 1"),
        }
    }
}

impl fmt::Display for Reuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ButEvery(steps) => write!(f, "{steps}"),
            Self::Within(change) => write!(f, "auto={change}"),
        }
    }
}

impl FromStr for Reuse {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "expected a number of steps, auto, or auto=CHANGE, e.g. auto=0.1";
        let reuse = match text.strip_prefix("auto") {
            None => Self::ButEvery(text.parse().context(expected)?),
            Some("") => Self::Within(DEFAULT_CHANGE),
            Some(change) => {
                let change = change.strip_prefix('=').context(expected)?;
                Self::Within(change.parse().context(expected)?)
            }
        };
        reuse.validate()?;
        Ok(reuse)
    }
}

/// A number where it is one.
impl Serialize for Reuse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::ButEvery(steps) => steps.serialize(serializer),
            Self::Within(_) => self.to_string().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Reuse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = |value: Value| match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => bail!("expected a number of steps, or a text such as auto"),
        };
        read(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// What the UNet computed for one picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passes {
    /// Through all of its blocks, each for one prompt.
    pub whole: u64,
    /// Through the outer ones alone.
    pub outer: u64,
    /// Multiply-accumulates of all of them.
    pub macs: u64,
    /// The same if every step had been computed whole, with guidance.
    pub exact_macs: u64,
}

impl Passes {
    /// Of the exact work.
    pub fn share(&self) -> f64 {
        self.macs as f64 / self.exact_macs.max(1) as f64
    }
}

impl fmt::Display for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { whole, outer, .. } = self;
        let outer = if *outer > 0 { format!(" and {outer} outer") } else { String::new() };
        write!(f, "{whole}{outer} passes, {:.2} of the work", self.share())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_printed() {
        for (text, start, end) in
            [("0.2..0.8", 0.2, 0.8), ("..0.5", 0.0, 0.5), ("0.5..", 0.5, 1.0), ("0..1", 0.0, 1.0)]
        {
            let range: StepRange = text.parse().unwrap();
            assert_eq!((range.start, range.end), (start, end));
            assert_eq!(range.to_string().parse::<StepRange>().unwrap(), range);
        }
        for wrong in ["", "0.5", "0.8..0.2", "0.3..0.3", "-1..1", "0..1.5", "NaN..1", "a..b", "1..1"] {
            assert!(wrong.parse::<StepRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_range_has_the_same_steps_from_both_ends() {
        let steps = |text: &str, total| {
            let range: StepRange = text.parse().unwrap();
            (0..total).filter(|&index| range.contains(index, total)).collect::<Vec<_>>()
        };
        assert_eq!(steps("0..0.5", 20), (0..10).collect::<Vec<_>>());
        assert_eq!(steps("0.5..1", 20), (10..20).collect::<Vec<_>>());
        assert_eq!(steps("0.2..0.8", 5), [1, 2, 3]);
        assert_eq!(steps("0..1", 3), [0, 1, 2]);
        assert_eq!(steps("0..1", 1), [0]);
    }

    #[test]
    fn what_is_reused_is_a_number_or_auto() {
        for (text, reuse, printed) in [
            ("3", Reuse::ButEvery(3), "3"),
            ("auto", Reuse::Within(DEFAULT_CHANGE), "auto=0.1"),
            ("auto=0.25", Reuse::Within(0.25), "auto=0.25"),
        ] {
            assert_eq!(text.parse::<Reuse>().unwrap(), reuse);
            assert_eq!(reuse.to_string(), printed);
            let json = serde_json::to_string(&reuse).unwrap();
            assert_eq!(serde_json::from_str::<Reuse>(&json).unwrap(), reuse);
        }
        for wrong in ["0", "-1", "2.5", "auto=", "auto0.1", "auto=0", "auto=2", "auto=NaN", "", "1001"] {
            assert!(wrong.parse::<Reuse>().is_err(), "{wrong}");
        }
        for wrong in ["2.5", "true", "[]", "\"no\""] {
            assert!(serde_json::from_str::<Reuse>(wrong).is_err(), "{wrong}");
        }
    }
}
