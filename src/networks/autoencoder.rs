//! Either autoencoder behind one interface: scaled latents in and a picture out, or the other way.

use anyhow::Result;
use candle_core::Tensor;

use super::config::VaeConfig;
use super::graph::Graph;
use super::strips::Strips;
use super::{taesd, vae};
use crate::layers::Params;
use crate::noise::NoiseSource;

/// From unscaled latents to a picture.
pub fn describe_decoder(config: &VaeConfig) -> Graph {
    match config {
        VaeConfig::Kl(config) => vae::describe_decoder(config),
        VaeConfig::Tiny(config) => taesd::describe_decoder(config),
    }
}

/// From a picture to what its latents are sampled from.
pub fn describe_encoder(config: &VaeConfig) -> Graph {
    match config {
        VaeConfig::Kl(config) => vae::describe_encoder(config),
        VaeConfig::Tiny(config) => taesd::describe_encoder(config),
    }
}

enum Decoder {
    Kl(Box<vae::Decoder>),
    Tiny(Box<taesd::Decoder>),
}

/// Decodes latents as the sampler leaves them.
pub struct LatentDecoder {
    decoder: Decoder,
    scaling_factor: f64,
}

impl LatentDecoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &VaeConfig) -> Result<Self> {
        let decoder = match config {
            VaeConfig::Kl(config) => Decoder::Kl(Box::new(vae::Decoder::load(params, config)?)),
            VaeConfig::Tiny(config) => Decoder::Tiny(Box::new(taesd::Decoder::load(params, config)?)),
        };
        Ok(Self { decoder, scaling_factor: config.scaling_factor() })
    }

    /// `[batch, latent, h, w]` to `[batch, 3, h * factor, w * factor]`, about -1 to 1.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let unscaled = (latents / self.scaling_factor)?;
        match &self.decoder {
            Decoder::Kl(decoder) => decoder.forward(&unscaled),
            Decoder::Tiny(decoder) => decoder.forward(&unscaled),
        }
    }

    /// The same for one picture in less memory, without seams and almost to the last bit.
    pub fn decode_in_strips(&self, latents: &Tensor, strips: Strips) -> Result<Tensor> {
        let unscaled = (latents / self.scaling_factor)?;
        match &self.decoder {
            Decoder::Kl(decoder) => decoder.forward_in_strips(&unscaled, strips),
            Decoder::Tiny(decoder) => decoder.forward_in_strips(&unscaled, strips),
        }
    }
}

enum Encoder {
    Kl(Box<vae::Encoder>),
    Tiny(Box<taesd::Encoder>),
}

/// Encodes pictures into latents as the sampler takes them.
pub struct LatentEncoder {
    encoder: Encoder,
    scaling_factor: f64,
}

/// The latents a picture may have: known ones, or normally distributed around them.
pub struct Posterior {
    /// `[batch, latent, h, w]`
    mean: Tensor,
    /// Of the same shape; the tiny autoencoder has none.
    deviation: Option<Tensor>,
}

impl LatentEncoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &VaeConfig) -> Result<Self> {
        let encoder = match config {
            VaeConfig::Kl(config) => Encoder::Kl(Box::new(vae::Encoder::load(params, config)?)),
            VaeConfig::Tiny(config) => Encoder::Tiny(Box::new(taesd::Encoder::load(params, config)?)),
        };
        Ok(Self { encoder, scaling_factor: config.scaling_factor() })
    }

    /// `[batch, 3, h * factor, w * factor]`, -1 to 1, to latents `[batch, latent, h, w]`.
    /// In strips where some are given, which takes less memory and rounds differently.
    pub fn encode(&self, picture: &Tensor, strips: Option<Strips>) -> Result<Posterior> {
        match &self.encoder {
            Encoder::Kl(encoder) => {
                let distribution = match strips {
                    Some(strips) => encoder.forward_in_strips(picture, strips)?,
                    None => encoder.forward(picture)?,
                };
                let vae::LatentDistribution { mean, log_variance } = distribution;
                let deviation = ((log_variance * 0.5)?.exp()? * self.scaling_factor)?;
                Ok(Posterior { mean: (mean * self.scaling_factor)?, deviation: Some(deviation) })
            }
            Encoder::Tiny(encoder) => {
                let mean = match strips {
                    Some(strips) => encoder.forward_in_strips(picture, strips)?,
                    None => encoder.forward(picture)?,
                };
                let mean = (mean * self.scaling_factor)?;
                Ok(Posterior { mean, deviation: None })
            }
        }
    }
}

impl Posterior {
    /// The likeliest latents.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// One choice of latents, which takes a draw unless they are known.
    pub fn sample(&self, noise: &mut NoiseSource) -> Result<Tensor> {
        match &self.deviation {
            Some(deviation) => {
                let drawn = noise.normal(self.mean.dims(), self.mean.device())?;
                Ok((&self.mean + deviation * drawn)?)
            }
            None => Ok(self.mean.clone()),
        }
    }
}
