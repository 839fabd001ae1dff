//! One piece of a product: a panel of columns for a chunk of rows, tile by tile.

use super::{PackedI8, Weights};
use crate::kernels::byte_product::{ByteKernel, ByteProduct};
use crate::kernels::epilogue::Destination;
use crate::kernels::gather::PAD;
use crate::kernels::micro_kernel;
use crate::kernels::nibbles::{self, GROUP, Nibbles};
use crate::kernels::quantized_rows::QuantizedRows;
use crate::kernels::simd::Simd;
use crate::kernels::tile::TileKernel;

/// Values of a line of four-bit weights at most.
const MAX_LINE: usize = 512;

/// Vectors of a tile at most that registers may hold.
const MOST_VECTORS: usize = 32;

/// One panel of columns for a chunk of rows.
pub(super) struct Block<'a> {
    pub packed: &'a PackedI8,
    pub input: &'a QuantizedRows,
    /// `[taps][pitch]` rows of `input`, or padding.
    pub table: &'a [u32],
    pub pitch: usize,
    /// `[pitch][panel_width]`, of unspecified contents.
    pub sums: &'a mut [f32],
    /// Room for one tap's weights, if they are not bytes at rest.
    pub unpacked: &'a mut [i8],
    pub destination: &'a Destination<'a>,
    pub first_row: usize,
    pub end_row: usize,
    pub panel: usize,
}

impl ByteKernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<B: ByteProduct>(self, bytes: B) {
        B::in_tile(self.packed.panels.tile.vectors, bytes, self);
    }
}

impl<B: ByteProduct> TileKernel<B> for Block<'_> {
    #[inline(always)]
    fn run<const MR: usize, const NV: usize>(self, bytes: B) {
        self.product::<B, MR, NV>(bytes);
    }
}

impl Block<'_> {
    #[inline(always)]
    fn product<B: ByteProduct, const MR: usize, const NV: usize>(self, bytes: B) {
        let Self { packed, input, table, pitch, sums, unpacked, destination, first_row, end_row, panel } =
            self;
        let PackedI8 { taps, .. } = *packed;
        let simd = bytes.simd();
        let lanes = B::Simd::LANES;
        // Known when compiled, which loops over weights need to be without remainders.
        let width = NV * lanes;
        assert_eq!(packed.panels.width, width);
        let rows = (end_row - first_row).next_multiple_of(MR);
        let stride = input.stride;
        let groups = stride / B::ROWS.group;
        let tap_len = stride * width;
        let column_sums = &packed.column_sums.as_slice()[panel * taps * width..][..taps * width];
        let values = input.values.as_slice();
        let together = B::ROWS.together;
        let columns = packed.panels.columns(panel);
        assert!(values.len() >= input.rows.next_multiple_of(together) * stride);
        assert!(packed.zeros.as_slice().len() == stride * together);

        for tap in 0..taps {
            let weights = match &packed.weights {
                Weights::Bytes(weights) => &weights.as_slice()[(panel * taps + tap) * tap_len..][..tap_len],
                Weights::Nibbles(nibbles) => {
                    unpack::<B>(nibbles, panel * taps + tap, width, unpacked);
                    &*unpacked
                }
            };
            let column_sums = &column_sums[tap * width..][..width];
            for i in (0..rows).step_by(MR) {
                let mut a = [packed.zeros.as_slice().as_ptr(); MR];
                let mut scales = [0.0; MR];
                let mut zeros = [0; MR];
                for (m, &row) in table[tap * pitch + i..][..MR].iter().enumerate() {
                    if row != PAD {
                        // SAFETY: the gather's rows lie below `in_rows`, and `values` holds as many.
                        a[m] = unsafe { values.as_ptr().add(B::ROWS.start(row as usize, stride)) };
                        scales[m] = input.scales[row as usize];
                        zeros[m] = input.zeros[row as usize];
                    }
                }
                let of_tile = &table[tap * pitch + i..][..MR];
                if let Some((known, &row)) = of_tile.iter().enumerate().find(|(_, row)| **row != PAD) {
                    // Padding has a scale of zero, so any row will do: best is one that lies as those beside it do.
                    for m in (0..MR).filter(|&m| of_tile[m] == PAD) {
                        let row = (row as usize + m).wrapping_sub(known);
                        if row < input.rows {
                            // SAFETY: as above.
                            a[m] = unsafe { values.as_ptr().add(B::ROWS.start(row, stride)) };
                        }
                    }
                }
                if tap + 1 == taps {
                    let of_tile = (first_row + i).min(end_row)..(first_row + i + MR).min(end_row);
                    destination.prefetch(simd, of_tile, columns.clone());
                }
                // SAFETY: each row has `stride` bytes in `groups` groups, as far apart as the layout says;
                // `weights` has as many of NV vectors.
                let acc = unsafe { bytes.accumulate::<MR, NV>(a, weights.as_ptr(), groups) };
                let sums = &mut sums[i * width..][..MR * width];
                if const { MR * NV <= MOST_VECTORS } {
                    settle(bytes, acc, (&scales, &zeros), column_sums, sums, tap == 0);
                } else {
                    settle_by_row(bytes, &acc, (&scales, &zeros), column_sums, sums, tap == 0);
                }
            }
        }
        // SAFETY: each block has rows and columns of its own.
        unsafe { destination.finish(simd, sums, width, first_row..end_row, columns) };
    }
}

/// Adds a tile of integers, one tap's, to `sums`, `[MR][NV * LANES]`, or puts it there if it is the first. Rows come with
/// scales and zero points.
#[inline(always)]
fn settle<B: ByteProduct, const MR: usize, const NV: usize>(
    bytes: B,
    acc: [[B::Sums; NV]; MR],
    (scales, zeros): (&[f32; MR], &[i32; MR]),
    column_sums: &[i32],
    sums: &mut [f32],
    first: bool,
) {
    let simd = bytes.simd();
    let width = const { NV * B::Simd::LANES };
    assert!(sums.len() == MR * width && column_sums.len() == width);
    let mut tile = [[simd.splat(0.0); NV]; MR];
    if !first {
        // SAFETY: as asserted.
        tile = unsafe { micro_kernel::load(simd, sums.as_ptr(), width) };
    }
    for m in 0..MR {
        let scale = simd.splat(scales[m]);
        for v in 0..NV {
            // SAFETY: as asserted.
            let sum =
                unsafe { bytes.settle(acc[m][v], zeros[m], column_sums.as_ptr().add(v * B::Simd::LANES)) };
            tile[m][v] = simd.mul_add(sum, scale, tile[m][v]);
        }
    }
    // SAFETY: as asserted.
    unsafe { micro_kernel::store(simd, sums.as_mut_ptr(), width, tile) };
}

/// The same of a tile that no registers hold, row by row in a loop that a compiler leaves one.
#[inline(always)]
fn settle_by_row<B: ByteProduct, const MR: usize, const NV: usize>(
    bytes: B,
    acc: &[[B::Sums; NV]; MR],
    (scales, zeros): (&[f32; MR], &[i32; MR]),
    column_sums: &[i32],
    sums: &mut [f32],
    first: bool,
) {
    let rows = acc.iter().zip(scales).zip(zeros).zip(sums.chunks_exact_mut(const { NV * B::Simd::LANES }));
    for (((acc, scale), zero), sums) in rows {
        let (scale, zero) = ([*scale], [*zero]);
        settle(bytes, [*acc], (&scale, &zero), column_sums, sums, first);
    }
}

/// The weights of tap `tap` of all panels' taps.
#[inline(always)]
fn unpack<B: ByteProduct>(nibbles: &Nibbles, tap: usize, width: usize, to: &mut [i8]) {
    let line = B::LINE * width;
    let (values_len, factors_len) = (nibbles::line_bytes(to.len()), to.len().div_ceil(GROUP * width) * width);
    let values = &nibbles.values.as_slice()[tap * values_len..][..values_len];
    let factors = &nibbles.factors.as_slice()[tap * factors_len..][..factors_len];
    let mut spread = [0; MAX_LINE];
    let spread = &mut spread[..line];
    let groups = values.chunks(nibbles::line_bytes(GROUP * width)).zip(factors.chunks_exact(width));
    for ((values, factors), to) in groups.zip(to.chunks_mut(GROUP * width)) {
        B::spread(factors, spread);
        for (values, to) in values.chunks_exact(nibbles::line_bytes(line)).zip(to.chunks_exact_mut(line)) {
            nibbles::unpack_line(values, spread, to, nibbles::byte);
        }
    }
}
