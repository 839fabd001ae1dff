//! Pochade turns a prompt into a PNG with a quantized Stable Diffusion 1.5.
//!
//! One way leads through it: a [`request`] becomes token ids ([`prompt`]), these embeddings, and noise
//! ([`noise`], [`schedule`]) under a sampler ([`samplers`]) latents and a picture ([`pipeline`], [`png`]).
//! What is computed stands in [`networks`], how in [`layers`], fast in [`kernels`]; a [`checkpoint`], which
//! [`hub`] can fetch, feeds them by name, [`quantize`] makes its weights small, [`cli`] is what is typed and
//! printed.

// What is wrong is told by an error, and by the printer.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr))]

pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod compare;
pub mod files;
pub mod hub;
pub mod kernels;
pub mod layers;
pub mod memory;
pub mod networks;
pub mod noise;
pub mod picture_in;
pub mod pipeline;
pub mod png;
pub mod prompt;
pub mod quantize;
pub mod request;
pub mod samplers;
pub mod schedule;
pub mod sensitivity;
