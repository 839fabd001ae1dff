//! Noise equals PyTorch's number for number; what is made of it is tested elsewhere.

use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use pochade::noise::NoiseSource;
use pochade::request::Rng;

fn max_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    let a = a.flatten_all()?.narrow(0, 0, b.elem_count())?;
    Ok((a - b.flatten_all()?)?.abs()?.max(0)?.to_scalar()?)
}

#[test]
fn torch_noise_equals_pytorch_on_the_cpu() -> Result<()> {
    let vectors: HashMap<String, Tensor> =
        candle_core::safetensors::load("tests/data/reference/torch_noise.safetensors", &Device::Cpu)?;
    let mut checked = 0;
    for (key, expected) in vectors.iter().filter(|(key, _)| !key.contains("sequence")) {
        let (seed, shape) = key.split_once('/').context("no seed in the key")?;
        let shape = shape.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        let noise = NoiseSource::new(Rng::Torch, seed.parse()?).normal(&shape, &Device::Cpu)?;
        let difference = max_difference(&noise, expected)?;
        assert!(difference < 1e-6, "{key}: differs by {difference:e}");
        checked += 1;
    }
    assert_eq!(checked, 36);
    Ok(())
}

#[test]
fn draws_continue_the_same_torch_generator() -> Result<()> {
    let vectors =
        candle_core::safetensors::load("tests/data/reference/torch_noise.safetensors", &Device::Cpu)?;
    let mut source = NoiseSource::new(Rng::Torch, 5);
    for key in ["5/sequence_a_1x4x8x8", "5/sequence_b_1x4x8x8"] {
        let difference = max_difference(&source.normal(&[1, 4, 8, 8], &Device::Cpu)?, &vectors[key])?;
        assert!(difference < 1e-6, "{key}: differs by {difference:e}");
    }
    Ok(())
}

#[test]
fn philox_noise_equals_pytorch_on_cuda() -> Result<()> {
    let expected = [
        -0.924663, -0.425344, -2.643846, 0.145184, -0.120867, -0.579726, -0.622851, -0.328387, -1.074542,
        -0.363144, -1.671051, 2.265505,
    ];
    let mut source = NoiseSource::new(Rng::Philox, 0);
    let first = source.normal(&[12], &Device::Cpu)?;
    let difference = max_difference(&first, &Tensor::new(&expected, &Device::Cpu)?.to_dtype(first.dtype())?)?;
    assert!(difference < 1e-6, "differs by {difference:e}");
    let second = source.normal(&[12], &Device::Cpu)?;
    assert!(max_difference(&first, &second)? > 0.1, "the second draw repeats the first");
    Ok(())
}

#[test]
fn noise_is_standard_normal_for_either_generator() -> Result<()> {
    for rng in [Rng::Torch, Rng::Philox] {
        let values = NoiseSource::new(rng, 99).normal(&[100_000], &Device::Cpu)?;
        let mean: f32 = values.mean_all()?.to_scalar()?;
        let variance: f32 = values.sqr()?.mean_all()?.to_scalar()?;
        assert!(
            mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02,
            "{rng}: mean {mean}, variance {variance}"
        );
    }
    Ok(())
}
