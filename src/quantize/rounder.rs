//! The ways in which rounding is learned, behind one interface.

use anyhow::Result;
use serde::Serialize;

use super::adaround::Relaxation;
use super::gptq::Cancellation;
use super::grid::Grid;
use super::gridded::Gridded;
use super::moments::Finished;

/// How rounding is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Learning {
    /// Weight by weight, each making good for those before it.
    Gptq,
    /// All weights at once, by descent.
    AdaRound,
}

/// What rounds the weights of layers that read the same.
pub enum Rounder {
    Gptq(Cancellation),
    AdaRound(Relaxation),
}

impl Rounder {
    /// # Errors
    /// When the moments are not finite.
    pub fn of(learning: Learning, moments: Finished) -> Result<Self> {
        Ok(match learning {
            Learning::Gptq => Self::Gptq(Cancellation::of(moments)?),
            Learning::AdaRound => Self::AdaRound(Relaxation::of(moments)?),
        })
    }

    /// Rounds `weights`, `[rows][inputs][taps]`, to the grid.
    ///
    /// # Errors
    /// When there are not as many columns, or they are not finite.
    pub fn round(&self, grid: Grid, weights: &[f32]) -> Result<Gridded> {
        match self {
            Self::Gptq(cancellation) => cancellation.round(grid, weights),
            Self::AdaRound(relaxation) => relaxation.round(grid, weights),
        }
    }
}
