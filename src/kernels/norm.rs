//! Group and layer normalisation of channels-last rows, with SiLU and quantization fused in.

use super::isa::Isa;
use super::math;
use super::output::Written;
use super::parallel::{Disjoint, for_each_index};
use super::rows::{RowOperation, RowsMut, for_each_row};
use super::simd::{Kernel, Simd};

/// Group normalisation (Wu and He 2018) of images `[images, pixels, channels]`, perhaps with SiLU after it.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Neighbouring channels are normalised together, `channels / groups` of them.
    pub groups: usize,
    pub epsilon: f32,
    /// `[channels]`.
    pub weight: &'a [f32],
    /// `[channels]`.
    pub bias: &'a [f32],
    /// Whether SiLU follows.
    pub silu: bool,
}

impl GroupNorm<'_> {
    /// Normalises `input`, `[images, pixels, channels]` with as many channels as weights.
    ///
    /// Mean and variance are sums of f32 over at most 1024 pixels of one channel, taken relative to the image's
    /// first pixel so that a large mean costs no precision, combined in f64 (Chan, Golub and LeVeque 1983).
    ///
    /// # Panics
    /// If sizes do not divide or fit each other.
    pub fn apply<'a>(
        &self,
        isa: Isa,
        input: &[f32],
        images: usize,
        output: impl Into<RowsMut<'a>>,
    ) -> Written<'a> {
        let channels = self.weight.len();
        assert_eq!(self.bias.len(), channels, "as many biases as weights");
        assert!(self.groups > 0 && channels > 0 && channels.is_multiple_of(self.groups));
        let pixels = input.len() / (images * channels).max(1);
        assert!(
            pixels > 0 && input.len() == images * pixels * channels,
            "{images} images of {channels} channels"
        );
        let affine = self.affine(isa, input, images, pixels);
        let operation = Affine { input, pixels, affine: &affine, silu: self.silu };
        for_each_row(isa, images * pixels, channels, &operation, output.into())
    }

    /// Normalises rows of one image, `[pixels, channels]`, by `moments` of all its rows.
    ///
    /// # Panics
    /// If sizes do not divide or fit each other.
    pub fn apply_measured<'a>(
        &self,
        isa: Isa,
        input: &[f32],
        moments: &ChannelMoments,
        output: impl Into<RowsMut<'a>>,
    ) -> Written<'a> {
        let channels = self.weight.len();
        let pixels = input.len() / channels.max(1);
        assert!(channels > 0 && input.len() == pixels * channels, "whole rows of {channels} channels");
        let affine = moments.affine(self);
        let operation = Affine { input, pixels, affine: &affine, silu: self.silu };
        for_each_row(isa, pixels, channels, &operation, output.into())
    }

    /// For each image the centers, factors and offsets of its channels, `[images, 3, channels]`, which
    /// normalise x to `(x - center) * factor + offset`.
    fn affine(&self, isa: Isa, input: &[f32], images: usize, pixels: usize) -> Vec<f32> {
        let channels = self.weight.len();
        let per_part = (pixels / 64).clamp(64, 1024);
        let parts = pixels.div_ceil(per_part);
        // For each image and part: sums, then sums of squares, of each channel.
        let mut sums = vec![0.0; images * parts * 2 * channels];
        let shared = Disjoint::new(&mut sums);
        for_each_index(images * parts, |index| {
            let (image, part) = (index / parts, index % parts);
            let image = &input[image * pixels * channels..][..pixels * channels];
            let rows = &image[part * per_part * channels..((part + 1) * per_part).min(pixels) * channels];
            // SAFETY: each index has a part of its own.
            let sums = unsafe { shared.part(index * 2 * channels..(index + 1) * 2 * channels) };
            let (sums, squares) = sums.split_at_mut(channels);
            isa.run(Moments { rows, origin: &image[..channels], sums, squares });
        });

        let mut affine = vec![0.0; images * 3 * channels];
        let shared = Disjoint::new(&mut affine);
        let width = channels / self.groups;
        for_each_index(images * self.groups, |index| {
            let (image, group) = (index / self.groups, index % self.groups);
            let first = group * width;
            let sums = &sums[image * parts * 2 * channels..][..parts * 2 * channels];
            let origin = &input[image * pixels * channels + first..][..width];
            let (mean, variance) = combine(sums, channels, first, origin, pixels);
            let deviation = 1.0 / (variance + self.epsilon as f64).sqrt();
            let part = |which: usize| {
                let at = (image * 3 + which) * channels + first;
                // SAFETY: each index has a group of its own.
                unsafe { shared.part(at..at + width) }
            };
            let (centers, factors, offsets) = (part(0), part(1), part(2));
            // The center is the mean rounded to f32; the offset makes up for the rounding.
            let center = mean as f32;
            centers.fill(center);
            for (c, (factor, offset)) in factors.iter_mut().zip(offsets).enumerate() {
                let exact = self.weight[first + c] as f64 * deviation;
                *factor = exact as f32;
                *offset = (self.bias[first + c] as f64 - (mean - center as f64) * exact) as f32;
            }
        });
        affine
    }
}

/// Mean and variance of channels `first..first + origin.len()` from parts of `[sums | squares]`, both of
/// `channels`, relative to `origin`.
fn combine(parts: &[f32], channels: usize, first: usize, origin: &[f32], pixels: usize) -> (f64, f64) {
    let count = pixels as f64;
    // Mean and sum of squared deviations of each channel.
    let channel = |c: usize| {
        let (mut sum, mut square) = (0.0, 0.0);
        for part in parts.chunks_exact(2 * channels) {
            sum += part[first + c] as f64;
            square += part[channels + first + c] as f64;
        }
        (origin[c] as f64 + sum / count, square - sum * sum / count)
    };
    let width = origin.len() as f64;
    let mean = (0..origin.len()).map(|c| channel(c).0).sum::<f64>() / width;
    let deviations =
        (0..origin.len()).map(channel).map(|(m, d)| d + count * (m - mean) * (m - mean)).sum::<f64>();
    (mean, (deviations / (count * width)).max(0.0))
}

/// Mean and spread of each channel of one image, over as many of its rows as have been added.
#[derive(Debug, Clone)]
pub struct ChannelMoments {
    count: f64,
    means: Vec<f64>,
    /// Sums of squared deviations from the means.
    deviations: Vec<f64>,
}

impl ChannelMoments {
    /// Those of no rows.
    pub fn new(channels: usize) -> Self {
        Self { count: 0.0, means: vec![0.0; channels], deviations: vec![0.0; channels] }
    }

    /// Adds rows `[pixels, channels]`.
    ///
    /// # Panics
    /// If there is no row or it has another width.
    pub fn add(&mut self, isa: Isa, rows: &[f32]) {
        const PART: usize = 256;
        let channels = self.means.len();
        assert!(!rows.is_empty() && rows.len().is_multiple_of(channels), "whole rows of {channels} channels");
        let parts = rows.len().div_ceil(PART * channels);
        let mut sums = vec![0.0; parts * 2 * channels];
        let shared = Disjoint::new(&mut sums);
        for_each_index(parts, |index| {
            let part = &rows[index * PART * channels..((index + 1) * PART * channels).min(rows.len())];
            // SAFETY: each index has a part of its own.
            let sums = unsafe { shared.part(index * 2 * channels..(index + 1) * 2 * channels) };
            let (sums, squares) = sums.split_at_mut(channels);
            isa.run(Moments { rows: part, origin: &rows[..channels], sums, squares });
        });
        let count = (rows.len() / channels) as f64;
        let channel = |c: usize| combine(&sums, channels, c, &rows[c..=c], count as usize);
        let (means, variances): (Vec<f64>, Vec<f64>) = (0..channels).map(channel).unzip();
        let deviations: Vec<f64> = variances.iter().map(|variance| variance * count).collect();
        self.merge(count, &means, &deviations);
    }

    /// Adds `count` rows with these means and sums of squared deviations (Chan, Golub and LeVeque 1983).
    pub fn merge(&mut self, count: f64, means: &[f64], deviations: &[f64]) {
        let total = self.count + count;
        for (c, (mean, deviation)) in means.iter().zip(deviations).enumerate() {
            let apart = mean - self.means[c];
            self.means[c] += apart * count / total;
            self.deviations[c] += deviation + apart * apart * self.count * count / total;
        }
        self.count = total;
    }

    /// Centers, factors and offsets, `[3, channels]`, which normalise x to `(x - center) * factor + offset`.
    pub fn affine(&self, norm: &GroupNorm<'_>) -> Vec<f32> {
        let channels = self.means.len();
        let width = channels / norm.groups;
        let mut affine = vec![0.0; 3 * channels];
        for c in 0..channels {
            let group = c / width * width..(c / width + 1) * width;
            let mean = self.means[group.clone()].iter().sum::<f64>() / width as f64;
            let deviations: f64 =
                group.map(|g| self.deviations[g] + self.count * (self.means[g] - mean).powi(2)).sum();
            let variance = deviations / (self.count * width as f64);
            let factor = norm.weight[c] as f64 / (variance + norm.epsilon as f64).sqrt();
            let center = mean as f32;
            affine[c] = center;
            affine[channels + c] = factor as f32;
            affine[2 * channels + c] = (norm.bias[c] as f64 - (mean - center as f64) * factor) as f32;
        }
        affine
    }
}

/// Sums and sums of squares of each channel over some rows, relative to `origin`.
struct Moments<'a> {
    rows: &'a [f32],
    origin: &'a [f32],
    sums: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Kernel for Moments<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        /// Vectors of channels summed together, in registers: two cache lines or more of each row.
        const WIDE: usize = 4;
        let channels = self.origin.len();
        let mut at = 0;
        while at + WIDE * S::LANES <= channels {
            let mut origin = [simd.splat(0.0); WIDE];
            for (v, origin) in origin.iter_mut().enumerate() {
                *origin = simd.read(&self.origin[at + v * S::LANES..]);
            }
            let mut sums = [simd.splat(0.0); WIDE];
            let mut squares = [simd.splat(0.0); WIDE];
            for row in self.rows.chunks_exact(channels) {
                let row = &row[at..at + WIDE * S::LANES];
                for v in 0..WIDE {
                    let x = simd.sub(simd.read(&row[v * S::LANES..]), origin[v]);
                    sums[v] = simd.add(sums[v], x);
                    squares[v] = simd.mul_add(x, x, squares[v]);
                }
            }
            for v in 0..WIDE {
                simd.write(&mut self.sums[at + v * S::LANES..], sums[v]);
                simd.write(&mut self.squares[at + v * S::LANES..], squares[v]);
            }
            at += WIDE * S::LANES;
        }
        while at < channels {
            let end = (at + S::LANES).min(channels);
            let origin = simd.read_up_to(&self.origin[at..end]);
            let mut sum = simd.splat(0.0);
            let mut square = simd.splat(0.0);
            for row in self.rows.chunks_exact(channels) {
                let x = simd.sub(simd.read_up_to(&row[at..end]), origin);
                sum = simd.add(sum, x);
                square = simd.mul_add(x, x, square);
            }
            simd.write_up_to(&mut self.sums[at..end], sum);
            simd.write_up_to(&mut self.squares[at..end], square);
            at = end;
        }
    }
}

/// (x - center) * factor + offset of the image's channel, perhaps SiLU of that. Subtracting first keeps the
/// precision of values close to each other and far from zero.
struct Affine<'a> {
    input: &'a [f32],
    pixels: usize,
    /// `[images, 3, channels]`: centers, factors, offsets.
    affine: &'a [f32],
    silu: bool,
}

impl RowOperation for Affine<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, row: usize, to: &mut [f32]) {
        let channels = to.len();
        let input = &self.input[row * channels..][..channels];
        let (centers, affine) = self.affine[row / self.pixels * 3 * channels..].split_at(channels);
        let (factors, offsets) = affine[..2 * channels].split_at(channels);
        let mut at = 0;
        while at < channels {
            let end = (at + S::LANES).min(channels);
            let x = simd.sub(simd.read_up_to(&input[at..end]), simd.read_up_to(&centers[at..end]));
            let mut y =
                simd.mul_add(x, simd.read_up_to(&factors[at..end]), simd.read_up_to(&offsets[at..end]));
            if self.silu {
                y = math::silu(simd, y);
            }
            simd.write_up_to(&mut to[at..end], y);
            at = end;
        }
    }
}

/// Layer normalisation (Ba, Kiros and Hinton 2016) of each row.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    pub epsilon: f32,
    /// `[width]`.
    pub weight: &'a [f32],
    /// `[width]`.
    pub bias: &'a [f32],
}

impl LayerNorm<'_> {
    /// Normalises the rows of `input`, each as wide as the weights; the variance is taken in a second pass
    /// over the row, after its mean.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn apply<'a>(&self, isa: Isa, input: &[f32], output: impl Into<RowsMut<'a>>) -> Written<'a> {
        let width = self.weight.len();
        assert_eq!(self.bias.len(), width, "as many biases as weights");
        assert!(width > 0 && input.len().is_multiple_of(width), "rows of {width}");
        for_each_row(isa, input.len() / width, width, &LayerNormRows { norm: *self, input }, output.into())
    }
}

struct LayerNormRows<'a> {
    norm: LayerNorm<'a>,
    input: &'a [f32],
}

impl RowOperation for LayerNormRows<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, row: usize, to: &mut [f32]) {
        let width = to.len();
        let input = &self.input[row * width..][..width];
        let whole = width - width % S::LANES;
        let mut sums = simd.splat(0.0);
        for x in input[..whole].chunks_exact(S::LANES) {
            sums = simd.add(sums, simd.read(x));
        }
        let rest: f32 = input[whole..].iter().sum();
        let mean = (simd.sum(sums) + rest) / width as f32;
        let means = simd.splat(mean);
        let mut squares = simd.splat(0.0);
        for x in input[..whole].chunks_exact(S::LANES) {
            let x = simd.sub(simd.read(x), means);
            squares = simd.mul_add(x, x, squares);
        }
        let rest: f32 = input[whole..].iter().map(|x| (x - mean) * (x - mean)).sum();
        let variance = (simd.sum(squares) + rest) / width as f32;
        let deviation = simd.splat(1.0 / (variance + self.norm.epsilon).sqrt());
        let mut at = 0;
        while at < width {
            let end = (at + S::LANES).min(width);
            let x = simd.mul(simd.sub(simd.read_up_to(&input[at..end]), means), deviation);
            let weight = simd.read_up_to(&self.norm.weight[at..end]);
            let y = simd.mul_add(x, weight, simd.read_up_to(&self.norm.bias[at..end]));
            simd.write_up_to(&mut to[at..end], y);
            at = end;
        }
    }
}
