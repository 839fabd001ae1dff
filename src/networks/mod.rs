//! The networks of Stable Diffusion as published: what is computed, in which order; how lives in the layers.

pub mod activations;
pub mod autoencoder;
mod blocks;
pub mod clip;
pub mod config;
pub mod graph;
mod layer;
mod network;
mod operation;
pub mod strips;
pub mod taesd;
pub mod unet;
pub mod vae;
mod work;
