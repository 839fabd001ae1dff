//! How attention is cut up: blocks of keys, parts of the queries with the place of their results, and rows of a head.

use super::super::aligned::LINE;
use super::super::parallel::{Disjoint, for_each_index};
use super::super::simd::Simd;
use super::Attention;

/// Keys whose scores exist at once: with 48 queries they take 12 KB of L1, as much as their keys and values.
pub const KEY_BLOCK: usize = 64;
/// Queries of one task at most, which share each block of keys while it is in cache.
const TASK_QUERIES: usize = 192;
/// Rows that are asked for before they are read: of a head they lie too far apart for a processor to foresee them.
pub const ROWS_AHEAD: usize = 8;
/// Bytes of a task's queries and results at most, so that they stay in L2 (a quarter to half of it).
const TASK_STATE: usize = 384 * 1024;

impl Attention {
    /// Cuts the work into some panels of `lanes` queries of one head each, whose state takes `panel_bytes` each.
    pub(super) fn for_each_part(&self, lanes: usize, panel_bytes: usize, work: impl Fn(Part) + Send + Sync) {
        let Self { batch, heads, q_len, .. } = *self;
        let panels = (TASK_QUERIES / lanes).min(TASK_STATE / panel_bytes).clamp(1, q_len.div_ceil(lanes));
        let tasks = q_len.div_ceil(panels * lanes);
        for_each_index(batch * heads * tasks, |index| {
            let (item, head, task) = (index / tasks / heads, index / tasks % heads, index % tasks);
            let first = task * panels * lanes;
            work(Part { item, head, first, queries: (panels * lanes).min(q_len - first), panels });
        });
    }
}

/// Some queries of one head.
#[derive(Clone, Copy)]
pub struct Part {
    pub item: usize,
    pub head: usize,
    /// The first query.
    pub first: usize,
    pub queries: usize,
    /// Panels at most.
    pub panels: usize,
}

/// Where the results of a part go.
pub struct Results<'a> {
    output: &'a Disjoint<'a, f32>,
    /// Of the part's first query.
    start: usize,
    /// From query to query.
    stride: usize,
}

impl<'a> Results<'a> {
    pub fn of(sizes: &Attention, part: Part, output: &'a Disjoint<'a, f32>) -> Self {
        let stride = sizes.heads * sizes.head_dim;
        Self {
            output,
            start: (part.item * sizes.q_len + part.first) * stride + part.head * sizes.head_dim,
            stride,
        }
    }

    /// The `head_dim` values of the part's query `query`.
    ///
    /// # Safety
    /// Only the task that has the part may ask, and for one query at a time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // tasks have queries and columns of their own
    pub unsafe fn of_query(&self, query: usize, head_dim: usize) -> &mut [f32] {
        let at = self.start + query * self.stride;
        // SAFETY: the caller's promise.
        unsafe { self.output.part(at..at + head_dim) }
    }

    /// Gives `count` queries from `first` on what was summed for them, `[head_dim or more][lanes]`: divided by the total
    /// of each, and with the values' means, which had been taken out.
    ///
    /// # Safety
    /// Only the task that has the part may ask.
    #[inline(always)]
    pub unsafe fn finish<S: Simd>(
        &self,
        simd: S,
        first: usize,
        count: usize,
        sums: &mut [f32],
        totals: &[f32],
        means: &[f32],
    ) {
        let lanes = totals.len();
        // Rows of a head lie too far apart for a processor to foresee them.
        for query in first..first + count {
            for at in (0..means.len()).step_by(LINE / size_of::<f32>()) {
                simd.prefetch_to_write(self.output.address(self.start + query * self.stride + at).cast());
            }
        }
        for at in (0..lanes).step_by(S::LANES) {
            let inverse = simd.div(simd.splat(1.0), simd.read(&totals[at..]));
            for (sums, &mean) in sums.chunks_exact_mut(lanes).zip(means) {
                let sum = simd.read(&sums[at..]);
                simd.write(&mut sums[at..], simd.mul_add(sum, inverse, simd.splat(mean)));
            }
        }
        for lane in 0..count {
            // SAFETY: the caller's promise, one query after the other.
            let to = unsafe { self.of_query(first + lane, means.len()) };
            for (to, of_lanes) in to.iter_mut().zip(sums.chunks_exact(lanes)) {
                *to = of_lanes[lane];
            }
        }
    }
}

/// Rows of f32 of which the first values are meant.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub fn row(self, row: usize, len: usize) -> &'a [f32] {
        &self.values[row * self.stride..][..len]
    }

    /// Asks for row `row`, if there is one, to be read soon.
    #[inline(always)]
    pub fn prefetch<S: Simd>(self, simd: S, row: usize, len: usize) {
        let start = self.values.as_ptr().wrapping_add(row * self.stride);
        for at in (0..len).step_by(LINE / size_of::<f32>()) {
            simd.prefetch(start.wrapping_add(at).cast());
        }
    }

    /// Those from row `row` on.
    #[inline(always)]
    pub fn starting_at(self, row: usize) -> Self {
        Self { values: &self.values[row * self.stride..], stride: self.stride }
    }

    /// The mean of each column over `rows` rows.
    #[inline(always)]
    pub fn means<S: Simd>(self, simd: S, rows: usize, to: &mut [f32]) {
        to.fill(0.0);
        let width = to.len();
        for row in 0..rows {
            self.prefetch(simd, row + ROWS_AHEAD, width);
            for (sum, x) in to.iter_mut().zip(self.row(row, width)) {
                *sum += x;
            }
        }
        for sum in to {
            *sum /= rows as f32;
        }
    }
}
