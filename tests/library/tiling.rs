//! Decoding and encoding strip by strip against whole maps, in every precision the CPU has.

use candle_core::{Device, Tensor};
use pochade::checkpoint::Checkpoint;
use pochade::layers::{Backend, Params};
use pochade::networks::autoencoder::LatentDecoder;
use pochade::networks::config::VaeConfig;
use pochade::networks::strips::Strips;
use pochade::networks::{taesd, vae};

use crate::support::comparison::distance;
use crate::support::models::{self, kl_config, small};

/// So little that every map falls into strips of two rows, or of few.
const TINY: [Strips; 2] = [Strips { bytes: 1 }, Strips { bytes: 40_000 }];

/// Peak signal-to-noise ratio in dB of pictures from -1 to 1.
#[track_caller]
fn psnr(found: &Tensor, expected: &Tensor) -> f64 {
    distance(found, expected).psnr(2.0)
}

/// Latents whose halves differ as much as sky and grass do, so that statistics of a part are wrong for the whole.
fn latents(channels: usize, height: usize, width: usize) -> Tensor {
    let noise = models::noise(7, &[1, channels, height, width]);
    let slope =
        Tensor::arange(0f32, height as f32, &Device::Cpu).unwrap().reshape((1, 1, height, 1)).unwrap();
    noise.broadcast_add(&((slope / height as f64).unwrap() * 2.0).unwrap()).unwrap()
}

#[test]
fn decoders_give_the_same_picture_strip_by_strip() {
    for (checkpoint, least) in [(small(), 55.0), (Checkpoint::built_in().unwrap(), 55.0)] {
        let config = VaeConfig::parse(&checkpoint.configs().vae).unwrap();
        for backend in [
            Backend::cpu().unwrap(),
            Backend::cpu_int8().unwrap(),
            Backend::candle(Device::Cpu, candle_core::DType::F32),
        ] {
            let params = Params::new(checkpoint.tensors(), &backend, "vae");
            let decoder = LatentDecoder::load(&params, &config).unwrap();
            for (height, width) in [(1, 1), (9, 7), (16, 5)] {
                let latents = latents(config.latent_channels(), height, width);
                let whole = decoder.decode(&latents).unwrap();
                for strips in TINY {
                    let parts = decoder.decode_in_strips(&latents, strips).unwrap();
                    let psnr = psnr(&parts, &whole);
                    assert!(psnr >= least, "{} {height}x{width} {strips:?}: {psnr} dB", backend.name());
                }
            }
        }
    }
}

#[test]
fn encoders_give_the_same_latents_strip_by_strip() {
    let backend = Backend::cpu().unwrap();
    let checkpoint = small();
    let params = Params::new(checkpoint.tensors(), &backend, "vae");
    let kl = vae::Encoder::load(&params, &kl_config(&checkpoint)).unwrap();
    let picture = latents(3, 72, 56).clamp(-1.0, 1.0).unwrap();
    let whole = kl.forward(&picture).unwrap();
    for strips in TINY {
        let parts = kl.forward_in_strips(&picture, strips).unwrap();
        assert!(psnr(&parts.mean, &whole.mean) >= 55.0);
        assert!(psnr(&parts.log_variance, &whole.log_variance) >= 55.0);
    }

    let (tensors, config) = models::taesd();
    let params = Params::new(&tensors, &backend, "vae");
    let tiny = taesd::Encoder::load(&params, &config).unwrap();
    let whole = tiny.forward(&picture).unwrap();
    for strips in TINY {
        assert!(psnr(&tiny.forward_in_strips(&picture, strips).unwrap(), &whole) >= 100.0);
    }
}
