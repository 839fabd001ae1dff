//! SD 1.5's UNet step beside candle-transformers' own in the same run: not slower.

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use candle_transformers::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};
use pochade::checkpoint::Checkpoint;
use pochade::layers::{Backend, Params};
use pochade::memory;
use pochade::networks::config::UnetConfig;
use pochade::networks::unet::Unet;

use crate::support::comparison::distance;

/// Feeds candle-transformers' UNet the same random weights.
struct Weights(Checkpoint);

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let values = self.0.tensors().f32(&format!("unet.{name}"), shape.dims());
        let values = values.map_err(|error| candle_core::Error::Msg(format!("{error:#}")))?;
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("tensor '{name}' was asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.tensors().contains(&format!("unet.{name}"))
    }
}

fn theirs(ours: &UnetConfig) -> Result<UNet2DConditionModel> {
    let blocks = ours.channels.iter().zip(&ours.heads).zip(&ours.down_attention);
    let config = UNet2DConditionModelConfig {
        blocks: blocks
            .map(|((&out_channels, &heads), &attends)| BlockConfig {
                out_channels,
                use_cross_attn: attends.then_some(1),
                attention_head_dim: heads,
            })
            .collect(),
        cross_attention_dim: ours.context_channels,
        ..UNet2DConditionModelConfig::default()
    };
    let weights = Box::new(Weights(Checkpoint::synthetic_sd15()));
    let vars = VarBuilder::from_backend(weights, DType::F32, Device::Cpu);
    Ok(UNet2DConditionModel::new(vars, 4, 4, false, config)?)
}

/// Median seconds of three steps.
fn seconds(mut step: impl FnMut() -> Result<Tensor>) -> Result<f64> {
    let mut times = [0.0; 3];
    for time in &mut times {
        let start = Instant::now();
        step()?;
        *time = start.elapsed().as_secs_f64();
    }
    times.sort_by(f64::total_cmp);
    Ok(times[1])
}

/// `cargo test --release --test bench -- --ignored --nocapture full_size`: three minutes, 7 GB.
#[test]
#[ignore = "long, and only a quiet machine's answer counts"]
fn full_size_unet_is_no_slower_than_candles() -> Result<()> {
    let checkpoint = Checkpoint::synthetic_sd15();
    let config = UnetConfig::parse(&checkpoint.configs().unet)?;
    let latents = Tensor::randn(0f32, 1.0, (2, 4, 64, 64), &Device::Cpu)?;
    let embeddings = Tensor::randn(0f32, 1.0, (2, 77, config.context_channels), &Device::Cpu)?;
    let gigabytes = || memory::peak_resident().map_or(f64::NAN, |bytes| bytes as f64 / 1e9);

    // Ours first: the peak only ever rises.
    let peer = config.clone();
    let (our_output, our_seconds) = {
        let backend = Backend::cpu()?;
        let unet = Unet::load(&Params::new(checkpoint.tensors(), &backend, "unet"), config)?;
        let context = unet.context(&embeddings)?;
        let step = || unet.forward(&latents, 500.0, &context);
        (step()?, seconds(step)?)
    };
    println!("pochade f32: {our_seconds:.2} s a step, peak memory {:.2} GB", gigabytes());

    let unet = theirs(&peer)?;
    let step = || Ok(unet.forward(&latents, 500.0, &embeddings)?);
    let (their_output, their_seconds) = (step()?, seconds(step)?);
    println!("candle f32:  {their_seconds:.2} s a step, peak memory {:.2} GB", gigabytes());

    let error = distance(&our_output, &their_output).relative();
    println!("largest difference: {error:.1e} of the largest value");
    assert!(error < 1e-2, "the two compute different things");
    assert!(our_seconds <= their_seconds);
    Ok(())
}
