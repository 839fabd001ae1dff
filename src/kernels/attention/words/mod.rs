//! Attention by products of 16-bit integers, twice as many at a time as f32 on x86.
//!
//! Queries have a scale each, keys one per block, values one per block and channel; keys and values lose their
//! mean over all tokens first, which a softmax doesn't see and which values get back at the end (the smoothing of
//! Zhang et al., "SageAttention", 2024). So large means cost no precision, and exponentials too small to be told from
//! zero count as the mean value, since the total of all is kept in f32.

mod block;
mod head;
mod panel;

use super::super::aligned::AlignedBuf;
use super::super::isa::Isa;
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, with_scratch};
use super::super::simd::Simd;
use super::super::tile::TileKernel;
use super::super::word_product::{WordKernel, WordProduct};
use super::Attention;
use super::part::{KEY_BLOCK, Part, Results, Rows};
use block::Block;
use head::{Head, Layout, Pack};
use panel::Panel;

/// See [`Attention::apply_in_words`].
pub fn apply<'a>(
    sizes: &Attention,
    isa: Isa,
    in_bytes: bool,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: Output<'a>,
) -> Written<'a> {
    let Attention { batch, heads, head_dim, q_len, kv_len, .. } = *sizes;
    let (height, lanes) = isa.properties().attention_tile;
    let layout = Layout::new(head_dim, kv_len, height, in_bytes);
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
                q: Rows { values: &q[item * q_len * sizes.q_stride + column..], stride: sizes.q_stride },
                q_len,
                k: Rows { values: &k[item * kv_len * sizes.k_stride + column..], stride: sizes.k_stride },
                v: Rows { values: &v[item * kv_len * sizes.v_stride + column..], stride: sizes.v_stride },
                keys,
                values,
                floats,
            });
        });
    }

    let scores_len = KEY_BLOCK.next_multiple_of(height) * lanes;
    let (panel_words, panel_floats) = (Panel::words_len(layout, lanes), Panel::floats_len(layout, lanes));
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

impl Task<'_> {
    #[inline(always)]
    fn attend<P: WordProduct, const MR: usize, const QV: usize>(self, words: P) {
        let Self { head, q, scale, queries, scores, exponentials, words: rounded, state, results } = self;
        let Layout { kv_len, depth, padded_dim, .. } = head.layout;
        let lanes = QV * P::Simd::LANES;
        let panels = queries.div_ceil(lanes);

        for p in 0..panels {
            let mut panel = Panel::of(rounded, state, p, head.layout, lanes);
            panel.begin(
                words.simd(),
                head.layout,
                (scale, head.query_factors),
                q.starting_at(p * lanes),
                queries - p * lanes,
            );
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
                let mut panel = Panel::of(rounded, state, p, head.layout, lanes);
                let greatest = match P::MULTIPLIES_BYTES && head.layout.in_bytes {
                    true => block.score::<P, true, MR, QV>(words, &panel, scores),
                    false => block.score::<P, false, MR, QV>(words, &panel, scores),
                };
                let decay = block.exponentials(words, greatest, &mut panel, scores, exponentials);
                block.add_values::<P, MR, QV>(words, &mut panel, exponentials, decay);
            }
        }

        for p in 0..panels {
            let panel = Panel::of(rounded, state, p, head.layout, lanes);
            let first = p * lanes;
            // SAFETY: this task has the part.
            unsafe {
                let count = lanes.min(queries - first);
                results.finish(words.simd(), first, count, panel.sums, panel.total, head.value_means);
            }
        }
    }
}
