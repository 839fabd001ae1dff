//! The networks of Stable Diffusion as published: what is computed, in which order; how lives in the layers.

pub mod autoencoder;
pub mod clip;
pub mod config;
mod resnet;
pub mod strips;
pub mod taesd;
mod transformer;
pub mod unet;
pub mod vae;
