//! How much memory pictures will take at the most, estimated before a network is loaded; what the machine has is asked elsewhere.

use std::collections::HashSet;
use std::sync::Arc;

use super::tiling::{PeakBytes, Tile, decode_peak_bytes, encode_peak_bytes};
use crate::checkpoint::Checkpoint;
use crate::layers;
use crate::networks::activations::{Activations, Held, reading_bytes, weight_bytes};
use crate::networks::autoencoder::{describe_decoder, describe_encoder};
use crate::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use crate::networks::graph::{Conv, Extent, Graph, Operation, Prompts};
use crate::networks::strips::Strips;
use crate::networks::{clip, unet};
use crate::picture_in::PictureBytes;
use crate::quantize::{Origin, Policy};
use crate::request::{MAX_SIZE, Precision, Request, SIZE_STEP};

/// The program itself and what the allocator keeps.
const BASE: u64 = 34 << 20;

/// A token in the tokenizer's tables: CLIP's 49,408 come to 10 MB.
const TOKEN: u64 = 212;

/// Whether large blocks come from [`crate::kernels::Heap`], which leaves no holes.
const OWN_HEAP: bool = cfg!(target_os = "linux");

/// Weights are padded for the kernels, and reading the last of them needs room beside the others.
const WEIGHT_SLACK: f64 = if OWN_HEAP { 1.02 } else { 1.1 };

/// What the UNet's activations come to with what the allocator keeps of freed ones, in those alive at once: measured,
/// see `measured_peaks_are_near_estimates`. They are many and small enough to leave holes in a heap that is not ours.
const UNET_SLACK: f64 = if OWN_HEAP { 1.2 } else { 3.0 };

/// The same of an autoencoder's, most of which are large enough to go back to the system at once.
const AUTOENCODER_SLACK: f64 = if OWN_HEAP { 1.2 } else { 1.325 };

/// Which networks are in memory together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// One picture: text encoder, UNet and decoder one after the other.
    One,
    /// Several of one prompt: the UNet stays while the decoder runs.
    SamePrompt,
    /// UNet and decoder stay while the text encoder reads further prompts.
    Prompts,
}

/// What a model takes on the CPU: bytes of weights in memory by network, and what activations depend on.
#[derive(Debug, Clone)]
pub struct Footprint {
    /// In the vocabulary.
    tokens: u64,
    /// Tokens of a prompt's chunk.
    positions: usize,
    text_encoder: u64,
    unet: u64,
    /// What reading the largest layer takes.
    text_encoder_layer: u64,
    unet_layer: u64,
    decoder: u64,
    /// Of the autoencoder, which a picture to start from needs.
    encoder: u64,
    unet_config: UnetConfig,
    vae_config: VaeConfig,
    /// The UNet's layers that multiply in int8.
    int8: Arc<HashSet<String>>,
    tile: Tile,
    pictures: PictureBytes,
    /// Whether text encoder and UNet stay in their file.
    streamed: bool,
}

impl Footprint {
    /// Of a model of these configs: the weights' own sizes follow from what the networks are, and which of them are
    /// int8 from where they come from.
    pub fn new(
        checkpoint: &Checkpoint,
        text: &ClipConfig,
        unet: UnetConfig,
        vae: VaeConfig,
        precision: Precision,
    ) -> Self {
        let tensors = checkpoint.tensors();
        let computes = |name: &str| {
            precision == Precision::Int8 && Policy::default().computes_int8(name, tensors.origin(name))
        };
        let words = precision == Precision::Int8 && layers::floats_become_words();
        let graph = unet::describe(&unet);
        let int8: HashSet<String> = graph
            .weights()
            .flat_map(|weights| weights.names)
            .filter(|name| computes(&format!("unet.{name}.weight")))
            .map(str::to_owned)
            .collect();
        // Convolutions with a stride stay floats, which are few.
        let float = if precision == Precision::F16 { Held::Word } else { Held::Float };
        let origin = |name: &str| tensors.origin(&format!("unet.{name}.weight"));
        let held = |name: &str| match (int8.contains(name), origin(name)) {
            (true, Origin::Int4) => Held::Int4,
            (true, _) => Held::Int8,
            (false, _) => float,
        };
        let autoencoder = |graph: &Graph| {
            let held = |name: &str| {
                let convolutions = graph.operations().iter().filter_map(|operation| match operation {
                    Operation::Conv(conv) => Some(conv),
                    _ => None,
                });
                let stays = |conv: &Conv| conv.name == name && conv.shape.keeps_rounded();
                let stays = precision == Precision::Int8 && convolutions.into_iter().any(stays);
                match (stays, tensors.origin(&format!("vae.{name}.weight"))) {
                    (true, Origin::Int4) => Held::Int4,
                    (true, Origin::Int8) => Held::Int8,
                    _ => float,
                }
            };
            weight_bytes(graph, &held, false)
        };
        let text_graph = clip::describe(text);
        Self {
            tokens: text.vocab_size as u64,
            positions: text.max_position_embeddings,
            text_encoder: weight_bytes(&text_graph, &|_| float, false),
            unet: weight_bytes(&graph, &held, words),
            text_encoder_layer: reading_bytes(&text_graph, &|_| Held::Float),
            unet_layer: reading_bytes(&graph, &|name| {
                if origin(name).is_rounded() && float == Held::Float { held(name) } else { Held::Float }
            }),
            streamed: false,
            decoder: autoencoder(&describe_decoder(&vae)),
            encoder: autoencoder(&describe_encoder(&vae)),
            unet_config: unet,
            vae_config: vae,
            int8: Arc::new(int8),
            tile: Tile::Off,
            pictures: PictureBytes::default(),
        }
    }

    /// Of the same model, where the pictures that requests start from take this much.
    #[must_use]
    pub fn with_pictures(self, pictures: PictureBytes) -> Self {
        Self { pictures, ..self }
    }

    /// Of the same model, where text encoder and UNet stay in their file.
    #[must_use]
    pub fn streamed(self) -> Self {
        Self { streamed: true, ..self }
    }

    /// Of the same model, decoding as `tile` says; whole pictures otherwise.
    #[must_use]
    pub fn with_tile(self, tile: Tile) -> Self {
        Self { tile, ..self }
    }

    /// How pictures are decoded.
    pub fn tile(&self) -> Tile {
        self.tile
    }

    /// Bytes that drawing `request` takes at its peak.
    pub fn peak(&self, request: &Request, series: Series) -> u64 {
        let weights = |bytes: u64| (bytes as f64 * WEIGHT_SLACK) as u64;
        let activations = |bytes: u64| (bytes as f64 * AUTOENCODER_SLACK) as u64;
        let (text_encoder, unet) = match self.streamed {
            false => (weights(self.text_encoder), weights(self.unet)),
            true => (self.text_encoder_layer, self.unet_layer),
        };
        let decoder = weights(self.decoder);
        // Where the others are not kept, the decoder is not either.
        let series = if self.streamed { Series::One } else { series };
        let (width, height) = request.final_size();
        let denoising = self.denoise_bytes(request, width, height);
        let decoding = activations(self.autoencoder_bytes(decode_peak_bytes, width, height));
        let encoding = request.init.as_ref().map_or(0, |_| {
            let bytes = self.autoencoder_bytes(encode_peak_bytes, request.width, request.height);
            (weights(self.encoder) + activations(bytes)).max(self.pictures.reading)
        });
        BASE + TOKEN * self.tokens
            + self.pictures.kept
            + match series {
                Series::One => text_encoder.max(unet + denoising).max(decoder + decoding).max(encoding),
                Series::SamePrompt => {
                    text_encoder.max(unet + decoder + denoising.max(decoding).max(encoding))
                }
                Series::Prompts => unet + decoder + text_encoder.max(denoising).max(decoding).max(encoding),
            }
    }

    /// Bytes of the UNet's activations, under guidance those of two pictures, of what it takes from the prompt, and of
    /// what a step cache keeps from one step to another.
    fn denoise_bytes(&self, request: &Request, width: usize, height: usize) -> u64 {
        let guided = request.guidance_scale != 1.0 && self.unet_config.guidance_channels.is_none();
        let prompts = Prompts { count: if guided { 2 } else { 1 }, tokens: self.positions };
        let factor = self.vae_config.factor();
        let latents = Extent { batch: 1, height: height / factor, width: width / factor };
        let graph = unet::describe(&self.unet_config);
        let int8 = |layer: &str| self.int8.contains(layer);
        let inputs = unet::extents(&self.unet_config, latents);
        let activations = Activations::new(&graph, &inputs, prompts, &int8);
        let kept = request.cache.as_ref().map_or(0, |cache| activations.kept_bytes(cache.branch));
        let passing = activations.peak_bytes() + Activations::prompt_bytes(&graph, prompts);
        (passing as f64 * UNET_SLACK) as u64 + kept
    }

    /// Bytes of the autoencoder's activations: where it may choose, it takes strips when there is no room.
    fn autoencoder_bytes(&self, peak: PeakBytes, width: usize, height: usize) -> u64 {
        let bytes = |strips| peak(&self.vae_config, width, height, strips);
        match self.tile {
            Tile::Off => bytes(None),
            Tile::On => bytes(Some(Strips::default())),
            Tile::Auto => bytes(None).min(bytes(Some(Strips::default()))),
        }
    }

    /// The largest picture of the request's shape, or nearly, that takes at most `available` bytes and is smaller.
    pub fn fitting_size(&self, request: &Request, series: Series, available: u64) -> Option<(usize, usize)> {
        let (width, height) = (request.width, request.height);
        let long = width.max(height).min(MAX_SIZE);
        let at =
            |side: usize, long_side: usize| (side * long_side / long / SIZE_STEP * SIZE_STEP).max(SIZE_STEP);
        (1..long / SIZE_STEP).rev().map(|steps| steps * SIZE_STEP).find_map(|long_side| {
            let (width, height) = (at(width, long_side), at(height, long_side));
            let smaller = Request { width, height, ..request.clone() };
            (self.peak(&smaller, series) <= available).then_some((width, height))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Cache, Draft, Init, Resize, Reuse};

    const MB: u64 = 1_000_000;

    fn request(checkpoint: &Checkpoint, side: usize) -> Request {
        let (prompt, seed) = (Some("x".to_owned()), Some(1));
        let draft = Draft { prompt, seed, width: Some(side), height: Some(side), ..Draft::default() };
        draft.resolve(&checkpoint.defaults(), crate::picture_in::size_of).unwrap()
    }

    fn footprint(checkpoint: Checkpoint, precision: Precision) -> (Footprint, Checkpoint) {
        let configs = checkpoint.configs();
        let clip = ClipConfig::parse(&configs.text_encoder).unwrap();
        let unet = UnetConfig::parse(&configs.unet).unwrap();
        let vae = VaeConfig::parse(&configs.vae).unwrap();
        (Footprint::new(&checkpoint, &clip, unet, vae, precision), checkpoint)
    }

    fn pocket(precision: Precision) -> (Footprint, Checkpoint) {
        footprint(Checkpoint::built_in().unwrap(), precision)
    }

    fn sd15(precision: Precision) -> (Footprint, Checkpoint) {
        footprint(Checkpoint::synthetic_sd15(), precision)
    }

    #[test]
    fn estimates_are_near_measured_peaks() {
        let sides = [128, 256, 512, 768];
        let (one, several) = (Series::One, Series::SamePrompt);
        // The highest resident memory of whole runs of one step, in MB.
        let measured = [
            (pocket(Precision::Int8), one, [49, 76, 175, 334]),
            (pocket(Precision::F32), one, [68, 84, 180, 340]),
            (sd15(Precision::Int8), one, [973, 995, 1088, 1796]),
            (sd15(Precision::F32), one, [3490, 3508, 3574, 3684]),
            (sd15(Precision::F16), one, [1957, 1979, 2056, 2181]),
            (sd15(Precision::Int8), several, [1277, 1403, 1904, 2746]),
            (sd15(Precision::F32), several, [3734, 3849, 4349, 5191]),
        ];
        let mut wrong = Vec::new();
        for ((footprint, checkpoint), series, peaks) in measured {
            for (side, peak) in sides.into_iter().zip(peaks) {
                let estimate = footprint.peak(&request(&checkpoint, side), series);
                let ratio = estimate as f64 / (peak * MB) as f64;
                if !(0.95..=1.25).contains(&ratio) {
                    wrong.push(format!("{} {series:?} {side}: {ratio:.3}", checkpoint.name()));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn networks_that_stay_and_a_second_pass_count() {
        let (footprint, checkpoint) = sd15(Precision::Int8);
        let small = request(&checkpoint, 64);
        let peaks = [Series::One, Series::SamePrompt, Series::Prompts].map(|s| footprint.peak(&small, s));
        assert!(peaks.is_sorted(), "{peaks:?}");
        // But for the few maps of so small a picture, the text encoder is added.
        assert!(peaks[2] > peaks[1] + footprint.text_encoder - 60 * MB, "{peaks:?}");
        let (footprint, _) = sd15(Precision::F32);
        let large = request(&checkpoint, 512);
        let unguided = Request { guidance_scale: 1.0, ..large.clone() };
        let saved = footprint.peak(&large, Series::One) - footprint.peak(&unguided, Series::One);
        let saved_in = saved as f64 / UNET_SLACK;
        assert!((34 * MB..67 * MB).contains(&(saved_in as u64)), "{saved}");
    }

    #[test]
    fn pictures_to_start_from_count() {
        let (footprint, checkpoint) = pocket(Precision::Int8);
        let plain = request(&checkpoint, 128);
        let init = Init { picture: "x.png".into(), mask: None, strength: 0.5, resize: Resize::Crop };
        let started = Request { init: Some(init), ..plain.clone() };
        let none = footprint.peak(&started, Series::Prompts);
        let pictures = PictureBytes { reading: 500 * MB, kept: 10 * MB };
        let footprint = footprint.with_pictures(pictures);
        assert!(footprint.peak(&started, Series::One) > 540 * MB);
        assert!(footprint.peak(&started, Series::Prompts) > none + 450 * MB);
        assert!(footprint.peak(&plain, Series::One) < 100 * MB);
        let small = footprint.with_pictures(PictureBytes { reading: 1, kept: 0 });
        assert_eq!(small.peak(&started, Series::Prompts), none);
    }

    #[test]
    fn what_a_step_cache_keeps_counts() {
        let (footprint, checkpoint) = sd15(Precision::Int8);
        let plain = request(&checkpoint, 512);
        let bytes = |cache| footprint.denoise_bytes(&Request { cache, ..plain.clone() }, 512, 512);
        let kept = |branch| bytes(Some(Cache { reuse: Reuse::ButEvery(2), branch })) - bytes(None);
        // 320 channels go down once for both prompts, and come up for each of them.
        assert_eq!(kept(0), 4 * 3 * 64 * 64 * 320);
        // From the innermost skip on there are 8x8 pixels of 1280 channels.
        assert_eq!(kept(11), 4 * 4 * 8 * 8 * 1280);
    }

    #[test]
    fn the_size_that_fits_is_the_largest_of_its_shape() {
        let (footprint, checkpoint) = pocket(Precision::F32);
        let wide = Request { height: 384, ..request(&checkpoint, 768) };
        let available = 150 * MB;
        let (width, height) = footprint.fitting_size(&wide, Series::One, available).unwrap();
        let peak = |width, height| footprint.peak(&Request { width, height, ..wide.clone() }, Series::One);
        assert!(width == 2 * height || width == 2 * height + SIZE_STEP, "{width}x{height}");
        assert!(peak(width, height) <= available && peak(width + 8, (width + 8) / 16 * 8) > available);
        assert_eq!(footprint.fitting_size(&wide, Series::One, 1 << 20), None);
    }
}
