//! Models of other families, recognized by the names and shapes of their tensors and refused by name.

use anyhow::{Result, bail};

use super::file::TensorFile;
use super::names::{Component, Layout};

/// Parts of names that only one family has; a file of several families' parts is the first of them.
const FAMILIES: [(&str, &str); 20] = [
    ("conditioner.embedders.", SDXL),
    ("add_embedding.linear_1.", SDXL),
    ("label_emb.", SDXL),
    ("text_encoder_2.", SDXL),
    ("double_blocks.", FLUX),
    ("single_transformer_blocks.", FLUX),
    ("joint_blocks.", SD3),
    ("context_embedder.", SD3),
    ("time_stack.", "a Stable Video Diffusion model"),
    ("temporal_transformer_blocks.", "a video model"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("cond_stage_model.model.", SD2),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("zero_convs.", "a ControlNet"),
    ("ip_adapter.", "an IP-Adapter"),
    ("image_proj.", "an IP-Adapter"),
    ("caption_projection.", "a PixArt model"),
    ("effnet_mapper.", "a Stable Cascade model"),
    ("vision_model.", "an image encoder"),
];

pub const SD2: &str = "a Stable Diffusion 2 model";
pub const SDXL: &str = "a Stable Diffusion XL model";
const SD3: &str = "a Stable Diffusion 3 model";
const FLUX: &str = "a Flux model";

/// Fails if `file`, read by `layout`, is of a family or kind that is not supported.
///
/// # Errors
/// Says what it is.
pub fn check(file: &TensorFile, layout: &Layout) -> Result<()> {
    // Some whole models carry a filter with an image encoder of its own.
    let names = || file.names().filter(|name| !name.starts_with("safety_checker."));
    let has = |part: &str| names().any(|name| name.contains(part));
    if ["lora_up.", "lora_A.", "lora.up.", "lora_down.", "hada_w1", "lokr_w"].iter().any(|part| has(part)) {
        bail!("it is a LoRA, which changes a model: pass it with --lora beside a model");
    }
    if ["emb_params", "string_to_param"].iter().any(|name| file.shape(name).is_some()) {
        bail!("it is a textual inversion, not a model: pass it with --embedding beside a model");
    }
    if let Some((_, what)) = FAMILIES.iter().find(|(part, _)| has(part)) {
        bail!("it is {what}; pochade reads Stable Diffusion 1.x");
    }
    for name in file.names() {
        let Some(canonical) = layout.canonical(name) else { continue };
        let (Some(component), Some(shape)) = (Component::of(&canonical), file.shape(name)) else { continue };
        check_shape(component, &canonical, shape)?;
    }
    Ok(())
}

/// The tensors whose sizes tell the published families apart.
fn check_shape(component: Component, name: &str, shape: &[usize]) -> Result<()> {
    let what = match (component, shape) {
        (Component::Unet, [_, context, ..]) if name.ends_with(".attn2.to_k.weight") => {
            of_context(*context as u64)
        }
        (Component::TextEncoder, [_, 1024]) if name.ends_with("token_embedding.weight") => {
            Some("the text encoder of Stable Diffusion 2")
        }
        (Component::TextEncoder, [_, 1280]) if name.ends_with("token_embedding.weight") => {
            Some("the second text encoder of Stable Diffusion XL")
        }
        (Component::Vae, [_, 16, 3, 3]) if name == "vae.decoder.conv_in.weight" => {
            Some("an autoencoder of 16 latent channels, as in Stable Diffusion 3 and Flux")
        }
        (Component::Unet, _) if name.contains(".transformer_blocks.1.") => {
            Some("a UNet with several transformers in a row, as in Stable Diffusion XL")
        }
        _ => None,
    };
    match what {
        Some(what) => bail!("it is {what}; pochade reads Stable Diffusion 1.x"),
        None => Ok(()),
    }
}

/// The family whose text embeddings have `channels`.
pub fn of_context(channels: u64) -> Option<&'static str> {
    match channels {
        1024 => Some(SD2),
        1280 | 2048 => Some(SDXL),
        _ => None,
    }
}

/// The family of a diffusers pipeline class, if it is not Stable Diffusion 1.x.
pub fn of_pipeline(class: &str) -> Option<&'static str> {
    for (part, what) in [
        ("StableDiffusionXL", SDXL),
        ("StableDiffusion3", SD3),
        ("Flux", FLUX),
        ("StableVideoDiffusion", "a Stable Video Diffusion model"),
        ("StableCascade", "a Stable Cascade model"),
        ("Wuerstchen", "a Wuerstchen model"),
        ("PixArt", "a PixArt model"),
        ("Kandinsky", "a Kandinsky model"),
        ("Sana", "a Sana model"),
        ("AuraFlow", "an AuraFlow model"),
        ("Lumina", "a Lumina model"),
        ("QwenImage", "a Qwen-Image model"),
        ("DeepFloyd", "a DeepFloyd IF model"),
        ("ZImage", "a Z-Image model"),
        ("ControlNet", "a ControlNet pipeline"),
        ("Upscale", "an upscaler"),
        ("InstructPix2Pix", "an InstructPix2Pix model"),
        ("Depth2Img", "a depth-to-image model"),
    ] {
        if class.contains(part) {
            return Some(what);
        }
    }
    None
}
