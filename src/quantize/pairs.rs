//! Which layers of a UNet share channels whose scale is free: what comes out of one is what others read.

/// What gives a pair its channels, as it is named in a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Giver {
    /// A LayerNorm: its gain and offset.
    Norm(&'static str),
    /// A layer whose outputs reach the readers in a weighted mean over rows, which keeps channels apart: its rows.
    Rows { layer: &'static str, reads: &'static str },
    /// The values of a gated layer, which are multiplied by gates: the first half of its rows.
    Values { layer: &'static str, reads: &'static str },
    /// The prompt's embeddings. Other files may bring the text encoder, and prompts are weighted by the mean of all
    /// channels, so its last norm can't be changed: the readers scale what they read.
    Prompt,
}

/// Channels that may be multiplied by any positive factors where they are given, if the columns of those that read
/// them are divided by the same.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    pub giver: Giver,
    pub readers: &'static [&'static str],
}

/// Of one transformer block of a UNet, as diffusers names its layers.
///
/// Not among them: `to_q` and `to_k`, whose products have twelve bits and more, and whose rows have scales of their
/// own; the group norm before `proj_in`, which is float; whatever SiLU or a residual lies between.
pub const PAIRS: [Pair; 7] = [
    Pair { giver: Giver::Norm("norm1"), readers: &["attn1.to_q", "attn1.to_k", "attn1.to_v"] },
    Pair { giver: Giver::Rows { layer: "attn1.to_v", reads: "norm1" }, readers: &["attn1.to_out.0"] },
    Pair { giver: Giver::Norm("norm2"), readers: &["attn2.to_q"] },
    Pair { giver: Giver::Prompt, readers: &["attn2.to_k", "attn2.to_v"] },
    Pair { giver: Giver::Rows { layer: "attn2.to_v", reads: PROMPT }, readers: &["attn2.to_out.0"] },
    Pair { giver: Giver::Norm("norm3"), readers: &["ff.net.0.proj"] },
    Pair { giver: Giver::Values { layer: "ff.net.0.proj", reads: "norm3" }, readers: &["ff.net.2"] },
];

/// The norm behind which the prompt's embeddings come.
pub const PROMPT: &str = "text_encoder.final_layer_norm";

/// The names of the transformer blocks among `names` of tensors, e.g.
/// `unet.mid_block.attentions.0.transformer_blocks.0`.
pub fn blocks<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let block = |name: &'a str| {
        let block = name.strip_suffix(".norm1.weight")?;
        (block.starts_with("unet.") && block.contains(".transformer_blocks.")).then_some(block)
    };
    names.filter_map(block).collect()
}

/// The full name of `layer` in `block`.
pub fn layer_name(block: &str, layer: &str) -> String {
    if layer == PROMPT { PROMPT.to_owned() } else { format!("{block}.{layer}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_a_unets_transformers() {
        let names = [
            "text_encoder.encoder.layers.0.layer_norm1.weight",
            "unet.down_blocks.0.attentions.0.norm.weight",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.norm1.bias",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.norm1.weight",
            "unet.down_blocks.0.resnets.0.norm1.weight",
        ];
        let block = "unet.down_blocks.0.attentions.0.transformer_blocks.0";
        assert_eq!(blocks(names.into_iter()), [block]);
        assert_eq!(layer_name(block, "ff.net.2"), format!("{block}.ff.net.2"));
        assert_eq!(layer_name(block, PROMPT), "text_encoder.final_layer_norm");
    }

    #[test]
    fn no_layer_reads_two_pairs() {
        let mut readers: Vec<&str> = PAIRS.iter().flat_map(|pair| pair.readers).copied().collect();
        readers.sort_unstable();
        assert!(readers.is_sorted_by(|a, b| a < b), "{readers:?}");
    }
}
