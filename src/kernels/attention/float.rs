//! Attention in f32, also the oracle of what computes it otherwise.

use super::super::isa::Isa;
use super::super::math;
use super::super::micro_kernel;
use super::super::output::{Output, Written};
use super::super::parallel::with_scratch;
use super::super::simd::{Kernel, Simd};
use super::super::tile::TileKernel;
use super::Attention;
use super::part::{KEY_BLOCK, Results};

/// See [`super::Products::Floats`].
pub fn apply<'a>(sizes: &Attention, isa: Isa, [q, k, v]: [&[f32]; 3], output: Output<'a>) -> Written<'a> {
    let Attention { head_dim, q_len, kv_len, .. } = *sizes;
    let (height, lanes) = isa.properties().attention_tile;
    let padded_dim = head_dim.next_multiple_of(height);
    let panel_state = lanes * (head_dim + padded_dim + 2);
    let scores_len = KEY_BLOCK.next_multiple_of(height) * lanes;
    let output = output.into_disjoint();
    sizes.for_each_part(lanes, panel_state * size_of::<f32>(), |part| {
        let column = part.head * head_dim;
        with_scratch(part.panels * panel_state + scores_len, 0, |scratch| {
            let (scores, state) = scratch.floats.as_mut_slice().split_at_mut(scores_len);
            isa.run(Task {
                sizes,
                q: &q[(part.item * q_len + part.first) * sizes.q_stride + column..],
                k: &k[part.item * kv_len * sizes.k_stride + column..],
                v: &v[part.item * kv_len * sizes.v_stride + column..],
                queries: part.queries,
                scores,
                state: &mut state[..part.panels * panel_state],
                results: Results::of(sizes, part, &output),
            });
        });
    });
    // SAFETY: parts cover all queries of all heads, whose values lie side by side.
    unsafe { Written::all_of(output) }
}

/// Some queries of one head over all its keys. The slices begin at the head's first value.
struct Task<'a> {
    sizes: &'a Attention,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    queries: usize,
    /// `[KEY_BLOCK rounded up][lanes]`.
    scores: &'a mut [f32],
    /// The panels' states, see [`Panel`].
    state: &'a mut [f32],
    results: Results<'a>,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        S::in_attention_tile(simd, self);
    }
}

impl<S: Simd> TileKernel<S> for Task<'_> {
    #[inline(always)]
    fn run<const MR: usize, const QV: usize>(self, simd: S) {
        self.attend::<S, MR, QV>(simd);
    }
}

/// What a panel of queries carries from block to block, all with queries in the lanes.
struct Panel<'a> {
    /// The scaled queries, `[head_dim][lanes]`.
    queries: &'a mut [f32],
    /// The values summed so far, `[head_dim rounded up][lanes]`.
    sums: &'a mut [f32],
    /// The greatest score so far, `[lanes]`.
    greatest: &'a mut [f32],
    /// The sum of exponentials so far, `[lanes]`.
    total: &'a mut [f32],
}

impl<'a> Panel<'a> {
    #[inline(always)]
    fn split(state: &'a mut [f32], head_dim: usize, padded_dim: usize, lanes: usize) -> Self {
        let (queries, rest) = state.split_at_mut(head_dim * lanes);
        let (sums, rest) = rest.split_at_mut(padded_dim * lanes);
        let (greatest, total) = rest.split_at_mut(lanes);
        Self { queries, sums, greatest, total }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn attend<S: Simd, const MR: usize, const QV: usize>(self, simd: S) {
        let Self { sizes, q, k, v, queries, scores, state, results } = self;
        let Attention { head_dim, kv_len, q_stride, k_stride, v_stride, .. } = *sizes;
        let lanes = QV * S::LANES;
        let padded_dim = head_dim.next_multiple_of(MR);
        let panel_state = lanes * (head_dim + padded_dim + 2);
        let panels = queries.div_ceil(lanes);
        assert!(
            scores.len() == KEY_BLOCK.next_multiple_of(MR) * lanes && state.len() >= panels * panel_state
        );

        for (p, state) in state.chunks_exact_mut(panel_state).take(panels).enumerate() {
            let panel = Panel::split(state, head_dim, padded_dim, lanes);
            // Scores in units of log2, so that the softmax needs 2^x, not e^x.
            let scale = sizes.scale * std::f32::consts::LOG2_E;
            for lane in 0..lanes {
                // Lanes beyond the last query repeat it.
                let row = (p * lanes + lane).min(queries - 1);
                for (d, &x) in q[row * q_stride..][..head_dim].iter().enumerate() {
                    panel.queries[d * lanes + lane] = x * scale;
                }
            }
            panel.sums.fill(0.0);
            panel.greatest.fill(f32::NEG_INFINITY);
            panel.total.fill(0.0);
        }

        for first_key in (0..kv_len).step_by(KEY_BLOCK) {
            let keys = KEY_BLOCK.min(kv_len - first_key);
            let k = &k[first_key * k_stride..];
            let v = &v[first_key * v_stride..];
            for state in state.chunks_exact_mut(panel_state).take(panels) {
                let mut panel = Panel::split(state, head_dim, padded_dim, lanes);
                let greatest = score_block::<S, MR, QV>(simd, k, k_stride, keys, head_dim, &panel, scores);
                let decay = exponentials(simd, greatest, keys, &mut panel, scores);
                add_values::<S, MR, QV>(simd, v, v_stride, keys, head_dim, &mut panel, scores, decay);
            }
        }

        for (p, state) in state.chunks_exact_mut(panel_state).take(panels).enumerate() {
            let panel = Panel::split(state, head_dim, padded_dim, lanes);
            let first = p * lanes;
            for lane in 0..lanes.min(queries - first) {
                // SAFETY: this task has the part, and no other query's results are in use.
                let to = unsafe { results.of_query(first + lane, head_dim) };
                let inverse = 1.0 / panel.total[lane];
                for (d, to) in to.iter_mut().enumerate() {
                    *to = panel.sums[d * lanes + lane] * inverse;
                }
            }
        }
    }
}

/// Writes the scores of `keys` keys to `scores`, `[key][lanes]`, and returns the greatest of each lane, those
/// of earlier blocks included.
#[inline(always)]
fn score_block<S: Simd, const MR: usize, const QV: usize>(
    simd: S,
    k: &[f32],
    k_stride: usize,
    keys: usize,
    head_dim: usize,
    panel: &Panel<'_>,
    scores: &mut [f32],
) -> [S::F; QV] {
    let lanes = QV * S::LANES;
    let mut greatest = [simd.splat(0.0); QV];
    for (v, greatest) in greatest.iter_mut().enumerate() {
        *greatest = simd.read(&panel.greatest[v * S::LANES..]);
    }
    assert!(panel.queries.len() == head_dim * lanes && k.len() >= (keys - 1) * k_stride + head_dim);
    for first in (0..keys).step_by(MR) {
        let mut a = [k.as_ptr(); MR];
        for (i, a) in a.iter_mut().enumerate() {
            // SAFETY: rows below `keys` lie in `k`, as asserted; a tile's overhang repeats the last.
            *a = unsafe { a.add((first + i).min(keys - 1) * k_stride) };
        }
        let zeros = [[simd.splat(0.0); QV]; MR];
        // SAFETY: each key has `head_dim` values; the queries are `head_dim` rows of `lanes`.
        let acc = unsafe { simd.accumulate(a, 1, panel.queries.as_ptr(), head_dim, zeros) };
        for row in &acc {
            for v in 0..QV {
                greatest[v] = simd.max(greatest[v], row[v]);
            }
        }
        let to = &mut scores[first * lanes..][..MR * lanes];
        // SAFETY: `to` holds MR rows of `lanes`.
        unsafe { micro_kernel::store(simd, to.as_mut_ptr(), lanes, acc) };
    }
    greatest
}

/// Replaces scores by 2^(score - greatest), adds them to the total and returns by how much what was summed
/// relative to an earlier maximum has to shrink.
#[inline(always)]
fn exponentials<S: Simd, const QV: usize>(
    simd: S,
    greatest: [S::F; QV],
    keys: usize,
    panel: &mut Panel<'_>,
    scores: &mut [f32],
) -> [S::F; QV] {
    let mut decay = [simd.splat(0.0); QV];
    let mut total = [simd.splat(0.0); QV];
    for v in 0..QV {
        let at = v * S::LANES;
        decay[v] = math::exp2(simd, simd.sub(simd.read(&panel.greatest[at..]), greatest[v]));
        total[v] = simd.mul(simd.read(&panel.total[at..]), decay[v]);
        simd.write(&mut panel.greatest[at..], greatest[v]);
    }
    for row in scores.chunks_exact_mut(QV * S::LANES).take(keys) {
        for v in 0..QV {
            let x = simd.read(&row[v * S::LANES..]);
            let x = math::exp2(simd, simd.sub(x, greatest[v]));
            total[v] = simd.add(total[v], x);
            simd.write(&mut row[v * S::LANES..], x);
        }
    }
    for (to, total) in panel.total.chunks_exact_mut(S::LANES).zip(total) {
        simd.write(to, total);
    }
    decay
}

/// `sums = sums * decay + values^T exponentials`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // one step of the algorithm on its whole state
fn add_values<S: Simd, const MR: usize, const QV: usize>(
    simd: S,
    v: &[f32],
    v_stride: usize,
    keys: usize,
    head_dim: usize,
    panel: &mut Panel<'_>,
    exponentials: &[f32],
    decay: [S::F; QV],
) {
    let lanes = QV * S::LANES;
    assert!(v.len() >= (keys - 1) * v_stride + head_dim && exponentials.len() >= keys * lanes);
    for first in (0..head_dim).step_by(MR) {
        let mut a = [v.as_ptr(); MR];
        for (i, a) in a.iter_mut().enumerate() {
            // SAFETY: within the first row; a tile's overhang repeats the last channel.
            *a = unsafe { a.add((first + i).min(head_dim - 1)) };
        }
        let sums = &mut panel.sums[first * lanes..][..MR * lanes];
        // SAFETY: `sums` holds MR rows of `lanes`.
        let mut acc: [[S::F; QV]; MR] = unsafe { micro_kernel::load(simd, sums.as_ptr(), lanes) };
        for row in &mut acc {
            for v in 0..QV {
                row[v] = simd.mul(row[v], decay[v]);
            }
        }
        // SAFETY: one value of each of `keys` rows, `v_stride` apart, lies in `v`; exponentials are `keys` rows.
        acc = unsafe { simd.accumulate(a, v_stride, exponentials.as_ptr(), keys, acc) };
        // SAFETY: as at the load.
        unsafe { micro_kernel::store(simd, sums.as_mut_ptr(), lanes, acc) };
    }
}
