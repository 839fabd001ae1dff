//! A model that was opened: configs checked against each other and nothing loaded; what is loaded lives in `Pipeline`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device};

use super::gpu_memory;
use crate::checkpoint::{Checkpoint, Keeper, Stopped, TensorSet, WriteError};
use crate::layers::{self, Backend, Params, Placement};
use crate::memory;
use crate::networks::autoencoder::{LatentDecoder, LatentEncoder};
use crate::networks::clip::TextEncoder;
use crate::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use crate::networks::strips::Strips;
use crate::networks::unet::{self, Unet};
use crate::picture_in::{PictureIn, Pictures};
use crate::pipeline::footprint::Footprint;
use crate::pipeline::tiling::Tile;
use crate::prompt::{Prompts, Room, Text, Tokenizer};
use crate::quantize::{Balance, Policy};
use crate::request::{Needs, Precision, Request};
use crate::schedule::{NoiseSchedule, SchedulerConfig};

/// Where and in which numbers a model runs.
#[derive(Debug, Clone)]
pub struct Numerics {
    pub device: Device,
    pub precision: Precision,
}

impl Numerics {
    pub fn new(device: Device, precision: Precision) -> Self {
        Self { device, precision }
    }

    pub fn on_cpu(precision: Precision) -> Self {
        Self::new(Device::Cpu, precision)
    }

    /// # Errors
    /// When the device can't compute in the precision.
    fn backend(&self) -> Result<Backend> {
        match (&self.device, self.precision) {
            (Device::Cpu, Precision::F32) => Backend::cpu(),
            (Device::Cpu, Precision::Int8) => Backend::cpu_int8(),
            (Device::Cpu, Precision::F16) => Backend::cpu_words(),
            (device, Precision::F32) => Ok(Backend::candle(device.clone(), DType::F32)),
            (device, Precision::F16) => Ok(Backend::candle(device.clone(), DType::F16)),
            (_, Precision::Int8) => bail!("precision int8 is for the cpu"),
        }
    }
}

/// A model ready to be loaded from, which any number of [`Pipeline`](super::Pipeline)s, also on other threads,
/// can share.
pub struct Model {
    checkpoint: Checkpoint,
    precision: Precision,
    tokenizer: Tokenizer,
    pub(super) clip_config: ClipConfig,
    tile: Tile,
    pub(super) backend: Backend,
    pub(super) unet_config: UnetConfig,
    pub(super) vae_config: VaeConfig,
    pub(super) schedule: NoiseSchedule,
    notice: Option<String>,
}

impl Model {
    /// Checks the configs of `checkpoint` against each other. Weights that lie packed beside it are used, if they fit.
    ///
    /// # Errors
    /// Names the setting that is not supported.
    pub fn open(checkpoint: Checkpoint, numerics: &Numerics) -> Result<Self> {
        let backend = numerics.backend()?;
        let (checkpoint, notice) = match backend.kernels {
            Some(isa) if backend.int8 => checkpoint.with_prepacked(isa.name(), || layers::layout(isa)),
            _ => (checkpoint, None),
        };
        Ok(Self { notice, ..Self::open_plain(checkpoint, numerics)? })
    }

    /// The same without weights that are packed already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_plain(checkpoint: Checkpoint, numerics: &Numerics) -> Result<Self> {
        let backend = numerics.backend()?;
        checkpoint.check_complete()?;
        let configs = checkpoint.configs();
        let scheduler: SchedulerConfig = serde_json::from_value(configs.scheduler.clone())
            .context("the scheduler config is not usable")?;
        let unet_config = UnetConfig::parse(&configs.unet)?;
        let clip_config = ClipConfig::parse(&configs.text_encoder)?;
        ensure!(
            clip_config.hidden_size == unet_config.context_channels,
            "the text encoder gives {} channels where the unet takes {}",
            clip_config.hidden_size,
            unet_config.context_channels
        );
        let vae_config = VaeConfig::parse(&configs.vae)?;
        let latent_channels = vae_config.latent_channels();
        let UnetConfig { in_channels, out_channels, .. } = unet_config;
        // An inpainting UNet takes a mask and the masked picture's latents besides.
        ensure!(
            (in_channels == latent_channels || in_channels == 2 * latent_channels + 1)
                && out_channels == latent_channels,
            "the unet takes {in_channels} channels and gives {out_channels}, the vae has {latent_channels}: only text-to-image and inpainting models are supported",
        );
        Ok(Self {
            precision: numerics.precision,
            tokenizer: Tokenizer::new(checkpoint.vocabulary())?,
            clip_config,
            unet_config,
            vae_config,
            schedule: NoiseSchedule::new(&scheduler)?,
            tile: Tile::default(),
            backend,
            checkpoint,
            notice: None,
        })
    }

    /// Chooses whether pictures are decoded in parts.
    #[must_use]
    pub fn with_tile(self, tile: Tile) -> Self {
        Self { tile, ..self }
    }

    /// Why weights that are packed already are of no use, if there are such.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Whether weights are used that are packed already.
    pub fn is_prepacked(&self) -> bool {
        self.checkpoint.tensors().is_prepacked()
    }

    /// Where the weights belong, packed for the kernels that compute: beside the model, if it is a native file of
    /// quantized weights, computed in int8 by kernels of ours.
    pub fn prepacked_path(&self) -> Option<PathBuf> {
        let isa = self.backend.kernels.filter(|_| self.backend.int8)?;
        self.checkpoint.prepacked_path(isa.name())
    }

    /// Writes the weights as the kernels read them to [`Self::prepacked_path`]: models that are opened from then on use
    /// them. Returns how many bytes that took.
    ///
    /// # Errors
    /// When the model has no such path or can't be read, the file can't be written, or `stopped` says so.
    pub fn prepack(&self, stopped: Stopped) -> Result<u64, WriteError> {
        let isa = self.backend.kernels.filter(|_| self.backend.int8).context("only int8 is prepacked")?;
        let layout = layers::layout(isa);
        self.checkpoint.write_prepacked(isa.name(), layout, stopped, &|keeper| self.hand_over(keeper))
    }

    /// Loads every network once, one layer in memory at a time where a network allows it, and hands `keeper` what their
    /// weights become.
    fn hand_over(&self, keeper: Arc<dyn Keeper>) -> Result<()> {
        let Self { checkpoint, clip_config, unet_config, vae_config, .. } = self;
        let backend = Backend { keeper: Some(keeper), ..self.backend.clone() };
        let tensors = checkpoint.tensors();
        load_text_encoder(tensors, &backend, clip_config.clone(), Placement::File)?;
        load_unet(tensors, &backend, unet_config.clone(), Placement::File)?;
        let vae = Params::new(tensors, &backend, "vae");
        LatentDecoder::load(&vae, vae_config)?;
        if tensors.names().any(|name| name.starts_with("vae.encoder.")) {
            LatentEncoder::load(&vae, vae_config)?;
        }
        Ok(())
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The UNet's config, e.g. for how many channels it takes: 9 make an inpainting model.
    pub fn unet_config(&self) -> &UnetConfig {
        &self.unet_config
    }

    /// How many pixels one latent is wide.
    pub fn factor(&self) -> usize {
        self.vae_config.factor()
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Names what computes, e.g. `x86_64-avx512vnni` or `candle-cuda`.
    pub fn kernel(&self) -> String {
        self.backend.name()
    }

    /// What pictures take of the machine's memory; unknown on a GPU.
    pub fn footprint(&self) -> Option<Footprint> {
        self.footprint_in(self.precision)
    }

    /// The same in another precision.
    pub fn footprint_in(&self, precision: Precision) -> Option<Footprint> {
        self.backend.device.is_cpu().then(|| {
            let (clip, unet, vae) = (&self.clip_config, self.unet_config.clone(), self.vae_config.clone());
            Footprint::new(&self.checkpoint, clip, unet, vae, precision).with_tile(self.tile)
        })
    }

    /// Whether a request needs the second pass; a distilled UNet takes the guidance scale as an input instead.
    pub(super) fn is_guided(&self, request: &Request) -> bool {
        request.guidance_scale != 1.0 && self.unet_config.guidance_channels.is_none()
    }

    /// Whether the UNet is one for inpainting, which sees what a mask keeps.
    pub(super) fn inpaints(&self) -> bool {
        self.unet_config.in_channels != self.vae_config.latent_channels()
    }

    /// What a request asks for in vain.
    pub(super) fn warnings(&self, request: &Request) -> Vec<&'static str> {
        if self.is_guided(request) {
            return Vec::new();
        }
        let distilled = self.unet_config.guidance_channels.is_some();
        let negative = match distilled {
            true => "the negative prompt has no effect: this model was distilled without one",
            false => "the negative prompt has no effect without guidance (scale 1)",
        };
        let guidance = match distilled {
            true => "the guidance range has no effect: this model guides itself in every step",
            false => "the guidance range has no effect without guidance (scale 1)",
        };
        let ranged = request.guidance_range.is_some() || request.guidance_auto.is_some();
        let vain = [(!request.negative_prompt.is_empty(), negative), (ranged, guidance)];
        vain.into_iter().filter(|(is_asked, _)| *is_asked).map(|(_, warning)| warning).collect()
    }

    /// The request's text as this model reads it.
    pub(super) fn text(&self, request: &Request) -> Text {
        Text::of(request, self.is_guided(request))
    }

    /// The request's prompts, read, with the files they name.
    pub(super) fn read_prompts(&self, request: &Request) -> Result<Prompts> {
        let ClipConfig { num_hidden_layers, hidden_size, max_position_embeddings, .. } = self.clip_config;
        ensure!(
            (1..=num_hidden_layers).contains(&request.clip_skip),
            "clip skip {} is out of range: this model's text encoder has {num_hidden_layers} layers",
            request.clip_skip
        );
        let room = Room { width: hidden_size, positions: max_position_embeddings };
        Prompts::read(&self.text(request), &self.tokenizer, room)
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// # Errors
    /// When the request's pictures are not made of whole latents, the UNet has no such skip to cache at, or the recipe is
    /// for another model.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        if let Some(recipe) = request.fast
            && let Needs::BuiltIn(name, _) = recipe.ingredients().needs
        {
            let own = self.checkpoint.name();
            ensure!(own == name, "the recipe {recipe} is for the model '{name}', not for '{own}'");
        }
        if let Some(cache) = &request.cache {
            let skips = unet::describe(&self.unet_config).skips().len();
            ensure!(
                cache.branch < skips,
                "cache branch {} is out of range: this model's unet has 0 to {}",
                cache.branch,
                skips - 1
            );
        }
        let factor = self.factor();
        for (width, height) in [(request.width, request.height), request.final_size()] {
            ensure!(
                width.is_multiple_of(factor) && height.is_multiple_of(factor),
                "'{}' draws pictures whose sides are multiples of {factor}, which {width}x{height} are not",
                self.checkpoint.name()
            );
        }
        Ok(())
    }

    /// The picture a request starts from, read.
    pub(super) fn picture_in(&self, request: &Request, pictures: &Pictures) -> Result<Option<PictureIn>> {
        ensure!(
            request.init.as_ref().is_some_and(|init| init.mask.is_some()) || !self.inpaints(),
            "'{}' is an inpainting model (its unet takes {} channels), which needs a picture and a mask",
            self.checkpoint.name(),
            self.unet_config.in_channels
        );
        let Some(init) = &request.init else { return Ok(None) };
        PictureIn::read(init, request.width, request.height, pictures).map(Some)
    }

    /// The strips in which the autoencoder takes a picture of these pixels, unless it takes it whole.
    pub(super) fn strips(&self, width: usize, height: usize) -> Option<Strips> {
        let available = match &self.backend.device {
            Device::Cpu => memory::available(),
            gpu => gpu_memory::available(gpu),
        };
        self.tile.applies(&self.vae_config, width, height, available).then(Strips::default)
    }

    /// The text encoder without its last `clip_skip - 1` layers.
    pub(super) fn load_text_encoder(
        &self,
        tensors: &TensorSet,
        clip_skip: usize,
        placement: Placement,
    ) -> Result<TextEncoder> {
        let mut config = self.clip_config.clone();
        config.num_hidden_layers -= clip_skip - 1;
        load_text_encoder(tensors, &self.backend, config, placement)
    }

    /// In int8, equalized.
    pub(super) fn load_unet(&self, tensors: &TensorSet, placement: Placement) -> Result<Unet> {
        load_unet(tensors, &self.backend, self.unet_config.clone(), placement)
    }

    pub(super) fn load_decoder(&self, tensors: &TensorSet) -> Result<LatentDecoder> {
        LatentDecoder::load(&Params::new(tensors, &self.backend, "vae"), &self.vae_config)
    }

    pub(super) fn load_encoder(&self, tensors: &TensorSet) -> Result<LatentEncoder> {
        LatentEncoder::load(&Params::new(tensors, &self.backend, "vae"), &self.vae_config)
    }
}

fn load_text_encoder(
    tensors: &TensorSet,
    backend: &Backend,
    config: ClipConfig,
    placement: Placement,
) -> Result<TextEncoder> {
    TextEncoder::load(&Params::new(tensors, backend, "text_encoder").placed(placement), config)
}

fn load_unet(
    tensors: &TensorSet,
    backend: &Backend,
    config: UnetConfig,
    placement: Placement,
) -> Result<Unet> {
    let balance = if backend.int8 { tensors.balance(&Policy::default())? } else { Balance::default() };
    Unet::load(&Params::new(tensors, backend, "unet").balanced(&balance).placed(placement), config)
}

#[cfg(test)]
mod tests {
    use super::super::Pipeline;
    use super::*;

    #[test]
    fn a_model_is_shared_between_threads_and_a_pipeline_moves_to_one() {
        fn shared<T: Send + Sync>() {}
        fn moved<T: Send>() {}
        shared::<Model>();
        moved::<Pipeline<'_>>();
    }
}
