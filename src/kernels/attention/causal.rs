//! Softmax attention of a short sequence to itself, each token to none after it; long ones are taken in blocks of keys.

use super::super::isa::Isa;
use super::super::math;
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, with_scratch};
use super::super::simd::{Kernel, Simd};
use super::Attention;

impl Attention {
    /// [`Self::apply`] with query r seeing the keys and values 0 to r alone, of which there are as many as queries.
    ///
    /// All scores of a query exist at once, which suits the few tokens of a prompt.
    ///
    /// # Panics
    /// As [`Self::apply`]; if there are more or fewer keys than queries.
    pub fn apply_causal<'a>(
        &self,
        isa: Isa,
        [q, k, v]: [&[f32]; 3],
        output: impl Into<Output<'a>>,
    ) -> Written<'a> {
        let output = output.into();
        let Self { batch, heads, head_dim, q_len: len, kv_len, .. } = *self;
        self.check(q, k, v, &output);
        assert_eq!(len, kv_len, "as many keys as queries");
        let width = heads * head_dim;
        let output = output.into_disjoint();
        for_each_index(batch * heads, |index| {
            let (item, column) = (index / heads, index % heads * head_dim);
            with_scratch(len, 0, |scratch| {
                isa.run(Head {
                    sizes: self,
                    q: &q[item * len * self.q_stride + column..],
                    k: &k[item * len * self.k_stride + column..],
                    v: &v[item * len * self.v_stride + column..],
                    scores: &mut scratch.floats.as_mut_slice()[..len],
                    output: &output,
                    first_output: item * len * width + column,
                });
            });
        });
        // SAFETY: all queries of all heads, whose values lie side by side.
        unsafe { Written::all_of(output) }
    }
}

/// One head of one item. The slices begin at its first value.
struct Head<'a> {
    sizes: &'a Attention,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// One for each key.
    scores: &'a mut [f32],
    output: &'a Disjoint<'a, f32>,
    first_output: usize,
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { sizes, q, k, v, scores, output, first_output } = self;
        let Attention { heads, head_dim, q_len, q_stride, k_stride, v_stride, .. } = *sizes;
        // Scores in units of log2, so that the softmax needs 2^x, not e^x.
        let scale = sizes.scale * std::f32::consts::LOG2_E;
        for row in 0..q_len {
            let q = &q[row * q_stride..][..head_dim];
            let scores = &mut scores[..=row];
            for (key, score) in scores.iter_mut().enumerate() {
                *score = dot(simd, q, &k[key * k_stride..][..head_dim]) * scale;
            }
            let total = exponentials(simd, scores);
            let at = first_output + row * heads * head_dim;
            // SAFETY: each task has columns of its own.
            let output = unsafe { output.part(at..at + head_dim) };
            output.fill(0.0);
            for (key, &share) in scores.iter().enumerate() {
                add(simd, share / total, &v[key * v_stride..][..head_dim], output);
            }
        }
    }
}

/// The sum of the products of two rows.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = simd.splat(0.0);
    for (a, b) in a.chunks(S::LANES).zip(b.chunks(S::LANES)) {
        sum = simd.mul_add(simd.read_up_to(a), simd.read_up_to(b), sum);
    }
    simd.sum(sum)
}

/// Replaces scores by 2^(score - greatest) and returns their sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32]) -> f32 {
    let greatest = simd.splat(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    for scores in scores.chunks_mut(S::LANES) {
        let x = simd.sub(simd.read_up_to(scores), greatest);
        simd.write_up_to(scores, math::exp2(simd, x));
    }
    scores.iter().sum()
}

/// `sums += share * values`.
#[inline(always)]
fn add<S: Simd>(simd: S, share: f32, values: &[f32], sums: &mut [f32]) {
    let share = simd.splat(share);
    for (sums, values) in sums.chunks_mut(S::LANES).zip(values.chunks(S::LANES)) {
        let sum = simd.mul_add(share, simd.read_up_to(values), simd.read_up_to(sums));
        simd.write_up_to(sums, sum);
    }
}
