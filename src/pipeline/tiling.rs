//! When a picture is decoded in parts, and how much memory decoding it whole takes; how it is done in parts lives in `networks::strips`.

use crate::networks::activations::Activations;
use crate::networks::autoencoder::{describe_decoder, describe_encoder};
use crate::networks::config::VaeConfig;
use crate::networks::graph::{Extent, Graph, Prompts};
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
                available.is_some_and(|available| available < decode_peak_bytes(config, width, height, None))
            }
        }
    }
}

/// What one half of an autoencoder takes at most for a picture of this width and height, whole or in strips, beside
/// its weights, in bytes.
pub type PeakBytes = fn(&VaeConfig, usize, usize, Option<Strips>) -> u64;

/// The decoder's [`PeakBytes`].
pub fn decode_peak_bytes(config: &VaeConfig, width: usize, height: usize, strips: Option<Strips>) -> u64 {
    let factor = config.factor();
    let latents = Extent { batch: 1, height: height / factor, width: width / factor };
    peak_bytes(&describe_decoder(config), latents, strips)
}

/// The encoder's [`PeakBytes`].
pub fn encode_peak_bytes(config: &VaeConfig, width: usize, height: usize, strips: Option<Strips>) -> u64 {
    peak_bytes(&describe_encoder(config), Extent { batch: 1, height, width }, strips)
}

fn peak_bytes(graph: &Graph, input: Extent, strips: Option<Strips>) -> u64 {
    // Autoencoders are multiplied in float throughout.
    let activations = Activations::new(graph, &[input], Prompts::default(), &|_| false);
    match strips {
        Some(strips) => activations.peak_bytes_in_strips(strips),
        None => activations.peak_bytes(),
    }
}
