//! What becomes of a tensor by its name, unless a rule says otherwise; rules are in `policy`.

/// What becomes of a tensor in a quantized model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Stays float.
    Float,
    /// Stays float unless a rule names it: then [`Self::Stored`], with no fewer than eight bits.
    Sensitive,
    /// Small in the file and dequantized when it is loaded: inputs and products are float.
    Stored,
    /// Multiplied in int8 with quantized inputs.
    Computed,
}

/// The default treatment of the tensor called `name`: what the published per-layer measurements (`MixDQ`, Zhao
/// et al. 2024) and our own call for.
pub(super) fn treatment(name: &str) -> Treatment {
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

/// The first and the last convolution are too sensitive, and small. The projections of the time embedding run once per
/// step: only their weights, which take rounding well, are worth shrinking.
///
/// Nothing goes around the shortcuts on the way up. Those of the widest maps are 1.4 % of SD 1.5's products and
/// nearly half of the error that int8 brings into the output: in float they raise its SQNR by 2 dB. What enters a
/// transformer is as cheap (1.6 %) and worth 1 dB. Inputs in bytes bring most of that: weights alone may be small.
fn unet(layer: &str) -> Treatment {
    let late = layer.starts_with("up_blocks.2.") || layer.starts_with("up_blocks.3.");
    if matches!(layer, "conv_in" | "conv_out") || is_norm(layer) {
        Treatment::Float
    } else if layer.starts_with("time_embedding.")
        || (late && layer.ends_with(".conv_shortcut"))
        || layer.ends_with(".proj_in")
    {
        Treatment::Sensitive
    } else if layer.ends_with(".time_emb_proj") {
        Treatment::Stored
    } else {
        Treatment::Computed
    }
}

/// Inputs are never bytes: products are of floats, or of 16-bit integers where these are as fast, and their errors are
/// not seen in the picture. Convolutions that a residual goes around are small in the file: rounding the others reaches
/// every pixel undiminished.
fn vae(layer: &str) -> Treatment {
    let resnet = layer.contains(".resnets.") && (layer.ends_with(".conv1") || layer.ends_with(".conv2"));
    let tiny = layer.contains(".layers.");
    let ends = ["conv_in", "conv_out", "quant_conv"].iter().any(|end| layer.ends_with(end));
    if resnet || (tiny && layer.contains(".conv.")) {
        Treatment::Stored
    } else if ends || tiny || is_norm(layer) {
        Treatment::Float
    } else {
        Treatment::Sensitive
    }
}

/// `norm1`, `group_norm`, `conv_norm_out`, `final_layer_norm`, …
fn is_norm(layer: &str) -> bool {
    let last = layer.rsplit('.').next().unwrap_or(layer);
    last.contains("norm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_treated_by_their_names() {
        use Treatment::{Computed, Float, Sensitive, Stored};
        for (name, expected) in [
            ("unet.conv_in.weight", Float),
            ("unet.conv_out.weight", Float),
            ("unet.conv_norm_out.weight", Float),
            ("unet.time_embedding.linear_1.weight", Sensitive),
            ("unet.down_blocks.0.resnets.0.time_emb_proj.weight", Stored),
            ("unet.down_blocks.0.resnets.0.norm1.weight", Float),
            ("unet.down_blocks.0.resnets.0.conv1.weight", Computed),
            ("unet.down_blocks.1.resnets.0.conv_shortcut.weight", Computed),
            ("unet.up_blocks.3.resnets.0.conv_shortcut.weight", Sensitive),
            ("unet.up_blocks.3.resnets.0.conv1.weight", Computed),
            ("unet.down_blocks.0.resnets.0.conv1.bias", Float),
            ("unet.down_blocks.0.attentions.0.norm.weight", Float),
            ("unet.down_blocks.0.attentions.0.proj_in.weight", Sensitive),
            ("unet.down_blocks.0.attentions.0.proj_out.weight", Computed),
            ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight", Computed),
            ("text_encoder.embeddings.token_embedding.weight", Stored),
            ("text_encoder.embeddings.position_embedding.weight", Float),
            ("text_encoder.encoder.layers.0.layer_norm1.weight", Float),
            ("text_encoder.encoder.layers.0.mlp.fc1.weight", Stored),
            ("vae.quant_conv.weight", Float),
            ("vae.post_quant_conv.weight", Float),
            ("vae.decoder.mid_block.attentions.0.group_norm.weight", Float),
            ("vae.decoder.conv_in.weight", Float),
            ("vae.decoder.mid_block.attentions.0.to_q.weight", Sensitive),
            ("vae.decoder.up_blocks.0.upsamplers.0.conv.weight", Sensitive),
            ("vae.decoder.up_blocks.2.resnets.0.conv_shortcut.weight", Sensitive),
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
}
