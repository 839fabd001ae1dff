//! Quantized weights: how they are equalized and rounded, and which layers get them; files, kernels and networks are elsewhere.

mod adaround;
pub mod allocation;
mod amplification;
mod balance;
mod cholesky;
mod equalize;
mod gptq;
pub mod grid;
mod gridded;
pub mod grouped;
mod moments;
mod pairs;
mod policy;
mod rounder;
mod rounding;
mod treatment;

pub use balance::{Balance, Tensors};
pub use equalize::Matrix;
pub use gptq::Cancellation;
pub use gridded::Gridded;
pub use grouped::GroupedWeight;
pub use moments::{Finished, Moments};
pub use policy::{Bits, Origin, Policy, Rule};
pub use rounder::{Learning, Rounder};
pub use rounding::{Energy, QuantizedWeight, divide_columns, round_with_scales, scales, sqnr};
pub use treatment::Treatment;

/// Weights as they are stored, or as they are to be computed with.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    Float(Vec<f32>),
    Int8(QuantizedWeight),
    Int4(GroupedWeight),
}

impl Weight {
    /// The values as floats.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::Float(values) => values,
            Self::Int8(weight) => weight.dequantize(),
            Self::Int4(weight) => weight.dequantize(),
        }
    }
}
