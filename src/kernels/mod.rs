//! CPU kernels on plain slices, compiled for each instruction set, and below `cuda` a GPU's on tensors; networks are elsewhere.
//!
//! Feature maps are channels-last: an image batch `[batch, height, width, channels]` is a matrix with one
//! row per pixel, a sequence batch `[batch, tokens, channels]` one with a row per token.
//!
//! Whoever calls a kernel hands it the instruction set, [`Isa::chosen`] for most; `sets` has one file for each.
//! `unsafe` code is behind safe functions, and each block says why it is sound.

#![allow(unsafe_code, reason = "vector instructions, shared output, memory; each block says why it is sound")]

mod aligned;
mod attention;
mod bf16_product;
mod blocking;
mod byte_product;
#[cfg(feature = "cuda")]
pub mod cuda;
mod epilogue;
mod gather;
mod gemm_f32;
mod gemm_i8;
mod gemm_words;
#[cfg(target_os = "linux")]
mod heap;
mod interleave;
mod isa;
mod math;
mod micro_kernel;
mod nibbles;
mod norm;
mod output;
mod parallel;
mod quantized_rows;
mod read_only;
mod rows;
mod sets;
mod simd;
#[cfg(test)]
mod tests;
mod tile;
mod token;
mod winograd;
mod word_product;

pub use attention::{Attention, Products};
pub use blocking::Shape;
pub use epilogue::Epilogue;
pub use gather::{Conv2d, Gather, Padding};
pub use gemm_f32::PackedF32;
pub use gemm_i8::PackedI8;
pub use gemm_words::PackedWords;
#[cfg(target_os = "linux")]
pub use heap::Heap;
pub use isa::{Isa, NoSuchKernel, VARIABLE};
pub use nibbles::{GROUP, Grouped};
pub use norm::{ChannelMoments, GroupNorm, LayerNorm};
pub use output::{Output, Written, collect};
pub use quantized_rows::QuantizedRows;
pub use read_only::{Lender, LentBytes, lent_len};
pub use rows::{Activation, RowsMut, quantize_rows};
pub use winograd::{Winograd, WinogradWords};
