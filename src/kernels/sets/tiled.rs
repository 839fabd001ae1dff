//! Products of bytes by registers that hold whole tiles of both operands, whatever unit multiplies them.

use std::mem::MaybeUninit;

use crate::kernels::bf16_product::InFloats;
use crate::kernels::byte_product::ByteProduct;
use crate::kernels::quantized_rows::RowLayout;
use crate::kernels::simd::Simd;
use crate::kernels::tile::tiles;
use crate::kernels::token::{Token, Work};
use crate::kernels::word_product::WordProduct;

/// Rows of activations in a tile, and lines of weights.
pub const TILE_ROWS: usize = 16;

/// Inputs of a row in a tile.
const GROUP: usize = 64;

/// Inputs of which a tile's line of weights has those of every output.
const LINE: usize = 4;

/// Groups of rows that are brought together at a time, where they lie apart.
const TOGETHER: usize = 8;

/// Eight registers of tiles, in the manner of Intel's AMX: 16 rows of 64 bytes of activations, 16 lines of four inputs
/// of `LANES` outputs of weights, and 16 rows of `LANES` sums in i32.
///
/// # Safety
/// What reads and writes memory must touch what its callers promise, no more.
pub unsafe trait TileUnit: Token {
    type Simd: Simd;
    type Words: WordProduct<Simd = Self::Simd>;
    /// `LANES` i32, in the order in which `store` writes them.
    type Sums: Copy;
    /// See [`ByteProduct::RATE`].
    const RATE: f64;

    fn words(self) -> Self::Words;

    /// # Safety
    /// Must be called below [`Token::compiled`], like all that follow.
    unsafe fn clear<const TILE: usize>(self);

    /// # Safety
    /// 16 lines must be readable, `pitch` bytes apart: of 64 bytes, or of `4 * LANES` if it is to be multiplied as
    /// weights.
    unsafe fn load<const TILE: usize>(self, from: *const u8, pitch: usize);

    /// Adds to each sum the products of a row and an output: bytes without a sign by such with one.
    ///
    /// # Safety
    /// See [`TileUnit::clear`].
    unsafe fn multiply<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(self);

    /// # Safety
    /// 16 rows of `LANES` i32 must be writable, `pitch` bytes apart.
    unsafe fn store<const TILE: usize>(self, to: *mut u8, pitch: usize);

    /// See [`ByteProduct::settle`].
    ///
    /// # Safety
    /// As there.
    unsafe fn settle(
        self,
        sums: Self::Sums,
        zero_point: i32,
        column_sums: *const i32,
    ) -> <Self::Simd as Simd>::F;
}

/// The products of a unit.
#[derive(Clone, Copy)]
pub struct Tiled<U>(U);

// SAFETY: `U` is the proof of its instructions; no others are used.
unsafe impl<U: TileUnit> Token for Tiled<U> {
    fn detect() -> Option<Self> {
        U::detect().map(Self)
    }

    #[inline]
    fn compiled<W: Work>(self, work: W) -> W::Output {
        self.0.compiled(work)
    }
}

/// Bytes from each row to the next, if all lie equally far apart.
#[inline(always)]
fn pitch(rows: &[*const u8; TILE_ROWS]) -> Option<usize> {
    let pitch = rows[1].addr().wrapping_sub(rows[0].addr());
    let apart = |pair: &[*const u8]| pair[1].addr().wrapping_sub(pair[0].addr()) ^ pitch;
    // Without a branch for each row.
    (rows.windows(2).map(apart).fold(0, |any, differs| any | differs) == 0).then_some(pitch)
}

/// Copies `groups` groups of 16 rows, `offset` bytes behind their starts, to rows of `TOGETHER` groups. Apart, so that
/// where rows begin needn't be held in registers by those who don't copy.
///
/// # Safety
/// The rows must be readable, and `to` writable, for as much.
#[inline(never)]
unsafe fn bring_together(rows: &[*const u8; TILE_ROWS], offset: usize, groups: usize, to: *mut u8) {
    for group in 0..groups {
        for (number, row) in rows.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let of_row = row.add(offset + group * GROUP).cast::<[u8; GROUP]>().read_unaligned();
                to.add((number * TOGETHER + group) * GROUP).cast::<[u8; GROUP]>().write_unaligned(of_row);
            }
        }
    }
}

// SAFETY: rows and weights are read group by group, as promised.
unsafe impl<U: TileUnit> ByteProduct for Tiled<U> {
    type Simd = U::Simd;
    type Words = U::Words;
    type Bf16 = InFloats<U::Simd>;
    type Sums = U::Sums;
    const ROWS: RowLayout = RowLayout { group: GROUP, together: 1, signed: false };
    const MAY_SATURATE: bool = false;
    const LINE: usize = LINE;
    const RATE: f64 = U::RATE;

    // Each tile that is loaded is multiplied twice, or once.
    tiles! { 32 x 2 at 100, 32 x 1 at 140 }

    #[inline(always)]
    fn simd(self) -> U::Simd {
        self.0.words().simd()
    }

    #[inline(always)]
    fn words(self) -> U::Words {
        self.0.words()
    }

    #[inline(always)]
    fn bf16(self) -> InFloats<U::Simd> {
        InFloats(self.simd())
    }

    #[inline(always)]
    fn pack_column(weights: &[i8], column: usize, width: usize, panel: &mut [i8]) {
        for (number, line) in weights.chunks(LINE).enumerate() {
            panel[(number * width + column) * LINE..][..line.len()].copy_from_slice(line);
        }
    }

    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
    ) -> [[U::Sums; NV]; MR] {
        const { assert!(MR == 2 * TILE_ROWS && NV <= 2) };
        let unit = self.0;
        let (halves, _) = rows.as_chunks::<TILE_ROWS>();
        let (upper, lower) = (&halves[0], &halves[1]);
        let pitches = [pitch(upper), pitch(lower)];
        let mut copies = MaybeUninit::<[[u8; TILE_ROWS * TOGETHER * GROUP]; 2]>::uninit();
        let copies = copies.as_mut_ptr().cast::<u8>();
        let lower_copies = copies.wrapping_add(TILE_ROWS * TOGETHER * GROUP);
        let line = const { NV * U::Simd::LANES * LINE };
        let mut sums = MaybeUninit::<[[U::Sums; NV]; MR]>::uninit();
        // SAFETY: a group of each row and of the weights is read at a time, as often as there are groups, copies only
        // where they were written; tiles 0 to 3 are the sums of both halves of the rows by both vectors, and all
        // of `sums` is written.
        unsafe {
            unit.clear::<0>();
            unit.clear::<1>();
            unit.clear::<2>();
            unit.clear::<3>();
            for first in (0..groups).step_by(TOGETHER) {
                let count = TOGETHER.min(groups - first);
                let offset = first * GROUP;
                let place = |pitch: Option<usize>, rows: &[*const u8; TILE_ROWS], copies: *mut u8| match pitch
                {
                    Some(pitch) => (rows[0].add(offset), pitch),
                    None => {
                        bring_together(rows, offset, count, copies);
                        (copies.cast_const(), TOGETHER * GROUP)
                    }
                };
                let (upper, upper_pitch) = place(pitches[0], upper, copies);
                let (lower, lower_pitch) = place(pitches[1], lower, lower_copies);
                let weights = weights.add(first * GROUP / LINE * line).cast::<u8>();
                for group in 0..count {
                    let weights = weights.add(group * GROUP / LINE * line);
                    unit.load::<4>(upper.add(group * GROUP), upper_pitch);
                    unit.load::<6>(weights, line);
                    unit.multiply::<0, 4, 6>();
                    unit.load::<5>(lower.add(group * GROUP), lower_pitch);
                    unit.multiply::<2, 5, 6>();
                    if NV == 2 {
                        unit.load::<7>(weights.add(line / 2), line);
                        unit.multiply::<1, 4, 7>();
                        unit.multiply::<3, 5, 7>();
                    }
                }
            }
            let to = sums.as_mut_ptr().cast::<U::Sums>();
            let row = const { NV * size_of::<U::Sums>() };
            unit.store::<0>(to.cast(), row);
            unit.store::<2>(to.add(TILE_ROWS * NV).cast(), row);
            if NV == 2 {
                unit.store::<1>(to.add(1).cast(), row);
                unit.store::<3>(to.add(TILE_ROWS * NV + 1).cast(), row);
            }
            sums.assume_init()
        }
    }

    #[inline(always)]
    unsafe fn settle(self, sums: U::Sums, zero_point: i32, column_sums: *const i32) -> <U::Simd as Simd>::F {
        // SAFETY: the caller's promise.
        unsafe { self.0.settle(sums, zero_point, column_sums) }
    }
}
