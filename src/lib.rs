//! Pochade turns a prompt into a PNG with a quantized Stable Diffusion 1.5.

pub mod checkpoint;
pub mod kernels;
pub mod noise;
pub mod pipeline;
pub mod request;
pub mod samplers;
pub mod schedule;
