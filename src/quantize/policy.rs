//! Which weights become int8, by their canonical names, and which of those are also computed in int8.

use anyhow::{Result, bail};

/// What becomes of a tensor in an int8 model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Stays float.
    Float,
    /// Small in the file and dequantized when it is loaded: inputs and products are float.
    Stored,
    /// Multiplied in int8 with quantized inputs.
    Computed,
}

/// What a weight comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Floats.
    Float,
    /// Floats of a model whose other weights are int8: kept for a reason.
    Kept,
    Int8,
}

/// The default treatment of every tensor and the user's exceptions to it.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    keep: Vec<String>,
}

impl Policy {
    /// Layers whose names match one of `keep` stay float. A `*` in a pattern stands for any characters, dots
    /// included; everything else stands for itself. A pattern names a weight or the layer it belongs to.
    pub fn keeping(keep: &[String]) -> Self {
        Self { keep: keep.to_vec() }
    }

    /// # Errors
    /// Names the first pattern that none of `names` matches.
    pub fn check<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        for pattern in &self.keep {
            if !names.clone().any(|name| keeps(pattern, name)) {
                bail!("no layer matches '{pattern}' (e.g. unet.conv_in, unet.mid_block.*, *.to_v)");
            }
        }
        Ok(())
    }

    /// Whether the tensor called `name` is written as int8: a vector has no outputs to scale one by one.
    pub fn stores_int8(&self, name: &str, shape: &[usize]) -> bool {
        shape.len() >= 2 && self.treatment(name) != Treatment::Float
    }

    /// Whether the weight called `name`, which comes from `origin`, is multiplied in int8 where anything is. Loading,
    /// simulating and estimating memory all ask here.
    pub fn computes_int8(&self, name: &str, origin: Origin) -> bool {
        origin != Origin::Kept && self.treatment(name) == Treatment::Computed
    }

    /// The treatment of the tensor called `name`.
    pub fn treatment(&self, name: &str) -> Treatment {
        match treatment(name) {
            Treatment::Float => Treatment::Float,
            _ if self.keep.iter().any(|pattern| keeps(pattern, name)) => Treatment::Float,
            treatment => treatment,
        }
    }
}

/// The default treatment of the tensor called `name`: what the published per-layer measurements (`MixDQ`, Zhao
/// et al. 2024) and our own call for.
fn treatment(name: &str) -> Treatment {
    let Some(layer) = name.strip_suffix(".weight") else { return Treatment::Float };
    let Some((component, layer)) = layer.split_once('.') else { return Treatment::Float };
    match component {
        "text_encoder" => text_encoder(layer),
        "unet" => unet(layer),
        "vae" => vae(layer),
        _ => Treatment::Float,
    }
}

/// Runs once per prompt, so nothing is gained by int8 products, but it would be a fifth of the file.
fn text_encoder(layer: &str) -> Treatment {
    if is_norm(layer) || layer.ends_with("position_embedding") { Treatment::Float } else { Treatment::Stored }
}

/// The first and the last convolution and the time embedding are too sensitive, and cheap. The projections of
/// the time embedding run once per step: only their weights, which take rounding well, are worth shrinking.
///
/// Nothing goes around the shortcuts on the way up. Those of the widest maps are 1.4 % of SD 1.5's products and
/// nearly half of the error that int8 brings into the output: in float they raise its SQNR by 2 dB. What enters a
/// transformer is as cheap (1.6 %) and worth 1 dB.
fn unet(layer: &str) -> Treatment {
    let late = layer.starts_with("up_blocks.2.") || layer.starts_with("up_blocks.3.");
    let ends = matches!(layer, "conv_in" | "conv_out")
        || (late && layer.ends_with(".conv_shortcut"))
        || layer.ends_with(".proj_in");
    if ends || is_norm(layer) || layer.starts_with("time_embedding.") {
        Treatment::Float
    } else if layer.ends_with(".time_emb_proj") {
        Treatment::Stored
    } else {
        Treatment::Computed
    }
}

/// Inputs are never bytes: products are of floats, or of 16-bit integers where these are as fast, and their errors are
/// not seen in the picture. Only convolutions that a residual goes around are small in the file: rounding the others
/// would reach every pixel undiminished.
fn vae(layer: &str) -> Treatment {
    let resnet = layer.contains(".resnets.") && (layer.ends_with(".conv1") || layer.ends_with(".conv2"));
    let tiny_block = layer.contains(".layers.") && layer.contains(".conv.");
    if resnet || tiny_block { Treatment::Stored } else { Treatment::Float }
}

/// `norm1`, `group_norm`, `conv_norm_out`, `final_layer_norm`, …
fn is_norm(layer: &str) -> bool {
    let last = layer.rsplit('.').next().unwrap_or(layer);
    last.contains("norm")
}

/// Whether `pattern` names the weight `name` or its layer.
fn keeps(pattern: &str, name: &str) -> bool {
    let Some(layer) = name.strip_suffix(".weight") else { return false };
    matches_wildcard(pattern, name) || matches_wildcard(pattern, layer)
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
    fn sensitive_layers_stay_float() {
        use Treatment::{Computed, Float, Stored};
        for (name, expected) in [
            ("unet.conv_in.weight", Float),
            ("unet.conv_out.weight", Float),
            ("unet.conv_norm_out.weight", Float),
            ("unet.time_embedding.linear_1.weight", Float),
            ("unet.down_blocks.0.resnets.0.time_emb_proj.weight", Stored),
            ("unet.down_blocks.0.resnets.0.norm1.weight", Float),
            ("unet.down_blocks.0.resnets.0.conv1.weight", Computed),
            ("unet.down_blocks.1.resnets.0.conv_shortcut.weight", Computed),
            ("unet.up_blocks.3.resnets.0.conv_shortcut.weight", Float),
            ("unet.up_blocks.3.resnets.0.conv1.weight", Computed),
            ("unet.down_blocks.0.resnets.0.conv1.bias", Float),
            ("unet.down_blocks.0.attentions.0.norm.weight", Float),
            ("unet.down_blocks.0.attentions.0.proj_in.weight", Float),
            ("unet.down_blocks.0.attentions.0.proj_out.weight", Computed),
            ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight", Computed),
            ("text_encoder.embeddings.token_embedding.weight", Stored),
            ("text_encoder.embeddings.position_embedding.weight", Float),
            ("text_encoder.encoder.layers.0.layer_norm1.weight", Float),
            ("text_encoder.encoder.layers.0.mlp.fc1.weight", Stored),
            ("vae.quant_conv.weight", Float),
            ("vae.decoder.conv_in.weight", Float),
            ("vae.decoder.mid_block.attentions.0.to_q.weight", Float),
            ("vae.decoder.up_blocks.0.upsamplers.0.conv.weight", Float),
            ("vae.decoder.up_blocks.2.resnets.0.conv_shortcut.weight", Float),
            ("vae.decoder.up_blocks.2.resnets.0.conv2.weight", Stored),
            ("vae.encoder.down_blocks.0.resnets.0.conv1.weight", Stored),
            ("vae.decoder.layers.0.weight", Float),
            ("vae.decoder.layers.10.conv.2.weight", Stored),
            ("vae.encoder.layers.1.conv.0.weight", Stored),
            ("safety_checker.visual_projection.weight", Float),
        ] {
            assert_eq!(treatment(name), expected, "{name}");
        }
    }

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
