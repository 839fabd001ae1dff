//! How many bits weights get, by their canonical names, and which of them are also computed in int8.

use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
use serde::Serialize;

use super::treatment::{Treatment, treatment};

/// What a weight comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Floats.
    Float,
    /// Floats of a model whose other weights are int8: kept for a reason.
    Kept,
    Int8,
    Int4,
}

impl Origin {
    /// Whether the weight is no float in its file.
    pub fn is_rounded(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }
}

/// How many bits a weight gets in a quantized file, beside its scales. A number in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "u8")]
pub enum Bits {
    Four,
    Eight,
    /// A float.
    Sixteen,
}

impl Bits {
    pub const ALL: [Self; 3] = [Self::Four, Self::Eight, Self::Sixteen];
}

impl From<Bits> for u8 {
    fn from(bits: Bits) -> Self {
        match bits {
            Bits::Four => 4,
            Bits::Eight => 8,
            Bits::Sixteen => 16,
        }
    }
}

/// Layers, and how many bits their weights get.
#[derive(Debug, Clone)]
pub struct Rule {
    pattern: String,
    bits: Bits,
}

impl FromStr for Rule {
    type Err = Error;

    /// Of `PATTERN=BITS`.
    fn from_str(text: &str) -> Result<Self> {
        let (pattern, bits) =
            text.rsplit_once('=').context("expected PATTERN=BITS, e.g. 'unet.mid_block.*=4'")?;
        let bits = match bits {
            "4" => Bits::Four,
            "8" => Bits::Eight,
            "16" => Bits::Sixteen,
            _ => bail!("weights have 4, 8 or 16 bits, not '{bits}'"),
        };
        Ok(Self { pattern: pattern.to_owned(), bits })
    }
}

impl Rule {
    /// The UNet's 3x3 convolutions, as a pattern: most of its weights, and those that bear four bits best.
    const CONV3X3: &str = "conv3x3";

    /// Whether the rule is about the weight `name` or its layer.
    fn names(&self, name: &str) -> bool {
        if self.pattern == Self::CONV3X3 {
            return is_conv3x3(name);
        }
        let Some(layer) = name.strip_suffix(".weight") else { return false };
        matches_wildcard(&self.pattern, name) || matches_wildcard(&self.pattern, layer)
    }
}

fn is_conv3x3(name: &str) -> bool {
    let layer = name.strip_prefix("unet.").and_then(|name| name.strip_suffix(".weight"));
    let last = layer.and_then(|layer| layer.rsplit('.').next());
    last.is_some_and(|last| matches!(last, "conv" | "conv1" | "conv2" | "conv_in" | "conv_out"))
}

/// The default treatment of every tensor and the user's exceptions to it.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The last one that names a layer counts.
    rules: Vec<Rule>,
}

impl Policy {
    /// Layers that a rule names get as many bits as the last such rule says, but for those that are always floats and
    /// those that get no fewer than eight. A `*` in a pattern stands for any characters, dots included; everything else
    /// stands for itself, but for `conv3x3`. A pattern names a weight or the layer it belongs to.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// All layers get as many bits, or as few as they may.
    pub fn all(bits: Bits) -> Self {
        Self::new(vec![Rule { pattern: "*".to_owned(), bits }])
    }

    /// The weights of these names get these bits.
    pub fn of(weights: impl Iterator<Item = (String, Bits)>) -> Self {
        Self::new(weights.map(|(pattern, bits)| Rule { pattern, bits }).collect())
    }

    /// Layers whose names match one of `keep` stay float.
    pub fn keeping(keep: &[String]) -> Self {
        Self::default().and_keeping(keep)
    }

    /// The same where, whatever rules say, layers whose names match one of `keep` stay float.
    #[must_use]
    pub fn and_keeping(mut self, keep: &[String]) -> Self {
        self.rules.extend(keep.iter().map(|pattern| Rule { pattern: pattern.clone(), bits: Bits::Sixteen }));
        self
    }

    /// # Errors
    /// Names the first pattern that none of `names` matches, or none that could be rounded.
    pub fn check<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        for rule in &self.rules {
            let pattern = &rule.pattern;
            let mut matching = names.clone().filter(|name| rule.names(name)).peekable();
            if matching.peek().is_none() {
                bail!("no layer matches '{pattern}' (e.g. unet.conv_in, unet.mid_block.*, *.to_v)");
            }
            if rule.bits != Bits::Sixteen && matching.all(|name| treatment(name) == Treatment::Float) {
                bail!("all layers that match '{pattern}' are too sensitive to be rounded, and stay f16");
            }
        }
        Ok(())
    }

    /// How many bits the tensor called `name` is written with: a vector has no outputs to scale one by one.
    pub fn stored_bits(&self, name: &str, shape: &[usize]) -> Bits {
        if shape.len() >= 2 { self.bits(name) } else { Bits::Sixteen }
    }

    /// How many bits the tensor called `name` is written with if it has eight already: those that no rule asks more for
    /// stay as they are.
    pub fn stored_bits_of_bytes(&self, name: &str, shape: &[usize]) -> Bits {
        let is_free = treatment(name) == Treatment::Sensitive && self.asked(name).is_none();
        if is_free { Bits::Eight } else { self.stored_bits(name, shape) }
    }

    fn asked(&self, name: &str) -> Option<Bits> {
        self.rules.iter().rfind(|rule| rule.names(name)).map(|rule| rule.bits)
    }

    /// How many bits the weight called `name` is rounded to.
    pub fn bits(&self, name: &str) -> Bits {
        let asked = self.asked(name);
        match treatment(name) {
            Treatment::Float => Bits::Sixteen,
            Treatment::Sensitive => asked.map_or(Bits::Sixteen, |bits| bits.max(Bits::Eight)),
            Treatment::Stored | Treatment::Computed => asked.unwrap_or(Bits::Eight),
        }
    }

    /// Whether the weight called `name`, which comes from `origin`, is multiplied in int8 where anything is. Loading,
    /// simulating and estimating memory all ask here.
    pub fn computes_int8(&self, name: &str, origin: Origin) -> bool {
        origin != Origin::Kept && self.treatment(name) == Treatment::Computed
    }

    /// The treatment of the tensor called `name`.
    pub fn treatment(&self, name: &str) -> Treatment {
        match treatment(name) {
            _ if self.bits(name) == Bits::Sixteen => Treatment::Float,
            Treatment::Sensitive => Treatment::Stored,
            treatment => treatment,
        }
    }
}

/// Whether `text` is `pattern` with each `*` replaced by any characters.
fn matches_wildcard(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let Some(last) = parts.pop() else { return true };
    // The earliest place for each part leaves the most for those after it.
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_weights_or_layers() {
        let policy = Policy::keeping(&["unet.mid_block.*".to_owned(), "*.conv1".to_owned()]);
        assert_eq!(policy.treatment("unet.mid_block.resnets.0.conv2.weight"), Treatment::Float);
        assert_eq!(policy.treatment("unet.up_blocks.0.resnets.0.conv1.weight"), Treatment::Float);
        assert_eq!(policy.treatment("unet.up_blocks.0.resnets.0.conv2.weight"), Treatment::Computed);
        let names = ["unet.mid_block.resnets.0.conv1.weight", "unet.conv_in.bias"];
        assert!(policy.check(names.into_iter()).is_ok());
        let unmatched = Policy::keeping(&["*.bias".to_owned()]).check(names.into_iter());
        assert!(unmatched.unwrap_err().to_string().contains("no layer matches '*.bias'"));
    }

    #[test]
    fn sensitive_layers_are_floats_or_stored_in_eight_bits() {
        let name = "unet.mid_block.attentions.0.proj_in.weight";
        for (rule, bits, treatment) in [
            ("*.proj_out=4", Bits::Sixteen, Treatment::Float),
            ("*.proj_in=8", Bits::Eight, Treatment::Stored),
            ("*=4", Bits::Eight, Treatment::Stored),
            ("unet.mid_block.*=16", Bits::Sixteen, Treatment::Float),
        ] {
            let policy = Policy::new(vec![rule.parse().unwrap()]);
            assert_eq!((policy.bits(name), policy.treatment(name)), (bits, treatment), "{rule}");
            let of_bytes = if rule == "*.proj_out=4" { Bits::Eight } else { bits };
            assert_eq!(policy.stored_bits_of_bytes(name, &[2, 2]), of_bytes, "{rule}");
            // Loading goes by the default policy, whatever a file was written with.
            assert!(!policy.computes_int8(name, Origin::Float));
        }
        assert!(!Policy::default().computes_int8(name, Origin::Int8));
    }

    #[test]
    fn rules_give_bits() {
        let rules = ["conv3x3=4", "text_encoder.*=4", "*.conv2=8", "unet.conv_in=4", "*.conv_shortcut=16"];
        let policy = Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        for (name, bits) in [
            ("unet.down_blocks.0.resnets.0.conv1.weight", Bits::Four),
            ("unet.down_blocks.0.resnets.0.conv2.weight", Bits::Eight),
            ("unet.down_blocks.0.downsamplers.0.conv.weight", Bits::Four),
            ("unet.down_blocks.1.resnets.0.conv_shortcut.weight", Bits::Sixteen),
            ("unet.down_blocks.0.attentions.0.proj_out.weight", Bits::Eight),
            ("unet.conv_in.weight", Bits::Sixteen),
            ("vae.decoder.up_blocks.2.resnets.0.conv1.weight", Bits::Eight),
            ("text_encoder.encoder.layers.0.mlp.fc1.weight", Bits::Four),
            ("text_encoder.encoder.layers.0.layer_norm1.weight", Bits::Sixteen),
        ] {
            assert_eq!(policy.bits(name), bits, "{name}");
            assert_eq!(policy.stored_bits(name, &[3]), Bits::Sixteen);
        }
        let kept = policy.and_keeping(&["unet.*".to_owned()]);
        assert_eq!(kept.bits("unet.down_blocks.0.resnets.0.conv1.weight"), Bits::Sixteen);
        for (rule, expected) in [("*.conv1", "PATTERN=BITS"), ("*.conv1=3", "4, 8 or 16 bits, not '3'")] {
            let error = rule.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let check = |rule: &str| {
            let names = ["unet.conv_in.weight", "unet.mid_block.resnets.0.conv1.weight"];
            Policy::new(vec![rule.parse().unwrap()]).check(names.into_iter())
        };
        assert!(check("conv3x3=4").is_ok() && check("unet.conv_in=16").is_ok());
        assert!(check("unet.conv_in=4").unwrap_err().to_string().contains("too sensitive"));
        assert!(check("vae.*=4").unwrap_err().to_string().contains("no layer matches 'vae.*'"));
    }

    #[test]
    fn wildcards() {
        for (pattern, text) in [
            ("unet.conv_in", "unet.conv_in"),
            ("*", ""),
            ("*", "anything.at.all"),
            ("unet.*.to_v", "unet.mid_block.attn1.to_v"),
            ("*.conv*", "unet.conv_in"),
            ("a*b*b", "abb"),
            ("a**b", "a.b"),
            ("*ab", "aab"),
        ] {
            assert!(matches_wildcard(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("unet.conv", "unet.conv_in"),
            ("unet.*.to_v", "unet.to_v"),
            ("a*b*b", "ab"),
            ("ab*ba", "aba"),
            ("a.c", "abc"),
        ] {
            assert!(!matches_wildcard(pattern, text), "{pattern} {text}");
        }
    }
}
