//! Pochade turns a prompt into a PNG with a quantized Stable Diffusion 1.5.

pub mod checkpoint;
pub mod cli;
pub mod hub;
pub mod memory;
pub mod pipeline;
pub mod png;
pub mod request;
