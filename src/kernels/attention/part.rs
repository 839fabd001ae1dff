//! How attention is cut up: blocks of keys, and parts of the queries with the place of their results.

use super::super::parallel::{Disjoint, for_each_index};
use super::Attention;

/// Keys whose scores exist at once: with 48 queries they take 12 KB of L1, as much as their keys and values.
pub const KEY_BLOCK: usize = 64;
/// Queries of one task at most, which share each block of keys while it is in cache.
const TASK_QUERIES: usize = 192;
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
}
