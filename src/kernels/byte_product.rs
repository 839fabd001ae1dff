//! Products of u8 activations and i8 weights as one trait; its implementations are in `sets`, its use is in `gemm_i8`.
//!
//! An instruction set chooses here how rows and weights lie in memory and how large its tiles are. One whose
//! instructions take a few inputs of one row implements [`Dot`] and gets the rest; one whose instructions take
//! several rows at once implements [`ByteProduct`] itself.

use super::bf16_product::{Bf16Product, InFloats};
use super::quantized_rows::RowLayout;
use super::simd::Simd;
use super::tile::{Tile, TileKernel};
use super::token::{Token, Work};
use super::word_product::WordProduct;

/// Sums of tiles: some rows of activations by some vectors of outputs, in i32.
///
/// Weights come in panels of `width` outputs, `[groups][width][group]` with the inputs of a group side by side,
/// unless `pack_column` places them differently. Depths are padded with zero weights to whole groups.
///
/// # Safety
/// `accumulate` and `settle` must read what their callers promise, no more.
pub(super) unsafe trait ByteProduct: Token {
    /// The f32 vectors of the same set.
    type Simd: Simd;
    /// The products of words of the same set.
    type Words: WordProduct<Simd = Self::Simd>;
    /// The products of bfloat16 of the same set.
    type Bf16: Bf16Product<Simd = Self::Simd>;
    /// Sums of one row and `LANES` outputs.
    type Sums: Copy;
    /// How rows of activations lie in memory; its group is that of the weights, too.
    const ROWS: RowLayout;
    /// The tiles; see `tiles!`, which makes this and `in_tile`.
    const TILES: &'static [Tile];
    /// Whether products of two neighbours are summed in 16 bits: their weights must not exceed 128 together.
    const MAY_SATURATE: bool;
    /// Inputs whose weights of all columns lie together, each column's in the same places as of any others.
    const LINE: usize = Self::ROWS.group;
    /// Products in the time of one of f32, at the most.
    const RATE: f64;

    fn simd(self) -> Self::Simd;

    fn words(self) -> Self::Words;

    fn bf16(self) -> Self::Bf16;

    /// Runs `kernel` with the tile that is `vectors` wide.
    fn in_tile<T, K: TileKernel<T>>(vectors: usize, token: T, kernel: K);

    /// Places the weights of one output for one tap in `panel`, which is zero where nothing has been placed.
    #[inline(always)]
    fn pack_column(weights: &[i8], column: usize, width: usize, panel: &mut [i8]) {
        let group = Self::ROWS.group;
        let groups = weights.chunks_exact(group);
        let (whole, rest) = (weights.len() / group, groups.remainder());
        for (number, weights) in groups.enumerate() {
            panel[(number * width + column) * group..][..group].copy_from_slice(weights);
        }
        if !rest.is_empty() {
            panel[(whole * width + column) * group..][..rest.len()].copy_from_slice(rest);
        }
    }

    /// Writes to each place of a line of weights what belongs to its column.
    #[inline(always)]
    fn spread(of_columns: &[i16], line: &mut [i16]) {
        for (places, of_column) in line.chunks_exact_mut(Self::LINE).zip(of_columns) {
            places.fill(*of_column);
        }
    }

    /// The sums of MR rows by NV vectors over `groups` groups of inputs, exact unless i32 overflows or
    /// `MAY_SATURATE` is disregarded.
    ///
    /// # Safety
    /// Each row must be readable for `groups` groups, `ROWS.step()` apart, and `weights` for as many of
    /// `NV * LANES` columns. Rows 2i and 2i + 1 may lie anywhere, neighbours or not.
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
    ) -> [[Self::Sums; NV]; MR];

    /// `sums - zero_point * column_sums`, exact in i32, then rounded to f32.
    ///
    /// # Safety
    /// `column_sums` must be readable for `LANES` i32.
    unsafe fn settle(
        self,
        sums: Self::Sums,
        zero_point: i32,
        column_sums: *const i32,
    ) -> <Self::Simd as Simd>::F;
}

/// A [`ByteProduct`] by instructions that take a group of inputs of one row and meet it with `LANES` outputs.
///
/// Its rows lie one after the other, and its tiles are those of its f32 vectors.
///
/// # Safety
/// What reads memory must read what its callers promise, no more.
pub(super) unsafe trait Dot: WordProduct {
    /// A group of activations, ready to meet every output.
    type A: Copy;
    /// A group of weights of each of `LANES` outputs, `[LANES][GROUP]`.
    type W: Copy;
    /// Sums of `LANES` outputs, perhaps in several parts.
    type Sums: Copy;
    /// Inputs that are taken at a time.
    const GROUP: usize;
    /// See [`ByteProduct::MAY_SATURATE`].
    const MAY_SATURATE: bool;
    /// See [`ByteProduct::RATE`].
    const RATE: f64;

    fn zero(self) -> Self::Sums;

    /// # Safety
    /// `from` must be readable for `GROUP` bytes.
    unsafe fn activations(self, from: *const u8) -> Self::A;

    /// # Safety
    /// `from` must be readable for `GROUP * LANES` bytes.
    unsafe fn weights(self, from: *const i8) -> Self::W;

    /// `sums + a . w` for each output.
    fn dot(self, sums: Self::Sums, a: Self::A, w: Self::W) -> Self::Sums;

    /// See [`ByteProduct::settle`].
    ///
    /// # Safety
    /// `column_sums` must be readable for `LANES` i32.
    unsafe fn settle(
        self,
        sums: Self::Sums,
        zero_point: i32,
        column_sums: *const i32,
    ) -> <Self::Simd as Simd>::F;
}

// SAFETY: rows and weights are read group by group, as promised.
unsafe impl<D: Dot> ByteProduct for D {
    type Simd = D::Simd;
    type Words = D;
    type Bf16 = InFloats<D::Simd>;
    type Sums = D::Sums;
    const ROWS: RowLayout = RowLayout { group: D::GROUP, together: 1, signed: false };
    const TILES: &'static [Tile] = D::Simd::TILES;
    const MAY_SATURATE: bool = D::MAY_SATURATE;
    const RATE: f64 = <D as Dot>::RATE;

    #[inline(always)]
    fn simd(self) -> D::Simd {
        WordProduct::simd(self)
    }

    #[inline(always)]
    fn words(self) -> D {
        self
    }

    #[inline(always)]
    fn bf16(self) -> InFloats<D::Simd> {
        InFloats(WordProduct::simd(self))
    }

    #[inline(always)]
    fn in_tile<T, K: TileKernel<T>>(vectors: usize, token: T, kernel: K) {
        D::Simd::in_tile(vectors, token, kernel);
    }

    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
    ) -> [[D::Sums; NV]; MR] {
        let mut acc = [[Dot::zero(self); NV]; MR];
        let vector_len = const { D::Simd::LANES * D::GROUP };
        let mut weights = weights;
        let mut offset = 0usize;
        for _ in 0..groups {
            // SAFETY: one of the groups promised.
            let mut columns = [unsafe { self.weights(weights) }; NV];
            for column in &mut columns {
                // SAFETY: likewise, its vectors one after the other.
                *column = unsafe { self.weights(weights) };
                weights = weights.wrapping_add(vector_len);
            }
            for i in 0..MR {
                // SAFETY: as for the weights.
                let x = unsafe { self.activations(rows[i].add(offset)) };
                for v in 0..NV {
                    acc[i][v] = Dot::dot(self, acc[i][v], x, columns[v]);
                }
            }
            offset = offset.wrapping_add(D::GROUP);
        }
        acc
    }

    #[inline(always)]
    unsafe fn settle(self, sums: D::Sums, zero_point: i32, column_sums: *const i32) -> <D::Simd as Simd>::F {
        // SAFETY: the caller's promise.
        unsafe { Dot::settle(self, sums, zero_point, column_sums) }
    }
}

/// Work with products of bytes to be compiled once per instruction set.
pub(super) trait ByteKernel {
    type Output;
    /// Implementations must be `#[inline(always)]`, or the work is compiled for the baseline.
    fn run<B: ByteProduct>(self, bytes: B) -> Self::Output;
}

/// Runs `kernel` compiled for `bytes`.
pub(super) fn vectorize<B: ByteProduct, K: ByteKernel>(bytes: B, kernel: K) -> K::Output {
    struct With<B, K>(B, K);
    impl<B: ByteProduct, K: ByteKernel> Work for With<B, K> {
        type Output = K::Output;
        #[inline(always)]
        fn run(self) -> K::Output {
            self.1.run(self.0)
        }
    }
    bytes.compiled(With(bytes, kernel))
}
