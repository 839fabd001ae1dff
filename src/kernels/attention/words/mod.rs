//! Attention by products of 16-bit integers, twice as many at a time as f32 on x86.
//!
//! Queries have a scale each, keys one per block, values one per block and channel; keys and values lose their
//! mean over all tokens first, which a softmax doesn't see and which values get back at the end (the smoothing of
//! Zhang et al., "SageAttention", 2024). So large means cost no precision, and exponentials too small to be told from
//! zero count as the mean value, since the total of all is kept in f32.

mod block;
mod head;
mod panel;

use super::super::isa::Isa;
use super::super::output::{Output, Written};
use super::super::simd::Simd;
use super::super::tile::TileKernel;
use super::super::word_product::{WordKernel, WordProduct};
use super::Attention;
use super::heads::{self, Format, Task};
use super::part::KEY_BLOCK;
use block::Block;
use head::{Head, Layout};
use panel::Panel;

/// See [`super::Products::Words`]; with queries and keys as bytes if `in_bytes`.
pub fn apply<'a>(
    sizes: &Attention,
    isa: Isa,
    in_bytes: bool,
    rows: [&[f32]; 3],
    output: Output<'a>,
) -> Written<'a> {
    let tile = isa.properties().attention_tile;
    let layout = Layout::new(sizes.head_dim, sizes.kv_len, tile.0, in_bytes);
    heads::apply(sizes, isa, layout, tile, rows, output)
}

impl Format for Layout {
    fn keys_len(self) -> usize {
        self.kv_len * self.depth
    }

    fn values_len(self) -> usize {
        self.kv_len.next_multiple_of(2) * self.padded_dim
    }

    fn floats_len(self) -> usize {
        Head::floats_len(self)
    }

    fn queries_len(self, lanes: usize) -> usize {
        Panel::words_len(self, lanes)
    }

    fn state_len(self, lanes: usize) -> usize {
        Panel::floats_len(self, lanes)
    }

    fn attend(isa: Isa, task: Task<'_, Self>) {
        isa.run_words(task);
    }
}

impl WordKernel for Task<'_, Layout> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        P::Simd::in_attention_tile(words, self);
    }
}

impl<P: WordProduct> TileKernel<P> for Task<'_, Layout> {
    #[inline(always)]
    fn run<const MR: usize, const QV: usize>(self, words: P) {
        let Self { format, q, scale, queries, scores, exponentials, rounded, state, results, .. } = self;
        let head = Head::split(format, self.keys, self.values, self.floats);
        let Layout { kv_len, depth, padded_dim, .. } = format;
        let lanes = QV * P::Simd::LANES;
        let panels = queries.div_ceil(lanes);

        for p in 0..panels {
            let mut panel = Panel::of(rounded, state, p, format, lanes);
            panel.begin(
                words.simd(),
                format,
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
                let mut panel = Panel::of(rounded, state, p, format, lanes);
                let greatest = match P::MULTIPLIES_BYTES && format.in_bytes {
                    true => block.score::<P, true, MR, QV>(words, &panel, scores),
                    false => block.score::<P, false, MR, QV>(words, &panel, scores),
                };
                let decay = block.exponentials(words, greatest, &mut panel, scores, exponentials);
                block.add_values::<P, MR, QV>(words, &mut panel, exponentials, decay);
            }
        }

        for p in 0..panels {
            let panel = Panel::of(rounded, state, p, format, lanes);
            let first = p * lanes;
            // SAFETY: this task has the part.
            unsafe {
                let count = lanes.min(queries - first);
                results.finish(words.simd(), first, count, panel.sums, panel.total, head.value_means);
            }
        }
    }
}
