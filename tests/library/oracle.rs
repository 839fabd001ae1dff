//! UNet and VAE decoder against candle-transformers' own, an independent implementation in Rust, at two sizes.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
use pochade::checkpoint::Checkpoint;
use pochade::layers::{Backend, Params};
use pochade::networks::unet::{Residuals, Step, Unet};
use pochade::networks::vae;

use crate::support::comparison::{assert_close, distance};
use crate::support::models::{kl_config, noise, small, unet, unet_config};

/// Wider than the bound against diffusers: candle-transformers approximates GEGLU's GELU by a tanh.
const BOUND: f64 = 5e-4;

/// The tensors of one component, f32, without its prefix.
fn variables(checkpoint: &Checkpoint, component: &str) -> VarBuilder<'static> {
    let tensors = checkpoint.tensors();
    let prefix = format!("{component}.");
    let named: HashMap<String, Tensor> = tensors
        .names()
        .filter_map(|name| Some((name, name.strip_prefix(&prefix)?)))
        .map(|(name, short)| {
            let view = tensors.view(name).unwrap();
            let tensor = Tensor::from_vec(view.to_f32().unwrap(), view.shape, &Device::Cpu).unwrap();
            (short.to_owned(), tensor)
        })
        .collect();
    VarBuilder::from_tensors(named, DType::F32, &Device::Cpu)
}

/// The small checkpoint's UNet and candle-transformers' of the same weights.
fn unets(checkpoint: &Checkpoint) -> (Unet, UNet2DConditionModel) {
    let ours = unet_config(checkpoint);
    let blocks = ours.channels.iter().zip(&ours.heads).zip(&ours.down_attention);
    let config = UNet2DConditionModelConfig {
        center_input_sample: false,
        flip_sin_to_cos: ours.flip_sin_to_cos,
        freq_shift: ours.freq_shift,
        blocks: blocks
            .map(|((&out_channels, &heads), &attends)| BlockConfig {
                out_channels,
                use_cross_attn: attends.then_some(1),
                attention_head_dim: heads,
            })
            .collect(),
        layers_per_block: ours.layers_per_block,
        downsample_padding: 1,
        mid_block_scale_factor: 1.0,
        norm_num_groups: ours.norm_groups,
        norm_eps: ours.norm_eps,
        cross_attention_dim: ours.context_channels,
        sliced_attention_size: None,
        use_linear_projection: false,
    };
    let theirs = UNet2DConditionModel::new(variables(checkpoint, "unet"), 4, 4, false, config).unwrap();
    (unet(checkpoint, &Backend::cpu().unwrap()), theirs)
}

#[test]
fn unet_equals_candles() {
    let checkpoint = small();
    let context = noise(1, &[2, 77, unet_config(&checkpoint).context_channels]);
    let (unet, theirs) = unets(&checkpoint);
    let prepared = unet.context(&context).unwrap();
    for (height, width, timestep) in [(16, 16, 999.0), (24, 40, 1.0)] {
        let latents = noise(2, &[2, 4, height, width]);
        let expected = theirs.forward(&latents, timestep, &context).unwrap();
        let found = unet.forward(&latents, timestep, &prepared).unwrap();
        assert_close(&found, &expected, BOUND, format_args!("unet at {height} x {width}"));
    }
}

/// As a ControlNet gives them: to one skip or the middle at a time, to tell each from the others.
#[test]
fn residuals_from_outside_are_added_where_candle_adds_them() {
    let checkpoint = small();
    let (ours, theirs) = unets(&checkpoint);
    let embeddings = noise(1, &[2, 77, unet_config(&checkpoint).context_channels]);
    let context = ours.context(&embeddings).unwrap();
    let latents = noise(2, &[2, 4, 16, 16]);
    let step = Step { latents: &latents, timestep: 400.0, context: &context, residuals: None };
    let without = ours.predict(&step).unwrap();
    let shapes = ours.skip_shapes(&step).unwrap();
    for changed in 0..shapes.len() {
        // Channels-first, as candle takes them.
        let mut maps: Vec<Tensor> = shapes
            .iter()
            .enumerate()
            .map(|(at, shape)| {
                let map = noise(5, &[shape[0], shape[3], shape[1], shape[2]]);
                if at == changed { map } else { map.zeros_like().unwrap() }
            })
            .collect();
        let last_maps = |map: &Tensor| map.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let skips = maps[..maps.len() - 1].iter().map(last_maps).collect();
        let middle = maps.pop().unwrap();
        let residuals = Residuals { skips, middle: last_maps(&middle) };
        let output = ours.predict(&Step { residuals: Some(&residuals), ..step }).unwrap();
        let expected = theirs.forward_with_additional_residuals(
            &latents,
            400.0,
            &embeddings,
            Some(&maps),
            Some(&middle),
        );
        assert_close(&output, &expected.unwrap(), BOUND, format_args!("residual {changed}"));
        let change = distance(&output, &without).relative_rms();
        assert!(change > 0.01, "residual {changed} changes the output by {change}");
    }
}

#[test]
fn vae_decoder_equals_candles() {
    let checkpoint = small();
    let ours = kl_config(&checkpoint);
    let config = AutoEncoderKLConfig {
        block_out_channels: ours.channels.clone(),
        layers_per_block: ours.layers_per_block,
        latent_channels: ours.latent_channels,
        norm_num_groups: ours.norm_num_groups,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    let theirs = AutoEncoderKL::new(variables(&checkpoint, "vae"), 3, 3, config).unwrap();
    let backend = Backend::cpu().unwrap();
    let decoder = vae::Decoder::load(&Params::new(checkpoint.tensors(), &backend, "vae"), &ours).unwrap();
    for (height, width) in [(8, 8), (5, 11)] {
        let latents = noise(3, &[1, 4, height, width]);
        let expected = theirs.decode(&latents).unwrap();
        let found = decoder.forward(&latents).unwrap();
        assert_close(&found, &expected, BOUND, format_args!("vae decoder at {height} x {width}"));
    }
}
