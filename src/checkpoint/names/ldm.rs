//! The names of LDM's single files (Rombach et al. 2022) in diffusers' words, for any number of levels and layers.

use super::Component;

/// What of a model's geometry its LDM names depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Resnets of each of the UNet's levels on the way down.
    pub layers_per_block: usize,
    /// Levels of the VAE.
    pub vae_levels: usize,
}

impl Geometry {
    pub const SD15: Self = Self { layers_per_block: 2, vae_levels: 4 };

    /// Read off the names: the first downsampler closes the first level, the VAE's levels are numbered.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut first_downsampler = None;
        let mut vae_levels = None;
        for name in names {
            if let Some((number, rest)) = numbered(name, "input_blocks.")
                && rest.starts_with("0.op.")
            {
                first_downsampler = Some(first_downsampler.map_or(number, |first: usize| first.min(number)));
            }
            for levels in ["decoder.up.", "encoder.down."] {
                if let Some((number, _)) = numbered(name, levels) {
                    vae_levels = vae_levels.max(Some(number + 1));
                }
            }
        }
        Self {
            layers_per_block: first_downsampler.map_or(Self::SD15.layers_per_block, |n| n.max(2) - 1),
            vae_levels: vae_levels.unwrap_or(Self::SD15.vae_levels),
        }
    }
}

/// The number after the first `prefix` in `name`, and what follows its dot.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.split_once(prefix)?.1.split_once('.')?;
    // No network has more parts; a larger number is damage.
    Some((usize::from(number.parse::<u8>().ok()?), rest))
}

/// The diffusers name for what an LDM file calls `name` within `component`; `None` for names that are not LDM's.
pub fn to_diffusers(component: Component, name: &str, geometry: Geometry) -> Option<String> {
    match component {
        // Both take the text encoder as transformers names it.
        Component::TextEncoder => None,
        Component::Unet => unet(name, geometry.layers_per_block),
        Component::Vae => vae(name, geometry.vae_levels),
    }
}

fn unet(name: &str, layers: usize) -> Option<String> {
    for (ldm, diffusers) in [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("time_embed.cond_proj.", "time_embedding.cond_proj."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
        ("middle_block.1.", "mid_block.attentions.0."),
    ] {
        if let Some(rest) = name.strip_prefix(ldm) {
            return Some(format!("{diffusers}{rest}"));
        }
    }
    for (ldm, index) in [("middle_block.0.", 0), ("middle_block.2.", 1)] {
        if let Some(rest) = name.strip_prefix(ldm) {
            return Some(format!("mid_block.resnets.{index}.{}", resnet(rest)));
        }
    }
    if let Some(rest) = name.strip_prefix("input_blocks.") {
        let (number, rest) = rest.split_once('.')?;
        let number = number.parse::<usize>().ok()?.checked_sub(1)?;
        let block = format!("down_blocks.{}", number / (layers + 1));
        let layer = number % (layers + 1);
        return match rest.split_once('.')? {
            ("0", rest) if layer == layers => {
                Some(format!("{block}.downsamplers.0.conv.{}", rest.strip_prefix("op.")?))
            }
            ("0", rest) => Some(format!("{block}.resnets.{layer}.{}", resnet(rest))),
            ("1", rest) => Some(format!("{block}.attentions.{layer}.{rest}")),
            _ => None,
        };
    }
    let (number, rest) = name.strip_prefix("output_blocks.")?.split_once('.')?;
    let number = number.parse::<usize>().ok()?;
    let block = format!("up_blocks.{}", number / (layers + 1));
    let layer = number % (layers + 1);
    match rest.split_once('.')? {
        ("0", rest) => Some(format!("{block}.resnets.{layer}.{}", resnet(rest))),
        // The upsampler follows the transformer, or takes its place where there is none.
        ("1" | "2", rest) if rest.starts_with("conv.") => Some(format!("{block}.upsamplers.0.{rest}")),
        ("1", rest) => Some(format!("{block}.attentions.{layer}.{rest}")),
        _ => None,
    }
}

/// The parts of the UNet's resnets.
fn resnet(name: &str) -> String {
    for (ldm, diffusers) in [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("emb_layers.1.", "time_emb_proj."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("skip_connection.", "conv_shortcut."),
    ] {
        if let Some(rest) = name.strip_prefix(ldm) {
            return format!("{diffusers}{rest}");
        }
    }
    name.to_owned()
}

fn vae(name: &str, levels: usize) -> Option<String> {
    let (half, rest) = name.split_once('.')?;
    if half != "encoder" && half != "decoder" {
        return None;
    }
    if let Some(rest) = rest.strip_prefix("norm_out.") {
        return Some(format!("{half}.conv_norm_out.{rest}"));
    }
    if let Some(rest) = rest.strip_prefix("mid.") {
        let (part, rest) = rest.split_once('.')?;
        return match part {
            "block_1" => Some(format!("{half}.mid_block.resnets.0.{rest}")),
            "block_2" => Some(format!("{half}.mid_block.resnets.1.{rest}")),
            "attn_1" => {
                let rest =
                    rest.strip_prefix("norm.").map_or(rest.to_owned(), |rest| format!("group_norm.{rest}"));
                Some(format!("{half}.mid_block.attentions.0.{rest}"))
            }
            _ => None,
        };
    }
    let (way, rest) = rest.split_once('.')?;
    let (number, rest) = rest.split_once('.')?;
    let number = number.parse::<usize>().ok()?;
    let block = match way {
        "down" => format!("{half}.down_blocks.{number}"),
        // Numbered by resolution, where diffusers counts in the order they run.
        "up" => format!("{half}.up_blocks.{}", levels.checked_sub(number.checked_add(1)?)?),
        _ => return None,
    };
    if let Some(rest) = rest.strip_prefix("downsample.") {
        return Some(format!("{block}.downsamplers.0.{rest}"));
    }
    if let Some(rest) = rest.strip_prefix("upsample.") {
        return Some(format!("{block}.upsamplers.0.{rest}"));
    }
    let rest = rest.strip_prefix("block.")?.replace("nin_shortcut.", "conv_shortcut.");
    Some(format!("{block}.resnets.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_geometry_is_read_off_the_names() {
        let of = |names: &[&str]| Geometry::of(names.iter().copied());
        assert_eq!(of(&[]), Geometry::SD15);
        let names = [
            "x.input_blocks.4.0.op.weight",
            "x.input_blocks.2.0.op.weight",
            "decoder.up.2.block.0.conv1.bias",
        ];
        assert_eq!(of(&names), Geometry { layers_per_block: 1, vae_levels: 3 });
        let damaged =
            ["input_blocks.99999999999999999999.0.op.weight", "input_blocks.0.0.op.weight", "decoder.up..x"];
        assert_eq!(of(&damaged), Geometry { layers_per_block: 1, vae_levels: 4 });
    }

    #[test]
    fn numbers_depend_on_the_layers() {
        let name = |name: &str, layers| unet(name, layers).unwrap();
        assert_eq!(name("input_blocks.4.0.in_layers.2.bias", 2), "down_blocks.1.resnets.0.conv1.bias");
        assert_eq!(name("input_blocks.4.0.op.bias", 1), "down_blocks.1.downsamplers.0.conv.bias");
        assert_eq!(name("output_blocks.2.1.conv.weight", 2), "up_blocks.0.upsamplers.0.conv.weight");
        assert_eq!(name("output_blocks.5.2.conv.weight", 2), "up_blocks.1.upsamplers.0.conv.weight");
        assert_eq!(unet("input_blocks.0.1.op.bias", 2), None);
        assert_eq!(unet("conv_in.weight", 2), None);
        assert_eq!(vae("decoder.up.9.block.0.conv1.bias", 4), None);
    }
}
