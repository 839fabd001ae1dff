//! Operations without sums: SiLU, addition, GEGLU, plain quantization; fused forms of them are in `epilogue` and `norm`.

use super::isa::Isa;
use super::math;
use super::parallel::{Disjoint, for_each_index};
use super::quantized_rows::QuantizedRows;
use super::rows::{RowOperation, RowsMut, for_each_row};
use super::simd::{Kernel, Simd};

/// Values of one task.
const TASK_VALUES: usize = 32 * 1024;

/// x * sigmoid(x), in place.
pub fn silu(isa: Isa, values: &mut [f32]) {
    in_place(values, |values, _| isa.run(Silu(values)));
}

/// `values[i] += other[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn add(isa: Isa, values: &mut [f32], other: &[f32]) {
    assert_eq!(values.len(), other.len());
    in_place(values, |values, at| {
        let other = &other[at..at + values.len()];
        isa.run(Add(values, other));
    });
}

/// `value * gelu(gate)` for rows `[value | gate]` of twice `width`: the gated linear unit of diffusers'
/// feed-forward (Shazeer 2020), with the exact GELU (see `math::gelu` for its error).
///
/// # Panics
/// If `input` is not whole rows, or an f32 output has another number of them.
pub fn geglu<'a>(isa: Isa, input: &[f32], width: usize, output: impl Into<RowsMut<'a>>) {
    let rows = input.len() / (2 * width);
    assert_eq!(input.len(), rows * 2 * width, "rows of twice {width}");
    for_each_row(isa, rows, width, &Geglu { input }, output.into());
}

/// Quantizes rows of `depth` values; see [`QuantizedRows`].
///
/// # Panics
/// If `input` is not whole rows.
pub fn quantize_rows(isa: Isa, input: &[f32], depth: usize, output: &mut QuantizedRows) {
    let rows = input.len() / depth;
    assert_eq!(input.len(), rows * depth, "rows of {depth}");
    for_each_row(isa, rows, depth, &Copied { input }, RowsMut::U8(output));
}

/// Splits `values` among threads; `work` gets a part and where it begins.
fn in_place(values: &mut [f32], work: impl Fn(&mut [f32], usize) + Send + Sync) {
    let len = values.len();
    let values = Disjoint::new(values);
    for_each_index(len.div_ceil(TASK_VALUES), |index| {
        let first = index * TASK_VALUES;
        // SAFETY: each task has a part of its own.
        work(unsafe { values.part(first..(first + TASK_VALUES).min(len)) }, first);
    });
}

struct Silu<'a>(&'a mut [f32]);

impl Kernel for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for part in self.0.chunks_mut(S::LANES) {
            let x = simd.read_up_to(part);
            simd.write_up_to(part, math::silu(simd, x));
        }
    }
}

struct Add<'a>(&'a mut [f32], &'a [f32]);

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (part, other) in self.0.chunks_mut(S::LANES).zip(self.1.chunks(S::LANES)) {
            let sum = simd.add(simd.read_up_to(part), simd.read_up_to(other));
            simd.write_up_to(part, sum);
        }
    }
}

struct Geglu<'a> {
    input: &'a [f32],
}

impl RowOperation for Geglu<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, row: usize, to: &mut [f32]) {
        let (value, gate) = self.input[row * 2 * to.len()..][..2 * to.len()].split_at(to.len());
        for ((to, value), gate) in
            to.chunks_mut(S::LANES).zip(value.chunks(S::LANES)).zip(gate.chunks(S::LANES))
        {
            let gate = math::gelu(simd, simd.read_up_to(gate));
            simd.write_up_to(to, simd.mul(simd.read_up_to(value), gate));
        }
    }
}

struct Copied<'a> {
    input: &'a [f32],
}

impl RowOperation for Copied<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, row: usize, to: &mut [f32]) {
        to.copy_from_slice(&self.input[row * to.len()..][..to.len()]);
    }
}
