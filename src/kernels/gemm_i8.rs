//! u8 x i8 products: linear layers and convolutions over quantized rows with prepacked weights; f32 ones are in `gemm_f32`.
//!
//! Each input row (a pixel or token) has a scale and zero point of its own, and a convolution sums over
//! rows, so sums stay integers only within one tap. Padding is a row whose scale is zero.

use rayon::prelude::*;

use super::aligned::AlignedBuf;
use super::blocking::{self, Blocks, Panels};
use super::dot::{Dot, DotKernel};
use super::epilogue::{Destination, Epilogue};
use super::gather::{Gather, PAD};
use super::isa::Isa;
use super::parallel::{Disjoint, for_each_index, with_scratch};
use super::quantized_rows::QuantizedRows;
use super::simd::Simd;
use super::tile;

/// Inputs at most: 65536 products of 255 and 127 sum to less than 2^31.
const MAX_DEPTH: usize = 65536;

/// Integer weights of a linear layer (one tap) or convolution, laid out for one instruction set.
#[derive(Clone)]
pub struct PackedI8 {
    isa: Isa,
    panels: Panels,
    taps: usize,
    depth: usize,
    /// `[panel][tap][depth / 4, rounded up][panel width][4]`, zeros beyond `depth` and in columns that no
    /// weights fill.
    weights: AlignedBuf<i8>,
    /// The weights' sums over depth, `[panel][tap][panel width]`.
    column_sums: AlignedBuf<i32>,
    /// One per column of weights, in their order.
    scales: Vec<f32>,
    /// The row that padding reads.
    zeros: AlignedBuf<u8>,
}

impl PackedI8 {
    /// Packs `weight`, `[out][taps][depth]` (for a convolution `[out][kernel y][kernel x][in]`), where output
    /// o has weights `scales[o] * weight[o]`.
    ///
    /// Where the instruction set sums pairs of products in 16 bits ([`Isa::may_saturate`]), the weights of an
    /// output are made just small enough that no pair can saturate, and its scale larger by as much.
    ///
    /// # Panics
    /// If a size is zero, `depth` exceeds 65536, a slice has another length or a weight is -128.
    pub fn pack(weight: &[i8], scales: &[f32], out: usize, taps: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_into(weight, scales, Panels::plain(isa, out), taps, depth, isa)
    }

    /// Packs `weight`, `[2 * out][depth]`, of a gated linear layer: `out` values, then as many gates. Its
    /// outputs are `value * gelu(gate)`, see [`super::geglu`], and the product is never written; its scales
    /// and biases are `[2 * out]`, and its epilogue has nothing else.
    ///
    /// # Panics
    /// As [`PackedI8::pack`].
    pub fn pack_gated(weight: &[i8], scales: &[f32], out: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_into(weight, scales, Panels::gated(isa, out), 1, depth, isa)
    }

    fn pack_into(weight: &[i8], scales: &[f32], panels: Panels, taps: usize, depth: usize, isa: Isa) -> Self {
        assert!(taps > 0 && depth > 0 && depth <= MAX_DEPTH);
        let columns = panels.weight_columns();
        assert_eq!(weight.len(), columns * taps * depth, "weights of {columns} x {taps} x {depth}");
        assert_eq!(scales.len(), columns, "one scale for each of {columns} columns");
        assert!(!weight.contains(&i8::MIN), "symmetric weights end at -127");
        let factors: Vec<f32> = if isa.may_saturate() {
            weight.par_chunks_exact(taps * depth).map(|weight| unsaturating(weight, depth)).collect()
        } else {
            vec![1.0; columns]
        };
        let panel_width = panels.width;
        let padded_depth = depth.next_multiple_of(4);
        let panel_len = taps * padded_depth * panel_width;
        let mut weights = AlignedBuf::zeros(panels.count() * panel_len);
        let mut column_sums = AlignedBuf::zeros(panels.count() * taps * panel_width);
        let packed = weights.as_mut_slice().par_chunks_exact_mut(panel_len);
        let sums = column_sums.as_mut_slice().par_chunks_exact_mut(taps * panel_width);
        packed.zip(sums).enumerate().for_each(|(panel, (packed, sums))| {
            for (column, o) in panels.members(panel) {
                let weight = weight[o * taps * depth..][..taps * depth].chunks_exact(depth);
                let taps = packed.chunks_exact_mut(padded_depth * panel_width);
                for ((weight, packed), sums) in weight.zip(taps).zip(sums.chunks_exact_mut(panel_width)) {
                    let mut sum = 0;
                    for (group, weight) in weight.chunks(4).enumerate() {
                        let to = &mut packed[(group * panel_width + column) * 4..][..weight.len()];
                        for (to, &w) in to.iter_mut().zip(weight) {
                            *to = scaled(w, factors[o]);
                            sum += i32::from(*to);
                        }
                    }
                    sums[column] = sum;
                }
            }
        });
        let scales = scales.iter().zip(&factors).map(|(scale, factor)| scale / factor).collect();
        let zeros = AlignedBuf::zeros(padded_depth);
        Self { isa, panels, taps, depth, weights, column_sums, scales, zeros }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Output columns.
    pub fn out(&self) -> usize {
        self.panels.out
    }

    /// Kernel positions: 1, or 9 for a 3x3 convolution.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// Input columns.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.weights.as_slice().len()
    }

    /// `output[i][o] = epilogue(scales[o] * sum over tap, d of x(gather(i, tap))[d] * weight[o][tap][d])`,
    /// where x(r) is what row r of `input` stands for.
    ///
    /// Sums over d are exact, those over taps f32. `input` is `[gather.in_rows(), depth]`, `output`
    /// `[gather.out_rows(), out]`.
    ///
    /// # Panics
    /// If a size does not fit the others.
    pub fn apply(&self, input: &QuantizedRows, gather: &Gather, epilogue: &Epilogue<'_>, output: &mut [f32]) {
        assert_eq!(gather.taps(), self.taps, "a table with as many taps as the weights");
        assert_eq!((input.rows, input.depth), (gather.in_rows(), self.depth), "an input of the table's rows");
        let rows = gather.out_rows();
        epilogue.validate(rows, &self.panels, output);
        let scale = Some(self.scales.as_slice());
        let destination =
            Destination { epilogue, output: Disjoint::new(output), rows, panels: self.panels, scale };
        let blocks = Blocks::new(rows, self.panels.count());
        let panels_first = self.bytes() > input.rows * input.stride;
        for_each_index(blocks.count(), |index| {
            let (first_row, end_row, panel) = blocks.block(index, panels_first);
            let pitch = (end_row - first_row).next_multiple_of(blocking::TILE_HEIGHTS);
            with_scratch(pitch * self.panels.width, self.taps * pitch, |scratch| {
                let table = &mut scratch.indices[..self.taps * pitch];
                gather.fill(first_row..end_row, pitch, table);
                self.isa.run_dot(Block {
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
    }
}

/// What the weights of one output, `[taps][depth]`, are to be multiplied with so that no two neighbours can
/// bring the sum of their products with bytes to 2^15: half at most, and for most layers little.
fn unsaturating(weight: &[i8], depth: usize) -> f32 {
    let pairs = weight.chunks_exact(depth).flat_map(|tap| tap.chunks(2));
    let largest = pairs
        .map(|pair| {
            let positive: i32 = pair.iter().map(|&w| i32::from(w).max(0)).sum();
            let negative: i32 = pair.iter().map(|&w| i32::from(-w).max(0)).sum();
            positive.max(negative)
        })
        .max()
        .unwrap_or(0);
    // 255 * 128 is below 2^15. Rounding adds at most one half to each of the two.
    if largest <= 128 { 1.0 } else { 127.0 / largest as f32 }
}

/// w * factor, ties to even.
fn scaled(w: i8, factor: f32) -> i8 {
    if factor == 1.0 { w } else { (f32::from(w) * factor).round_ties_even() as i8 }
}

/// One panel of columns for a chunk of rows.
struct Block<'a> {
    packed: &'a PackedI8,
    input: &'a QuantizedRows,
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

impl DotKernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(self, dot: D) {
        if D::Simd::REGISTERS == 32 {
            match self.packed.panels.vectors {
                4 => self.product::<D, 6, 4>(dot),
                3 => self.product::<D, 8, 3>(dot),
                2 => self.product::<D, 8, 2>(dot),
                _ => self.product::<D, 8, 1>(dot),
            }
        } else {
            match self.packed.panels.vectors {
                2 => self.product::<D, 6, 2>(dot),
                _ => self.product::<D, 8, 1>(dot),
            }
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn product<D: Dot, const MR: usize, const NV: usize>(self, dot: D) {
        let Self { packed, input, table, pitch, sums, destination, first_row, end_row, panel } = self;
        let PackedI8 { taps, .. } = *packed;
        let width = packed.panels.width;
        let simd = dot.simd();
        let lanes = D::Simd::LANES;
        assert_eq!(width, NV * lanes);
        let rows = (end_row - first_row).next_multiple_of(MR);
        let stride = input.stride;
        let groups = stride / 4;
        let panel_len = taps * stride * width;
        let panel_weights = &packed.weights.as_slice()[panel * panel_len..][..panel_len];
        let column_sums = &packed.column_sums.as_slice()[panel * taps * width..][..taps * width];
        let values = input.values.as_slice();
        assert!(values.len() >= input.rows * stride && packed.zeros.as_slice().len() == stride);

        for tap in 0..taps {
            let weights = &panel_weights[tap * stride * width..][..stride * width];
            let column_sums = &column_sums[tap * width..][..width];
            for i in (0..rows).step_by(MR) {
                let mut a = [packed.zeros.as_slice().as_ptr(); MR];
                let mut scales = [0.0; MR];
                let mut zeros = [0; MR];
                for (m, &row) in table[tap * pitch + i..][..MR].iter().enumerate() {
                    if row != PAD {
                        // SAFETY: the gather's rows lie below `in_rows`, of `stride` bytes each in `values`.
                        a[m] = unsafe { values.as_ptr().add(row as usize * stride) };
                        scales[m] = input.scales[row as usize];
                        zeros[m] = input.zeros[row as usize];
                    }
                }
                // SAFETY: each row has `stride` bytes, four per group; `weights` has `groups` groups of NV vectors.
                let acc: [[D::I; NV]; MR] = unsafe { accumulate(dot, a, weights.as_ptr(), groups) };
                let sums = &mut sums[i * width..][..MR * width];
                let mut tile = [[simd.splat(0.0); NV]; MR];
                if tap > 0 {
                    // SAFETY: `sums` holds MR rows of `width` = NV vectors.
                    tile = unsafe { tile::load(simd, sums.as_ptr(), width) };
                }
                for m in 0..MR {
                    let scale = simd.splat(scales[m]);
                    for v in 0..NV {
                        // SAFETY: `column_sums` holds `width` = NV vectors.
                        let sum =
                            unsafe { dot.settle(acc[m][v], zeros[m], column_sums.as_ptr().add(v * lanes)) };
                        tile[m][v] = simd.mul_add(sum, scale, tile[m][v]);
                    }
                }
                // SAFETY: as at the load.
                unsafe { tile::store(simd, sums.as_mut_ptr(), width, tile) };
            }
        }
        let columns = packed.panels.columns(panel);
        // SAFETY: each block has rows and columns of its own.
        unsafe { destination.finish(simd, sums, width, first_row..end_row, columns) };
    }
}

/// The micro-kernel: sums of a tile of MR rows by NV vectors over `groups` groups of four inputs.
///
/// # Safety
/// Each `a[i]` must be readable for `4 * groups` bytes, `weights` for `groups * NV * LANES * 4`.
#[inline(always)]
unsafe fn accumulate<D: Dot, const MR: usize, const NV: usize>(
    dot: D,
    a: [*const u8; MR],
    weights: *const i8,
    groups: usize,
) -> [[D::I; NV]; MR] {
    let mut acc = [[dot.zero(); NV]; MR];
    let group_len = NV * D::Simd::LANES * 4;
    for group in 0..groups {
        // SAFETY: group `group` of those promised.
        let mut columns = [unsafe { dot.weights(weights.add(group * group_len)) }; NV];
        for (v, column) in columns.iter_mut().enumerate().skip(1) {
            // SAFETY: likewise.
            *column = unsafe { dot.weights(weights.add(group * group_len + v * D::Simd::LANES * 4)) };
        }
        for i in 0..MR {
            // SAFETY: as for the weights.
            let x = unsafe { dot.activations(a[i].add(4 * group)) };
            for v in 0..NV {
                acc[i][v] = dot.dot(acc[i][v], x, columns[v]);
            }
        }
    }
    acc
}
