//! Keys and values of a head, rounded to bfloat16; what is multiplied with them is elsewhere.

use half::bf16;

use super::super::super::bf16_product::QUAD;
use super::super::super::simd::{Kernel, Simd};
use super::super::heads::Pack;
use super::super::part::KEY_BLOCK;

/// Quads of a block's keys.
pub const BLOCK_QUADS: usize = KEY_BLOCK / QUAD;
const _: () = assert!(KEY_BLOCK.is_multiple_of(QUAD));

/// How keys and values of a head lie in memory.
#[derive(Clone, Copy)]
pub struct Layout {
    pub head_dim: usize,
    pub kv_len: usize,
    /// `head_dim` in quads.
    pub quads: usize,
    /// `head_dim` in whole tiles.
    pub padded_dim: usize,
    /// `kv_len` in whole tiles.
    pub padded_len: usize,
}

impl Layout {
    pub fn new(head_dim: usize, kv_len: usize, tile_height: usize) -> Self {
        Self {
            head_dim,
            kv_len,
            quads: head_dim.div_ceil(QUAD),
            padded_dim: head_dim.next_multiple_of(tile_height),
            padded_len: kv_len.next_multiple_of(tile_height),
        }
    }
}

/// Keys and values of one head, both without their mean over all tokens.
pub struct Head<'a> {
    /// `[pairs of keys][quads of channels][2]` quads; tiles that reach further than the keys repeat the last.
    pub keys: &'a [i16],
    /// `[blocks][pairs of channels][BLOCK_QUADS][2]` quads of tokens, zeros where there is none.
    pub values: &'a [i16],
    /// `[head_dim]`.
    pub value_means: &'a [f32],
    /// Zero, or NaN if a key has NaN or infinity.
    pub poison: f32,
}

impl<'a> Head<'a> {
    /// f32 beside the rounded numbers.
    pub fn floats_len(layout: Layout) -> usize {
        layout.head_dim + 1
    }

    pub fn split(layout: Layout, keys: &'a [i16], values: &'a [i16], floats: &'a [f32]) -> Self {
        let (value_means, poison) = floats.split_at(layout.head_dim);
        Self { keys, values, value_means, poison: poison[0] }
    }
}

/// The bits of the nearest bfloat16.
#[inline(always)]
pub fn round(x: f32) -> i16 {
    bf16::from_f32(x).to_bits().cast_signed()
}

/// Where number `at` of row `row` lies, in pairs of rows of `quads` quads.
#[inline(always)]
fn place(row: usize, at: usize, quads: usize) -> usize {
    ((row / 2 * quads + at / QUAD) * 2 + row % 2) * QUAD + at % QUAD
}

impl Kernel for Pack<'_, Layout> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { format: layout, k, v, keys, values, floats, .. } = self;
        let Layout { head_dim, kv_len, quads, padded_dim, padded_len } = layout;
        let (value_means, poison) = floats.split_at_mut(head_dim);
        v.means(simd, kv_len, value_means);
        let mut key_means = vec![0.0; head_dim];
        k.means(simd, kv_len, &mut key_means);
        poison[0] = key_means.iter().map(|mean| 0.0 * mean).sum();

        for row in 0..padded_len {
            let key = k.row(row.min(kv_len - 1), head_dim);
            for (channel, (x, mean)) in key.iter().zip(&key_means).enumerate() {
                keys[place(row, channel, quads)] = round(x - mean);
            }
        }
        for token in 0..kv_len {
            let block = &mut values[token / KEY_BLOCK * KEY_BLOCK * padded_dim..];
            for (channel, (x, mean)) in v.row(token, head_dim).iter().zip(&*value_means).enumerate() {
                block[place(channel, token % KEY_BLOCK, BLOCK_QUADS)] = round(x - mean);
            }
        }
    }
}
