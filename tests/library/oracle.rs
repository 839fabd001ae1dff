//! The networks against candle-transformers' own, an independent implementation in Rust, at several sizes.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};
use candle_transformers::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
use pochade::checkpoint::{Checkpoint, TensorSet};
use pochade::layers::{Backend, Params};
use pochade::networks::clip::TextEncoder;
use pochade::networks::config::ClipConfig;
use pochade::networks::unet::{Residuals, Step, Unet};
use pochade::networks::vae;

use crate::support::comparison::{assert_close, assert_identical, distance};
use crate::support::models::{float_backends, kl_config, noise, small, unet, unet_config};

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

/// Feeds candle-transformers' text encoder from a set of tensors.
struct Weights(TensorSet);

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let name = name.replace("text_model.", "text_encoder.");
        let values = self.0.f32(&name, shape.dims()).unwrap();
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("tensor '{name}' was asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// Random weights of sizes that fill no vector or panel, and lengths from one token to every position.
#[test]
fn text_encoder_equals_candles() {
    for (vocab_size, hidden, heads, inner, layers, positions) in
        [(19, 24, 3, 52, 3, 13), (101, 70, 5, 33, 1, 80), (1000, 192, 3, 768, 2, 77)]
    {
        let config = serde_json::json!({
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": positions,
            "hidden_act": "quick_gelu",
        });
        let theirs = ClipTextConfig {
            vocab_size,
            embed_dim: hidden,
            activation: Activation::QuickGelu,
            intermediate_size: inner,
            max_position_embeddings: positions,
            pad_with: None,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            projection_dim: hidden,
        };
        let weights = Box::new(Weights(TensorSet::random()));
        let vars = VarBuilder::from_backend(weights, DType::F32, Device::Cpu);
        let theirs = ClipTextTransformer::new(vars.pp("text_model"), &theirs).unwrap();
        let tensors = TensorSet::random();
        for backend in float_backends() {
            let config = ClipConfig::parse(&config).unwrap();
            let ours = TextEncoder::load(&Params::new(&tensors, &backend, "text_encoder"), config).unwrap();
            for length in [1, 2, positions - 1, positions] {
                let ids: Vec<u32> = (0..length).map(|at| (at * at % vocab_size) as u32).collect();
                let ids_in = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
                let expected = theirs.forward_with_mask(&ids_in, usize::MAX).unwrap();
                let found = ours.forward(&ids).unwrap();
                let what = format!("{hidden} channels, {length} tokens on {}", backend.name());
                assert_close(&found, &expected, 2e-5, what);
            }
        }
    }
}

#[test]
fn chunks_of_a_batch_are_read_as_if_alone() {
    let tensors = TensorSet::random();
    let config = serde_json::json!({
        "vocab_size": 50,
        "hidden_size": 40,
        "intermediate_size": 90,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 11,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    });
    let mut all = Vec::new();
    for backend in float_backends() {
        let config = ClipConfig::parse(&config).unwrap();
        let encoder = TextEncoder::load(&Params::new(&tensors, &backend, "text_encoder"), config).unwrap();
        let chunks = noise(4, &[3, 11, 40]);
        let together = encoder.forward_embedded(&chunks).unwrap();
        for at in 0..3 {
            let alone = encoder.forward_embedded(&chunks.i(at..=at).unwrap()).unwrap();
            let part = together.i(at..=at).unwrap();
            match backend.kernels {
                Some(_) => assert_identical(&part, &alone, format_args!("chunk {at}")),
                // candle's products may add in another order.
                None => assert_close(&part, &alone, 1e-6, format_args!("chunk {at}")),
            }
        }
        all.push(together);
    }
    assert_close(&all[0], &all[1], 2e-5, "the kernels' and candle's GELU");
}
