//! Loading a model and running one request through it: prompt -> context, noise or a picture -> latents -> picture; no files are written here.

mod given;

pub mod hires;

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use crate::adapted::Adapted;
use crate::checkpoint::{Checkpoint, Kind, TensorSet};
use crate::footprint::Footprint;
use crate::layers::{Backend, Params};
use crate::networks::autoencoder::{LatentDecoder, LatentEncoder};
use crate::networks::clip::TextEncoder;
use crate::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use crate::networks::strips::Strips;
use crate::networks::unet::{Context, Unet};
use crate::noise::NoiseSource;
use crate::picture_in::PictureIn;
use crate::projection::Projection;
use crate::prompt::{Prompts, Room, Text, Tokenizer};
use crate::request::{Hires, Lora, Precision, Request, UsedFile};
use crate::samplers::{self, Progress, Run, Trajectory};
use crate::schedule::{NoiseSchedule, SchedulerConfig};
use crate::tiling::Tile;
use given::{Given, Start};

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

/// What a pipeline is doing, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading a network; comes again before the phase that runs it.
    Load,
    Encode,
    Denoise,
    /// The second pass, of enlarged latents.
    Refine,
    Decode,
}

/// One finished denoising step.
pub struct Step<'a> {
    /// 1-based.
    pub index: usize,
    pub total: usize,
    /// The current estimate of the final latents, `[1, channels, height / factor, width / factor]`.
    pub denoised: &'a Tensor,
    /// Makes a small picture of `denoised`, one pixel for each latent; for observers that asked for previews.
    pub projection: Option<&'a Projection>,
}

/// Watches a picture being made and may stop it.
pub trait Observer {
    fn phase(&mut self, _phase: Phase) {}

    /// Something the user should know that does not stop the run.
    fn warn(&mut self, _message: &str) {}

    /// Something that was done besides, e.g. to how many layers an adapter was applied.
    fn inform(&mut self, _message: &str) {}

    /// Whether whoever watches wants no further work; asked where there are no steps.
    fn stopped(&self) -> bool {
        false
    }

    /// Whether steps are to carry a preview, which takes the decoder before the first of them.
    fn previews(&self) -> bool {
        false
    }

    /// `Break` ends the run within this step; `generate` then returns [`Interrupted`].
    fn step(&mut self, _step: &Step<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// The error of a run that its observer stopped.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The error of a model whose damage shows only when a network is loaded for a picture.
#[derive(Debug)]
pub struct Unusable;

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the model is not usable")
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
    /// Whether it was decoded in parts, which rounds differently.
    pub tiled: bool,
}

/// The last request's prompts, and what the text encoder made of them.
struct Encoded {
    text: Text,
    prompts: Rc<Prompts>,
    /// `[1 or 2, tokens, channels]`, the negative prompt first; absent until the encoder has run.
    embeddings: Option<Tensor>,
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
            Footprint::new(self.checkpoint, unet, vae, precision)
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
        drop((unet, context, given));

        let decoder = self.network(&self.decoder, observer, &mut timings, || {
            LatentDecoder::load(&Params::new(tensors, &self.backend, "vae"), &self.vae_config)
        })?;
        observer.phase(Phase::Decode);
        let start = Instant::now();
        let tiled = self.is_tiled(&latents)?;
        let picture = if tiled {
            decoder.decode_in_strips(&latents, Strips::default())?
        } else {
            decoder.decode(&latents)?
        };
        let mut rgb = to_rgb(&picture)?;
        if let Some(picture_in) = &picture_in {
            picture_in.restore(&mut rgb);
        }
        timings.decode = start.elapsed();
        let pictures = picture_in.as_ref().map_or(&[][..], PictureIn::used).to_vec();
        let files = [prompts.used()?, adapted.used()?, pictures].concat();
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
        let given = Given::encode(picture, strength, self.inpaints(), factor, &encoder, device)?;
        timings.encode += start.elapsed();
        Ok(given)
    }

    /// The request's prompts, read; unless they are known already, all others are forgotten.
    fn prompts(&self, request: &Request) -> Result<Rc<Prompts>> {
        let text = Text::of(request, self.guided(request));
        let known = self.encoded.borrow().iter().any(|known| known.text == text);
        if !known {
            self.encoded.borrow_mut().clear();
        }
        self.read_prompts(request)
    }

    /// The request's prompts, read.
    fn unstored_prompts(&self, request: &Request) -> Result<Prompts> {
        let layers = self.clip_config.num_hidden_layers;
        ensure!(
            (1..=layers).contains(&request.clip_skip),
            "clip skip {} is out of range: this model's text encoder has {layers} layers",
            request.clip_skip
        );
        let room =
            Room { width: self.clip_config.hidden_size, positions: self.clip_config.max_position_embeddings };
        Prompts::read(&Text::of(request, self.guided(request)), &self.tokenizer, room)
    }

    /// The request's prompts, read and added to those known.
    fn read_prompts(&self, request: &Request) -> Result<Rc<Prompts>> {
        let text = Text::of(request, self.guided(request));
        if let Some(known) = self.encoded.borrow().iter().find(|known| known.text == text) {
            return Ok(known.prompts.clone());
        }
        let prompts = Rc::new(self.unstored_prompts(request)?);
        self.encoded.borrow_mut().push(Encoded { text, prompts: prompts.clone(), embeddings: None });
        Ok(prompts)
    }

    /// The model with `loras` merged, for reading only: the networks in memory stay what they are.
    fn adapters(&self, loras: &[Lora]) -> Result<Rc<Adapted>> {
        let adapted = self.adapted.borrow().clone();
        if adapted.loras() == loras {
            return Ok(adapted);
        }
        Ok(Rc::new(Adapted::open(loras, self.checkpoint.tensors())?))
    }

    /// The model with `loras` merged. Networks that were loaded with others are dropped.
    fn adapt(&self, loras: &[Lora]) -> Result<Rc<Adapted>> {
        let adapted = self.adapters(loras)?;
        if Rc::ptr_eq(&adapted, &self.adapted.borrow()) {
            return Ok(adapted);
        }
        *self.unet.borrow_mut() = None;
        for known in self.encoded.borrow_mut().iter_mut() {
            known.embeddings = None;
        }
        *self.adapted.borrow_mut() = adapted.clone();
        Ok(adapted)
    }

    /// Encodes the prompts of `requests`, equal ones once, so that the text encoder is loaded once for all that
    /// use the same LoRAs and the same of its layers as the first; what was encoded before and is not among
    /// them is forgotten. Ends early when the observer has stopped. What can't be encoded is left to
    /// [`Self::generate`], which says why.
    ///
    /// # Errors
    /// With [`Unusable`] in its chain when the text encoder can't be loaded.
    pub fn encode_ahead(&self, requests: &[&Request], observer: &mut dyn Observer) -> Result<()> {
        let texts: Vec<Text> =
            requests.iter().map(|request| Text::of(request, self.guided(request))).collect();
        self.encoded.borrow_mut().retain(|known| texts.contains(&known.text));
        let is_encoded = |text: &Text| {
            self.encoded.borrow().iter().any(|known| known.text == *text && known.embeddings.is_some())
        };
        if texts.iter().all(is_encoded) {
            return Ok(());
        }
        let Some(first) = requests.first() else { return Ok(()) };
        let Ok(adapted) = self.read_prompts(first).and_then(|prompts| self.adapt(&prompts.loras)) else {
            return Ok(());
        };
        let tensors = adapted.tensors(self.checkpoint);
        observer.phase(Phase::Load);
        *self.text_encoder.borrow_mut() = Some(Rc::new(self.load_text_encoder(first, tensors)?));
        for request in requests.iter().filter(|request| request.clip_skip == first.clip_skip) {
            if observer.stopped() {
                break;
            }
            if let Ok(prompts) = self.read_prompts(request)
                && prompts.loras == adapted.loras()
            {
                let _ = self.encode(request, &prompts, tensors, observer, &mut Timings::default());
            }
        }
        *self.text_encoder.borrow_mut() = None;
        Ok(())
    }

    /// The text encoder without the layers that `request` skips.
    fn load_text_encoder(&self, request: &Request, tensors: &TensorSet) -> Result<TextEncoder> {
        let mut config = self.clip_config.clone();
        config.num_hidden_layers -= request.clip_skip - 1;
        TextEncoder::load(&Params::new(tensors, &self.backend, "text_encoder"), config).context(Unusable)
    }

    /// Loads, runs and drops the text encoder, unless the last request had the same prompts.
    fn encode(
        &self,
        request: &Request,
        prompts: &Prompts,
        tensors: &TensorSet,
        observer: &mut dyn Observer,
        timings: &mut Timings,
    ) -> Result<Tensor> {
        let text = Text::of(request, self.guided(request));
        let known = self
            .encoded
            .borrow()
            .iter()
            .find(|known| known.text == text)
            .and_then(|known| known.embeddings.clone());
        if let Some(embeddings) = known {
            return Ok(embeddings);
        }
        let ahead = self.text_encoder.borrow().clone();
        let text_encoder = match ahead {
            Some(text_encoder) => text_encoder,
            None => {
                observer.phase(Phase::Load);
                let start = Instant::now();
                let loaded = self.load_text_encoder(request, tensors)?;
                timings.load += start.elapsed();
                Rc::new(loaded)
            }
        };

        observer.phase(Phase::Encode);
        let start = Instant::now();
        let embeddings = prompts.encode(&text_encoder, &self.tokenizer)?;
        timings.encode = start.elapsed();
        if let Some(known) = self.encoded.borrow_mut().iter_mut().find(|known| known.text == text) {
            known.embeddings = Some(embeddings.clone());
        }
        Ok(embeddings)
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

    /// Whether the picture of `latents` is decoded in parts. Only of the CPU's memory is known how much is left.
    fn is_tiled(&self, latents: &Tensor) -> Result<bool> {
        let (_, _, height, width) = latents.dims4()?;
        let factor = self.vae_config.factor();
        if self.tile == Tile::Auto && !self.backend.device.is_cpu() {
            return Ok(false);
        }
        Ok(self.tile.applies_here(&self.vae_config, factor * width, factor * height))
    }

    /// Walks from noise, or from what is given, to latents `[1, channels, height / factor, width / factor]`.
    fn denoise(
        &self,
        request: &Request,
        given: Option<&Given>,
        unet: &Unet,
        context: &Context,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let factor = self.vae_config.factor();
        let shape = [1, self.vae_config.latent_channels(), request.height / factor, request.width / factor];
        let trajectory = Trajectory::new(&self.schedule, request.sampler, request.schedule, request.steps)?
            .with_strength(request.strength.unwrap_or(1.0))?;
        let mut noise = NoiseSource::new(request.rng, request.seed);
        let start = Start::new(given, &trajectory, &shape, &self.backend.device, &mut noise)?;
        self.walk(request, unet, context, observer, &trajectory, &mut noise, &start)
    }

    /// Walks from enlarged latents to refined ones. Its noise is the seed's first of the larger shape, as in
    /// AUTOMATIC1111.
    fn refine(
        &self,
        request: &Request,
        hires: &Hires,
        latents: &Tensor,
        unet: &Unet,
        context: &Context,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let factor = self.vae_config.factor();
        let clean = hires::enlarge(latents, hires.height / factor, hires.width / factor)?;
        let trajectory = hires::trajectory(&self.schedule, request, hires)?;
        let mut noise = NoiseSource::new(request.rng, request.seed);
        let drawn = noise.normal(clean.dims(), &self.backend.device)?;
        let start = Start::at(trajectory.start_from(&clean, &drawn)?);
        self.walk(request, unet, context, observer, &trajectory, &mut noise, &start)
    }

    /// Walks along a trajectory from `start`.
    #[expect(clippy::too_many_arguments, reason = "all that a run is made of")]
    fn walk(
        &self,
        request: &Request,
        unet: &Unet,
        context: &Context,
        observer: &mut dyn Observer,
        trajectory: &Trajectory,
        noise: &mut NoiseSource,
        start: &Start,
    ) -> Result<Tensor> {
        let projection = self.projection.borrow().clone().filter(|_| observer.previews());
        let mut model = |latents: &Tensor, timestep: f64| {
            let (input, scale) = (start.input(latents)?, request.guidance_scale);
            if self.guided(request) {
                guided_output(unet, scale, &input, timestep, context)
            } else {
                unet.forward(&input, timestep, context)
            }
        };
        let mut on_step = |progress: &Progress<'_>| {
            let Progress { index, total, denoised, .. } = *progress;
            let step = Step { index, total, denoised, projection: projection.as_deref() };
            match observer.step(&step) {
                ControlFlow::Continue(()) => start.hold(progress),
                ControlFlow::Break(()) => Err(Interrupted.into()),
            }
        };
        let run = Run {
            trajectory,
            prediction: self.schedule.prediction(),
            model: &mut model,
            noise,
            on_step: &mut on_step,
        };
        samplers::sample(request.sampler, request.eta, run, start.x.clone())
    }
}

/// Classifier-free guidance (Ho & Salimans 2022, in diffusers' scaling): both passes as one batch.
fn guided_output(
    unet: &Unet,
    scale: f64,
    latents: &Tensor,
    timestep: f64,
    context: &Context,
) -> Result<Tensor> {
    let both = unet.forward(&Tensor::cat(&[latents, latents], 0)?, timestep, context)?;
    let (opposite, prompted) = (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?);
    Ok((&opposite + ((prompted - &opposite)? * scale)?)?)
}

/// `[1, 3, height, width]` from -1 to 1 as 8-bit pixels.
fn to_rgb(picture: &Tensor) -> Result<RgbImage> {
    let (_, _, height, width) = picture.dims4()?;
    let values = picture.permute((0, 2, 3, 1))?.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
    ensure!(
        values.iter().all(|value| value.is_finite()),
        "the picture holds values that are no numbers: the model or its precision is unsuited to these settings"
    );
    let pixels: Vec<u8> =
        values.iter().map(|value| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8).collect();
    ensure!(
        pixels.chunks_exact(3).any(|pixel| *pixel != pixels[..3]),
        "the picture is all one color ({}, {}, {}): the model or its precision is unsuited to these settings",
        pixels[0],
        pixels[1],
        pixels[2]
    );
    RgbImage::from_raw(width as u32, height as u32, pixels).context("the picture has an odd size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Draft;

    #[test]
    fn a_picture_without_numbers_or_of_one_color_is_refused() {
        let picture = |values: [f32; 12]| {
            // Planes of 2x2 pixels.
            to_rgb(&Tensor::from_slice(&values, (1, 3, 2, 2), &Device::Cpu).unwrap())
        };
        let refused = |values| picture(values).unwrap_err().to_string();
        let mut values = [0.5; 12];
        assert!(refused(values).contains("all one color (191, 191, 191)"));
        values[5] = f32::NAN;
        assert!(refused(values).contains("no numbers"));
        // Differences that eight bits don't show are none.
        values[5] = 0.5001;
        assert!(refused(values).contains("all one color"));
        values[5] = -3.0;
        assert_eq!(picture(values).unwrap().get_pixel(1, 0).0, [191, 0, 191]);
    }

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
