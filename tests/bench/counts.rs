//! Multiply-accumulates by walking the published architecture, apart from the networks' code.

use pochade::networks::config::{KlConfig, UnetConfig};

const TOKENS: usize = 77;
/// Both halves of guidance.
const BATCH: usize = 2;

#[derive(Default, Clone, Copy)]
pub struct Counts {
    conv3: usize,
    conv1: usize,
    linear: usize,
    self_attention: usize,
    cross_attention: usize,
}

impl Counts {
    pub fn by_kind(self) -> [(&'static str, usize); 5] {
        [
            ("conv 3x3", self.conv3),
            ("conv 1x1", self.conv1),
            ("linear", self.linear),
            ("self-attention", self.self_attention),
            ("cross-attention", self.cross_attention),
        ]
    }

    /// Two convolutions and, where the width changes, a shortcut, for each of `pixels`.
    fn resnet(&mut self, pixels: usize, from: usize, to: usize) {
        self.conv3 += pixels * 9 * (from * to + to * to);
        if from != to {
            self.conv1 += pixels * from * to;
        }
    }

    /// The same for each of `batch`, with a time embedding that is projected once.
    fn timed_resnet(&mut self, batch: usize, pixels: usize, from: usize, to: usize, time: usize) {
        self.resnet(batch * pixels, from, to);
        self.linear += time * to;
    }

    /// One transformer block whose cross-attention keys and values are there already. What is the same for all of
    /// `batch` comes as one and leaves as many.
    fn transformer(&mut self, batch: &mut usize, pixels: usize, width: usize) {
        let rows = *batch * pixels;
        self.conv1 += rows * width * width;
        // Self-attention q, k, v, out; cross-attention q.
        self.linear += rows * 5 * width * width;
        self.self_attention += rows * 2 * pixels * width;
        *batch = BATCH;
        let rows = *batch * pixels;
        self.cross_attention += rows * 2 * TOKENS * width;
        // Cross-attention out; feed-forward of 2 * 4 and 4 times the width.
        self.linear += rows * (1 + 8 + 4) * width * width;
        self.conv1 += rows * width * width;
    }
}

/// One step with guidance on latents of `height` by `width`, of which there is one for both halves or one for each.
pub fn unet_step(config: &UnetConfig, latents: usize, height: usize, width: usize) -> Counts {
    let mut counts = Counts::default();
    let channels = &config.channels;
    let levels = channels.len();
    let time = 4 * channels[0];
    let mut sizes = vec![(height, width)];
    for level in 1..levels {
        let (height, width) = sizes[level - 1];
        sizes.push((height.div_ceil(2), width.div_ceil(2)));
    }
    let pixels: Vec<usize> = sizes.iter().map(|(height, width)| height * width).collect();

    counts.linear += channels[0] * time + time * time;
    let mut batch = latents;
    counts.conv3 += batch * pixels[0] * 9 * config.in_channels * channels[0];
    counts.conv3 += BATCH * pixels[0] * 9 * config.out_channels * channels[0];
    let mut skips = vec![channels[0]];
    let mut from = channels[0];
    for level in 0..levels {
        for _ in 0..config.layers_per_block {
            counts.timed_resnet(batch, pixels[level], from, channels[level], time);
            if config.down_attention[level] {
                counts.transformer(&mut batch, pixels[level], channels[level]);
            }
            from = channels[level];
            skips.push(from);
        }
        if level + 1 < levels {
            counts.conv3 += batch * pixels[level + 1] * 9 * from * from;
            skips.push(from);
        }
    }
    let lowest = pixels[levels - 1];
    counts.timed_resnet(batch, lowest, from, from, time);
    counts.transformer(&mut batch, lowest, from);
    counts.timed_resnet(batch, lowest, from, from, time);
    for (index, level) in (0..levels).rev().enumerate() {
        for _ in 0..=config.layers_per_block {
            counts.timed_resnet(batch, pixels[level], from + skips.pop().unwrap(), channels[level], time);
            from = channels[level];
            if config.up_attention[index] {
                counts.transformer(&mut batch, pixels[level], from);
            }
        }
        if level > 0 {
            counts.conv3 += batch * pixels[level - 1] * 9 * from * from;
        }
    }
    counts
}

/// One picture from latents of `height` by `width`.
pub fn vae_decode(config: &KlConfig, height: usize, width: usize) -> Counts {
    let mut counts = Counts::default();
    let mut pixels = height * width;
    let mut from = *config.channels.last().unwrap();
    counts.conv1 += pixels * config.latent_channels * config.latent_channels;
    counts.conv3 += pixels * 9 * config.latent_channels * from;
    counts.resnet(pixels, from, from);
    counts.linear += pixels * 4 * from * from;
    counts.self_attention += pixels * 2 * pixels * from;
    counts.resnet(pixels, from, from);
    for (index, &to) in config.channels.iter().rev().enumerate() {
        for _ in 0..=config.layers_per_block {
            counts.resnet(pixels, from, to);
            from = to;
        }
        if index + 1 < config.channels.len() {
            pixels *= 4;
            counts.conv3 += pixels * 9 * to * to;
        }
    }
    counts.conv3 += pixels * 9 * from * config.out_channels;
    counts
}
