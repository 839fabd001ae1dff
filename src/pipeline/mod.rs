//! One request through a model: prompt, noise or a picture in, a picture out; files are written elsewhere.

mod adapted;
mod decode;
mod denoise;
mod encoded_picture;
mod error;
mod evaluation;
mod finite;
pub mod footprint;
mod gpu_memory;
pub mod hires;
mod model;
mod observer;
pub mod projection;
mod prompts;
mod replay;
mod stopwatch;
pub mod tiling;
mod work;

use std::cell::Cell;
use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;
use image::RgbImage;

use crate::layers::Placement;
use crate::networks::autoencoder::LatentDecoder;
use crate::networks::unet::Unet;
use crate::picture_in::{PictureIn, Pictures};
use crate::request::{Lora, Passes, Request, UsedFile};
pub use adapted::Adapted;
use encoded_picture::EncodedPicture;
pub use error::DrawError;
pub use model::{Model, Numerics};
pub use observer::{Call, Observer, Phase, Step};
use projection::Projection;
use prompts::Encodings;
use stopwatch::Stopwatch;
pub use stopwatch::Timings;
pub use work::{Pace, Stretch, Work};

/// A finished picture.
pub struct Picture {
    pub rgb: RgbImage,
    /// What `rgb` was decoded from, `[1, channels, height / factor, width / factor]`.
    pub latents: Tensor,
    pub timings: Timings,
    /// What the UNet computed for it.
    pub passes: Passes,
    pub pace: Pace,
    /// Textual inversions, LoRAs and pictures it was made with.
    pub files: Vec<UsedFile>,
    /// Whether the autoencoder took it in strips, which rounds differently.
    pub tiled: bool,
}

/// Which networks stay in memory from one picture to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// None: the memory of each is given back before the next one is loaded. For one picture.
    OneByOne,
    /// UNet and decoder.
    Kept,
    /// None, and text encoder and UNet not even while they run: each of their layers is read whenever it's its turn.
    Streamed,
}

impl Residency {
    /// Where text encoder and UNet are.
    fn placement(self) -> Placement {
        match self {
            Self::OneByOne | Self::Kept => Placement::Memory,
            Self::Streamed => Placement::File,
        }
    }
}

/// What is loaded of a model now. Networks are loaded when they are first of use: the text encoder for every new
/// prompt, UNet and decoder for the first picture.
pub struct Pipeline<'m> {
    model: &'m Model,
    residency: Residency,
    unet: Option<Unet>,
    decoder: Option<LatentDecoder>,
    encodings: Encodings,
    /// The adapters that the networks in memory were loaded with.
    adapted: Arc<Adapted>,
    /// Whether the observer knows how those adapters fit.
    adapted_told: bool,
    /// Fitted when a preview is first asked for.
    projection: Option<Projection>,
    pictures: Arc<Pictures>,
}

impl<'m> Pipeline<'m> {
    /// A pipeline with nothing in memory.
    pub fn new(model: &'m Model, residency: Residency) -> Self {
        Self {
            model,
            residency,
            unet: None,
            decoder: None,
            encodings: Encodings::default(),
            adapted: Arc::default(),
            adapted_told: false,
            projection: None,
            pictures: Arc::default(),
        }
    }

    /// Chooses anew which networks stay in memory. Those that are loaded go.
    pub fn set_residency(&mut self, residency: Residency) {
        (self.residency, self.unet, self.decoder) = (residency, None, None);
    }

    /// Shares the pictures that have been read for requests to start from.
    #[must_use]
    pub fn with_pictures(self, pictures: Arc<Pictures>) -> Self {
        Self { pictures, ..self }
    }

    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Makes the picture of one request.
    ///
    /// # Errors
    /// [`DrawError`] says whether the observer, the model or the request is the cause.
    pub fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Picture, DrawError> {
        self.make(request, observer).map_err(|error| gpu_memory::explained(error, request))
    }

    fn make(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Picture, DrawError> {
        let model = self.model;
        request.validate()?;
        model.check(request)?;
        let picture_in = model.picture_in(request, &self.pictures)?;
        for warning in model.warnings(request) {
            observer.warn(warning);
        }
        let prompts = self.encodings.prompts(model, request)?;
        let adapted = self.adapt(&prompts.loras)?;
        if !std::mem::replace(&mut self.adapted_told, true) {
            adapted.tell(observer);
        }
        for warning in prompts.warnings() {
            observer.warn(&warning);
        }
        let (tensors, placement) = (adapted.tensors(model.checkpoint()), self.residency.placement());
        let mut watch = Stopwatch::new(observer);

        let embeddings =
            self.encodings.embeddings(model, request, &prompts, (tensors, placement), &mut watch)?;
        let encoded = picture_in.as_ref().zip(request.init.as_ref());
        let encoded = encoded
            .map(|(picture, init)| EncodedPicture::encode(model, picture, init.strength, tensors, &mut watch))
            .transpose()?;
        if watch.observer.previews() && self.projection.is_none() {
            let decoder = watch.resident(&mut self.decoder, || model.load_decoder(tensors))?;
            self.projection = Some(model.projection(decoder)?);
            self.release_decoder();
        }
        let unet = watch.resident(&mut self.unet, || model.load_unet(tensors, placement))?;
        let context = watch.time(Phase::Encode, |_| model.context(unet, &embeddings, request))?;

        let projection = self.projection.as_ref().filter(|_| watch.observer.previews());
        let (passes, pace) = (Cell::default(), Cell::default());
        let run = denoise::Run {
            model,
            request,
            unet,
            context: &context,
            projection,
            passes: &passes,
            pace: &pace,
        };
        let mut latents = watch.time(Phase::Denoise, |observer| run.denoise(encoded.as_ref(), observer))?;
        if let Some(hires) = &request.hires {
            latents = watch.time(Phase::Refine, |observer| run.refine(hires, &latents, observer))?;
        }
        let encoded_in_strips = encoded.as_ref().is_some_and(|encoded| encoded.in_strips);
        drop((context, encoded));
        if self.residency == Residency::OneByOne {
            self.unet = None;
        }

        let decoder = watch.resident(&mut self.decoder, || model.load_decoder(tensors))?;
        let (rgb, decoded_in_strips) = watch.time(Phase::Decode, |_| -> Result<_> {
            let (mut rgb, in_strips) = model.decode(decoder, &latents)?;
            if let Some(picture_in) = &picture_in {
                picture_in.restore(&mut rgb);
            }
            Ok((rgb, in_strips))
        })?;
        self.release_decoder();
        let pictures = picture_in.as_ref().map_or(&[][..], PictureIn::used).to_vec();
        let files = [prompts.used()?, adapted.used()?, pictures].concat();
        let tiled = encoded_in_strips || decoded_in_strips;
        let (passes, pace) = (passes.get(), pace.get());
        Ok(Picture { rgb, latents, timings: watch.timings, passes, pace, files, tiled })
    }

    fn release_decoder(&mut self) {
        if self.residency != Residency::Kept {
            self.decoder = None;
        }
    }

    /// Opens and checks the files a request names beside the model: what can be wrong with a prompt shows before
    /// a network is loaded.
    ///
    /// # Errors
    /// Names the file, or says what in the prompt is not understood.
    pub fn check(&mut self, request: &Request) -> Result<Vec<UsedFile>> {
        let model = self.model;
        model.check(request)?;
        // What is in memory for other requests stays; before that, what is read here serves the first picture.
        let is_fresh = self.unet.is_none() && !self.encodings.any_encoded();
        let prompts = match is_fresh {
            true => self.encodings.prompts(model, request)?,
            false => Arc::new(model.read_prompts(request)?),
        };
        let adapted = if is_fresh { self.adapt(&prompts.loras)? } else { self.adapters(&prompts.loras)? };
        let picture = model.picture_in(request, &self.pictures)?;
        let pictures = picture.map_or_else(Vec::new, |picture| picture.used().to_vec());
        Ok([prompts.used()?, adapted.used()?, pictures].concat())
    }

    /// The model with `loras` merged, for reading only: the networks in memory stay what they are.
    fn adapters(&self, loras: &[Lora]) -> Result<Arc<Adapted>> {
        if self.adapted.loras() == loras {
            return Ok(self.adapted.clone());
        }
        Ok(Arc::new(Adapted::open(loras, self.model.checkpoint().tensors())?))
    }

    /// The model with `loras` merged. Networks that were loaded with others are dropped.
    fn adapt(&mut self, loras: &[Lora]) -> Result<Arc<Adapted>> {
        let adapted = self.adapters(loras)?;
        if !Arc::ptr_eq(&adapted, &self.adapted) {
            self.unet = None;
            self.encodings.forget_embeddings();
            self.adapted = adapted.clone();
            self.adapted_told = false;
        }
        Ok(adapted)
    }

    /// Encodes the prompts of `requests`, equal ones once, so that the text encoder is loaded once for all that
    /// use the same LoRAs and the same of its layers as the first; what was encoded before and is not among
    /// them is forgotten. Ends early when the observer has stopped. What can't be encoded is left to
    /// [`Self::generate`], which says why.
    ///
    /// # Errors
    /// [`DrawError::UnusableModel`] when the text encoder can't be loaded.
    pub fn encode_ahead(
        &mut self,
        requests: &[&Request],
        observer: &mut dyn Observer,
    ) -> Result<(), DrawError> {
        let model = self.model;
        if self.encodings.keep_only(model, requests) {
            return Ok(());
        }
        let Some(first) = requests.first() else { return Ok(()) };
        let adapted = self.encodings.read(model, first).and_then(|prompts| self.adapt(&prompts.loras));
        let Ok(adapted) = adapted else { return Ok(()) };
        let tensors = adapted.tensors(model.checkpoint());
        let mut watch = Stopwatch::new(observer);
        let placement = self.residency.placement();
        let encoder = watch.load(|| model.load_text_encoder(tensors, first.clip_skip, placement))?;
        for request in requests.iter().filter(|request| request.clip_skip == first.clip_skip) {
            if watch.observer.stopped() {
                break;
            }
            if let Ok(prompts) = self.encodings.read(model, request)
                && prompts.loras == adapted.loras()
            {
                let _ = self.encodings.encode(model, request, &prompts, &encoder, &mut watch);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::request::{Draft, Lora, Precision};

    /// Counts what is loaded.
    #[derive(Default)]
    struct Loads(usize);

    impl Observer for Loads {
        fn phase(&mut self, phase: Phase) {
            self.0 += usize::from(phase == Phase::Load);
        }
    }

    #[test]
    fn networks_that_stay_in_their_file_draw_the_same() {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let lora =
            Lora { path: data.join("reference/lora_peft.safetensors"), weight: "0.8".parse().unwrap() };
        for precision in [Precision::F32, Precision::Int8] {
            let checkpoint = Checkpoint::open(&data.join("small")).unwrap();
            let model = Model::open(checkpoint, &Numerics::on_cpu(precision)).unwrap();
            let draw = |residency: Residency, prompts: &[(&str, bool)]| {
                let mut pipeline = Pipeline::new(&model, residency);
                let pictures = prompts.iter().map(|&(prompt, adapted)| {
                    let draft = Draft {
                        prompt: Some(prompt.into()),
                        width: Some(72),
                        height: Some(64),
                        steps: Some(2),
                        seed: Some(1),
                        lora: adapted.then(|| vec![lora.clone()]),
                        ..Draft::default()
                    };
                    let defaults = model.checkpoint().defaults();
                    let request = draft.resolve(&defaults, crate::picture_in::size_of).unwrap();
                    pipeline.generate(&request, &mut ()).unwrap().rgb
                });
                pictures.collect::<Vec<_>>()
            };
            let prompts = [("a cat", false), ("a dog", true), ("a cat", false)];
            let loaded = draw(Residency::Kept, &prompts);
            assert!(loaded[0] != loaded[1] && loaded[0] == loaded[2]);
            assert!(draw(Residency::Streamed, &prompts) == loaded, "{precision}");
        }
    }

    #[test]
    fn networks_are_reloaded_only_for_other_loras_and_never_by_a_check() {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let checkpoint = Checkpoint::open(&data.join("small")).unwrap();
        let model = Model::open(checkpoint, &Numerics::new(Device::Cpu, Precision::F32)).unwrap();
        let mut pipeline = Pipeline::new(&model, Residency::Kept);
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
            draft.resolve(&model.checkpoint().defaults(), crate::picture_in::size_of).unwrap()
        };
        let generate = |pipeline: &mut Pipeline<'_>, request: &Request| {
            let mut loads = Loads::default();
            let picture = pipeline.generate(request, &mut loads).unwrap();
            (picture.rgb, loads.0)
        };
        let (plain, other) = (request("a cat", None), request("a dog", None));
        let adapted = request("a cat", Some("4"));
        let (picture, loads) = generate(&mut pipeline, &plain);
        assert_eq!(loads, 3, "text encoder, unet and decoder");
        // A check of what is not to be drawn yet costs nothing.
        assert_eq!(pipeline.check(&adapted).unwrap().len(), 1);
        pipeline.check(&other).unwrap();
        assert_eq!(generate(&mut pipeline, &plain).1, 0);

        // Of a list only what shares the first item's LoRAs is encoded ahead; the rest comes right all the same.
        let mut loads = Loads::default();
        pipeline.encode_ahead(&[&adapted, &plain, &other], &mut loads).unwrap();
        assert_eq!(loads.0, 1);
        let (changed, loads) = generate(&mut pipeline, &adapted);
        assert_eq!(loads, 1, "the unet");
        assert_ne!(changed, picture);
        assert_eq!(generate(&mut pipeline, &plain), (picture, 2), "text encoder and unet");
        assert_eq!(generate(&mut pipeline, &other).1, 1, "the text encoder");
    }
}
