//! Pochade turns a prompt into a PNG with a quantized Stable Diffusion 1.5.

pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod kernels;
pub mod layers;
pub mod memory;
pub mod networks;
pub mod noise;
pub mod pipeline;
pub mod prompt;
pub mod quantize;
pub mod request;
pub mod samplers;
pub mod schedule;
