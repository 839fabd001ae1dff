//! Pochade turns a prompt into a PNG with a quantized Stable Diffusion 1.5, on an ordinary CPU.
//!
//! A [`checkpoint`] is a model's files, a [`Model`](pipeline::Model) one that was opened to run somewhere, a
//! [`Pipeline`](pipeline::Pipeline) what is in memory of it. A picture of the built-in model takes a moment:
//!
//! ```
//! use pochade::checkpoint::Checkpoint;
//! use pochade::pipeline::{Model, Numerics, Pipeline, Residency};
//! use pochade::request::{Precision, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open(Checkpoint::built_in()?, &Numerics::on_cpu(Precision::Int8))?;
//! let request = Request::new("a red apple on a yellow background", 7, &model.checkpoint().defaults());
//! let picture = Pipeline::new(&model, Residency::OneByOne).generate(&request, &mut ())?;
//! assert_eq!(picture.rgb.dimensions(), (128, 128));
//! // The border is yellow: much red and green, little blue.
//! let [red, green, blue] = picture.rgb.get_pixel(2, 2).0;
//! assert!(red > 200 && green > 160 && blue < 140);
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("apple.png");
//! picture.rgb.save(&path)?;
//! # Ok(())
//! # }
//! ```
//!
//! The data flows one way. A [`request`] becomes token ids and text embeddings ([`prompt`]); seeded [`noise`] becomes
//! latents under one of the [`samplers`], along a [`schedule`]; these become a picture ([`pipeline`], [`png`]). *What*
//! is computed lives in [`networks`], *how* in [`layers`], *fast* in [`kernels`]. A [`checkpoint`], which [`hub`] can
//! fetch, feeds them by name, [`quantize`] makes its weights small; [`cli`] is what is typed and printed.

// What is wrong is told by an error, and by the printer.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr))]

pub mod bench;
pub mod calibration;
pub mod checkpoint;
pub mod cli;
pub mod compare;
pub mod files;
pub mod hub;
pub mod kernels;
pub mod layers;
mod machine;
pub mod memory;
mod named_enum;
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
