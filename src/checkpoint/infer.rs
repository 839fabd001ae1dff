//! Configs for files that carry none: SD 1.5's, with every size that the shapes of the tensors give away.

use serde_json::{Value, json};

use super::names::Component;
use super::sd15;
use super::tensors::TensorSet;

/// More levels or layers than any network here has.
const MOST: usize = 64;

/// The config of `component`, from its tensors in `tensors`.
pub fn config(tensors: &TensorSet, component: Component) -> Value {
    let shapes = Shapes { tensors, component };
    match component {
        Component::TextEncoder => text_encoder(&shapes),
        Component::Unet => unet(&shapes),
        Component::Vae
            if tensors.contains_below("vae.decoder.layers.")
                || tensors.contains_below("vae.encoder.layers.") =>
        {
            tiny(&shapes)
        }
        Component::Vae => vae(&shapes),
    }
}

struct Shapes<'a> {
    tensors: &'a TensorSet,
    component: Component,
}

impl Shapes<'_> {
    /// Dimension `at` of the tensor called `name` within the component.
    fn size(&self, name: &str, at: usize) -> Option<usize> {
        let view = self.tensors.view(&format!("{}.{name}", self.component.name())).ok()?;
        view.shape.get(at).copied()
    }

    fn has(&self, prefix: &str) -> bool {
        self.tensors.contains_below(&format!("{}.{prefix}", self.component.name()))
    }

    /// How many parts `prefix0.`, `prefix1.`, … there are.
    fn count(&self, prefix: &str) -> usize {
        (0..MOST).take_while(|index| self.has(&format!("{prefix}{index}."))).count()
    }

    /// The outputs of the first resnet of a block.
    fn width(&self, block: &str) -> Option<usize> {
        ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "norm2.weight"]
            .iter()
            .find_map(|part| self.size(&format!("{block}.resnets.0.{part}"), 0))
    }
}

/// Sets `key` where the shapes gave a value.
fn set(config: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        config[key] = value.into();
    }
}

fn unet(shapes: &Shapes<'_>) -> Value {
    let mut config = sd15::unet();
    let levels = shapes.count("down_blocks.");
    if levels == 0 {
        return config;
    }
    let widths: Option<Vec<usize>> =
        (0..levels).map(|level| shapes.width(&format!("down_blocks.{level}"))).collect();
    let Some(widths) = widths else { return config };
    let attends = |block: String| shapes.has(&format!("{block}.attentions."));
    let down: Vec<&str> = (0..levels)
        .map(
            |level| {
                if attends(format!("down_blocks.{level}")) { "CrossAttnDownBlock2D" } else { "DownBlock2D" }
            },
        )
        .collect();
    let up: Vec<&str> = (0..levels)
        .map(|level| if attends(format!("up_blocks.{level}")) { "CrossAttnUpBlock2D" } else { "UpBlock2D" })
        .collect();
    let context = (0..levels).find_map(|level| {
        let part = "attentions.0.transformer_blocks.0.attn2.to_k.weight";
        shapes.size(&format!("down_blocks.{level}.{part}"), 1)
    });
    config["block_out_channels"] = json!(widths);
    config["down_block_types"] = json!(down);
    config["up_block_types"] = json!(up);
    if !shapes.has("mid_block.") {
        config["mid_block_type"] = Value::Null;
    }
    // A level misses a layer only in a damaged file, which then lacks the tensor by name.
    let layers = (0..levels).map(|level| shapes.count(&format!("down_blocks.{level}.resnets."))).max();
    set(&mut config, "layers_per_block", layers.filter(|&layers| layers > 0));
    set(&mut config, "cross_attention_dim", context);
    set(&mut config, "in_channels", shapes.size("conv_in.weight", 1));
    set(&mut config, "out_channels", shapes.size("conv_out.weight", 0));
    set(&mut config, "time_cond_proj_dim", shapes.size("time_embedding.cond_proj.weight", 1));
    config
}

fn vae(shapes: &Shapes<'_>) -> Value {
    let mut config = sd15::vae();
    let (down, up) = (shapes.count("encoder.down_blocks."), shapes.count("decoder.up_blocks."));
    let levels = down.max(up);
    let widths: Option<Vec<usize>> = (0..levels)
        .map(|level| {
            let mirrored = levels - 1 - level;
            shapes
                .width(&format!("encoder.down_blocks.{level}"))
                .or_else(|| shapes.width(&format!("decoder.up_blocks.{mirrored}")))
        })
        .collect();
    if let Some(widths) = widths.filter(|widths| !widths.is_empty()) {
        config["block_out_channels"] = json!(widths);
        config["down_block_types"] = json!(vec!["DownEncoderBlock2D"; levels]);
        config["up_block_types"] = json!(vec!["UpDecoderBlock2D"; levels]);
    }
    let layers = (0..levels)
        .flat_map(|level| {
            let up = shapes.count(&format!("decoder.up_blocks.{level}.resnets.")).saturating_sub(1);
            [shapes.count(&format!("encoder.down_blocks.{level}.resnets.")), up]
        })
        .max();
    set(&mut config, "layers_per_block", layers.filter(|&layers| layers > 0));
    set(&mut config, "latent_channels", shapes.size("decoder.conv_in.weight", 1));
    config
}

/// TAESD: its layers are numbered through, and those that are one convolution part the levels.
fn tiny(shapes: &Shapes<'_>) -> Value {
    let runs = |half: &str| -> Vec<usize> {
        let mut runs = Vec::new();
        let mut run = 0;
        for index in 0..MOST {
            if shapes.has(&format!("{half}.layers.{index}.conv.")) {
                run += 1;
            } else if shapes.has(&format!("{half}.layers.{index}.")) {
                runs.push(std::mem::take(&mut run));
            }
        }
        // Before the first convolution there is no level.
        runs.split_off(1.min(runs.len()))
    };
    let decoder = Some(runs("decoder")).filter(|runs| !runs.is_empty()).unwrap_or_else(|| vec![3, 3, 3, 1]);
    let encoder = Some(runs("encoder"))
        .filter(|runs| !runs.is_empty())
        .unwrap_or_else(|| decoder.iter().rev().copied().collect());
    let width = shapes.size("decoder.layers.0.weight", 0).or(shapes.size("encoder.layers.0.weight", 0));
    let width = width.unwrap_or(64);
    json!({
        "_class_name": "AutoencoderTiny",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": shapes.size("decoder.layers.0.weight", 1).unwrap_or(4),
        "encoder_block_out_channels": vec![width; encoder.len()],
        "decoder_block_out_channels": vec![width; decoder.len()],
        "num_encoder_blocks": encoder,
        "num_decoder_blocks": decoder,
        "scaling_factor": 1.0,
    })
}

fn text_encoder(shapes: &Shapes<'_>) -> Value {
    let mut config = sd15::text_encoder();
    let hidden = shapes.size("embeddings.token_embedding.weight", 1);
    let layers = Some(shapes.count("encoder.layers.")).filter(|&layers| layers > 0);
    set(&mut config, "hidden_size", hidden);
    set(&mut config, "projection_dim", hidden);
    set(&mut config, "vocab_size", shapes.size("embeddings.token_embedding.weight", 0));
    set(&mut config, "max_position_embeddings", shapes.size("embeddings.position_embedding.weight", 0));
    set(&mut config, "intermediate_size", shapes.size("encoder.layers.0.mlp.fc1.weight", 0));
    set(&mut config, "num_hidden_layers", layers);
    // No shape tells the heads. CLIP's published ones are 64 wide; a narrower encoder is taken to have one for
    // each layer, as SD 1.5's has.
    let heads = match hidden {
        Some(hidden) if hidden >= 512 => Some(hidden / 64),
        Some(_) => layers,
        None => None,
    };
    set(&mut config, "num_attention_heads", heads);
    config
}
