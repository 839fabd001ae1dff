//! A picture to start from as latents, the mask over them, and where the walk starts; pixels are `picture_in`'s.

use anyhow::Result;
use candle_core::{Device, Tensor};

use super::stopwatch::Stopwatch;
use super::{DrawError, Model, Phase};
use crate::checkpoint::TensorSet;
use crate::networks::autoencoder::Posterior;
use crate::noise::NoiseSource;
use crate::picture_in::PictureIn;
use crate::samplers::{Progress, Trajectory};

/// A picture as the encoder sees it.
pub(super) struct EncodedPicture {
    /// Absent where nothing starts from or returns to it: an inpainting UNet at strength 1.
    clean: Option<Posterior>,
    /// 1 is repainted, `[1, 1, h, w]`.
    mask: Option<Tensor>,
    /// The picture without the part to repaint, for an inpainting UNet.
    kept: Option<Posterior>,
    strength: f64,
    pub in_strips: bool,
}

/// Where a walk starts and what it is held to.
pub(super) struct Start {
    pub x: Tensor,
    /// What an inpainting UNet takes beside the latents: mask and kept part, `[1, 1 + latent, h, w]`.
    pub beside: Option<Tensor>,
    known: Option<Known>,
}

/// Latents that stay under a mask.
struct Known {
    clean: Tensor,
    noise: Tensor,
    mask: Tensor,
}

impl EncodedPicture {
    /// Loads, runs and drops the autoencoder's encoder.
    pub fn encode(
        model: &Model,
        picture: &PictureIn,
        strength: f64,
        tensors: &TensorSet,
        watch: &mut Stopwatch<'_>,
    ) -> Result<Self, DrawError> {
        let encoder = watch.load(|| model.load_encoder(tensors))?;
        let encoded = watch.time(Phase::Encode, |_| -> Result<Self> {
            let (width, height) = picture.picture.dimensions();
            let (width, height) = (width as usize, height as usize);
            let (factor, device) = (model.factor(), &model.backend.device);
            let strips = model.strips(width, height);
            let encode =
                |values| encoder.encode(&Tensor::from_vec(values, (1, 3, height, width), device)?, strips);
            let mask = picture.latent_mask(factor);
            let native = model.inpaints();
            Ok(Self {
                clean: (!native || strength < 1.0).then(|| encode(picture.values())).transpose()?,
                mask: mask
                    .map(|mask| Tensor::from_vec(mask, (1, 1, height / factor, width / factor), device))
                    .transpose()?,
                kept: native.then(|| encode(picture.values_to_keep())).transpose()?,
                strength,
                in_strips: strips.is_some(),
            })
        })?;
        Ok(encoded)
    }

    /// Draws in diffusers' order: the picture's latents, the noise, the latents of the kept part.
    fn start(
        &self,
        trajectory: &Trajectory,
        shape: &[usize],
        device: &Device,
        source: &mut NoiseSource,
    ) -> Result<Start> {
        let clean = self.clean.as_ref().map(|clean| clean.sample(source)).transpose()?;
        let noise = source.normal(shape, device)?;
        let x = match &clean {
            Some(clean) if self.mask.is_none() || self.strength < 1.0 => {
                trajectory.start_from(clean, &noise)?
            }
            _ => trajectory.start(&noise)?,
        };
        let Some(mask) = &self.mask else { return Ok(Start { x, beside: None, known: None }) };
        if let Some(kept) = &self.kept {
            let beside = Tensor::cat(&[mask, &kept.sample(source)?], 1)?;
            return Ok(Start { x, beside: Some(beside), known: None });
        }
        // diffusers encodes the kept part for every UNet: its draw comes before a sampler's.
        if let Some(clean) = &self.clean {
            clean.sample(source)?;
        }
        let known = clean.map(|clean| Known { clean, noise, mask: mask.clone() });
        Ok(Start { x, beside: None, known })
    }
}

impl Start {
    /// Where a run of `shape` on `device` begins: from noise, or from `picture`.
    pub fn new(
        picture: Option<&EncodedPicture>,
        trajectory: &Trajectory,
        shape: &[usize],
        device: &Device,
        source: &mut NoiseSource,
    ) -> Result<Self> {
        match picture {
            Some(picture) => picture.start(trajectory, shape, device, source),
            None => Ok(Self::at(trajectory.start(&source.normal(shape, device)?)?)),
        }
    }

    /// A run that begins at latents which may all change.
    pub fn at(x: Tensor) -> Self {
        Self { x, beside: None, known: None }
    }

    /// What the UNet is given for `latents`.
    pub fn input(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.beside {
            Some(beside) => Ok(Tensor::cat(&[latents, beside], 1)?),
            None => Ok(latents.clone()),
        }
    }

    /// A step's latents with those that stay put back, as noisy as they would be by now.
    pub fn hold(&self, progress: &Progress<'_>) -> Result<Option<Tensor>> {
        let Some(Known { clean, noise, mask }) = &self.known else { return Ok(None) };
        let known = progress.noised(clean, noise)?;
        let stays = mask.affine(-1.0, 1.0)?;
        Ok(Some((known.broadcast_mul(&stays)? + progress.latents.broadcast_mul(mask)?)?))
    }
}
