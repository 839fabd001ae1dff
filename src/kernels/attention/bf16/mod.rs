//! Attention by products of bfloat16, four times as many at a time as f32 where a processor has `bfmmla`.
//!
//! Queries, keys, values and exponentials are rounded, sums are f32. Keys and values lose their mean over all tokens
//! first, as in `words`, so that large means cost no precision.

mod head;
mod panel;

use half::bf16;

use super::super::aligned::AlignedBuf;
use super::super::bf16_product::{Bf16Kernel, Bf16Product, QUAD};
use super::super::isa::Isa;
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, with_scratch};
use super::super::simd::Simd;
use super::super::tile::TileKernel;
use super::Attention;
use super::part::{KEY_BLOCK, Part, Results, Rows};
use head::{Head, Layout, Pack};
use panel::{Block, Panel};

/// See [`Attention::apply_in_bf16`].
pub fn apply<'a>(
    sizes: &Attention,
    isa: Isa,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: Output<'a>,
) -> Written<'a> {
    let Attention { batch, heads, head_dim, q_len, kv_len, .. } = *sizes;
    let (height, lanes) = isa.properties().bf16_attention_tile;
    let layout = Layout::new(head_dim, kv_len, height);
    let (keys_len, values_len, floats_len) = (layout.keys_len(), layout.values_len(), layout.floats_len());
    let count = batch * heads;
    let mut keys = AlignedBuf::<bf16>::zeros(count * keys_len);
    let mut values = AlignedBuf::<bf16>::zeros(count * values_len);
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
    let (rounded_len, state_len) = (Panel::rounded_len(layout, lanes), Panel::floats_len(layout, lanes));
    let output = output.into_disjoint();
    let panel_bytes = rounded_len * size_of::<bf16>() + state_len * size_of::<f32>();
    sizes.for_each_part(lanes, panel_bytes, |part| {
        let Part { item, head, first, queries, panels } = part;
        let index = item * heads + head;
        with_scratch(panels * state_len + scores_len, 0, |scratch| {
            let exponentials_len = KEY_BLOCK * lanes;
            scratch.bf16.reserve_len(panels * rounded_len + exponentials_len);
            let (scores, state) = scratch.floats.as_mut_slice().split_at_mut(scores_len);
            let (exponentials, rounded) = scratch.bf16.as_mut_slice().split_at_mut(exponentials_len);
            isa.run_bf16(Task {
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
                rounded: &mut rounded[..panels * rounded_len],
                state: &mut state[..panels * state_len],
                results: Results::of(sizes, part, &output),
            });
        });
    });
    // SAFETY: parts cover all queries of all heads, whose values lie side by side.
    unsafe { Written::all_of(output) }
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
    /// `[KEY_BLOCK / QUAD][lanes]` quads.
    exponentials: &'a mut [bf16],
    /// The panels' queries.
    rounded: &'a mut [bf16],
    /// The rest of the panels' states.
    state: &'a mut [f32],
    results: Results<'a>,
}

impl Bf16Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Bf16Product>(self, product: P) {
        P::in_attention_tile(product, self);
    }
}

impl<P: Bf16Product> TileKernel<P> for Task<'_> {
    #[inline(always)]
    fn run<const MR: usize, const NV: usize>(self, product: P) {
        self.attend::<P, MR, NV>(product);
    }
}

impl Task<'_> {
    #[inline(always)]
    fn attend<P: Bf16Product, const MR: usize, const NV: usize>(self, product: P) {
        let Self { head, q, scale, queries, scores, exponentials, rounded, state, results } = self;
        let layout = head.layout;
        let lanes = NV * P::Simd::LANES;
        let panels = queries.div_ceil(lanes);

        for p in 0..panels {
            let mut panel = Panel::of(rounded, state, p, layout, lanes);
            let first = p * lanes;
            panel.begin(layout, scale, head.poison, q.starting_at(first), queries - first);
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
