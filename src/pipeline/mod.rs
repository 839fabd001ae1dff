//! Loading a model and running one request through it: prompt -> context, noise or a picture -> latents -> picture; no files are written here.

mod adapted;
mod decode;
mod denoise;
mod given;
pub mod hires;
mod observer;
pub mod projection;
mod prompts;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use crate::checkpoint::{Checkpoint, Kind, TensorSet};
use crate::layers::{Backend, Params};
use crate::memory::footprint::Footprint;
use crate::memory::tiling::Tile;
use crate::networks::autoencoder::{LatentDecoder, LatentEncoder};
use crate::networks::clip::TextEncoder;
use crate::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use crate::networks::unet::Unet;
use crate::picture_in::PictureIn;
use crate::prompt::Tokenizer;
use crate::request::{Hires, Precision, Request, UsedFile};
use crate::schedule::{NoiseSchedule, SchedulerConfig};
use adapted::Adapted;
use given::Given;
pub use observer::{Interrupted, Observer, Phase, Step, Unusable};
use projection::Projection;
use prompts::Encoded;

/// Where and in which numbers a model runs.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub device: Device,
    pub precision: Precision,
    /// Only one picture will be made: a network's memory is given back before the next one is loaded.
    pub single: bool,
}

impl LoadOptions {
    /// # Errors
    /// When the device can't compute in the precision.
    fn backend(&self) -> Result<Backend> {
        match (&self.device, self.precision) {
            (Device::Cpu, Precision::F32) => Ok(Backend::cpu()),
            (Device::Cpu, Precision::Int8) => Ok(Backend::cpu_int8()),
            (Device::Cpu, precision) => bail!("precision {precision} is not possible on the cpu"),
            (device, Precision::F32) => Ok(Backend::candle(device.clone(), DType::F32)),
            (device, Precision::F16) => Ok(Backend::candle(device.clone(), DType::F16)),
            (_, Precision::Int8) => bail!("precision int8 is for the cpu"),
        }
    }
}

/// Time by phase.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Zero where every network was in memory already.
    pub load: Duration,
    pub encode: Duration,
    pub denoise: Duration,
    pub decode: Duration,
}

/// A finished picture.
pub struct Picture {
    pub rgb: RgbImage,
    /// What `rgb` was decoded from, `[1, channels, height / factor, width / factor]`.
    pub latents: Tensor,
    pub timings: Timings,
    /// Textual inversions, LoRAs and pictures it was made with.
    pub files: Vec<UsedFile>,
    /// Whether the autoencoder took it in strips, which rounds differently.
    pub tiled: bool,
}

/// A model ready to make pictures. Networks are loaded when they are first of use: the text encoder for every
/// new prompt, UNet and decoder for the first picture.
pub struct Pipeline<'a> {
    checkpoint: &'a Checkpoint,
    backend: Backend,
    precision: Precision,
    single: bool,
    tokenizer: Tokenizer,
    clip_config: ClipConfig,
    unet_config: UnetConfig,
    vae_config: VaeConfig,
    schedule: NoiseSchedule,
    unet: RefCell<Option<Rc<Unet>>>,
    decoder: RefCell<Option<Rc<LatentDecoder>>>,
    /// The last request's or those encoded ahead, for requests with the same prompts.
    encoded: RefCell<Vec<Encoded>>,
    /// In memory only while prompts are encoded ahead.
    text_encoder: RefCell<Option<Rc<TextEncoder>>>,
    /// The adapters that the networks in memory were loaded with.
    adapted: RefCell<Rc<Adapted>>,
    tile: Tile,
    /// Fitted when a preview is first asked for.
    projection: RefCell<Option<Rc<Projection>>>,
}

impl<'a> Pipeline<'a> {
    /// Checks the configs of `checkpoint` against each other; its networks are loaded by [`Self::generate`].
    ///
    /// # Errors
    /// Names the setting that is not supported.
    pub fn load(checkpoint: &'a Checkpoint, options: &LoadOptions) -> Result<Self> {
        let backend = options.backend()?;
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
            checkpoint,
            precision: options.precision,
            single: options.single,
            tokenizer: Tokenizer::new(checkpoint.vocabulary())?,
            clip_config,
            unet_config,
            vae_config,
            schedule: NoiseSchedule::new(&scheduler)?,
            unet: RefCell::default(),
            decoder: RefCell::default(),
            encoded: RefCell::default(),
            text_encoder: RefCell::default(),
            adapted: RefCell::default(),
            tile: Tile::default(),
            projection: RefCell::default(),
            backend,
        })
    }

    /// Chooses whether pictures are decoded in parts.
    #[must_use]
    pub fn with_tile(self, tile: Tile) -> Self {
        Self { tile, ..self }
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

    /// What pictures take of the machine's memory; unknown on a GPU and for weights that are in no file.
    pub fn footprint(&self) -> Option<Footprint> {
        self.footprint_in(self.precision)
    }

    /// The same in another precision.
    pub fn footprint_in(&self, precision: Precision) -> Option<Footprint> {
        (self.backend.device.is_cpu() && self.checkpoint.kind() != Kind::Synthetic).then(|| {
            let (unet, vae) = (self.unet_config.clone(), self.vae_config.clone());
            Footprint::new(self.checkpoint, unet, vae, precision).with_tile(self.tile)
        })
    }

    /// Names what computes, e.g. `x86_64-avx512vnni` or `candle-cuda`.
    pub fn kernel(&self) -> String {
        self.backend.name()
    }

    /// Makes the picture of one request.
    ///
    /// # Errors
    /// [`Interrupted`] when the observer said so; with [`Unusable`] in its chain when a network can't be
    /// loaded; else what failed.
    pub fn generate(&self, request: &Request, observer: &mut dyn Observer) -> Result<Picture> {
        request.validate()?;
        let picture_in = self.picture_in(request)?;
        if !self.guided(request) && !request.negative_prompt.is_empty() {
            observer.warn(match self.unet_config.guidance_channels {
                Some(_) => "the negative prompt has no effect: this model was distilled without one",
                None => "the negative prompt has no effect without guidance (scale 1)",
            });
        }
        let mut timings = Timings::default();
        let prompts = self.prompts(request)?;
        let adapted = self.adapt(&prompts.loras)?;
        adapted.tell(observer);
        let tensors = adapted.tensors(self.checkpoint);
        for warning in prompts.warnings() {
            observer.warn(&warning);
        }
        let embeddings = self.encode(request, &prompts, tensors, observer, &mut timings)?;
        let given = picture_in.as_ref().zip(request.strength);
        let given = given
            .map(|(picture, strength)| self.given(picture, strength, tensors, observer, &mut timings))
            .transpose()?;
        let unet = self.network(&self.unet, observer, &mut timings, || {
            Unet::load(&Params::new(tensors, &self.backend, "unet"), self.unet_config.clone())
        })?;
        observer.phase(Phase::Encode);
        let start = Instant::now();
        let mut context = unet.context(&embeddings)?;
        if self.unet_config.guidance_channels.is_some() {
            context = context.guided_by(request.guidance_scale);
        }
        timings.encode += start.elapsed();

        self.prepare_previews(tensors, observer, &mut timings)?;
        observer.phase(Phase::Denoise);
        let start = Instant::now();
        let mut latents = self.denoise(request, given.as_ref(), &unet, &context, observer)?;
        if let Some(hires) = Hires::of(request) {
            observer.phase(Phase::Refine);
            latents = self.refine(request, &hires, &latents, &unet, &context, observer)?;
        }
        timings.denoise = start.elapsed();
        let encoded_in_strips = given.as_ref().is_some_and(|given| given.in_strips);
        drop((unet, context, given));

        let decoder = self.network(&self.decoder, observer, &mut timings, || {
            LatentDecoder::load(&Params::new(tensors, &self.backend, "vae"), &self.vae_config)
        })?;
        observer.phase(Phase::Decode);
        let start = Instant::now();
        let (mut rgb, decoded_in_strips) = self.decode(&decoder, &latents)?;
        if let Some(picture_in) = &picture_in {
            picture_in.restore(&mut rgb);
        }
        timings.decode = start.elapsed();
        let pictures = picture_in.as_ref().map_or(&[][..], PictureIn::used).to_vec();
        let files = [prompts.used()?, adapted.used()?, pictures].concat();
        let tiled = encoded_in_strips || decoded_in_strips;
        Ok(Picture { rgb, latents, timings, files, tiled })
    }

    /// Whether a request needs the second pass; a distilled UNet takes the guidance scale as an input instead.
    fn guided(&self, request: &Request) -> bool {
        request.guidance_scale != 1.0 && self.unet_config.guidance_channels.is_none()
    }

    /// The network kept in `slot`, or what `load` gives, which is kept unless this is the only picture.
    fn network<T>(
        &self,
        slot: &RefCell<Option<Rc<T>>>,
        observer: &mut dyn Observer,
        timings: &mut Timings,
        load: impl FnOnce() -> Result<T>,
    ) -> Result<Rc<T>> {
        if let Some(network) = slot.borrow().as_ref() {
            return Ok(network.clone());
        }
        observer.phase(Phase::Load);
        let start = Instant::now();
        let network = Rc::new(load().context(Unusable)?);
        timings.load += start.elapsed();
        if !self.single {
            *slot.borrow_mut() = Some(network.clone());
        }
        Ok(network)
    }

    /// Opens and checks the files a request names beside the model: what can be wrong with a prompt shows before
    /// a network is loaded.
    ///
    /// # Errors
    /// Names the file, or says what in the prompt is not understood.
    pub fn check(&self, request: &Request) -> Result<Vec<UsedFile>> {
        // What is in memory for other requests stays; before that, what is read here serves the first picture.
        let fresh = self.unet.borrow().is_none()
            && self.encoded.borrow().iter().all(|known| known.embeddings.is_none());
        let prompts = if fresh { self.prompts(request)? } else { Rc::new(self.unstored_prompts(request)?) };
        let adapted = if fresh { self.adapt(&prompts.loras)? } else { self.adapters(&prompts.loras)? };
        let pictures =
            self.picture_in(request)?.map_or_else(Vec::new, |picture_in| picture_in.used().to_vec());
        Ok([prompts.used()?, adapted.used()?, pictures].concat())
    }

    /// Whether the UNet is one for inpainting, which sees what a mask keeps.
    fn inpaints(&self) -> bool {
        self.unet_config.in_channels != self.vae_config.latent_channels()
    }

    /// The picture a request starts from, read.
    fn picture_in(&self, request: &Request) -> Result<Option<PictureIn>> {
        ensure!(
            request.mask.is_some() || !self.inpaints(),
            "'{}' is an inpainting model (its unet takes {} channels), which needs a picture and a mask",
            self.checkpoint.name(),
            self.unet_config.in_channels
        );
        PictureIn::read(request)
    }

    /// Loads, runs and drops the autoencoder's encoder.
    fn given(
        &self,
        picture: &PictureIn,
        strength: f64,
        tensors: &TensorSet,
        observer: &mut dyn Observer,
        timings: &mut Timings,
    ) -> Result<Given> {
        observer.phase(Phase::Load);
        let start = Instant::now();
        let encoder = LatentEncoder::load(&Params::new(tensors, &self.backend, "vae"), &self.vae_config);
        let encoder = encoder.context(Unusable)?;
        timings.load += start.elapsed();

        observer.phase(Phase::Encode);
        let start = Instant::now();
        let factor = self.vae_config.factor();
        let device = &self.backend.device;
        let (width, height) = picture.picture.dimensions();
        let strips = self.strips(width as usize, height as usize);
        let given = Given::encode(picture, strength, self.inpaints(), factor, strips, &encoder, device)?;
        timings.encode += start.elapsed();
        Ok(given)
    }

    /// Fits what previews need to the decoder, once and only for an observer that wants them.
    fn prepare_previews(
        &self,
        tensors: &TensorSet,
        observer: &mut dyn Observer,
        timings: &mut Timings,
    ) -> Result<()> {
        if !observer.previews() || self.projection.borrow().is_some() {
            return Ok(());
        }
        let decoder = self.network(&self.decoder, observer, timings, || {
            LatentDecoder::load(&Params::new(tensors, &self.backend, "vae"), &self.vae_config)
        })?;
        let projection = Projection::fit(&decoder, self.vae_config.latent_channels(), &self.backend.device)?;
        *self.projection.borrow_mut() = Some(Rc::new(projection));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Draft, Lora};

    /// Counts what is loaded.
    #[derive(Default)]
    struct Loads(usize);

    impl Observer for Loads {
        fn phase(&mut self, phase: Phase) {
            self.0 += usize::from(phase == Phase::Load);
        }
    }

    #[test]
    fn networks_are_reloaded_only_for_other_loras_and_never_by_a_check() {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let checkpoint = Checkpoint::open(&data.join("small")).unwrap();
        let options = LoadOptions { device: Device::Cpu, precision: Precision::F32, single: false };
        let pipeline = Pipeline::load(&checkpoint, &options).unwrap();
        let request = |prompt: &str, lora: Option<&str>| {
            let lora = lora.map(|weight| {
                let path = data.join("reference/lora_peft.safetensors");
                vec![Lora { path, weight: weight.parse().unwrap() }]
            });
            let draft = Draft {
                prompt: Some(prompt.into()),
                width: Some(64),
                height: Some(64),
                steps: Some(1),
                seed: Some(1),
                lora,
                ..Draft::default()
            };
            draft.resolve(&checkpoint.defaults()).unwrap()
        };
        let generate = |request: &Request| {
            let mut loads = Loads::default();
            let picture = pipeline.generate(request, &mut loads).unwrap();
            (picture.rgb, loads.0)
        };
        let (plain, other) = (request("a cat", None), request("a dog", None));
        let adapted = request("a cat", Some("4"));
        let (picture, loads) = generate(&plain);
        assert_eq!(loads, 3, "text encoder, unet and decoder");
        // A check of what is not to be drawn yet costs nothing.
        assert_eq!(pipeline.check(&adapted).unwrap().len(), 1);
        pipeline.check(&other).unwrap();
        assert_eq!(generate(&plain).1, 0);

        // Of a list only what shares the first item's LoRAs is encoded ahead; the rest comes right all the same.
        let mut loads = Loads::default();
        pipeline.encode_ahead(&[&adapted, &plain, &other], &mut loads).unwrap();
        assert_eq!(loads.0, 1);
        let (changed, loads) = generate(&adapted);
        assert_eq!(loads, 1, "the unet");
        assert_ne!(changed, picture);
        assert_eq!(generate(&plain), (picture, 2), "text encoder and unet");
        assert_eq!(generate(&other).1, 1, "the text encoder");
    }
}
