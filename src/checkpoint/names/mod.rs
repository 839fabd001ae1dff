//! The canonical name of every tensor: component, then diffusers' own name in its newest spelling.

mod layout;
pub mod ldm;
pub mod tiny;

pub use layout::Layout;

/// The three networks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    TextEncoder,
    Unet,
    Vae,
}

impl Component {
    pub const ALL: [Self; 3] = [Self::TextEncoder, Self::Unet, Self::Vae];

    /// The component's folder in a diffusers checkpoint and prefix in a native file.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Unet => "unet",
            Self::Vae => "vae",
        }
    }

    /// The component a canonical name belongs to.
    pub fn of(name: &str) -> Option<Self> {
        let (first, _) = name.split_once('.')?;
        Self::ALL.into_iter().find(|component| component.name() == first)
    }
}

/// `component.name` for a tensor of a diffusers folder, or `None` for buffers that hold no weights.
pub fn from_diffusers(component: Component, name: &str) -> Option<String> {
    let name = match component {
        Component::TextEncoder => {
            let name = name.strip_prefix("text_model.").unwrap_or(name);
            if name.ends_with("position_ids") {
                return None;
            }
            name.to_owned()
        }
        Component::Unet => name.to_owned(),
        Component::Vae => vae_attention(name),
    };
    Some(format!("{}.{name}", component.name()))
}

/// The name of a canonical tensor within its component's file in a diffusers folder, as every version reads it.
pub fn to_diffusers(component: Component, name: &str) -> String {
    let name = name.strip_prefix(component.name()).and_then(|name| name.strip_prefix('.')).unwrap_or(name);
    match component {
        Component::TextEncoder => format!("text_model.{name}"),
        Component::Unet | Component::Vae => name.to_owned(),
    }
}

/// The published SD 1.5 folder names the VAE's attention `query, key, value, proj_attn`, newer exports
/// `to_q, to_k, to_v, to_out.0`, LDM files `q, k, v, proj_out`.
fn vae_attention(name: &str) -> String {
    let Some((block, rest)) = name.split_once(".attentions.0.") else { return name.to_owned() };
    let Some((layer, kind)) = rest.rsplit_once('.') else { return name.to_owned() };
    let layer = match layer {
        "query" | "q" => "to_q",
        "key" | "k" => "to_k",
        "value" | "v" => "to_v",
        "proj_attn" | "proj_out" => "to_out.0",
        other => other,
    };
    format!("{block}.attentions.0.{layer}.{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_comes_to_the_newest() {
        for old in ["to_q", "query", "q"] {
            assert_eq!(
                from_diffusers(Component::Vae, &format!("decoder.mid_block.attentions.0.{old}.weight"))
                    .unwrap(),
                "vae.decoder.mid_block.attentions.0.to_q.weight"
            );
        }
        assert_eq!(
            from_diffusers(Component::TextEncoder, "text_model.final_layer_norm.bias").unwrap(),
            "text_encoder.final_layer_norm.bias"
        );
        assert_eq!(from_diffusers(Component::TextEncoder, "text_model.embeddings.position_ids"), None);
    }

    #[test]
    fn names_return_to_diffusers() {
        for (name, component, expected) in [
            ("unet.conv_in.weight", Component::Unet, "conv_in.weight"),
            ("vae.decoder.conv_in.bias", Component::Vae, "decoder.conv_in.bias"),
            (
                "text_encoder.final_layer_norm.bias",
                Component::TextEncoder,
                "text_model.final_layer_norm.bias",
            ),
        ] {
            assert_eq!(Component::of(name), Some(component));
            assert_eq!(to_diffusers(component, name), expected);
            assert_eq!(from_diffusers(component, expected).unwrap(), name);
        }
        assert_eq!(Component::of("unetty.conv_in.weight"), None);
    }
}
