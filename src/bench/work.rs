//! The multiply-accumulates of a picture's parts, as the networks' descriptions imply them.

use anyhow::Result;

use super::Options;
use crate::checkpoint::Checkpoint;
use crate::layers::meter::Macs;
use crate::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use crate::networks::graph::{Extent, Prompts};
use crate::networks::{autoencoder, clip, unet};

/// What one run of each part multiplies.
pub struct Work {
    /// All prompts, and the UNet's keys and values of them.
    pub text_encoder: Macs,
    pub unet_step: Macs,
    pub vae_decode: Macs,
}

impl Work {
    /// Of pictures whose prompts take one chunk each.
    ///
    /// # Errors
    /// Names what in the configs is not supported.
    pub fn of(checkpoint: &Checkpoint, options: &Options) -> Result<Self> {
        let configs = checkpoint.configs();
        let (unet, vae) = (UnetConfig::parse(&configs.unet)?, VaeConfig::parse(&configs.vae)?);
        let clip = ClipConfig::parse(&configs.text_encoder)?;
        // A UNet that takes the guidance scale as an input is asked once.
        let count = if unet.guidance_channels.is_some() { 1 } else { 2 };
        let prompts = Prompts { count, tokens: clip.max_position_embeddings };
        let factor = vae.factor();
        let (height, width) = (options.height / factor, options.width / factor);
        let graph = unet::describe(&unet);
        let chunks = Extent { batch: count, height: 1, width: prompts.tokens };
        let text_encoder = clip::describe(&clip).macs(&[chunks], Prompts::default());
        let latents = Extent { batch: 1, height, width };
        let decoder = autoencoder::describe_decoder(&vae);
        Ok(Self {
            text_encoder: text_encoder.plus(&graph.prompt_macs(prompts)),
            unet_step: graph.macs(&unet::extents(&unet, latents), prompts),
            vae_decode: decoder.macs(&[latents], Prompts::default()),
        })
    }
}
