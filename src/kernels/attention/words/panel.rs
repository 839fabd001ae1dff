//! What a panel of queries is and carries from one block of keys to the next.

use std::f32::consts::LOG2_E;

use super::super::super::word_product::{round_to_word, scale_of};
use super::head::{Layout, magnitude, score_limit};

/// What a panel of queries carries from block to block, all with queries in the lanes.
pub struct Panel<'a> {
    /// The rounded queries, `[depth / 2][lanes][2]`.
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
        layout.depth * lanes
    }

    pub fn floats_len(layout: Layout, lanes: usize) -> usize {
        (layout.padded_dim + 3) * lanes
    }

    /// Rounds the queries that `row` gives for each lane.
    #[inline(always)]
    pub fn begin<'r>(&mut self, depth: usize, scale: f32, row: impl Fn(usize) -> &'r [f32]) {
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
