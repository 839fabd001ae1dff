//! The layer an adapter's key means, in every spelling in use: kohya's, PEFT's, diffusers' old one.

use std::collections::HashMap;

use super::super::names::Component;
use super::super::tensors::TensorSet;

/// The weights adapters can change, by their names with underscores for dots.
pub struct LayerNames(HashMap<String, String>);

impl LayerNames {
    /// All layers of the UNet and the text encoder among `tensors`.
    pub fn new(tensors: &TensorSet) -> Self {
        let weights = || {
            tensors.parameters().filter(|name| {
                name.ends_with(".weight") && tensors.view(name).is_ok_and(|view| view.shape.len() >= 2)
            })
        };
        let resnet = |name: &str| {
            let rest = name.strip_prefix("unet.down_blocks.0.resnets.")?;
            rest.split_once('.')?.0.parse::<u8>().ok().map(usize::from)
        };
        let per_block = weights().filter_map(resnet).max().map_or(2, |last| last + 1);
        let mut layers = HashMap::new();
        for name in weights() {
            let Some(layer) = name.strip_suffix(".weight") else { continue };
            match Component::of(name) {
                Some(Component::Unet) => {
                    let layer = layer.trim_start_matches("unet.");
                    layers.insert(flat("unet", layer), name.to_owned());
                    let attends =
                        |block: &str| tensors.contains(&format!("unet.{block}.attentions.0.proj_in.weight"));
                    if let Some(ldm) = ldm(layer, per_block, attends) {
                        layers.insert(flat("unet", &ldm), name.to_owned());
                    }
                }
                Some(Component::TextEncoder) => {
                    let layer = layer.trim_start_matches("text_encoder.");
                    layers.insert(flat("te", layer), name.to_owned());
                }
                Some(Component::Vae) | None => {}
            }
        }
        Self(layers)
    }

    /// The canonical name of the weight that the key stem `stem` (without `.lora_down.weight` or the like) means.
    pub fn find(&self, stem: &str) -> Option<&str> {
        candidates(stem).iter().find_map(|name| self.0.get(name)).map(String::as_str)
    }
}

fn flat(component: &str, layer: &str) -> String {
    format!("{component}_{}", layer.replace('.', "_"))
}

/// What a key's stem can stand for.
fn candidates(stem: &str) -> Vec<String> {
    let stem = stem.strip_prefix("base_model.model.").unwrap_or(stem);
    let flat = stem.replace(".processor.", ".").replace('.', "_");
    let mut found = Vec::new();
    let after = |prefixes: &[&str]| prefixes.iter().find_map(|prefix| flat.strip_prefix(prefix));
    let unet = after(&["lora_unet_", "lycoris_unet_", "unet_", "model_diffusion_model_", "diffusion_model_"]);
    let text = after(&["lora_te_", "lycoris_te_", "lora_te1_", "text_encoder_", "te_"]);
    if let Some(layer) = unet.or(if text.is_none() { Some(flat.as_str()) } else { None }) {
        let layer = layer.strip_prefix("base_model_model_").unwrap_or(layer);
        found.push(format!("unet_{layer}"));
        // diffusers' first processors had one `to_out_lora` for `to_out.0`.
        found.push(format!("unet_{layer}_0"));
    }
    if let Some(layer) = text.or(if unet.is_none() { Some(flat.as_str()) } else { None }) {
        let layer = layer.strip_prefix("base_model_model_").unwrap_or(layer);
        let layer = layer.strip_prefix("text_model_").unwrap_or(layer);
        found.push(format!("te_{layer}"));
        if let Some((block, projection)) = layer.rsplit_once("_to_") {
            found.push(format!("te_{block}_{projection}_proj"));
        }
    }
    found
}

/// The LDM name of a layer of the UNet with `per_block` resnets in each block on the way down; `attends` tells
/// whether a block has attentions. `None` for layers LDM does not have.
fn ldm(layer: &str, per_block: usize, attends: impl Fn(&str) -> bool) -> Option<String> {
    match layer {
        "conv_in" => return Some("input_blocks.0.0".to_owned()),
        "conv_out" => return Some("out.2".to_owned()),
        "time_embedding.linear_1" => return Some("time_embed.0".to_owned()),
        "time_embedding.linear_2" => return Some("time_embed.2".to_owned()),
        _ => {}
    }
    let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number < 1000);
    if let Some(rest) = layer.strip_prefix("mid_block.") {
        let (kind, rest) = rest.split_once('.')?;
        let (index, inner) = rest.split_once('.')?;
        return Some(match kind {
            "resnets" => format!("middle_block.{}.{}", 2 * number(index)?, resnet_part(inner)),
            "attentions" => format!("middle_block.1.{inner}"),
            _ => return None,
        });
    }
    let (side, rest) = layer.split_once('.')?;
    let (block, rest) = rest.split_once('.')?;
    let (kind, rest) = rest.split_once('.')?;
    let (index, inner) = rest.split_once('.')?;
    let name = format!("{side}.{block}");
    let (block, index) = (number(block)?, number(index)?);
    let (up, down) = ((per_block + 1) * block, (per_block + 1) * block + 1);
    Some(match (side, kind) {
        ("down_blocks", "resnets") => format!("input_blocks.{}.0.{}", down + index, resnet_part(inner)),
        ("down_blocks", "attentions") => format!("input_blocks.{}.1.{inner}", down + index),
        ("down_blocks", "downsamplers") => format!("input_blocks.{}.0.op", down + per_block),
        ("up_blocks", "resnets") => format!("output_blocks.{}.0.{}", up + index, resnet_part(inner)),
        ("up_blocks", "attentions") => format!("output_blocks.{}.1.{inner}", up + index),
        ("up_blocks", "upsamplers") => {
            format!("output_blocks.{}.{}.conv", up + per_block, if attends(&name) { 2 } else { 1 })
        }
        _ => return None,
    })
}

fn resnet_part(name: &str) -> &str {
    match name {
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldm_blocks() {
        for (diffusers, expected) in [
            ("conv_in", "input_blocks.0.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            ("down_blocks.1.attentions.1.proj_in", "input_blocks.5.1.proj_in"),
            ("down_blocks.3.resnets.1.time_emb_proj", "input_blocks.11.0.emb_layers.1"),
            ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
            (
                "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
                "middle_block.1.transformer_blocks.0.ff.net.2",
            ),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
            ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
            ("up_blocks.3.resnets.2.conv_shortcut", "output_blocks.11.0.skip_connection"),
            ("conv_out", "out.2"),
        ] {
            let found = ldm(diffusers, 2, |block| block != "up_blocks.0").unwrap();
            assert_eq!(found, expected, "{diffusers}");
        }
        assert_eq!(ldm("add_embedding.linear_1", 2, |_| true), None);
    }

    #[test]
    fn every_spelling_is_a_candidate() {
        let unet = "unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
        for stem in [
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q",
            "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q",
            "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            "base_model.model.unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            "unet.base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        ] {
            assert!(candidates(stem).contains(&unet.to_owned()), "{stem}");
        }
        let text = "te_encoder_layers_0_self_attn_q_proj";
        for stem in [
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
            "text_encoder.encoder.layers.0.self_attn.q_proj",
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q",
            "base_model.model.text_model.encoder.layers.0.self_attn.q_proj",
        ] {
            assert!(candidates(stem).contains(&text.to_owned()), "{stem}");
        }
    }
}
