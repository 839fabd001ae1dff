//! How much memory pictures will take at the most, estimated before a network is loaded; what the machine has is asked elsewhere.

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Component};
use crate::memory::tiling::{Tile, decode_peak_bytes, strips_peak_bytes};
use crate::networks::config::{UnetConfig, VaeConfig};
use crate::quantize::{Treatment, policy};
use crate::request::{Hires, MAX_SIZE, Precision, Request, SIZE_STEP};

/// The program itself and what the allocator keeps.
const BASE: u64 = 30 << 20;

/// A token in the tokenizer's tables: CLIP's 49,408 come to 10 MB.
const TOKEN: u64 = 212;

/// Weights are padded for the kernels, and reading the last of them needs room beside the others.
const WEIGHT_SLACK: f64 = 1.1;

/// What the UNet's skips, feature maps and workspaces come to in its first level's maps, measured: 25 in SD 1.5,
/// and more after many steps.
const UNET_MAPS: u64 = 28;

/// What the allocator has not given back when the autoencoder runs, beside its maps: measured in whole runs.
const HEAP_SLACK: f64 = 1.1;

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
    tokens: u64,
    text_encoder: u64,
    unet: u64,
    decoder: u64,
    /// Of the autoencoder, which a picture to start from needs.
    encoder: u64,
    unet_config: UnetConfig,
    vae_config: VaeConfig,
    tile: Tile,
}

impl Footprint {
    /// Of a model whose tensors are in files.
    pub fn new(
        checkpoint: &Checkpoint,
        unet_config: UnetConfig,
        vae_config: VaeConfig,
        precision: Precision,
    ) -> Self {
        let tensors = checkpoint.tensors();
        let sizes = tensors.parameters().filter_map(|name| {
            let view = tensors.view(name).ok()?;
            // Floats of a quantized model were kept as floats for a reason.
            let rounded = view.type_name() == "I8" || !tensors.is_in_quantized(name);
            Some((name, view.len() as u64, precision == Precision::Int8 && rounded))
        });
        Self::of_tensors(sizes, tokens(checkpoint), unet_config, vae_config)
    }

    /// From names, numbers of values and whether a value may be computed in int8; `tokens` is the vocabulary's size.
    fn of_tensors<'a>(
        tensors: impl Iterator<Item = (&'a str, u64, bool)>,
        tokens: u64,
        unet_config: UnetConfig,
        vae_config: VaeConfig,
    ) -> Self {
        let mut footprint = Self {
            tokens,
            text_encoder: 0,
            unet: 0,
            decoder: 0,
            encoder: 0,
            unet_config,
            vae_config,
            tile: Tile::Off,
        };
        for (name, values, int8) in tensors {
            let width = if int8 && policy::treatment(name) == Treatment::Computed { 1 } else { 4 };
            let bytes = match Component::of(name) {
                Some(Component::TextEncoder) => &mut footprint.text_encoder,
                Some(Component::Unet) => &mut footprint.unet,
                Some(Component::Vae) if is_of_encoder(name) => &mut footprint.encoder,
                Some(Component::Vae) => &mut footprint.decoder,
                None => continue,
            };
            *bytes += values * width;
        }
        footprint
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
        let weights = |values: u64| (values as f64 * WEIGHT_SLACK) as u64;
        let (text_encoder, unet, decoder) =
            (weights(self.text_encoder), weights(self.unet), weights(self.decoder));
        let (width, height) =
            Hires::of(request).map_or((request.width, request.height), |hires| (hires.width, hires.height));
        let denoising = self.denoise_peak_bytes(request, width, height);
        let decoding = self.decode_peak_bytes(width, height);
        // The encoder's maps are the decoder's in reverse, and fewer.
        let encoding = if request.init.is_some() { weights(self.encoder) + decoding } else { 0 };
        BASE + TOKEN * self.tokens
            + match series {
                Series::One => text_encoder.max(unet + denoising).max(decoder + decoding).max(encoding),
                Series::SamePrompt => {
                    text_encoder.max(unet + decoder + denoising.max(decoding).max(encoding))
                }
                Series::Prompts => unet + decoder + text_encoder.max(denoising).max(decoding).max(encoding),
            }
    }

    /// Bytes of the UNet's activations: they grow with the latents and, under guidance, are two pictures'.
    fn denoise_peak_bytes(&self, request: &Request, width: usize, height: usize) -> u64 {
        let factor = self.vae_config.factor();
        let latents = (width / factor * (height / factor)) as u64;
        let guided = request.guidance_scale != 1.0 && self.unet_config.guidance_channels.is_none();
        let passes = if guided { 2 } else { 1 };
        4 * passes * latents * self.unet_config.channels[0] as u64 * UNET_MAPS
    }

    /// Bytes of the autoencoder's activations; where it may choose, it takes strips when there is no room.
    fn decode_peak_bytes(&self, width: usize, height: usize) -> u64 {
        let whole = decode_peak_bytes(&self.vae_config, width, height);
        let strips = strips_peak_bytes(&self.vae_config, width, height);
        let maps = match self.tile {
            Tile::Off => whole,
            Tile::On => strips,
            Tile::Auto => whole.min(strips),
        };
        (maps as f64 * HEAP_SLACK) as u64
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

/// How many tokens the model's tokenizer has.
fn tokens(checkpoint: &Checkpoint) -> u64 {
    checkpoint.configs().text_encoder.get("vocab_size").and_then(Value::as_u64).unwrap_or(49_408)
}

/// Whether the tensor belongs to the half of an autoencoder that reads pictures.
fn is_of_encoder(name: &str) -> bool {
    name.starts_with("vae.encoder.") || name.starts_with("vae.quant_conv.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Draft;

    const MB: u64 = 1_000_000;

    fn request(checkpoint: &Checkpoint, side: usize) -> Request {
        let (prompt, seed) = (Some("x".to_owned()), Some(1));
        let draft = Draft { prompt, seed, width: Some(side), height: Some(side), ..Draft::default() };
        draft.resolve(&checkpoint.defaults()).unwrap()
    }

    fn configs(checkpoint: &Checkpoint) -> (UnetConfig, VaeConfig) {
        let configs = checkpoint.configs();
        (UnetConfig::parse(&configs.unet).unwrap(), VaeConfig::parse(&configs.vae).unwrap())
    }

    fn pocket(precision: Precision) -> (Footprint, Checkpoint) {
        let checkpoint = Checkpoint::built_in().unwrap();
        let (unet, vae) = configs(&checkpoint);
        (Footprint::new(&checkpoint, unet, vae, precision), checkpoint)
    }

    fn sd15(precision: Precision) -> (Footprint, Checkpoint) {
        let checkpoint = Checkpoint::synthetic_sd15();
        let (unet, vae) = configs(&checkpoint);
        let inventory = include_str!("../../tests/data/sd15_tensors.txt");
        let tensors: Vec<(String, u64)> = inventory
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let sizes = fields[3].split('x');
                (
                    format!("{}.{}", fields[0], fields[1]),
                    sizes.map(|size| size.parse::<u64>().unwrap()).product(),
                )
            })
            .collect();
        let int8 = precision == Precision::Int8;
        let tensors = tensors.iter().map(|(name, values)| (name.as_str(), *values, int8));
        (Footprint::of_tensors(tensors, tokens(&checkpoint), unet, vae), checkpoint)
    }

    #[test]
    fn estimates_are_near_measured_peaks() {
        let sides = [128, 256, 512, 768];
        let (one, several) = (Series::One, Series::SamePrompt);
        // The highest resident memory of whole runs of one step, in MB.
        let measured = [
            (pocket(Precision::Int8), one, [48, 78, 204, 433]),
            (pocket(Precision::F32), one, [64, 94, 224, 428]),
            (sd15(Precision::Int8), one, [1061, 1110, 1318, 2389]),
            (sd15(Precision::F32), one, [3512, 3572, 3771, 4091]),
            (sd15(Precision::Int8), several, [1365, 1546, 2295, 3213]),
            (sd15(Precision::F32), several, [3791, 3962, 4745, 5655]),
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
        assert!(peaks.is_sorted() && peaks[2] > peaks[1] + 300 * MB, "{peaks:?}");
        let (footprint, _) = sd15(Precision::F32);
        let large = request(&checkpoint, 512);
        let unguided = Request { guidance_scale: 1.0, ..large.clone() };
        let saved = footprint.peak(&large, Series::One) - footprint.peak(&unguided, Series::One);
        assert!((100 * MB..200 * MB).contains(&saved), "{saved}");
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
