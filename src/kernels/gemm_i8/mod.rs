//! u8 x i8 products: linear layers and convolutions over quantized rows with prepacked weights, of eight or four bits.
//!
//! Each input row (a pixel or token) has a scale and zero point of its own, and a convolution sums over
//! rows, so sums stay integers only within one tap. Padding is a row whose scale is zero.

mod block;
mod pack;

use super::aligned::AlignedBuf;
use super::blocking::{Blocks, Panels, Shape};
use super::epilogue::{Destination, Epilogue};
use super::gather::{Gather, LinedUp};
use super::isa::Isa;
use super::nibbles::{self, GROUP, Grouped, Nibbles};
use super::output::{Output, Written};
use super::parallel::{for_each_index, with_scratch};
use super::quantized_rows::QuantizedRows;
use super::read_only::{LentBytes, ReadOnly};
use block::Block;

/// Inputs at most: 65536 products of 255 and 127 sum to less than 2^31.
const MAX_DEPTH: usize = 65536;

/// Integer weights of a linear layer (one tap) or convolution, laid out for one instruction set.
#[derive(Clone)]
pub struct PackedI8 {
    isa: Isa,
    panels: Panels,
    taps: usize,
    depth: usize,
    weights: Weights,
    /// The weights' sums over depth, `[panel][tap][panel width]`.
    column_sums: ReadOnly<i32>,
    /// One per column of weights, in their order.
    scales: ReadOnly<f32>,
    /// The row that padding reads, with what lies between its groups.
    zeros: AlignedBuf<u8>,
}

/// `[panel][tap]`, each as [`super::byte_product::ByteProduct`] says, zeros beyond `depth` and in columns that no weights fill.
#[derive(Clone)]
enum Weights {
    Bytes(ReadOnly<i8>),
    /// In lines of [`super::byte_product::ByteProduct::LINE`] inputs.
    Nibbles(Nibbles),
}

/// How long a panel's parts are.
struct Sizes {
    bytes: usize,
    nibbles: usize,
    factors: usize,
    sums: usize,
    /// Of the row that padding reads.
    zeros: usize,
}

impl Sizes {
    fn new(panels: &Panels, taps: usize, depth: usize, isa: Isa) -> Self {
        let (width, layout) = (panels.width, isa.properties().rows);
        let padded_depth = layout.stride(depth);
        let bytes = taps * padded_depth * width;
        Self {
            bytes,
            nibbles: nibbles::line_bytes(bytes),
            factors: taps * padded_depth.div_ceil(GROUP) * width,
            sums: taps * width,
            zeros: padded_depth * layout.together,
        }
    }

    fn zeros(&self) -> AlignedBuf<u8> {
        AlignedBuf::zeros(self.zeros)
    }
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

    /// The bytes of its parts, from which [`Self::of_parts`] makes it again.
    pub fn parts(&self) -> Vec<&[u8]> {
        let mut parts = match &self.weights {
            Weights::Bytes(weights) => vec![weights.bytes()],
            Weights::Nibbles(Nibbles { values, factors }) => vec![values.bytes(), factors.bytes()],
        };
        parts.extend([self.column_sums.bytes(), self.scales.bytes()]);
        parts
    }

    /// What has been packed for this set and shape before, if `parts` fit.
    pub fn of_parts(parts: Vec<LentBytes>, shape: Shape, isa: Isa) -> Option<Self> {
        let Shape { taps, depth, .. } = shape;
        let panels = shape.panels(isa.properties().byte_tiling);
        let sizes = Sizes::new(&panels, taps, depth, isa);
        let mut weights = parts;
        let [column_sums, scales] = weights.split_off(weights.len().checked_sub(2)?).try_into().ok()?;
        let weights = match weights.len() {
            1 => Weights::Bytes(ReadOnly::lent(weights.pop()?, panels.count() * sizes.bytes)?),
            _ => {
                let [values, factors] = weights.try_into().ok()?;
                let lens = [sizes.nibbles, sizes.factors].map(|len| panels.count() * len);
                Weights::Nibbles(Nibbles::lent(values, lens[0], factors, lens[1])?)
            }
        };
        let column_sums = ReadOnly::lent(column_sums, panels.count() * sizes.sums)?;
        let scales = ReadOnly::lent(scales, panels.weight_columns())?;
        Some(Self { isa, panels, taps, depth, weights, column_sums, scales, zeros: sizes.zeros() })
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
        // Rows that lie in pairs are read faster in an order in which pairs are read.
        let lined_up = if input.layout.together > 1 { gather.lined_up() } else { None };
        let lined_up = lined_up.map(|LinedUp { sources, gather }| (input.in_order(&sources), gather));
        let (input, gather) = lined_up.as_ref().map_or((input, gather), |(input, gather)| (input, gather));
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
