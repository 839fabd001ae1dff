//! CPU kernels on plain slices, chosen at run time for the processor; tensors, names and networks are elsewhere.
//!
//! Feature maps are channels-last: an image batch `[batch, height, width, channels]` is a matrix with one
//! row per pixel, a sequence batch `[batch, tokens, channels]` one with a row per token. All `unsafe` code
//! of the crate is below this module.

#![allow(unsafe_code, reason = "vector instructions and shared output; each block says why it is sound")]

mod aligned;
mod attention;
mod blocking;
mod dot;
mod elementwise;
mod epilogue;
mod gather;
mod gemm_f32;
mod gemm_i8;
mod isa;
mod math;
mod norm;
mod parallel;
mod quantized_rows;
mod rows;
mod simd;
mod tile;
mod winograd;

pub use attention::Attention;
pub use elementwise::{add, geglu, quantize_rows, silu};
pub use epilogue::{Activation, Epilogue, Residual};
pub use gather::{Conv2d, Gather, Padding};
pub use gemm_f32::PackedF32;
pub use gemm_i8::PackedI8;
pub use isa::Isa;
pub use norm::{ChannelMoments, GroupNorm, LayerNorm};
pub use quantized_rows::QuantizedRows;
pub use rows::RowsMut;
pub use winograd::{PackedWinograd, Workspace};
