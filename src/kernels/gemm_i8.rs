//! u8 x i8 products: linear layers and convolutions over quantized rows with prepacked weights, of eight or four bits.
//!
//! Each input row (a pixel or token) has a scale and zero point of its own, and a convolution sums over
//! rows, so sums stay integers only within one tap. Padding is a row whose scale is zero.

use rayon::prelude::*;

use super::aligned::AlignedBuf;
use super::blocking::{Blocks, Panels};
use super::byte_product::{ByteKernel, ByteProduct};
use super::epilogue::{Destination, Epilogue};
use super::gather::{Gather, PAD};
use super::isa::Isa;
use super::micro_kernel;
use super::nibbles::{self, GROUP, Grouped, Nibbles};
use super::output::{Output, Written};
use super::parallel::{for_each_index, with_scratch};
use super::quantized_rows::QuantizedRows;
use super::simd::Simd;
use super::tile::TileKernel;

/// Inputs at most: 65536 products of 255 and 127 sum to less than 2^31.
const MAX_DEPTH: usize = 65536;

/// Values of a line of four-bit weights at most.
const MAX_LINE: usize = 512;

/// Integer weights of a linear layer (one tap) or convolution, laid out for one instruction set.
#[derive(Clone)]
pub struct PackedI8 {
    isa: Isa,
    panels: Panels,
    taps: usize,
    depth: usize,
    weights: Weights,
    /// The weights' sums over depth, `[panel][tap][panel width]`.
    column_sums: AlignedBuf<i32>,
    /// One per column of weights, in their order.
    scales: Vec<f32>,
    /// The row that padding reads, with what lies between its groups.
    zeros: AlignedBuf<u8>,
}

/// `[panel][tap]`, each as [`ByteProduct`] says, zeros beyond `depth` and in columns that no weights fill.
#[derive(Clone)]
enum Weights {
    Bytes(AlignedBuf<i8>),
    /// In lines of [`ByteProduct::LINE`] inputs.
    Nibbles(Nibbles),
}

impl PackedI8 {
    /// Packs `weight`, `[out][taps][depth]` (for a convolution `[out][kernel y][kernel x][in]`), where output
    /// o has weights `scales[o] * weight[o]`.
    ///
    /// Where the instruction set sums pairs of products in 16 bits, as `vpmaddubsw` does, the weights of an
    /// output are made just small enough that no pair can saturate, and its scale larger by as much.
    ///
    /// # Panics
    /// If a size is zero, `depth` exceeds 65536, a slice has another length or a weight is -128.
    pub fn pack(weight: &[i8], scales: &[f32], out: usize, taps: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_into(weight, scales, Panels::plain(isa.properties().byte_tiling, out), taps, depth, isa)
    }

    /// Packs `weight`, `[2 * out][depth]`, of a gated linear layer: `out` values, then as many gates. Its
    /// outputs are `value * gelu(gate)` (GEGLU, Shazeer 2020; exact GELU), and the product is never written; its
    /// scales and biases are `[2 * out]`, and its epilogue has nothing else.
    ///
    /// # Panics
    /// As [`PackedI8::pack`].
    pub fn pack_gated(weight: &[i8], scales: &[f32], out: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_into(weight, scales, Panels::gated(isa.properties().byte_tiling, out), 1, depth, isa)
    }

    /// Packs weights of four bits, `[out][taps][depth]` with scales `[out][taps][groups of depth]`, which become bytes
    /// panel by panel at each call: multiples of one scale for each output, rounded to the nearest.
    ///
    /// # Panics
    /// If a size is zero, `depth` exceeds 65536 or a slice has another length.
    pub fn pack_grouped(weight: Grouped<'_>, out: usize, taps: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_grouped_into(weight, Panels::plain(isa.properties().byte_tiling, out), taps, depth, isa)
    }

    /// The same of a gated linear layer; see [`PackedI8::pack_gated`].
    ///
    /// # Panics
    /// As [`PackedI8::pack_grouped`].
    pub fn pack_gated_grouped(weight: Grouped<'_>, out: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0);
        Self::pack_grouped_into(weight, Panels::gated(isa.properties().byte_tiling, out), 1, depth, isa)
    }

    fn pack_grouped_into(weight: Grouped<'_>, panels: Panels, taps: usize, depth: usize, isa: Isa) -> Self {
        assert!(taps > 0 && depth > 0 && depth <= MAX_DEPTH);
        let columns = panels.weight_columns();
        let (filter, groups) = (taps * depth, depth.div_ceil(GROUP));
        assert_eq!(weight.values.len(), columns * filter, "weights of {columns} x {taps} x {depth}");
        assert_eq!(weight.scales.len(), columns * taps * groups, "scales of {columns} x {taps} x {groups}");
        let pairs = isa.properties().may_saturate;
        let filters =
            weight.values.par_chunks_exact(filter).zip(weight.scales.par_chunks_exact(taps * groups));
        let scales = filters.map(|(values, scales)| {
            let taps = values.chunks_exact(depth).zip(scales.chunks_exact(groups));
            let groups = taps.flat_map(|(values, scales)| values.chunks(GROUP).zip(scales));
            nibbles::unit(
                groups.map(|(values, scale)| largest(values, pairs) * scale.abs()).fold(0.0, f32::max),
            )
        });
        let scales: Vec<f32> = scales.collect();
        let (width, layout) = (panels.width, isa.properties().rows);
        let padded_depth = layout.stride(depth);
        let values_len = nibbles::line_bytes(taps * padded_depth * width);
        let factors_len = taps * padded_depth.div_ceil(GROUP) * width;
        let mut values = AlignedBuf::zeros(panels.count() * values_len);
        let mut factors = AlignedBuf::zeros(panels.count() * factors_len);
        let mut column_sums = AlignedBuf::zeros(panels.count() * taps * width);
        let packed = values.as_mut_slice().par_chunks_exact_mut(values_len);
        let packed = packed.zip(factors.as_mut_slice().par_chunks_exact_mut(factors_len));
        let packed = packed.zip(column_sums.as_mut_slice().par_chunks_exact_mut(taps * width));
        packed.enumerate().for_each(|(panel, ((values, factors), sums))| {
            let (panels, scales) = (&panels, &scales);
            isa.run_bytes(PackGroupedPanel {
                weight,
                scales,
                panels,
                panel,
                taps,
                depth,
                values,
                factors,
                sums,
            });
        });
        let weights = Weights::Nibbles(Nibbles { values, factors });
        let zeros = AlignedBuf::zeros(padded_depth * layout.together);
        Self { isa, panels, taps, depth, weights, column_sums, scales, zeros }
    }

    fn pack_into(weight: &[i8], scales: &[f32], panels: Panels, taps: usize, depth: usize, isa: Isa) -> Self {
        assert!(taps > 0 && depth > 0 && depth <= MAX_DEPTH);
        let columns = panels.weight_columns();
        assert_eq!(weight.len(), columns * taps * depth, "weights of {columns} x {taps} x {depth}");
        assert_eq!(scales.len(), columns, "one scale for each of {columns} columns");
        assert!(!weight.contains(&i8::MIN), "symmetric weights end at -127");
        let factors: Vec<f32> = if isa.properties().may_saturate {
            let outputs = weight.par_chunks_exact(taps * depth);
            outputs.map(|weight| isa.run_bytes(Unsaturating { weight, depth })).collect()
        } else {
            vec![1.0; columns]
        };
        let panel_width = panels.width;
        let layout = isa.properties().rows;
        let padded_depth = layout.stride(depth);
        let panel_len = taps * padded_depth * panel_width;
        let mut weights = AlignedBuf::zeros(panels.count() * panel_len);
        let mut column_sums = AlignedBuf::zeros(panels.count() * taps * panel_width);
        let packed = weights.as_mut_slice().par_chunks_exact_mut(panel_len);
        let sums = column_sums.as_mut_slice().par_chunks_exact_mut(taps * panel_width);
        packed.zip(sums).enumerate().for_each(|(panel, (packed, sums))| {
            let (panels, factors) = (&panels, &factors);
            isa.run_bytes(PackPanel { weight, factors, panels, panel, taps, depth, packed, sums });
        });
        let scales = scales.iter().zip(&factors).map(|(scale, factor)| scale / factor).collect();
        let zeros = AlignedBuf::zeros(padded_depth * layout.together);
        let weights = Weights::Bytes(weights);
        Self { isa, panels, taps, depth, weights, column_sums, scales, zeros }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Input columns.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// `output[i][o] = epilogue(scales[o] * sum over tap, d of x(gather(i, tap))[d] * weight[o][tap][d])`,
    /// where x(r) is what row r of `input` stands for.
    ///
    /// Sums over d are exact, those over taps f32. `input` is `[gather.in_rows(), depth]`, `output`
    /// `[gather.out_rows(), out]`.
    ///
    /// # Panics
    /// If a size does not fit the others, or `input` was written for a set that lays rows out differently.
    pub fn apply<'a>(
        &self,
        input: &QuantizedRows,
        gather: &Gather,
        epilogue: &Epilogue<'_>,
        output: impl Into<Output<'a>>,
    ) -> Written<'a> {
        let output = output.into().into_disjoint();
        assert_eq!(gather.taps(), self.taps, "a table with as many taps as the weights");
        assert_eq!((input.rows, input.depth), (gather.in_rows(), self.depth), "an input of the table's rows");
        assert_eq!(input.layout, self.isa.properties().rows, "rows laid out for {}", self.isa);
        let rows = gather.out_rows();
        epilogue.validate(rows, &self.panels, output.len());
        let scale = Some(self.scales.as_slice());
        let destination = Destination { epilogue, output: output.shared(), panels: self.panels, scale };
        let blocks = Blocks::new(rows, &self.panels);
        let (weights_len, unpacked_len) = match &self.weights {
            Weights::Bytes(weights) => (weights.as_slice().len(), 0),
            Weights::Nibbles(nibbles) => (nibbles.values.as_slice().len(), input.stride * self.panels.width),
        };
        let panels_first = weights_len > input.rows * input.stride;
        for_each_index(blocks.count(), |index| {
            let (first_row, end_row, panel) = blocks.block(index, panels_first);
            let pitch = blocks.whole_tiles(end_row - first_row);
            with_scratch(pitch * self.panels.width, self.taps * pitch, |scratch| {
                scratch.bytes.reserve_len(unpacked_len);
                let table = &mut scratch.indices[..self.taps * pitch];
                gather.fill(first_row..end_row, pitch, table);
                self.isa.run_bytes(Block {
                    packed: self,
                    input,
                    table,
                    pitch,
                    sums: &mut scratch.floats.as_mut_slice()[..pitch * self.panels.width],
                    unpacked: &mut scratch.bytes.as_mut_slice()[..unpacked_len],
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

/// What the weights of one output, `[taps][depth]`, are to be multiplied with so that no two neighbours can
/// bring the sum of their products with bytes to 2^15: half at most, and for most layers little.
struct Unsaturating<'a> {
    weight: &'a [i8],
    depth: usize,
}

impl ByteKernel for Unsaturating<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<B: ByteProduct>(self, _: B) -> f32 {
        // Loops over 16-bit numbers side by side, which run on vectors.
        const ABREAST: usize = 32;
        let mut largest = [0i16; ABREAST];
        for tap in self.weight.chunks_exact(self.depth) {
            let (pairs, single) = tap.as_chunks();
            for pairs in pairs.chunks(ABREAST) {
                for (largest, pair) in largest.iter_mut().zip(pairs) {
                    let pair = i16::from_le_bytes(pair.map(i8::cast_unsigned));
                    let (a, b) = ((pair << 8) >> 8, pair >> 8);
                    *largest = (*largest).max(a.max(0) + b.max(0)).max(-(a.min(0) + b.min(0)));
                }
            }
            for &w in single {
                largest[0] = largest[0].max(i16::from(w).abs());
            }
        }
        let largest = largest.into_iter().fold(0, i16::max);
        // 255 * 128 is below 2^15. Rounding adds at most one half to each of the two.
        if largest <= 128 { 1.0 } else { 127.0 / f32::from(largest) }
    }
}

/// w * factor for a factor of at most 1, ties to even: 1.5 * 2^23 leaves no bits for a fraction, and those of the
/// integer, two's complement, in the lowest byte.
#[inline(always)]
fn scaled(w: i8, factor: f32) -> i8 {
    (f32::from(w) * factor + 12_582_912.0).to_bits() as i8
}

/// The weights of one panel, `[taps][depth]` of each column, to their places and their sums.
struct PackPanel<'a> {
    weight: &'a [i8],
    /// One per column of weights; see [`unsaturating`].
    factors: &'a [f32],
    panels: &'a Panels,
    panel: usize,
    taps: usize,
    depth: usize,
    packed: &'a mut [i8],
    sums: &'a mut [i32],
}

impl ByteKernel for PackPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<B: ByteProduct>(self, _: B) {
        let Self { weight, factors, panels, panel, taps, depth, packed, sums } = self;
        let width = panels.width;
        let tap_len = packed.len() / taps;
        let mut used = vec![0; depth];
        for (column, o) in panels.members(panel) {
            let factor = factors[o];
            for tap in 0..taps {
                // One loop for each, so that all run on vectors.
                for (used, &w) in used.iter_mut().zip(&weight[(o * taps + tap) * depth..][..depth]) {
                    *used = scaled(w, factor);
                }
                sums[tap * width + column] = used.iter().map(|&w| i32::from(w)).sum();
                B::pack_column(&used, column, width, &mut packed[tap * tap_len..][..tap_len]);
            }
        }
    }
}

/// The largest magnitude of some values, or, of `pairs`, what two neighbors of one sign make. Rounding adds at most one
/// half to each of the two, and 255 * 128 is below 2^15.
fn largest(values: &[i8], pairs: bool) -> f32 {
    let single = values.iter().map(|value| value.unsigned_abs()).max();
    let pair = values
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&[a, b]| if (a < 0) == (b < 0) { (a + b).unsigned_abs() } else { 0 });
    f32::from(single.max(pair.max().filter(|_| pairs)).unwrap_or(0))
}

/// The four-bit weights of one panel, `[taps][depth]` of each column, to their places, factors and sums.
struct PackGroupedPanel<'a> {
    weight: Grouped<'a>,
    /// One per column of weights.
    scales: &'a [f32],
    panels: &'a Panels,
    panel: usize,
    taps: usize,
    depth: usize,
    values: &'a mut [u8],
    /// `[tap][group][panel width]`.
    factors: &'a mut [i16],
    sums: &'a mut [i32],
}

impl ByteKernel for PackGroupedPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<B: ByteProduct>(self, _: B) {
        let Self { weight, scales, panels, panel, taps, depth, values, factors, sums } = self;
        let width = panels.width;
        let groups = depth.div_ceil(GROUP);
        let (tap_factors, tap_len) = (factors.len() / taps, B::ROWS.stride(depth) * width);
        let mut placed = vec![0; tap_len];
        for tap in 0..taps {
            placed.fill(0);
            for (column, o) in panels.members(panel) {
                let from = &weight.values[(o * taps + tap) * depth..][..depth];
                B::pack_column(from, column, width, &mut placed);
                let group_scales = &weight.scales[(o * taps + tap) * groups..][..groups];
                for (group, (from, &scale)) in from.chunks(GROUP).zip(group_scales).enumerate() {
                    let factor = nibbles::factor(scale, scales[o]);
                    factors[tap * tap_factors + group * width + column] = factor;
                    let bytes = from.iter().map(|&value| nibbles::byte(i16::from(value), factor));
                    sums[tap * width + column] += bytes.map(i32::from).sum::<i32>();
                }
            }
            let lines = placed.chunks_exact(B::LINE * width);
            let values = &mut values[tap * nibbles::line_bytes(tap_len)..];
            for (line, to) in lines.zip(values.chunks_exact_mut(nibbles::line_bytes(B::LINE * width))) {
                nibbles::pack_line(line, to);
            }
        }
    }
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
    /// Room for one tap's weights, if they are not bytes at rest.
    unpacked: &'a mut [i8],
    destination: &'a Destination<'a>,
    first_row: usize,
    end_row: usize,
    panel: usize,
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
                // SAFETY: each row has `stride` bytes in `groups` groups, as far apart as the layout says;
                // `weights` has as many of NV vectors.
                let acc = unsafe { bytes.accumulate::<MR, NV>(a, weights.as_ptr(), groups) };
                let sums = &mut sums[i * width..][..MR * width];
                let mut tile = [[simd.splat(0.0); NV]; MR];
                if tap > 0 {
                    // SAFETY: `sums` holds MR rows of `width` = NV vectors.
                    tile = unsafe { micro_kernel::load(simd, sums.as_ptr(), width) };
                }
                for m in 0..MR {
                    let scale = simd.splat(scales[m]);
                    for v in 0..NV {
                        // SAFETY: `column_sums` holds `width` = NV vectors.
                        let sum =
                            unsafe { bytes.settle(acc[m][v], zeros[m], column_sums.as_ptr().add(v * lanes)) };
                        tile[m][v] = simd.mul_add(sum, scale, tile[m][v]);
                    }
                }
                // SAFETY: as at the load.
                unsafe { micro_kernel::store(simd, sums.as_mut_ptr(), width, tile) };
            }
        }
        let columns = packed.panels.columns(panel);
        // SAFETY: each block has rows and columns of its own.
        unsafe { destination.finish(simd, sums, width, first_row..end_row, columns) };
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
