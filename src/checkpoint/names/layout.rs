//! Which tensor of a single file belongs to which component: prefixes of whole models, names of lone parts.

use super::ldm::{self, Geometry};
use super::{Component, from_diffusers, tiny};

/// How files that hold several components tell them apart; the longer of two that fit comes first.
const PREFIXES: [(&str, Component); 9] = [
    ("model.diffusion_model.", Component::Unet),
    ("diffusion_model.", Component::Unet),
    ("unet.", Component::Unet),
    ("first_stage_model.", Component::Vae),
    ("vae.", Component::Vae),
    ("cond_stage_model.transformer.", Component::TextEncoder),
    ("text_encoder.", Component::TextEncoder),
    ("te.", Component::TextEncoder),
    ("transformer.", Component::TextEncoder),
];

/// How a file without prefixes names its one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lone {
    Component(Component),
    /// `encoder` or `decoder` of TAESD, each numbered on its own.
    TinyHalf(&'static str),
}

/// The reading of one file's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    geometry: Geometry,
    lone: Option<Lone>,
    has_ldm_prefixes: bool,
    present: Vec<Component>,
}

impl Layout {
    /// Looks at all names of a file.
    pub fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let mut layout = Self {
            geometry: Geometry::of(names.clone().filter(|name| !is_skipped(name))),
            lone: None,
            has_ldm_prefixes: names.clone().any(|name| name.starts_with("model.diffusion_model.")),
            present: Vec::new(),
        };
        if !names.clone().any(|name| split(name).is_some()) {
            layout.lone = lone(names.clone());
        }
        layout.present = Component::ALL
            .into_iter()
            .filter(|&component| {
                names.clone().any(|name| {
                    layout.canonical(name).is_some_and(|name| Component::of(&name) == Some(component))
                })
            })
            .collect();
        layout
    }

    /// The components some tensors belong to.
    pub fn components(&self) -> &[Component] {
        &self.present
    }

    pub fn has(&self, component: Component) -> bool {
        self.present.contains(&component)
    }

    /// Whether the components are named as in the files of LDM's own code.
    pub fn is_ldm(&self) -> bool {
        self.has_ldm_prefixes
    }

    /// The canonical name of the tensor stored as `name`; `None` for what no network here reads.
    pub fn canonical(&self, name: &str) -> Option<String> {
        if is_skipped(name) {
            return None;
        }
        let (component, rest) = match self.lone {
            Some(Lone::TinyHalf(half)) => {
                return Some(format!("{}.{}", Component::Vae.name(), tiny::to_diffusers(half, name)?));
            }
            Some(Lone::Component(component)) => (component, name),
            None => split(name)?,
        };
        match ldm::to_diffusers(component, rest, self.geometry) {
            Some(name) => from_diffusers(component, &name),
            None => from_diffusers(component, rest),
        }
    }
}

/// Averaged weights of training, the schedule's buffers and numbered positions.
fn is_skipped(name: &str) -> bool {
    ["model_ema.", "first_stage_model.loss.", "loss."].iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with("position_ids")
}

fn split(name: &str) -> Option<(Component, &str)> {
    PREFIXES.iter().find_map(|(prefix, component)| Some((*component, name.strip_prefix(prefix)?)))
}

/// What a file without prefixes holds, by tensors its kind always has.
fn lone<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<Lone> {
    let has = |starts: &[&str]| names.clone().any(|name| starts.iter().any(|start| name.starts_with(start)));
    if has(&["time_embed.", "time_embedding."]) && has(&["input_blocks.", "down_blocks."]) {
        return Some(Lone::Component(Component::Unet));
    }
    if has(&["decoder.conv_in.", "encoder.conv_in.", "decoder.layers.0.weight", "encoder.layers.0.weight"]) {
        return Some(Lone::Component(Component::Vae));
    }
    if has(&["text_model.embeddings.", "embeddings.token_embedding."]) {
        return Some(Lone::Component(Component::TextEncoder));
    }
    tiny::half(names).map(Lone::TinyHalf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(names: &[&str]) -> Vec<Option<String>> {
        let layout = Layout::of(names.iter().copied());
        names.iter().map(|name| layout.canonical(name)).collect()
    }

    #[test]
    fn every_spelling_of_a_component_is_one_name() {
        for names in [
            ["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias"],
            ["unet.conv_out.bias", "vae.quant_conv.bias"],
            ["unet.out.2.bias", "first_stage_model.quant_conv.bias"],
        ] {
            let found = canonical(&names);
            assert_eq!(found[0].as_deref(), Some("unet.conv_out.bias"));
            assert_eq!(found[1].as_deref(), Some("vae.quant_conv.bias"));
        }
        for name in [
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            "cond_stage_model.transformer.final_layer_norm.bias",
            "te.text_model.final_layer_norm.bias",
            "text_encoder.final_layer_norm.bias",
        ] {
            assert_eq!(canonical(&[name])[0].as_deref(), Some("text_encoder.final_layer_norm.bias"));
        }
    }

    #[test]
    fn a_lone_component_needs_no_prefix() {
        let unet = canonical(&["time_embed.0.bias", "input_blocks.0.0.bias"]);
        assert_eq!(unet[1].as_deref(), Some("unet.conv_in.bias"));
        let vae = canonical(&["decoder.conv_in.bias", "decoder.mid.attn_1.q.bias"]);
        assert_eq!(vae[1].as_deref(), Some("vae.decoder.mid_block.attentions.0.to_q.bias"));
        let text =
            canonical(&["text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.bias"]);
        assert_eq!(text[1].as_deref(), Some("text_encoder.final_layer_norm.bias"));
        let tiny = canonical(&["1.weight", "19.bias"]);
        assert_eq!(tiny[1].as_deref(), Some("vae.decoder.layers.18.bias"));
        assert_eq!(canonical(&["something.else"]), [None]);
    }

    #[test]
    fn averages_and_buffers_are_passed_over() {
        let names = [
            "model_ema.diffusion_modelout2bias",
            "betas",
            "alphas_cumprod",
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            "model.diffusion_model.out.2.bias",
        ];
        assert_eq!(canonical(&names).iter().flatten().count(), 1);
    }
}
