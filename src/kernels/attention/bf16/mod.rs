//! Attention by products of bfloat16, four times as many at a time as f32 where a processor has `bfmmla`.
//!
//! Queries, keys, values and exponentials are rounded, sums are f32. Keys and values lose their mean over all tokens
//! first, as in `words`, so that large means cost no precision.

mod head;
mod panel;

use super::super::bf16_product::{Bf16Kernel, Bf16Product, QUAD};
use super::super::isa::Isa;
use super::super::output::{Output, Written};
use super::super::simd::Simd;
use super::super::tile::TileKernel;
use super::Attention;
use super::heads::{self, Format, Task};
use super::part::KEY_BLOCK;
use head::{Head, Layout};
use panel::{Block, Panel};

/// See [`super::Products::Bf16`].
pub fn apply<'a>(sizes: &Attention, isa: Isa, rows: [&[f32]; 3], output: Output<'a>) -> Written<'a> {
    let tile = isa.properties().bf16_attention_tile;
    let layout = Layout::new(sizes.head_dim, sizes.kv_len, tile.0);
    heads::apply(sizes, isa, layout, tile, rows, output)
}

impl Format for Layout {
    fn keys_len(self) -> usize {
        self.padded_len * self.quads * QUAD
    }

    fn values_len(self) -> usize {
        self.kv_len.next_multiple_of(KEY_BLOCK) * self.padded_dim
    }

    fn floats_len(self) -> usize {
        Head::floats_len(self)
    }

    fn queries_len(self, lanes: usize) -> usize {
        self.quads * lanes * QUAD
    }

    fn state_len(self, lanes: usize) -> usize {
        Panel::floats_len(self, lanes)
    }

    fn attend(isa: Isa, task: Task<'_, Self>) {
        isa.run_bf16(task);
    }
}

impl Bf16Kernel for Task<'_, Layout> {
    type Output = ();

    #[inline(always)]
    fn run<P: Bf16Product>(self, product: P) {
        P::in_attention_tile(product, self);
    }
}

impl<P: Bf16Product> TileKernel<P> for Task<'_, Layout> {
    #[inline(always)]
    fn run<const MR: usize, const NV: usize>(self, product: P) {
        let Self { format: layout, q, scale, queries, scores, exponentials, rounded, state, results, .. } =
            self;
        let head = Head::split(layout, self.keys, self.values, self.floats);
        let lanes = NV * P::Simd::LANES;
        let panels = queries.div_ceil(lanes);

        for p in 0..panels {
            let mut panel = Panel::of(rounded, state, p, layout, lanes);
            let first = p * lanes;
            let rows = q.starting_at(first);
            panel.begin(product.simd(), layout, (scale, head.poison), rows, queries - first);
        }

        for first_key in (0..layout.kv_len).step_by(KEY_BLOCK) {
            let block = Block {
                keys: &head.keys[first_key * layout.quads * QUAD..],
                values: &head.values[first_key * layout.padded_dim..][..KEY_BLOCK * layout.padded_dim],
                len: KEY_BLOCK.min(layout.kv_len - first_key),
                layout,
            };
            for p in 0..panels {
                let mut panel = Panel::of(rounded, state, p, layout, lanes);
                let greatest = panel.score::<P, MR, NV>(product, &block, scores);
                let decay = panel.exponentials(product, greatest, &block, scores, exponentials);
                panel.add_values::<P, MR, NV>(product, &block, exponentials, decay);
            }
        }

        for p in 0..panels {
            let panel = Panel::of(rounded, state, p, layout, lanes);
            let first = p * lanes;
            // SAFETY: this task has the part.
            unsafe {
                let count = lanes.min(queries - first);
                results.finish(product.simd(), first, count, panel.sums, panel.total, head.value_means);
            }
        }
    }
}
