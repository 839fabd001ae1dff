//! A panel of queries and a block of keys: scores, their exponentials, and values summed with these.

use std::f32::consts::LOG2_E;

use super::super::super::bf16_product::{Bf16Product, QUAD};
use super::super::super::math;
use super::super::super::micro_kernel;
use super::super::super::simd::Simd;
use super::super::part::{ROWS_AHEAD, Rows};
use super::head::{BLOCK_QUADS, Layout, round};

/// What a panel of queries carries from block to block, all with queries in the lanes.
pub struct Panel<'a> {
    /// The rounded queries, `[quads][lanes]` quads.
    queries: &'a mut [i16],
    /// The values summed so far, `[padded_dim][lanes]`.
    pub sums: &'a mut [f32],
    /// The greatest score so far, `[lanes]`.
    greatest: &'a mut [f32],
    /// The sum of exponentials so far, `[lanes]`.
    pub total: &'a mut [f32],
}

/// A block of keys with their values, both in pairs of rows.
pub struct Block<'a> {
    /// `len` keys in whole tiles.
    pub keys: &'a [i16],
    /// `[padded_dim / 2][BLOCK_QUADS][2]` quads.
    pub values: &'a [i16],
    pub len: usize,
    pub layout: Layout,
}

impl<'a> Panel<'a> {
    /// Panel `number` of all whose queries lie in `rounded` and whose states in `floats`.
    #[inline(always)]
    pub fn of(
        rounded: &'a mut [i16],
        floats: &'a mut [f32],
        number: usize,
        layout: Layout,
        lanes: usize,
    ) -> Self {
        let (rounded_len, floats_len) = (layout.quads * lanes * QUAD, Self::floats_len(layout, lanes));
        let queries = &mut rounded[number * rounded_len..][..rounded_len];
        let state = &mut floats[number * floats_len..][..floats_len];
        let (sums, rest) = state.split_at_mut(layout.padded_dim * lanes);
        let (greatest, total) = rest.split_at_mut(lanes);
        Self { queries, sums, greatest, total }
    }

    pub fn floats_len(layout: Layout, lanes: usize) -> usize {
        (layout.padded_dim + 2) * lanes
    }

    /// Rounds a query for each lane; lanes beyond the last of `count` queries repeat it. What `poison` is, totals are.
    #[inline(always)]
    pub fn begin<S: Simd>(
        &mut self,
        simd: S,
        layout: Layout,
        (scale, poison): (f32, f32),
        queries: Rows<'_>,
        count: usize,
    ) {
        // Scores in units of log2, so that the softmax needs 2^x, not e^x.
        let scale = scale * LOG2_E;
        let lanes = self.total.len();
        self.sums.fill(0.0);
        self.queries.fill(0);
        self.greatest.fill(f32::NEG_INFINITY);
        for lane in 0..lanes {
            let row = queries.row(lane.min(count - 1), layout.head_dim);
            queries.prefetch(simd, lane + ROWS_AHEAD, layout.head_dim);
            self.total[lane] = poison;
            for (channel, x) in row.iter().enumerate() {
                self.queries[(channel / QUAD * lanes + lane) * QUAD + channel % QUAD] = round(x * scale);
                self.total[lane] += 0.0 * x;
            }
        }
    }

    /// Writes the block's scores to `scores`, `[key][lanes]`, and returns the greatest of each lane, those of earlier
    /// blocks included.
    #[inline(always)]
    pub fn score<P: Bf16Product, const MR: usize, const NV: usize>(
        &self,
        product: P,
        block: &Block<'_>,
        scores: &mut [f32],
    ) -> [<P::Simd as Simd>::F; NV] {
        let simd = product.simd();
        let lanes = NV * P::Simd::LANES;
        let quads = block.layout.quads;
        let mut greatest = [simd.splat(0.0); NV];
        for (v, greatest) in greatest.iter_mut().enumerate() {
            *greatest = simd.read(&self.greatest[v * P::Simd::LANES..]);
        }
        let tiles = block.keys.chunks_exact(MR * quads * QUAD).zip(scores.chunks_exact_mut(MR * lanes));
        assert!(self.queries.len() == quads * lanes * QUAD);
        for (keys, to) in tiles.take(block.len.div_ceil(MR)) {
            // SAFETY: `keys` holds MR rows of `quads` quads, in pairs; the queries are as many quads of `lanes`.
            let acc: [[_; NV]; MR] = unsafe {
                product.accumulate(keys.as_ptr().cast(), quads, self.queries.as_ptr().cast(), quads)
            };
            for row in &acc {
                for v in 0..NV {
                    greatest[v] = simd.max(greatest[v], row[v]);
                }
            }
            // SAFETY: `to` holds MR rows of `lanes`.
            unsafe { micro_kernel::store(simd, to.as_mut_ptr(), lanes, acc) };
        }
        greatest
    }

    /// Makes 2^(score - greatest) of the block's scores, adds them to the total, writes them rounded to `[quads of
    /// keys][lanes]` quads, and returns by how much what was summed relative to an earlier maximum has to shrink.
    #[inline(always)]
    pub fn exponentials<P: Bf16Product, const NV: usize>(
        &mut self,
        product: P,
        greatest: [<P::Simd as Simd>::F; NV],
        block: &Block<'_>,
        scores: &[f32],
        exponentials: &mut [i16],
    ) -> [<P::Simd as Simd>::F; NV] {
        let simd = product.simd();
        let (lanes, vector) = (NV * P::Simd::LANES, P::Simd::LANES);
        let mut decay = [simd.splat(0.0); NV];
        let mut total = [simd.splat(0.0); NV];
        for v in 0..NV {
            let at = v * vector;
            decay[v] = math::exp2(simd, simd.sub(simd.read(&self.greatest[at..]), greatest[v]));
            total[v] = simd.mul(simd.read(&self.total[at..]), decay[v]);
            simd.write(&mut self.greatest[at..], greatest[v]);
        }
        let (whole, rest) = (block.len / QUAD, block.len % QUAD);
        let mut quads = scores.chunks_exact(lanes * QUAD).zip(exponentials.chunks_exact_mut(lanes * QUAD));
        for (scores, to) in quads.by_ref().take(whole) {
            for v in 0..NV {
                let mut x = [simd.splat(0.0); QUAD];
                for key in 0..QUAD {
                    let score = simd.read(&scores[key * lanes + v * vector..]);
                    x[key] = math::exp2_of_few_bits(simd, simd.sub(score, greatest[v]), 1.0);
                }
                total[v] = simd.add(total[v], simd.add(simd.add(x[0], x[1]), simd.add(x[2], x[3])));
                let to = &mut to[v * vector * QUAD..][..vector * QUAD];
                // SAFETY: `to` holds as many quads as a vector has lanes.
                unsafe { product.store_quads(to.as_mut_ptr().cast(), x) };
            }
        }
        if let (1.., Some((scores, to))) = (rest, quads.next()) {
            for v in 0..NV {
                let mut x = [simd.splat(0.0); QUAD];
                for (key, x) in x.iter_mut().take(rest).enumerate() {
                    let score = simd.read(&scores[key * lanes + v * vector..]);
                    *x = math::exp2_of_few_bits(simd, simd.sub(score, greatest[v]), 1.0);
                    total[v] = simd.add(total[v], *x);
                }
                let to = &mut to[v * vector * QUAD..][..vector * QUAD];
                // SAFETY: as above.
                unsafe { product.store_quads(to.as_mut_ptr().cast(), x) };
            }
        }
        for (to, total) in self.total.chunks_exact_mut(vector).zip(total) {
            simd.write(to, total);
        }
        decay
    }

    /// `sums = sums * decay + values^T exponentials`.
    #[inline(always)]
    pub fn add_values<P: Bf16Product, const MR: usize, const NV: usize>(
        &mut self,
        product: P,
        block: &Block<'_>,
        exponentials: &[i16],
        decay: [<P::Simd as Simd>::F; NV],
    ) {
        let simd = product.simd();
        let lanes = NV * P::Simd::LANES;
        let quads = block.len.div_ceil(QUAD);
        assert!(quads <= BLOCK_QUADS && exponentials.len() >= quads * lanes * QUAD);
        let tiles = block.values.chunks_exact(MR * BLOCK_QUADS * QUAD);
        for (values, sums) in tiles.zip(self.sums.chunks_exact_mut(MR * lanes)) {
            // SAFETY: `values` holds MR rows of as many quads as a block has, in pairs; exponentials are `quads` quads
            // of `lanes`.
            let acc: [[_; NV]; MR] = unsafe {
                product.accumulate(values.as_ptr().cast(), BLOCK_QUADS, exponentials.as_ptr().cast(), quads)
            };
            // SAFETY: `sums` holds MR rows of `lanes`.
            let mut tile: [[_; NV]; MR] = unsafe { micro_kernel::load(simd, sums.as_ptr(), lanes) };
            for i in 0..MR {
                for v in 0..NV {
                    tile[i][v] = simd.mul_add(tile[i][v], decay[v], acc[i][v]);
                }
            }
            // SAFETY: as at the load.
            unsafe { micro_kernel::store(simd, sums.as_mut_ptr(), lanes, tile) };
        }
    }
}
