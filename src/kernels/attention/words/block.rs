//! One block of keys and values: scores, their exponentials, and values summed with these.

use super::super::super::math;
use super::super::super::micro_kernel;
use super::super::super::simd::{ROUNDING, Simd};
use super::super::super::word_product::{WordProduct, accumulate, accumulate_from};
use super::head::ONE;
use super::panel::Panel;

/// A block of keys with their values.
pub struct Block<'a> {
    /// `[len][depth]`, or more.
    pub keys: &'a [i16],
    /// `[len / 2][padded_dim][2]`, or more.
    pub values: &'a [i16],
    pub key_scale: f32,
    /// `[padded_dim]`.
    pub value_scales: &'a [f32],
    pub len: usize,
    pub depth: usize,
}

impl Block<'_> {
    /// Writes the products of queries and keys to `scores`, `[key][lanes]`, and returns the greatest of each lane.
    #[inline(always)]
    pub fn score<P: WordProduct, const BYTES: bool, const MR: usize, const QV: usize>(
        &self,
        words: P,
        panel: &Panel<'_>,
        scores: &mut [f32],
    ) -> [<P::Simd as Simd>::F; QV] {
        let simd = words.simd();
        let lanes = QV * P::Simd::LANES;
        let mut greatest = [simd.splat(f32::NEG_INFINITY); QV];
        assert!(panel.queries.len() == (self.depth + 2) * lanes && self.keys.len() >= self.len * self.depth);
        let mut before = [words.zero(); QV];
        for (v, before) in before.iter_mut().enumerate() {
            let at = self.depth * lanes + 2 * v * P::Simd::LANES;
            // SAFETY: the last row of queries, of `lanes` pairs.
            *before = unsafe { words.load_pairs(panel.queries.as_ptr().add(at)) };
        }
        for first in (0..self.len).step_by(MR) {
            let mut a = [self.keys.as_ptr(); MR];
            for (i, a) in a.iter_mut().enumerate() {
                // SAFETY: rows below `len` lie in `keys`, as asserted; a tile's overhang repeats the last.
                *a = unsafe { a.add((first + i).min(self.len - 1) * self.depth) };
            }
            // SAFETY: each key has `depth` words; the queries are `depth / 2` rows of `lanes` pairs.
            let acc = unsafe {
                let (queries, pairs) = (panel.queries.as_ptr(), self.depth / 2);
                accumulate_from::<P, BYTES, MR, QV>(words, a, 2, queries, pairs, before)
            };
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
    pub fn exponentials<P: WordProduct, const QV: usize>(
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
                let x = exponential(simd, scaled(simd, &scores[v * vector..], scales[v], tops[v]));
                let y = exponential(simd, scaled(simd, &scores[lanes + v * vector..], scales[v], tops[v]));
                total[v] = simd.add(total[v], simd.add(x, y));
                let to = &mut to[2 * v * vector..][..2 * vector];
                // SAFETY: `to` holds as many pairs as a vector.
                unsafe { words.store_pairs(to.as_mut_ptr(), pair(words, x, y)) };
            }
        }
        if self.len % 2 == 1 {
            let scores = &scores[(self.len - 1) * lanes..];
            let to = &mut exponentials[(self.len - 1) * lanes..];
            for v in 0..QV {
                let x = exponential(simd, scaled(simd, &scores[v * vector..], scales[v], tops[v]));
                total[v] = simd.add(total[v], x);
                let to = &mut to[2 * v * vector..][..2 * vector];
                // SAFETY: `to` holds as many pairs as a vector.
                unsafe { words.store_pairs(to.as_mut_ptr(), pair(words, x, zero)) };
            }
        }
        for (to, total) in panel.total.chunks_exact_mut(vector).zip(total) {
            simd.write(to, total);
        }
        decay
    }

    /// `sums = sums * decay + values^T exponentials`.
    #[inline(always)]
    pub fn add_values<P: WordProduct, const MR: usize, const QV: usize>(
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

/// Pairs of two exponentials, rounded.
#[inline(always)]
fn pair<P: WordProduct>(words: P, x: <P::Simd as Simd>::F, y: <P::Simd as Simd>::F) -> P::I {
    let rounding = words.simd().splat(ROUNDING);
    words.pair(words.simd().add(x, rounding), words.simd().add(y, rounding))
}

/// `ONE * 2^x` for x in [-126, 0].
#[inline(always)]
fn exponential<S: Simd>(simd: S, x: S::F) -> S::F {
    math::exp2_of_few_bits(simd, x, ONE)
}
