//! Noise equals PyTorch's number for number; what is made of it is tested elsewhere.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use pochade::noise::NoiseSource;
use pochade::request::Rng;

use crate::support::comparison::distance;
use crate::support::models::reference;

/// The first values, as many and in the shape as are `expected`: of large noise the references hold a part.
fn assert_begins(noise: &Tensor, expected: &Tensor, what: &str) -> Result<()> {
    let noise = noise.flatten_all()?.narrow(0, 0, expected.elem_count())?.reshape(expected.shape())?;
    let difference = distance(&noise, expected).largest;
    assert!(difference < 1e-6, "{what}: differs by {difference:e}");
    Ok(())
}

#[test]
fn torch_noise_equals_pytorch_on_the_cpu() -> Result<()> {
    let vectors = reference("torch_noise.safetensors");
    let mut checked = 0;
    for (key, expected) in vectors.iter().filter(|(key, _)| !key.contains("sequence")) {
        let (seed, shape) = key.split_once('/').context("no seed in the key")?;
        let shape = shape.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        let noise = NoiseSource::new(Rng::Torch, seed.parse()?).normal(&shape, &Device::Cpu)?;
        assert_begins(&noise, expected, key)?;
        checked += 1;
    }
    assert_eq!(checked, 36);
    Ok(())
}

#[test]
fn draws_continue_the_same_torch_generator() -> Result<()> {
    let vectors = reference("torch_noise.safetensors");
    let mut source = NoiseSource::new(Rng::Torch, 5);
    for key in ["5/sequence_a_1x4x8x8", "5/sequence_b_1x4x8x8"] {
        assert_begins(&source.normal(&[1, 4, 8, 8], &Device::Cpu)?, &vectors[key], key)?;
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
    assert_begins(&first, &Tensor::new(&expected, &Device::Cpu)?, "philox")?;
    let second = source.normal(&[12], &Device::Cpu)?;
    assert!(distance(&first, &second).largest > 0.1, "the second draw repeats the first");
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
