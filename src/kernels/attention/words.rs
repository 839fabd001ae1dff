//! Attention by products of 16-bit integers, twice as many at a time as f32 on x86.
//!
//! Queries have a scale each, keys one per block, values one per block and channel; keys and values lose their
//! mean over all tokens first, which a softmax doesn't see and which values get back at the end (the smoothing of
//! Zhang et al., "SageAttention", 2024). So large means cost no precision, and exponentials too small to be told from
//! zero count as the mean value, since the total of all is kept in f32.

use std::f32::consts::LOG2_E;

use super::super::aligned::AlignedBuf;
use super::super::isa::Isa;
use super::super::math;
use super::super::micro_kernel;
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, with_scratch};
use super::super::simd::{Kernel, Simd};
use super::super::tile::TileKernel;
use super::super::word_product::{ROUNDING, WordKernel, WordProduct, accumulate, round_to_word, scale_of};
use super::{Attention, KEY_BLOCK, Part, Results};

/// The greatest exponential as an integer, and the greatest value: a block's sums stay below 2^31.
const ONE: f32 = 32767.0;
const VALUE_LIMIT: f32 = 1023.0;
const _: () = assert!(ONE as u64 * VALUE_LIMIT as u64 * (KEY_BLOCK as u64) < 1 << 31);
const _: () = assert!(KEY_BLOCK.is_multiple_of(2));

/// The greatest query or key as an integer, so that sums over `depth` stay below 2^31.
fn score_limit(depth: usize) -> f32 {
    (f64::from(i32::MAX) / depth as f64).sqrt().floor().min(32767.0) as f32
}

/// How keys and values of a head lie in memory.
#[derive(Clone, Copy)]
struct Layout {
    head_dim: usize,
    kv_len: usize,
    /// `head_dim` in whole pairs.
    depth: usize,
    /// `head_dim` in whole tiles.
    padded_dim: usize,
    blocks: usize,
}

impl Layout {
    fn new(sizes: &Attention, tile_height: usize) -> Self {
        let Attention { head_dim, kv_len, .. } = *sizes;
        Self {
            head_dim,
            kv_len,
            depth: head_dim.next_multiple_of(2),
            padded_dim: head_dim.next_multiple_of(tile_height),
            blocks: kv_len.div_ceil(KEY_BLOCK),
        }
    }

    fn keys_len(self) -> usize {
        self.kv_len * self.depth
    }

    fn values_len(self) -> usize {
        self.kv_len.next_multiple_of(2) * self.padded_dim
    }

    /// f32 beside the words: see [`Head`].
    fn floats_len(self) -> usize {
        self.blocks + (self.blocks + 1) * self.padded_dim
    }
}

/// Keys and values of one head.
struct Head<'a> {
    layout: Layout,
    /// `[kv_len][depth]`.
    keys: &'a [i16],
    /// `[kv_len / 2][padded_dim][2]`: of two tokens side by side, zeros where there is none.
    values: &'a [i16],
    /// `[blocks]`.
    key_scales: &'a [f32],
    /// `[blocks][padded_dim]`.
    value_scales: &'a [f32],
    /// `[padded_dim]`.
    value_means: &'a [f32],
}

impl<'a> Head<'a> {
    fn split(layout: Layout, keys: &'a [i16], values: &'a [i16], floats: &'a [f32]) -> Self {
        let (key_scales, rest) = floats.split_at(layout.blocks);
        let (value_scales, value_means) = rest.split_at(layout.blocks * layout.padded_dim);
        Self { layout, keys, values, key_scales, value_scales, value_means }
    }
}

/// See [`Attention::apply_in_words`].
pub fn apply<'a>(
    sizes: &Attention,
    isa: Isa,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: Output<'a>,
) -> Written<'a> {
    let Attention { batch, heads, head_dim, q_len, kv_len, .. } = *sizes;
    let (height, lanes) = isa.properties().attention_tile;
    let layout = Layout::new(sizes, height);
    let (keys_len, values_len, floats_len) = (layout.keys_len(), layout.values_len(), layout.floats_len());
    let count = batch * heads;
    let mut keys = AlignedBuf::<i16>::zeros(count * keys_len);
    let mut values = AlignedBuf::<i16>::zeros(count * values_len);
    let mut floats = vec![0.0; count * floats_len];
    {
        let keys = Disjoint::new(keys.as_mut_slice());
        let values = Disjoint::new(values.as_mut_slice());
        let floats = Disjoint::new(&mut floats);
        for_each_index(count, |index| {
            let (item, column) = (index / heads, index % heads * head_dim);
            // SAFETY: each head is packed once, into parts of its own.
            let (keys, values, floats) = unsafe {
                (
                    keys.part(index * keys_len..(index + 1) * keys_len),
                    values.part(index * values_len..(index + 1) * values_len),
                    floats.part(index * floats_len..(index + 1) * floats_len),
                )
            };
            isa.run(Pack {
                layout,
                k: Rows { values: &k[item * kv_len * sizes.k_stride + column..], stride: sizes.k_stride },
                v: Rows { values: &v[item * kv_len * sizes.v_stride + column..], stride: sizes.v_stride },
                keys,
                values,
                floats,
            });
        });
    }

    let scores_len = KEY_BLOCK.next_multiple_of(height) * lanes;
    let (panel_words, panel_floats) = (layout.depth * lanes, (layout.padded_dim + 3) * lanes);
    let output = output.into_disjoint();
    let panel_bytes = panel_words * size_of::<i16>() + panel_floats * size_of::<f32>();
    sizes.for_each_part(lanes, panel_bytes, |part| {
        let Part { item, head, first, queries, panels } = part;
        let index = item * heads + head;
        with_scratch(panels * panel_floats + scores_len, 0, |scratch| {
            let exponentials_len = KEY_BLOCK * lanes;
            scratch.words.reserve_len(panels * panel_words + exponentials_len);
            let (scores, state) = scratch.floats.as_mut_slice().split_at_mut(scores_len);
            let (exponentials, words) = scratch.words.as_mut_slice().split_at_mut(exponentials_len);
            isa.run_words(Task {
                head: Head::split(
                    layout,
                    &keys.as_slice()[index * keys_len..][..keys_len],
                    &values.as_slice()[index * values_len..][..values_len],
                    &floats[index * floats_len..][..floats_len],
                ),
                q: Rows {
                    values: &q[(item * q_len + first) * sizes.q_stride + head * head_dim..],
                    stride: sizes.q_stride,
                },
                scale: sizes.scale,
                queries,
                scores,
                exponentials,
                words: &mut words[..panels * panel_words],
                state: &mut state[..panels * panel_floats],
                results: Results::of(sizes, part, &output),
            });
        });
    });
    // SAFETY: parts cover all queries of all heads, whose values lie side by side.
    unsafe { Written::all_of(output) }
}

/// Rows of f32 of which the first values are meant.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(self, row: usize, len: usize) -> &'a [f32] {
        &self.values[row * self.stride..][..len]
    }

    /// The mean of each column over `rows` rows.
    #[inline(always)]
    fn means(self, rows: usize, to: &mut [f32]) {
        to.fill(0.0);
        let width = to.len();
        for row in 0..rows {
            for (sum, x) in to.iter_mut().zip(self.row(row, width)) {
                *sum += x;
            }
        }
        for sum in to {
            *sum /= rows as f32;
        }
    }
}

/// The bits of a magnitude, which are ordered as magnitudes are, with NaN above all: the greatest tells of it.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7FFF_FFFF
}

/// Rounds keys and values of one head.
struct Pack<'a> {
    layout: Layout,
    k: Rows<'a>,
    v: Rows<'a>,
    /// As in [`Head`], all zero.
    keys: &'a mut [i16],
    values: &'a mut [i16],
    floats: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { layout, k, v, keys, values, floats } = self;
        let Layout { head_dim, kv_len, depth, padded_dim, blocks } = layout;
        let (key_scales, rest) = floats.split_at_mut(blocks);
        let (value_scales, value_means) = rest.split_at_mut(blocks * padded_dim);
        let value_means = &mut value_means[..head_dim];
        v.means(kv_len, value_means);
        let mut key_means = vec![0.0; head_dim];
        k.means(kv_len, &mut key_means);

        let limit = score_limit(depth);
        let mut greatest = vec![0; head_dim];
        let mut inverses = vec![0.0; head_dim];
        for block in 0..blocks {
            let tokens = block * KEY_BLOCK..((block + 1) * KEY_BLOCK).min(kv_len);
            greatest.fill(0);
            for token in tokens.clone() {
                centered_magnitudes(k.row(token, head_dim), &key_means, &mut greatest);
            }
            let (scale, inverse) =
                scale_of(f32::from_bits(greatest.iter().copied().max().unwrap_or(0)), limit);
            key_scales[block] = scale;
            for token in tokens.clone() {
                let to = &mut keys[token * depth..][..head_dim];
                for ((to, x), mean) in to.iter_mut().zip(k.row(token, head_dim)).zip(&key_means) {
                    *to = round_to_word((x - mean) * inverse);
                }
            }

            greatest.fill(0);
            for token in tokens.clone() {
                centered_magnitudes(v.row(token, head_dim), value_means, &mut greatest);
            }
            let scales = &mut value_scales[block * padded_dim..][..head_dim];
            for ((scale, inverse), &greatest) in scales.iter_mut().zip(&mut inverses).zip(&greatest) {
                (*scale, *inverse) = scale_of(f32::from_bits(greatest), VALUE_LIMIT);
            }
            for first in tokens.clone().step_by(2) {
                let to = &mut values[first * padded_dim..][..2 * head_dim];
                let second = (first + 1).min(kv_len - 1);
                let pairs = v.row(first, head_dim).iter().zip(v.row(second, head_dim));
                let factors = value_means.iter().zip(&inverses);
                for ((to, (x, y)), (mean, inverse)) in to.chunks_exact_mut(2).zip(pairs).zip(factors) {
                    to[0] = round_to_word((x - mean) * inverse);
                    to[1] = round_to_word((y - mean) * inverse);
                }
            }
        }
    }
}

/// Raises `greatest` to the magnitudes of `row - means`.
#[inline(always)]
fn centered_magnitudes(row: &[f32], means: &[f32], greatest: &mut [u32]) {
    for ((greatest, x), mean) in greatest.iter_mut().zip(row).zip(means) {
        *greatest = (*greatest).max(magnitude(x - mean));
    }
}

/// Some queries of one head over all its keys.
struct Task<'a> {
    head: Head<'a>,
    /// Of the task's queries.
    q: Rows<'a>,
    scale: f32,
    queries: usize,
    /// `[KEY_BLOCK rounded up][lanes]`.
    scores: &'a mut [f32],
    /// `[KEY_BLOCK / 2][lanes][2]`.
    exponentials: &'a mut [i16],
    /// The panels' queries.
    words: &'a mut [i16],
    /// The rest of the panels' states.
    state: &'a mut [f32],
    results: Results<'a>,
}

impl WordKernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        P::Simd::in_attention_tile(words, self);
    }
}

impl<P: WordProduct> TileKernel<P> for Task<'_> {
    #[inline(always)]
    fn run<const MR: usize, const QV: usize>(self, words: P) {
        self.attend::<P, MR, QV>(words);
    }
}

/// What a panel of queries carries from block to block, all with queries in the lanes.
struct Panel<'a> {
    /// The rounded queries, `[depth / 2][lanes][2]`.
    queries: &'a mut [i16],
    /// The values summed so far, `[padded_dim][lanes]`.
    sums: &'a mut [f32],
    /// What a product of query and key stands for, but for the key's scale, in units of log2: `[lanes]`.
    scales: &'a mut [f32],
    /// The greatest score so far, `[lanes]`.
    greatest: &'a mut [f32],
    /// The sum of exponentials so far, `[lanes]`.
    total: &'a mut [f32],
}

impl<'a> Panel<'a> {
    #[inline(always)]
    fn split(queries: &'a mut [i16], state: &'a mut [f32], padded_dim: usize, lanes: usize) -> Self {
        let (sums, rest) = state.split_at_mut(padded_dim * lanes);
        let (scales, rest) = rest.split_at_mut(lanes);
        let (greatest, total) = rest.split_at_mut(lanes);
        Self { queries, sums, scales, greatest, total }
    }

    /// Rounds the queries that `row` gives for each lane.
    #[inline(always)]
    fn begin<'r>(&mut self, depth: usize, scale: f32, row: impl Fn(usize) -> &'r [f32]) {
        let lanes = self.scales.len();
        let limit = score_limit(depth);
        self.sums.fill(0.0);
        self.queries.fill(0);
        self.greatest.fill(f32::NEG_INFINITY);
        for lane in 0..lanes {
            let row = row(lane);
            let greatest = row.iter().fold(0, |greatest, &x| magnitude(x).max(greatest));
            let (query_scale, inverse) = scale_of(f32::from_bits(greatest), limit);
            self.scales[lane] = query_scale * scale * LOG2_E;
            // Zero, or NaN where the query has NaN or infinity.
            self.total[lane] = 0.0 * query_scale;
            for (d, &x) in row.iter().enumerate() {
                self.queries[(d / 2 * lanes + lane) * 2 + d % 2] = round_to_word(x * inverse);
            }
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn attend<P: WordProduct, const MR: usize, const QV: usize>(self, words: P) {
        let Self { head, q, scale, queries, scores, exponentials, words: rounded, state, results } = self;
        let Layout { head_dim, kv_len, depth, padded_dim, .. } = head.layout;
        let lanes = QV * P::Simd::LANES;
        let (panel_words, panel_floats) = (depth * lanes, (padded_dim + 3) * lanes);
        let panels = queries.div_ceil(lanes);
        assert!(rounded.len() >= panels * panel_words && state.len() >= panels * panel_floats);

        for p in 0..panels {
            let (queries_of, state) = (&mut rounded[p * panel_words..], &mut state[p * panel_floats..]);
            let mut panel =
                Panel::split(&mut queries_of[..panel_words], &mut state[..panel_floats], padded_dim, lanes);
            // Lanes beyond the last query repeat it.
            panel.begin(depth, scale, |lane| q.row((p * lanes + lane).min(queries - 1), head_dim));
        }

        for (block, first_key) in (0..kv_len).step_by(KEY_BLOCK).enumerate() {
            let block = Block {
                keys: &head.keys[first_key * depth..],
                values: &head.values[first_key * padded_dim..],
                key_scale: head.key_scales[block],
                value_scales: &head.value_scales[block * padded_dim..][..padded_dim],
                len: KEY_BLOCK.min(kv_len - first_key),
                depth,
            };
            for p in 0..panels {
                let (queries_of, state) = (&mut rounded[p * panel_words..], &mut state[p * panel_floats..]);
                let mut panel = Panel::split(
                    &mut queries_of[..panel_words],
                    &mut state[..panel_floats],
                    padded_dim,
                    lanes,
                );
                let greatest = block.score::<P, MR, QV>(words, &panel, scores);
                let decay = block.exponentials(words, greatest, &mut panel, scores, exponentials);
                block.add_values::<P, MR, QV>(words, &mut panel, exponentials, decay);
            }
        }

        for p in 0..panels {
            let (queries_of, state) = (&mut rounded[p * panel_words..], &mut state[p * panel_floats..]);
            let panel =
                Panel::split(&mut queries_of[..panel_words], &mut state[..panel_floats], padded_dim, lanes);
            let first = p * lanes;
            for lane in 0..lanes.min(queries - first) {
                // SAFETY: this task has the part, and no other query's results are in use.
                let to = unsafe { results.of_query(first + lane, head_dim) };
                let inverse = 1.0 / panel.total[lane];
                for (d, (to, mean)) in to.iter_mut().zip(head.value_means).enumerate() {
                    *to = panel.sums[d * lanes + lane] * inverse + mean;
                }
            }
        }
    }
}

/// A block of keys with their values.
struct Block<'a> {
    /// `[len][depth]`, or more.
    keys: &'a [i16],
    /// `[len / 2][padded_dim][2]`, or more.
    values: &'a [i16],
    key_scale: f32,
    /// `[padded_dim]`.
    value_scales: &'a [f32],
    len: usize,
    depth: usize,
}

impl Block<'_> {
    /// Writes the products of queries and keys to `scores`, `[key][lanes]`, and returns the greatest of each lane.
    #[inline(always)]
    fn score<P: WordProduct, const MR: usize, const QV: usize>(
        &self,
        words: P,
        panel: &Panel<'_>,
        scores: &mut [f32],
    ) -> [<P::Simd as Simd>::F; QV] {
        let simd = words.simd();
        let lanes = QV * P::Simd::LANES;
        let mut greatest = [simd.splat(f32::NEG_INFINITY); QV];
        assert!(panel.queries.len() == self.depth * lanes && self.keys.len() >= self.len * self.depth);
        for first in (0..self.len).step_by(MR) {
            let mut a = [self.keys.as_ptr(); MR];
            for (i, a) in a.iter_mut().enumerate() {
                // SAFETY: rows below `len` lie in `keys`, as asserted; a tile's overhang repeats the last.
                *a = unsafe { a.add((first + i).min(self.len - 1) * self.depth) };
            }
            // SAFETY: each key has `depth` words; the queries are `depth / 2` rows of `lanes` pairs.
            let acc = unsafe { accumulate::<P, MR, QV>(words, a, 2, panel.queries.as_ptr(), self.depth / 2) };
            let mut tile = [[simd.splat(0.0); QV]; MR];
            for (tile, acc) in tile.iter_mut().zip(&acc) {
                for v in 0..QV {
                    tile[v] = words.to_f32(acc[v]);
                    greatest[v] = simd.max(greatest[v], tile[v]);
                }
            }
            let to = &mut scores[first * lanes..][..MR * lanes];
            // SAFETY: `to` holds MR rows of `lanes`.
            unsafe { micro_kernel::store(simd, to.as_mut_ptr(), lanes, tile) };
        }
        greatest
    }

    /// Makes `ONE * 2^(score - greatest)` of the products, adds them to the total, writes them rounded in pairs
    /// of keys, and returns by how much what was summed relative to an earlier maximum has to shrink.
    #[inline(always)]
    fn exponentials<P: WordProduct, const QV: usize>(
        &self,
        words: P,
        greatest: [<P::Simd as Simd>::F; QV],
        panel: &mut Panel<'_>,
        scores: &[f32],
        exponentials: &mut [i16],
    ) -> [<P::Simd as Simd>::F; QV] {
        let simd = words.simd();
        let (lanes, vector) = (QV * P::Simd::LANES, P::Simd::LANES);
        let zero = simd.splat(0.0);
        let mut decay = [zero; QV];
        let mut total = [zero; QV];
        let mut scales = [zero; QV];
        let mut tops = [zero; QV];
        for v in 0..QV {
            let at = v * vector;
            scales[v] = simd.mul(simd.read(&panel.scales[at..]), simd.splat(self.key_scale));
            let before = simd.read(&panel.greatest[at..]);
            let after = simd.max(before, simd.mul(greatest[v], scales[v]));
            decay[v] = math::exp2(simd, simd.sub(before, after));
            // NaN where a key has NaN or infinity.
            total[v] =
                simd.mul_add(simd.read(&panel.total[at..]), decay[v], simd.splat(0.0 * self.key_scale));
            tops[v] = after;
            simd.write(&mut panel.greatest[at..], after);
        }
        let rows = scores.chunks_exact(2 * lanes).zip(exponentials.chunks_exact_mut(2 * lanes));
        for (scores, to) in rows.take(self.len / 2) {
            for v in 0..QV {
                let x = exponential(words, scaled(simd, &scores[v * vector..], scales[v], tops[v]));
                let y = exponential(words, scaled(simd, &scores[lanes + v * vector..], scales[v], tops[v]));
                total[v] = simd.add(total[v], simd.add(x, y));
                let to = &mut to[2 * v * vector..][..2 * vector];
                // SAFETY: `to` holds as many pairs as a vector.
                unsafe { words.store_pairs(to.as_mut_ptr(), words.pair(x, y)) };
            }
        }
        if self.len % 2 == 1 {
            let scores = &scores[(self.len - 1) * lanes..];
            let to = &mut exponentials[(self.len - 1) * lanes..];
            for v in 0..QV {
                let x = exponential(words, scaled(simd, &scores[v * vector..], scales[v], tops[v]));
                total[v] = simd.add(total[v], x);
                let to = &mut to[2 * v * vector..][..2 * vector];
                // SAFETY: `to` holds as many pairs as a vector.
                unsafe { words.store_pairs(to.as_mut_ptr(), words.pair(x, zero)) };
            }
        }
        for (to, total) in panel.total.chunks_exact_mut(vector).zip(total) {
            simd.write(to, total);
        }
        decay
    }

    /// `sums = sums * decay + values^T exponentials`.
    #[inline(always)]
    fn add_values<P: WordProduct, const MR: usize, const QV: usize>(
        &self,
        words: P,
        panel: &mut Panel<'_>,
        exponentials: &[i16],
        decay: [<P::Simd as Simd>::F; QV],
    ) {
        let simd = words.simd();
        let lanes = QV * P::Simd::LANES;
        let (padded_dim, pairs) = (self.value_scales.len(), self.len.div_ceil(2));
        assert!(self.values.len() >= 2 * pairs * padded_dim && exponentials.len() >= 2 * pairs * lanes);
        for first in (0..padded_dim).step_by(MR) {
            let mut a = [self.values.as_ptr(); MR];
            for (i, a) in a.iter_mut().enumerate() {
                // SAFETY: within the first row, since rows are whole tiles.
                *a = unsafe { a.add(2 * (first + i)) };
            }
            // SAFETY: a pair of each of `pairs` rows, `padded_dim` pairs apart, lies in `values`; exponentials are
            // as many rows of `lanes` pairs.
            let acc =
                unsafe { accumulate::<P, MR, QV>(words, a, 2 * padded_dim, exponentials.as_ptr(), pairs) };
            let sums = &mut panel.sums[first * lanes..][..MR * lanes];
            // SAFETY: `sums` holds MR rows of `lanes`.
            let mut tile: [[_; QV]; MR] = unsafe { micro_kernel::load(simd, sums.as_ptr(), lanes) };
            for i in 0..MR {
                let scale = simd.splat(self.value_scales[first + i]);
                for v in 0..QV {
                    let shrunk = simd.mul(tile[i][v], decay[v]);
                    tile[i][v] = simd.mul_add(words.to_f32(acc[i][v]), scale, shrunk);
                }
            }
            // SAFETY: as at the load.
            unsafe { micro_kernel::store(simd, sums.as_mut_ptr(), lanes, tile) };
        }
    }
}

/// How far scores lie below the greatest. Not fused, so that for the greatest itself it is exactly zero.
#[inline(always)]
fn scaled<S: Simd>(simd: S, scores: &[f32], scale: S::F, greatest: S::F) -> S::F {
    simd.sub(simd.mul(simd.read(scores), scale), greatest)
}

/// `ONE * 2^x` for x in [-126, 0], or below, which counts as -126; relative error below 4e-6, a tenth of what
/// rounding to an integer costs at least.
///
/// x = n + r with |r| <= 1/2 and 2^r by a polynomial of degree 4 whose relative error is least (fitted by Lawson's
/// algorithm), 2^n through the exponent bits.
#[inline(always)]
fn exponential<P: WordProduct>(words: P, x: <P::Simd as Simd>::F) -> <P::Simd as Simd>::F {
    const COEFFICIENTS: [f32; 4] = [0.055_917_863, 0.240_247_44, 0.693_121_8, 0.999_999_3];
    let simd = words.simd();
    let x = simd.max(x, simd.splat(-126.0));
    let shifted = simd.add(x, simd.splat(ROUNDING));
    let r = simd.sub(x, simd.sub(shifted, simd.splat(ROUNDING)));
    let mut p = simd.splat(0.009_570_102 * ONE);
    for c in COEFFICIENTS {
        p = simd.mul_add(p, r, simd.splat(c * ONE));
    }
    words.scale_by_power(p, shifted)
}
