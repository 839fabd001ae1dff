//! When a picture is decoded in parts, and how much memory decoding it whole takes; how it is done in parts stands in `networks::strips`.

use crate::memory;
use crate::networks::config::VaeConfig;
use crate::networks::strips::Strips;

/// Whether a picture is decoded in parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tile {
    /// When the memory available is too small for the whole.
    #[default]
    Auto,
    On,
    Off,
}

impl Tile {
    /// Whether to decode a picture of these pixels in parts, given what is available in bytes, if that is known.
    pub fn applies(self, config: &VaeConfig, width: usize, height: usize, available: Option<u64>) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            Self::Auto => {
                available.is_some_and(|available| available < decode_peak_bytes(config, width, height))
            }
        }
    }

    /// The same by what this machine and its control groups have left.
    pub fn applies_here(self, config: &VaeConfig, width: usize, height: usize) -> bool {
        self.applies(config, width, height, memory::available())
    }
}

/// An estimate of what decoding a whole picture of `width` by `height` pixels allocates at most, beside the
/// weights, in bytes.
///
/// The largest maps are those of the last level. A convolution there has its input, the input after norm and
/// SiLU, its output and what is added to it at the same time.
pub fn decode_peak_bytes(config: &VaeConfig, width: usize, height: usize) -> u64 {
    transformed_weights(config) + 4 * 2 * widest_maps(config) * (width * height) as u64
}

/// The same for a picture decoded in strips: an input and an output in half precision, and what a strip takes.
pub fn strips_peak_bytes(config: &VaeConfig, width: usize, height: usize) -> u64 {
    let strip = STRIP_MAPS * Strips::default().bytes as u64;
    transformed_weights(config) + strip + 2 * widest_maps(config) * (width * height) as u64
}

/// Channels of the input and the output of the last level's first convolution.
fn widest_maps(config: &VaeConfig) -> u64 {
    let (input, output) = match config {
        VaeConfig::Kl(config) => (*config.channels.get(1).unwrap_or(&config.channels[0]), config.channels[0]),
        VaeConfig::Tiny(config) => {
            let width = config.decoder_block_out_channels[0];
            (width, width)
        }
    };
    (input + output) as u64
}

/// What convolutions over large maps make of their weights while they run: measured, and little beside the maps.
fn transformed_weights(config: &VaeConfig) -> u64 {
    if matches!(config, VaeConfig::Kl(_)) { 96 << 20 } else { 0 }
}

/// Maps of a strip's size that are in memory at once, measured.
const STRIP_MAPS: u64 = 3;
