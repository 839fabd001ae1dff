//! The blocks that networks are built of, each as a description; which follow each other is said in `unet`, `vae` and `taesd`.

use super::graph::{Conv, Graph, Groups, Linear, PromptRows, Value, activated, layer_norm, silu};
use crate::layers::{ConvShape, Function};

/// `ResnetBlock2D`: norm, SiLU, convolution, twice, around which the input is added. `time` is the time
/// embedding, which an autoencoder, whose maps are large, has not.
pub fn resnet(
    graph: &mut Graph,
    name: &str,
    input: Value,
    channels: usize,
    groups: Groups,
    time: Option<Value>,
) -> Value {
    let conv = |from: usize| {
        let shape = ConvShape::same(from, channels, 3);
        if time.is_none() { shape.over_large_maps() } else { shape }
    };
    let from = graph.channels(input);
    let shift = time.map(|time| {
        let projection = Linear::new(format!("{name}.time_emb_proj"), channels, silu(time));
        graph.linear(projection)
    });
    let normed = groups.norm_silu(format!("{name}.norm1"), input);
    let hidden = graph.conv(Conv { shift, ..Conv::new(format!("{name}.conv1"), conv(from), normed) });
    let residual = if from == channels {
        input
    } else {
        let pointwise = ConvShape::same(from, channels, 1);
        graph.conv(Conv::new(format!("{name}.conv_shortcut"), pointwise, input))
    };
    let normed = groups.norm_silu(format!("{name}.norm2"), hidden);
    let last = Conv::new(format!("{name}.conv2"), conv(channels), normed);
    graph.conv(Conv { residual: Some(residual), ..last })
}

/// `Transformer2DModel` with one `BasicTransformerBlock` (Rombach et al. 2022), through which the prompt, of
/// `context` channels, enters the picture.
pub fn transformer(
    graph: &mut Graph,
    name: &str,
    input: Value,
    heads: usize,
    groups: usize,
    context: usize,
) -> Value {
    let channels = graph.channels(input);
    // A 1x1 convolution or a linear layer: the same over channels-last maps.
    let pointwise = ConvShape::same(channels, channels, 1);
    let normed = Groups { count: groups, eps: 1e-6 }.norm(format!("{name}.norm"), input);
    let hidden = graph.conv(Conv::new(format!("{name}.proj_in"), pointwise, normed));
    let block = format!("{name}.transformer_blocks.0");
    let at = |layer: &str| format!("{block}.{layer}");
    let normed = |norm: &str, value: Value| layer_norm(at(norm), 1e-5, value);

    let parts = ["to_q", "to_k", "to_v"];
    let qkv = Linear::stacked(&at("attn1"), &parts, channels, normed("norm1", hidden));
    let qkv = graph.linear(qkv.without_bias());
    let attended = graph.self_attention(qkv, heads);
    let out = Linear::new(at("attn1.to_out.0"), channels, attended);
    let hidden = graph.linear(Linear { residual: Some(hidden), ..out });

    let query = Linear::new(at("attn2.to_q"), channels, normed("norm2", hidden));
    let query = graph.linear(query.without_bias());
    let names = [at("attn2.to_k"), at("attn2.to_v")];
    let rows = PromptRows { names, inputs: context, outputs: channels };
    let attended = graph.cross_attention(query, heads, rows);
    let out = Linear::new(at("attn2.to_out.0"), channels, attended);
    let hidden = graph.linear(Linear { residual: Some(hidden), ..out });

    let gated = Linear::new(at("ff.net.0.proj"), 4 * channels, normed("norm3", hidden));
    let gated = graph.linear(Linear { gated: true, ..gated });
    let out = Linear::new(at("ff.net.2"), channels, gated);
    let hidden = graph.linear(Linear { residual: Some(hidden), ..out });

    let out = Conv::new(format!("{name}.proj_out"), pointwise, hidden);
    graph.conv(Conv { residual: Some(input), ..out })
}

/// Single-headed self-attention over all pixels, around which the input is added.
pub fn pixel_attention(graph: &mut Graph, name: &str, input: Value, groups: Groups) -> Value {
    let channels = graph.channels(input);
    let normed = groups.norm(format!("{name}.group_norm"), input);
    let qkv = graph.linear(Linear::stacked(name, &["to_q", "to_k", "to_v"], channels, normed));
    let attended = graph.self_attention(qkv, 1);
    let out = Linear::new(format!("{name}.to_out.0"), channels, attended);
    graph.linear(Linear { residual: Some(input), ..out })
}

/// CLIP's `CLIPEncoderLayer` over tokens in one row: attention to tokens before, then a feed-forward of `inner`
/// channels through `function`, each after a norm and with its input added.
pub fn text_layer(
    graph: &mut Graph,
    name: &str,
    input: Value,
    heads: usize,
    (inner, function): (usize, Function),
    eps: f64,
) -> Value {
    let channels = graph.channels(input);
    let at = |layer: &str| format!("{name}.{layer}");
    let normed = |norm: &str, value: Value| layer_norm(at(norm), eps, value);

    let parts = ["q_proj", "k_proj", "v_proj"];
    let qkv = Linear::stacked(&at("self_attn"), &parts, channels, normed("layer_norm1", input));
    let qkv = graph.linear(qkv);
    let attended = graph.causal_attention(qkv, heads);
    let out = Linear::new(at("self_attn.out_proj"), channels, attended);
    let hidden = graph.linear(Linear { residual: Some(input), ..out });

    let wide = graph.linear(Linear::new(at("mlp.fc1"), inner, normed("layer_norm2", hidden)));
    let out = Linear::new(at("mlp.fc2"), channels, activated(function, wide));
    graph.linear(Linear { residual: Some(hidden), ..out })
}

/// TAESD's block: three convolutions around which the input is added, ReLU after each.
pub fn tiny_block(graph: &mut Graph, name: &str, input: Value) -> Value {
    let channels = graph.channels(input);
    let conv = |layer: usize, read: Value| {
        let shape = ConvShape::same(channels, channels, 3);
        Conv { relu: true, ..Conv::new(format!("{name}.conv.{layer}"), shape, read) }
    };
    let hidden = graph.conv(conv(0, input));
    let hidden = graph.conv(conv(2, hidden));
    graph.conv(Conv { residual: Some(input), ..conv(4, hidden) })
}
