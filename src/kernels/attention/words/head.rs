//! Keys and values of a head, rounded to words; what is multiplied with them is elsewhere.

use super::super::super::simd::{Kernel, Simd};
use super::super::super::word_product::{round_to_word, scale_of};
use super::super::heads::Pack;
use super::super::part::{KEY_BLOCK, ROWS_AHEAD, Rows};

/// The greatest exponential as an integer, and the greatest value: a block's sums stay below 2^31.
pub const ONE: f32 = 32767.0;
pub const VALUE_LIMIT: f32 = 1023.0;
const _: () = assert!(ONE as u64 * VALUE_LIMIT as u64 * (KEY_BLOCK as u64) < 1 << 31);
const _: () = assert!(KEY_BLOCK.is_multiple_of(2));

/// Rows from which the size of channels is judged.
const SAMPLED_ROWS: usize = 512;

/// What is added to keys as bytes, which are u8.
pub const KEY_ZERO: i32 = 128;

/// How keys and values of a head lie in memory.
#[derive(Clone, Copy)]
pub struct Layout {
    pub head_dim: usize,
    pub kv_len: usize,
    /// Words of a query or key, in whole pairs: `head_dim`, or half as many if they are bytes.
    pub depth: usize,
    /// Whether queries and keys are bytes, i8 and u8.
    pub in_bytes: bool,
    /// `head_dim` in whole tiles.
    pub padded_dim: usize,
    pub blocks: usize,
}

impl Layout {
    pub fn new(head_dim: usize, kv_len: usize, tile_height: usize, in_bytes: bool) -> Self {
        let depth = if in_bytes { head_dim.next_multiple_of(4) / 2 } else { head_dim.next_multiple_of(2) };
        Self {
            head_dim,
            kv_len,
            depth,
            in_bytes,
            padded_dim: head_dim.next_multiple_of(tile_height),
            blocks: kv_len.div_ceil(KEY_BLOCK),
        }
    }

    /// The greatest query or key as an integer, so that sums stay below 2^31.
    pub fn score_limit(self) -> f32 {
        let of_words = (f64::from(i32::MAX) / self.depth as f64).sqrt().floor().min(32767.0) as f32;
        if self.in_bytes { 127.0 } else { of_words }
    }
}

/// Keys and values of one head.
pub struct Head<'a> {
    /// `[kv_len][depth]`.
    pub keys: &'a [i16],
    /// `[kv_len / 2][padded_dim][2]`: of two tokens side by side, zeros where there is none.
    pub values: &'a [i16],
    /// `[blocks]`.
    pub key_scales: &'a [f32],
    /// `[blocks][padded_dim]`.
    pub value_scales: &'a [f32],
    /// `[head_dim]`.
    pub value_means: &'a [f32],
    /// What queries are multiplied with before they are rounded, `[head_dim]`: keys have been divided by it.
    pub query_factors: &'a [f32],
}

impl<'a> Head<'a> {
    /// f32 beside the words.
    pub fn floats_len(layout: Layout) -> usize {
        let Layout { blocks, padded_dim, head_dim, .. } = layout;
        blocks + (blocks + 1) * padded_dim + head_dim
    }

    pub fn split(layout: Layout, keys: &'a [i16], values: &'a [i16], floats: &'a [f32]) -> Self {
        let (key_scales, rest) = floats.split_at(layout.blocks);
        let (value_scales, rest) = rest.split_at(layout.blocks * layout.padded_dim);
        let (value_means, query_factors) = rest.split_at(layout.padded_dim);
        let value_means = &value_means[..layout.head_dim];
        Self { keys, values, key_scales, value_scales, value_means, query_factors }
    }
}

/// The bits of a magnitude, which are ordered as magnitudes are, with NaN above all: the greatest tells of it.
#[inline(always)]
pub fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7FFF_FFFF
}

impl Kernel for Pack<'_, Layout> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { format: layout, q, q_len, k, v, keys, values, floats } = self;
        let Layout { head_dim, kv_len, depth, in_bytes, padded_dim, blocks } = layout;
        let (key_scales, rest) = floats.split_at_mut(blocks);
        let (value_scales, rest) = rest.split_at_mut(blocks * padded_dim);
        let (value_means, query_factors) = rest.split_at_mut(padded_dim);
        let value_means = &mut value_means[..head_dim];
        v.means(simd, kv_len, value_means);
        let mut key_means = vec![0.0; head_dim];
        k.means(simd, kv_len, &mut key_means);

        let limit = layout.score_limit();
        let mut key_factors = vec![1.0; head_dim];
        if in_bytes {
            balance(q, q_len, (k, &key_means, kv_len), query_factors, &mut key_factors);
        } else {
            query_factors.fill(1.0);
        }
        let mut greatest = vec![0; head_dim];
        let mut inverses = vec![0.0; head_dim];
        for block in 0..blocks {
            let tokens = block * KEY_BLOCK..((block + 1) * KEY_BLOCK).min(kv_len);
            greatest.fill(0);
            for token in tokens.clone() {
                k.prefetch(simd, token + ROWS_AHEAD, head_dim);
                centered_magnitudes(k.row(token, head_dim), &key_means, &mut greatest);
            }
            let scaled = greatest.iter().zip(&key_factors);
            let greatest_key = scaled.map(|(&x, factor)| magnitude(f32::from_bits(x) * factor)).max();
            let (scale, inverse) = scale_of(f32::from_bits(greatest_key.unwrap_or(0)), limit);
            key_scales[block] = scale;
            for token in tokens.clone() {
                let to = &mut keys[token * depth..][..depth];
                let row = k.row(token, head_dim);
                if in_bytes {
                    round_to_bytes(row, &key_means, &key_factors, inverse, to);
                } else {
                    for ((to, x), mean) in to.iter_mut().zip(row).zip(&key_means) {
                        *to = round_to_word((x - mean) * inverse);
                    }
                }
            }

            greatest.fill(0);
            for token in tokens.clone() {
                v.prefetch(simd, token + ROWS_AHEAD, head_dim);
                centered_magnitudes(v.row(token, head_dim), value_means, &mut greatest);
            }
            let scales = &mut value_scales[block * padded_dim..][..head_dim];
            for ((scale, inverse), &greatest) in scales.iter_mut().zip(&mut inverses).zip(&greatest) {
                (*scale, *inverse) = scale_of(f32::from_bits(greatest), VALUE_LIMIT);
            }
            for first in tokens.clone().step_by(2) {
                let to = &mut values[first * padded_dim..][..2 * head_dim];
                let second = (first + 1).min(kv_len - 1);
                let pairs = v.row(first, head_dim).iter().zip(v.row(second, head_dim));
                let factors = value_means.iter().zip(&inverses);
                for ((to, (x, y)), (mean, inverse)) in to.chunks_exact_mut(2).zip(pairs).zip(factors) {
                    to[0] = round_to_word((x - mean) * inverse);
                    to[1] = round_to_word((y - mean) * inverse);
                }
            }
        }
    }
}

/// Raises `greatest` to the magnitudes of `row - means`.
#[inline(always)]
fn centered_magnitudes(row: &[f32], means: &[f32], greatest: &mut [u32]) {
    for ((greatest, x), mean) in greatest.iter_mut().zip(row).zip(means) {
        *greatest = (*greatest).max(magnitude(x - mean));
    }
}

/// Makes channels of queries and keys equally large: what queries are to be multiplied with, and keys, which leaves their
/// products as they are. Large channels of either would else leave bytes nothing for the others (what Xiao et al.,
/// "SmoothQuant", 2023, do between layers). `keys` are rows, their means and their number.
#[inline(always)]
fn balance(
    q: Rows<'_>,
    q_len: usize,
    keys: (Rows<'_>, &[f32], usize),
    query_factors: &mut [f32],
    key_factors: &mut [f32],
) {
    let head_dim = query_factors.len();
    let (k, key_means, kv_len) = keys;
    let [mut of_queries, mut of_keys] = [vec![0; head_dim], vec![0; head_dim]];
    let zeros = vec![0.0; head_dim];
    // Some rows tell enough: scales are taken from all of them afterwards.
    let some = |rows: usize| (0..rows).step_by(rows.div_ceil(SAMPLED_ROWS));
    for row in some(q_len) {
        centered_magnitudes(q.row(row, head_dim), &zeros, &mut of_queries);
    }
    for row in some(kv_len) {
        centered_magnitudes(k.row(row, head_dim), key_means, &mut of_keys);
    }
    let channels = of_queries.into_iter().zip(of_keys).zip(query_factors.iter_mut().zip(key_factors));
    for ((of_queries, of_keys), (query_factor, key_factor)) in channels {
        let ratio = (f32::from_bits(of_keys) / f32::from_bits(of_queries)).sqrt();
        // A channel that is zero in either has no part in any product, and one that is not finite spoils them all.
        let ratio = if (1e-15..1e15).contains(&ratio) { ratio } else { 1.0 };
        (*query_factor, *key_factor) = (ratio, 1.0 / ratio);
    }
}

/// `row - means`, times `factors` and `inverse`, as bytes with [`KEY_ZERO`] added, two in each of `to`.
#[inline(always)]
fn round_to_bytes(row: &[f32], means: &[f32], factors: &[f32], inverse: f32, to: &mut [i16]) {
    let byte =
        |x: f32, mean: f32, factor: f32| round_to_word((x - mean) * factor * inverse) + KEY_ZERO as i16;
    let (rows, means, factors) = (row.as_chunks::<2>(), means.as_chunks::<2>(), factors.as_chunks::<2>());
    for (((to, x), mean), factor) in to.iter_mut().zip(rows.0).zip(means.0).zip(factors.0) {
        *to = byte(x[0], mean[0], factor[0]) | byte(x[1], mean[1], factor[1]) << 8;
    }
    if let ([x], [mean], [factor]) = (rows.1, means.1, factors.1) {
        to[row.len() / 2] = byte(*x, *mean, *factor);
    }
}
