//! The library: its networks, samplers and pictures against other implementations, and its readers against bad files.
//!
//! `cargo test --release --test library`

#[path = "../support/mod.rs"]
mod support;

mod built_in;
mod calibration;
mod circles;
mod comparison;
mod damaged_models;
mod equalization;
mod fidelity;
mod formats;
mod four_bits;
mod hostile;
mod less_work;
mod lora;
mod noise;
mod oracle;
mod parity;
mod picture_in;
mod png_metadata;
mod prepacked;
mod prompts;
mod quantization;
mod samplers;
mod second_pass;
mod sources;
mod stages;
mod tiling;
mod unet_variants;
mod words;
mod writing;
