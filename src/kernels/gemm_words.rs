//! Products of 16-bit integers with prepacked weights: linear layers of floats in half the memory, and faster on x86.
//!
//! Rows and columns are rounded in blocks of inputs, each with a scale of its own, so that a block's sums fit into 32
//! bits. A sign and 12 bits leave results 65 dB above the error, where bytes leave 36 to 38.

use std::ops::Range;

use rayon::prelude::*;

use super::aligned::AlignedBuf;
use super::blocking::{Blocks, Panels, Shape};
use super::epilogue::{Destination, Epilogue};
use super::isa::Isa;
use super::output::{Output, Written};
use super::parallel::{Disjoint, for_each_index, keep_words, take_words, with_scratch};
use super::read_only::{LentBytes, ReadOnly};
use super::simd::Simd;
use super::tile::TileKernel;
use super::word_product::{
    WordKernel, WordProduct, add_products, magnitude, round_to_word, scale_of, shifted,
};

/// Inputs of a block. Whole groups of every set: a group is two vectors, and a pair of two inputs that have the same
/// place in either.
const DEPTH_BLOCK: usize = 128;
/// The greatest integer: 128 products of two of them stay below 2^31.
const LIMIT: f32 = 4095.0;
/// Bytes of rounded rows at most, which have to come from an L3 cache for each panel.
const INPUT_BYTES: usize = 8 << 20;
/// Rows that a thread rounds at a time.
const ROUNDED_ROWS: usize = 16;

/// Weights of a linear layer, laid out for one instruction set.
#[derive(Clone)]
pub struct PackedWords {
    isa: Isa,
    panels: Panels,
    depth: usize,
    /// `depth` in whole groups.
    padded: usize,
    /// `[panel][padded / 2][panel width][2]`, zeros beyond `depth` and in columns that no weights fill.
    weights: ReadOnly<i16>,
    /// `[panel][block][panel width]`.
    scales: ReadOnly<f32>,
}

impl PackedWords {
    /// Packs `weight`, `[out][depth]`.
    ///
    /// # Panics
    /// If a size is zero or `weight` has another length.
    pub fn pack(weight: &[f32], out: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_into(weight, Panels::plain(isa.properties().tiling, out), depth, isa)
    }

    /// Packs `weight`, `[2 * out][depth]`, of a gated linear layer; see [`super::PackedF32::pack_gated`].
    ///
    /// # Panics
    /// If a size is zero or `weight` has another length.
    pub fn pack_gated(weight: &[f32], out: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_into(weight, Panels::gated(isa.properties().tiling, out), depth, isa)
    }

    fn pack_into(weight: &[f32], panels: Panels, depth: usize, isa: Isa) -> Self {
        assert!(depth > 0);
        let columns = panels.weight_columns();
        assert_eq!(weight.len(), columns * depth, "weights of {columns} x {depth}");
        let (width, lanes) = (panels.width, isa.properties().tiling.lanes);
        let padded = padded(depth, isa);
        let count = depth.div_ceil(DEPTH_BLOCK);
        let mut weights = AlignedBuf::zeros(panels.count() * padded * width);
        let mut scales = AlignedBuf::zeros(panels.count() * count * width);
        let packed = weights.as_mut_slice().par_chunks_exact_mut(padded * width);
        let packed = packed.zip(scales.as_mut_slice().par_chunks_exact_mut(count * width));
        packed.enumerate().for_each(|(panel, (packed, scales))| {
            for (column, o) in panels.members(panel) {
                let blocks = weight[o * depth..][..depth].chunks(DEPTH_BLOCK);
                let places = packed.chunks_mut(DEPTH_BLOCK * width).zip(scales.chunks_exact_mut(width));
                for (weights, (packed, scales)) in blocks.zip(places) {
                    let greatest = weights.iter().fold(0.0, |greatest: f32, w| greatest.max(w.abs()));
                    let (scale, inverse) = scale_of(greatest, LIMIT);
                    scales[column] = scale;
                    for (group, weights) in weights.chunks(2 * lanes).enumerate() {
                        for (place, w) in weights.iter().enumerate() {
                            let pair = group * lanes + place % lanes;
                            packed[(pair * width + column) * 2 + place / lanes] = round_to_word(w * inverse);
                        }
                    }
                }
            }
        });
        Self { isa, panels, depth, padded, weights: weights.into(), scales: scales.into() }
    }

    /// The bytes of its parts, from which [`Self::of_parts`] makes it again.
    pub fn parts(&self) -> Vec<&[u8]> {
        vec![self.weights.bytes(), self.scales.bytes()]
    }

    /// What has been packed for this set and shape before, if `parts` fit.
    pub fn of_parts(parts: Vec<LentBytes>, shape: Shape, isa: Isa) -> Option<Self> {
        let Shape { depth, .. } = shape;
        let panels = shape.panels(isa.properties().tiling);
        let padded = padded(depth, isa);
        let [weights, scales] = parts.try_into().ok()?;
        let weights = ReadOnly::lent(weights, panels.count() * padded * panels.width)?;
        let scales = ReadOnly::lent(scales, panels.count() * depth.div_ceil(DEPTH_BLOCK) * panels.width)?;
        Some(Self { isa, panels, depth, padded, weights, scales })
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Input columns.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// `output[i][o] = epilogue(sum over d of input[i][d] * weight[o][d])` for the rows of `input`, `[rows, depth]`.
    ///
    /// NaN or infinity in a row makes all its outputs NaN. Sums are in an order that depends only on the sizes and
    /// the instruction set.
    ///
    /// # Panics
    /// If a size does not fit the others.
    pub fn apply<'a>(
        &self,
        input: &[f32],
        epilogue: &Epilogue<'_>,
        output: impl Into<Output<'a>>,
    ) -> Written<'a> {
        let output = output.into().into_disjoint();
        let (depth, padded) = (self.depth, self.padded);
        assert!(input.len().is_multiple_of(depth), "an input of rows of {depth}");
        let rows = input.len() / depth;
        epilogue.validate(rows, &self.panels, output.len());
        let destination = Destination { epilogue, output: output.shared(), panels: self.panels, scale: None };
        let count = depth.div_ceil(DEPTH_BLOCK);
        let at_once = (INPUT_BYTES / size_of::<i16>() / padded).max(1).min(rows.max(1));
        let mut words = take_words(at_once * padded);
        let mut scales = vec![0.0; at_once * count];
        for first in (0..rows).step_by(at_once) {
            let some = first..(first + at_once).min(rows);
            let input = &input[some.start * depth..some.end * depth];
            {
                let words = Disjoint::new(words.as_mut_slice());
                let scales = Disjoint::new(&mut scales);
                for_each_index(some.len().div_ceil(ROUNDED_ROWS), |index| {
                    let rows = index * ROUNDED_ROWS..((index + 1) * ROUNDED_ROWS).min(some.len());
                    let (words, scales) = (&words, &scales);
                    self.isa.run_words(RoundRows { input, depth, padded, rows, words, scales });
                });
            }
            let blocks = Blocks::new(some.len(), &self.panels);
            let panels_first = size_of_val(self.weights.as_slice()) > some.len() * padded * size_of::<i16>();
            for_each_index(blocks.count(), |index| {
                let (start, end, panel) = blocks.block(index, panels_first);
                let sums_len = blocks.whole_tiles(end - start) * self.panels.width;
                with_scratch(sums_len, 0, |scratch| {
                    self.isa.run_words(Block {
                        packed: self,
                        words: &words.as_slice()[start * padded..end * padded],
                        scales: &scales[start * count..end * count],
                        sums: &mut scratch.floats.as_mut_slice()[..sums_len],
                        destination: &destination,
                        rows: some.start + start..some.start + end,
                        panel,
                    });
                });
            });
        }
        keep_words(words);
        // SAFETY: blocks cover all rows and columns.
        unsafe { Written::all_of(output) }
    }
}

/// `depth` in whole groups.
fn padded(depth: usize, isa: Isa) -> usize {
    depth.next_multiple_of(2 * isa.properties().tiling.lanes)
}

/// Some rows of floats to integers.
struct RoundRows<'a> {
    /// `[all rows][depth]`
    input: &'a [f32],
    depth: usize,
    padded: usize,
    rows: Range<usize>,
    /// `[all rows][padded]`, in groups of pairs.
    words: &'a Disjoint<'a, i16>,
    /// `[all rows][block]`
    scales: &'a Disjoint<'a, f32>,
}

impl WordKernel for RoundRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        let Self { input, depth, padded, rows, words: to, scales } = self;
        let simd = words.simd();
        let lanes = const { P::Simd::LANES };
        let count = depth.div_ceil(DEPTH_BLOCK);
        for row in rows {
            // SAFETY: each row is rounded once.
            let (to, scales) = unsafe {
                (to.part(row * padded..(row + 1) * padded), scales.part(row * count..(row + 1) * count))
            };
            let blocks = input[row * depth..][..depth].chunks(DEPTH_BLOCK).zip(to.chunks_mut(DEPTH_BLOCK));
            for ((values, to), scale) in blocks.zip(scales) {
                let (greatest, poison) = magnitude(simd, values);
                let (known, inverse) = scale_of(greatest, LIMIT);
                *scale = known + poison;
                let inverse = simd.splat(inverse);
                for (values, to) in values.chunks(2 * lanes).zip(to.chunks_exact_mut(2 * lanes)) {
                    let (first, second) = values.split_at(lanes.min(values.len()));
                    let pairs = words.pair(
                        shifted(simd, simd.read_up_to(first), inverse),
                        shifted(simd, simd.read_up_to(second), inverse),
                    );
                    // SAFETY: `to` holds as many pairs as a vector.
                    unsafe { words.store_pairs(to.as_mut_ptr(), pairs) };
                }
            }
        }
    }
}

/// One panel of columns for some rows.
struct Block<'a> {
    packed: &'a PackedWords,
    /// `[rows][padded]`
    words: &'a [i16],
    /// `[rows][block]`
    scales: &'a [f32],
    /// `[rows in whole tiles][panel width]`, of unspecified contents.
    sums: &'a mut [f32],
    destination: &'a Destination<'a>,
    /// Of the output.
    rows: Range<usize>,
    panel: usize,
}

impl WordKernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        P::Simd::in_tile(self.packed.panels.tile.vectors, words, self);
    }
}

impl<P: WordProduct> TileKernel<P> for Block<'_> {
    #[inline(always)]
    fn run<const MR: usize, const NV: usize>(self, words: P) {
        let Self { packed, words: inputs, scales, sums, destination, rows, panel } = self;
        let PackedWords { panels, padded, depth, .. } = *packed;
        let width = const { NV * P::Simd::LANES };
        assert_eq!(panels.width, width);
        let columns = panels.columns(panel);
        let count = depth.div_ceil(DEPTH_BLOCK);
        let panel_weights = &packed.weights.as_slice()[panel * padded * width..][..padded * width];
        let panel_scales = &packed.scales.as_slice()[panel * count * width..][..count * width];
        assert!(inputs.len() == rows.len() * padded && scales.len() == rows.len() * count);
        for (block, weight_scales) in panel_scales.chunks_exact(width).enumerate() {
            let start = block * DEPTH_BLOCK;
            let len = DEPTH_BLOCK.min(padded - start);
            let weights = &panel_weights[start * width..][..len * width];
            for (tile, sums) in sums.chunks_exact_mut(MR * width).enumerate() {
                let mut a = [inputs.as_ptr(); MR];
                let mut row_scales = [0.0; MR];
                for i in 0..MR {
                    // Overhanging rows repeat the last.
                    let row = (tile * MR + i).min(rows.len() - 1);
                    // SAFETY: the row's words lie in `inputs`, as asserted.
                    a[i] = unsafe { inputs.as_ptr().add(row * padded + start) };
                    row_scales[i] = scales[row * count + block];
                }
                if start + len == padded {
                    let of_tile =
                        (rows.start + tile * MR).min(rows.end)..(rows.start + (tile + 1) * MR).min(rows.end);
                    destination.prefetch(words.simd(), of_tile, columns.clone());
                }
                // SAFETY: each row has `len` words from there, and `weights` as many rows of NV vectors.
                unsafe {
                    add_products::<P, MR, NV>(
                        words,
                        a,
                        &row_scales,
                        weights,
                        weight_scales,
                        sums,
                        block == 0,
                    );
                }
            }
        }
        // SAFETY: each block has rows and columns of its own.
        unsafe { destination.finish(words.simd(), sums, width, rows, columns) };
    }
}
