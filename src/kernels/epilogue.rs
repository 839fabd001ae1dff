//! What happens to a product's sums on their way to memory: scale, biases, residual, activation.

use std::ops::Range;

use super::math;
use super::parallel::Disjoint;
use super::simd::Simd;

/// A function applied to each output value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    #[default]
    None,
    /// max(x, 0).
    Relu,
    /// x * sigmoid(x).
    Silu,
}

/// What is added to each output value.
#[derive(Debug, Clone, Copy, Default)]
pub enum Residual<'a> {
    #[default]
    None,
    /// A tensor of the output's shape.
    Of(&'a [f32]),
    /// What the output buffer holds already.
    Output,
}

/// `activation(sum + bias + image_bias + residual)`, written once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `[out]`.
    pub bias: Option<&'a [f32]>,
    /// `[images, out]`, each row added to all rows of its image; the number of output rows must be a
    /// multiple of the number of images.
    pub image_bias: Option<&'a [f32]>,
    pub residual: Residual<'a>,
    pub activation: Activation,
}

impl Epilogue<'_> {
    /// Checks the operands against an output of `rows` x `out`.
    ///
    /// # Panics
    /// If any has the wrong size.
    pub(super) fn validate(&self, rows: usize, out: usize, output: &[f32]) {
        assert_eq!(output.len(), rows * out, "an output of {rows} x {out}");
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), out, "one bias for each of {out} columns");
        }
        if let Some(bias) = self.image_bias {
            let images = bias.len() / out;
            assert!(
                images > 0 && bias.len() == images * out && rows.is_multiple_of(images),
                "an image bias of {} values for {rows} x {out}",
                bias.len()
            );
        }
        if let Residual::Of(residual) = self.residual {
            assert_eq!(residual.len(), output.len(), "a residual of the output's size");
        }
    }
}

/// Where finished sums go: an output of `rows` x `out`, validated.
pub(super) struct Destination<'a> {
    pub epilogue: &'a Epilogue<'a>,
    pub output: Disjoint<'a, f32>,
    pub rows: usize,
    pub out: usize,
    /// Multiplies the sums, `[out]`: the scales of integer weights.
    pub scale: Option<&'a [f32]>,
}

impl Destination<'_> {
    /// Finishes output `rows` x `columns` from `sums`, whose rows are `pitch` apart.
    ///
    /// # Safety
    /// No other thread may use these rows and columns of the output meanwhile.
    #[inline(always)]
    pub unsafe fn finish<S: Simd>(
        &self,
        simd: S,
        sums: &[f32],
        pitch: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        let epilogue = self.epilogue;
        let width = columns.len();
        let rows_per_image = epilogue.image_bias.map_or(1, |bias| self.rows / (bias.len() / self.out));
        for (sums, row) in sums.chunks(pitch).zip(rows) {
            let start = row * self.out + columns.start;
            // SAFETY: the caller's promise.
            let output = unsafe { self.output.part(start..start + width) };
            let scale = self.scale.map(|scale| &scale[columns.clone()]);
            let bias = epilogue.bias.map(|bias| &bias[columns.clone()]);
            let image_bias = epilogue.image_bias.map(|bias| {
                let start = row / rows_per_image * self.out + columns.start;
                &bias[start..start + width]
            });
            let residual = match epilogue.residual {
                Residual::Of(residual) => Some(&residual[start..start + width]),
                _ => None,
            };
            let mut at = 0;
            while at < width {
                let lanes = at..(at + S::LANES).min(width);
                let mut x = simd.read(&sums[at..]);
                if let Some(scale) = scale {
                    x = simd.mul(x, simd.read_up_to(&scale[lanes.clone()]));
                }
                if let Some(bias) = bias {
                    x = simd.add(x, simd.read_up_to(&bias[lanes.clone()]));
                }
                if let Some(bias) = image_bias {
                    x = simd.add(x, simd.read_up_to(&bias[lanes.clone()]));
                }
                match residual {
                    Some(residual) => x = simd.add(x, simd.read_up_to(&residual[lanes.clone()])),
                    None if matches!(epilogue.residual, Residual::Output) => {
                        x = simd.add(x, simd.read_up_to(&output[lanes.clone()]))
                    }
                    None => {}
                }
                x = match epilogue.activation {
                    Activation::None => x,
                    Activation::Relu => simd.max(x, simd.splat(0.0)),
                    Activation::Silu => math::silu(simd, x),
                };
                simd.write_up_to(&mut output[lanes], x);
                at += S::LANES;
            }
        }
    }
}
