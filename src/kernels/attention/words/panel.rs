//! What a panel of queries is and carries from one block of keys to the next.

use std::f32::consts::LOG2_E;

use super::super::super::simd::Simd;
use super::super::super::word_product::{scale_of, shifted};
use super::super::part::{ROWS_AHEAD, Rows};
use super::head::{KEY_ZERO, Layout};

/// What a panel of queries carries from block to block, all with queries in the lanes.
pub struct Panel<'a> {
    /// The rounded queries, `[depth / 2][lanes][2]`, of pairs or of four bytes; then what sums begin with, i32 `[lanes]`.
    pub queries: &'a mut [i16],
    /// The values summed so far, `[padded_dim][lanes]`.
    pub sums: &'a mut [f32],
    /// What a product of query and key stands for, but for the key's scale, in units of log2: `[lanes]`.
    pub scales: &'a mut [f32],
    /// The greatest score so far, `[lanes]`.
    pub greatest: &'a mut [f32],
    /// The sum of exponentials so far, `[lanes]`.
    pub total: &'a mut [f32],
}

impl<'a> Panel<'a> {
    /// Panel `number` of all whose queries lie in `words` and whose states in `floats`.
    #[inline(always)]
    pub fn of(
        words: &'a mut [i16],
        floats: &'a mut [f32],
        number: usize,
        layout: Layout,
        lanes: usize,
    ) -> Self {
        let (words_len, floats_len) = (Self::words_len(layout, lanes), Self::floats_len(layout, lanes));
        let queries = &mut words[number * words_len..][..words_len];
        let state = &mut floats[number * floats_len..][..floats_len];
        let (sums, rest) = state.split_at_mut(layout.padded_dim * lanes);
        let (scales, rest) = rest.split_at_mut(lanes);
        let (greatest, total) = rest.split_at_mut(lanes);
        Self { queries, sums, scales, greatest, total }
    }

    pub fn words_len(layout: Layout, lanes: usize) -> usize {
        (layout.depth + 2) * lanes
    }

    pub fn floats_len(layout: Layout, lanes: usize) -> usize {
        (layout.padded_dim + 3) * lanes
    }

    /// Rounds a query for each lane, times `factors`; lanes beyond the last of `count` queries repeat it.
    #[inline(always)]
    pub fn begin<S: Simd>(
        &mut self,
        simd: S,
        layout: Layout,
        (scale, factors): (f32, &[f32]),
        queries: Rows<'_>,
        count: usize,
    ) {
        let lanes = self.scales.len();
        let limit = layout.score_limit();
        self.sums.fill(0.0);
        self.queries.fill(0);
        self.greatest.fill(f32::NEG_INFINITY);
        let padded = layout.head_dim.next_multiple_of(S::LANES);
        let (mut scaled, mut bytes) = (vec![0.0; padded], vec![0; padded]);
        for lane in 0..lanes {
            let row = queries.row(lane.min(count - 1), layout.head_dim);
            queries.prefetch(simd, lane + ROWS_AHEAD, layout.head_dim);
            let zero = simd.splat(0.0);
            let (mut greatest, mut poison) = (zero, zero);
            let chunks = row.chunks(S::LANES).zip(factors.chunks(S::LANES));
            for ((values, factors), to) in chunks.zip(scaled.chunks_exact_mut(S::LANES)) {
                let x = simd.mul(simd.read_up_to(values), simd.read_up_to(factors));
                greatest = simd.max(simd.max(x, simd.sub(zero, x)), greatest);
                poison = simd.mul_add(x, zero, poison);
                simd.write(to, x);
            }
            let (query_scale, inverse) = scale_of(simd.greatest(greatest), limit);
            self.scales[lane] = query_scale * scale * LOG2_E;
            // Zero, or NaN where the query has NaN or infinity.
            self.total[lane] = simd.sum(poison);
            let inverse = simd.splat(inverse);
            // What keys have too much, as the last row says of all queries.
            let mut offset = 0;
            let rows = self.queries.chunks_exact_mut(2 * lanes).take(layout.depth / 2);
            if layout.in_bytes {
                let middle = simd.splat(KEY_ZERO as f32);
                for (x, to) in scaled.chunks_exact(S::LANES).zip(bytes.chunks_exact_mut(S::LANES)) {
                    let x = simd.mul_add(simd.read(x), inverse, middle);
                    // SAFETY: `to` holds as many bytes as a vector has lanes.
                    unsafe { simd.store_u8(to.as_mut_ptr(), x) };
                }
                for (to, quad) in rows.zip(bytes.as_chunks::<4>().0) {
                    // From u8 around KEY_ZERO to i8 around zero.
                    let quad = u32::from_le_bytes(*quad) ^ 0x8080_8080;
                    (to[2 * lane], to[2 * lane + 1]) = (quad as i16, (quad >> 16) as i16);
                }
                let sum: i32 = bytes.iter().map(|&byte| i32::from(byte) - KEY_ZERO).sum();
                offset = -KEY_ZERO * sum;
            } else {
                for x in scaled.chunks_exact_mut(S::LANES) {
                    let rounded = shifted(simd, simd.read(x), inverse);
                    simd.write(x, rounded);
                }
                for (to, pair) in rows.zip(scaled.as_chunks::<2>().0) {
                    (to[2 * lane], to[2 * lane + 1]) = (pair[0].to_bits() as i16, pair[1].to_bits() as i16);
                }
            }
            let to = &mut self.queries[(layout.depth / 2 * lanes + lane) * 2..][..2];
            to.copy_from_slice(&[offset as i16, (offset >> 16) as i16]);
        }
    }
}
