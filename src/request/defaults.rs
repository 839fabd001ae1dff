//! What a request is completed with where it says nothing: what its model draws best with.

use serde::{Deserialize, Serialize};

use crate::samplers::{Sampler, Schedule};

/// What a model draws best with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    pub width: usize,
    pub height: usize,
    pub steps: usize,
    pub guidance_scale: f64,
    pub sampler: Sampler,
    pub schedule: Schedule,
}

/// What the defaults of a request's fields are made from.
#[derive(Debug, Clone, Copy)]
pub struct Basis {
    /// Pixels: the model's own, or what suits the picture to start from.
    pub size: (usize, usize),
    /// The request's own, or its recipe's, or the model's.
    pub steps: usize,
    pub guidance_scale: f64,
    /// The request's own, or its recipe's, or the model's.
    pub sampler: Sampler,
    /// The recipe's or the model's with its own sampler, else the sampler's.
    pub schedule: Schedule,
    /// The recipe's with its own sampler, else the sampler's.
    pub eta: f64,
    pub seed: u64,
    /// Whether only a part of the picture to start from is repainted.
    pub masked: bool,
}
