//! f32 products: linear layers and convolutions as indirect matrix products with prepacked weights.
//!
//! Dukhan, "The Indirect Convolution Algorithm" (2019): the micro-kernel reads activations straight from
//! the input's rows, found through a [`Gather`], so nothing is copied for im2col.

use rayon::prelude::*;

use super::aligned::AlignedBuf;
use super::blocking::{Blocks, Panels, Shape};
use super::epilogue::{Destination, Epilogue};
use super::gather::{Gather, PAD};
use super::isa::Isa;
use super::micro_kernel;
use super::output::{Output, Written};
use super::parallel::{for_each_index, with_scratch};
use super::read_only::{LentBytes, ReadOnly};
use super::simd::{Kernel, Simd};
use super::tile::TileKernel;

/// Input channels accumulated before the next rows: a panel of 64 columns by 128 fills most of a 48 KB L1.
const DEPTH_BLOCK: usize = 128;
/// What a block is a multiple of, so that sets which take several channels at a time can do so to its end.
const DEPTH_UNIT: usize = 4;

/// Weights of a linear layer (one tap) or convolution, laid out for one instruction set.
#[derive(Clone)]
pub struct PackedF32 {
    isa: Isa,
    panels: Panels,
    taps: usize,
    depth: usize,
    /// `[panel][tap][depth][panel width]`, zeros in columns that no weights fill.
    weights: ReadOnly<f32>,
    /// The row that padding reads, `[depth]`.
    zeros: AlignedBuf<f32>,
}

impl PackedF32 {
    /// Packs `weight`, `[out][taps][depth]` (for a convolution `[out][kernel y][kernel x][in]`).
    ///
    /// # Panics
    /// If a size is zero or `weight` has another length.
    pub fn pack(weight: &[f32], out: usize, taps: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_into(weight, Panels::plain(isa.properties().tiling, out), taps, depth, isa)
    }

    /// Packs `weight`, `[2 * out][depth]`, of a gated linear layer: `out` values, then as many gates. Its
    /// outputs are `value * gelu(gate)` (GEGLU, Shazeer 2020; exact GELU), and the product is never written; its
    /// biases are `[2 * out]`, and its epilogue has nothing else.
    ///
    /// # Panics
    /// If a size is zero or `weight` has another length.
    pub fn pack_gated(weight: &[f32], out: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_into(weight, Panels::gated(isa.properties().tiling, out), 1, depth, isa)
    }

    fn pack_into(weight: &[f32], panels: Panels, taps: usize, depth: usize, isa: Isa) -> Self {
        /// As many as stay in the L1 cache while one column after the other is written.
        const PLACES: usize = 128;
        assert!(taps > 0 && depth > 0);
        let columns = panels.weight_columns();
        assert_eq!(weight.len(), columns * taps * depth, "weights of {columns} x {taps} x {depth}");
        let panel_len = taps * depth * panels.width;
        let mut weights = AlignedBuf::zeros(panels.count() * panel_len);
        weights.as_mut_slice().par_chunks_exact_mut(panel_len).enumerate().for_each(|(panel, packed)| {
            for (block, packed) in packed.chunks_mut(PLACES * panels.width).enumerate() {
                for (column, o) in panels.members(panel) {
                    let row = &weight[o * taps * depth + block * PLACES..][..packed.len() / panels.width];
                    for (&w, to) in row.iter().zip(packed[column..].iter_mut().step_by(panels.width)) {
                        *to = w;
                    }
                }
            }
        });
        Self { isa, panels, taps, depth, weights: weights.into(), zeros: AlignedBuf::zeros(depth) }
    }

    /// The bytes of its parts, from which [`Self::of_parts`] makes it again.
    pub fn parts(&self) -> Vec<&[u8]> {
        vec![self.weights.bytes()]
    }

    /// What has been packed for this set and shape before, if `parts` fit.
    pub fn of_parts(parts: Vec<LentBytes>, shape: Shape, isa: Isa) -> Option<Self> {
        let Shape { taps, depth, .. } = shape;
        let panels = shape.panels(isa.properties().tiling);
        let [weights] = parts.try_into().ok()?;
        let weights = ReadOnly::lent(weights, panels.count() * taps * depth * panels.width)?;
        Some(Self { isa, panels, taps, depth, weights, zeros: AlignedBuf::zeros(depth) })
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Input columns.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// `output[i][o] = epilogue(sum over tap, d of input[gather(i, tap)][d] * weight[o][tap][d])`.
    ///
    /// `input` is `[gather.in_rows(), depth]`, `output` `[gather.out_rows(), out]`. Sums are f32, in an order
    /// that depends only on the shape and the instruction set, never on the number of threads.
    ///
    /// # Panics
    /// If a size does not fit the others.
    pub fn apply<'a>(
        &self,
        input: &[f32],
        gather: &Gather,
        epilogue: &Epilogue<'_>,
        output: impl Into<Output<'a>>,
    ) -> Written<'a> {
        let output = output.into().into_disjoint();
        assert_eq!(gather.taps(), self.taps, "a table with as many taps as the weights");
        assert_eq!(input.len(), gather.in_rows() * self.depth, "an input of {} rows", gather.in_rows());
        let rows = gather.out_rows();
        epilogue.validate(rows, &self.panels, output.len());
        let destination = Destination { epilogue, output: output.shared(), panels: self.panels, scale: None };
        let blocks = Blocks::new(rows, &self.panels);
        let panels_first = size_of_val(self.weights.as_slice()) > size_of_val(input);
        for_each_index(blocks.count(), |index| {
            let (first_row, end_row, panel) = blocks.block(index, panels_first);
            let pitch = blocks.whole_tiles(end_row - first_row);
            with_scratch(pitch * self.panels.width, self.taps * pitch, |scratch| {
                let table = &mut scratch.indices[..self.taps * pitch];
                gather.fill(first_row..end_row, pitch, table);
                self.isa.run(Block {
                    packed: self,
                    input,
                    table,
                    pitch,
                    sums: &mut scratch.floats.as_mut_slice()[..pitch * self.panels.width],
                    destination: &destination,
                    first_row,
                    end_row,
                    panel,
                });
            });
        });
        // SAFETY: blocks cover all rows and columns.
        unsafe { Written::all_of(output) }
    }
}

/// One panel of columns for a chunk of rows.
struct Block<'a> {
    packed: &'a PackedF32,
    input: &'a [f32],
    /// `[taps][pitch]` rows of `input`, or padding.
    table: &'a [u32],
    pitch: usize,
    /// `[pitch][panel_width]`, of unspecified contents.
    sums: &'a mut [f32],
    destination: &'a Destination<'a>,
    first_row: usize,
    end_row: usize,
    panel: usize,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        S::in_tile(self.packed.panels.tile.vectors, simd, self);
    }
}

impl<S: Simd> TileKernel<S> for Block<'_> {
    #[inline(always)]
    fn run<const MR: usize, const NV: usize>(self, simd: S) {
        self.product::<S, MR, NV>(simd);
    }
}

impl Block<'_> {
    #[inline(always)]
    fn product<S: Simd, const MR: usize, const NV: usize>(self, simd: S) {
        let Self { packed, input, table, pitch, sums, destination, first_row, end_row, panel } = self;
        let PackedF32 { depth, taps, .. } = *packed;
        let width = packed.panels.width;
        assert_eq!(width, NV * S::LANES);
        let rows = (end_row - first_row).next_multiple_of(MR);
        let columns = packed.panels.columns(panel);
        let panel_weights =
            &packed.weights.as_slice()[panel * taps * depth * width..][..taps * depth * width];
        let zeros = packed.zeros.as_slice();
        let taps_at_once = (DEPTH_BLOCK / depth).max(1);
        let depth_step = depth.div_ceil(depth.div_ceil(DEPTH_BLOCK)).next_multiple_of(DEPTH_UNIT);

        for first_depth in (0..depth).step_by(depth_step) {
            let depth_len = depth_step.min(depth - first_depth);
            for first_tap in (0..taps).step_by(taps_at_once) {
                let end_tap = (first_tap + taps_at_once).min(taps);
                let is_last = first_depth + depth_len == depth && end_tap == taps;
                for i in (0..rows).step_by(MR) {
                    let sums = &mut sums[i * width..][..MR * width];
                    let mut acc = [[simd.splat(0.0); NV]; MR];
                    if first_depth > 0 || first_tap > 0 {
                        // SAFETY: `sums` holds MR rows of `width` = NV vectors.
                        acc = unsafe { micro_kernel::load(simd, sums.as_ptr(), width) };
                    }
                    if is_last {
                        let of_tile = (first_row + i).min(end_row)..(first_row + i + MR).min(end_row);
                        destination.prefetch(simd, of_tile, columns.clone());
                    }
                    for tap in first_tap..end_tap {
                        let mut a = [zeros.as_ptr(); MR];
                        for (a, &row) in a.iter_mut().zip(&table[tap * pitch + i..][..MR]) {
                            if row != PAD {
                                // SAFETY: the gather's rows lie below `in_rows`, of `depth` f32 each in `input`.
                                *a = unsafe { input.as_ptr().add(row as usize * depth) };
                            }
                            // SAFETY: `first_depth` lies within the row.
                            *a = unsafe { a.add(first_depth) };
                        }
                        let b = &panel_weights[(tap * depth + first_depth) * width..][..depth_len * width];
                        // SAFETY: each row has `depth_len` values from `first_depth`; `b` as many rows of NV vectors.
                        acc = unsafe { simd.accumulate(a, 1, b.as_ptr(), depth_len, acc) };
                    }
                    // SAFETY: as at the load.
                    unsafe { micro_kernel::store(simd, sums.as_mut_ptr(), width, acc) };
                }
            }
        }
        // SAFETY: each block has rows and columns of its own.
        unsafe { destination.finish(simd, sums, width, first_row..end_row, columns) };
    }
}
