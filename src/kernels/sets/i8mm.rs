//! Products of bytes by `usmmla`, two rows by two outputs over eight inputs, and of bfloat16 by `bfmmla`, over four:
//! Cortex-A510, X2, Neoverse V1, Apple M2.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use half::bf16;

use super::dotprod::DotProd;
use super::feature_token;
use super::neon::{self, Neon};
use crate::kernels::bf16_product::{Bf16Product, QUAD};
use crate::kernels::byte_product::ByteProduct;
use crate::kernels::quantized_rows::RowLayout;
use crate::kernels::tile::{attention_tile, tiles};
use crate::kernels::token::{Token, Work};

feature_token! {
    is_aarch64_feature_detected:
    /// `sdot`, `usmmla` and `bfmmla`: the architecture's version 8.6 asks for both of the latter.
    I8mm(DotProd): "dotprod", "i8mm", "bf16"
}

/// `sums[2 * i + j] += a[i] . w[j]` of eight bytes each. In assembly, because the intrinsic is not stable.
///
/// # Safety
/// The processor must have i8mm.
#[inline(always)]
unsafe fn usmmla(mut sums: int32x4_t, a: uint8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; nothing but registers is touched.
    unsafe {
        asm!(
            "usmmla {sums:v}.4s, {a:v}.16b, {w:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// `sums[2 * i + j] += a[i] . b[j]` of four bfloat16 each. In assembly, because the intrinsic is not stable.
///
/// # Safety
/// The processor must have bf16.
#[inline(always)]
unsafe fn bfmmla(mut sums: float32x4_t, a: int8x16_t, b: int8x16_t) -> float32x4_t {
    // SAFETY: the caller's promise; nothing but registers is touched.
    unsafe {
        asm!(
            "bfmmla {sums:v}.4s, {a:v}.8h, {b:v}.8h",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Two vectors rounded to bfloat16, one after the other. In assembly, because the intrinsics are not stable.
///
/// # Safety
/// The processor must have bf16.
#[inline(always)]
unsafe fn bfcvtn(first: float32x4_t, second: float32x4_t) -> uint16x8_t {
    let rounded;
    // SAFETY: the caller's promise; nothing but registers is touched.
    unsafe {
        asm!(
            "bfcvtn {rounded:v}.4h, {first:v}.4s",
            "bfcvtn2 {rounded:v}.8h, {second:v}.4s",
            rounded = out(vreg) rounded,
            first = in(vreg) first,
            second = in(vreg) second,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    rounded
}

/// How a tile's rows lie to each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// 2i and 2i + 1 side by side, so that one load takes both.
    Paired,
    /// 2i - 1 and 2i are: a convolution's pixels, one further to the left or right.
    Shifted,
    Apart,
}

impl Rows {
    #[inline(always)]
    fn of<const MR: usize>(rows: &[*const u8; MR]) -> Self {
        let neighbors = |i: usize| rows[i + 1] == rows[i].wrapping_add(I8mm::ROWS.group);
        if (0..MR).step_by(2).all(neighbors) {
            Self::Paired
        } else if MR > 2 && (1..MR - 1).step_by(2).all(neighbors) {
            Self::Shifted
        } else {
            Self::Apart
        }
    }

    /// The rows that are multiplied together as the pair `number` of `rows`, and whether they are side by side. Of
    /// shifted ones the first and the last remain for each other.
    #[inline(always)]
    fn pair(self, number: usize, rows: usize) -> (usize, usize, bool) {
        match self {
            Self::Paired => (2 * number, 2 * number + 1, true),
            Self::Shifted if number == 0 => (0, rows - 1, false),
            Self::Shifted => (2 * number - 1, 2 * number, true),
            Self::Apart => (2 * number, 2 * number + 1, false),
        }
    }
}

/// A group of the rows `first` and `second`, `offset` bytes behind their starts.
///
/// # Safety
/// The groups must be readable, and side by side if `neighbors` says so.
#[inline(always)]
unsafe fn load_pair(first: *const u8, second: *const u8, offset: usize, neighbors: bool) -> uint8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        if neighbors {
            return vreinterpretq_u8_s8(neon::load_16(first, offset));
        }
        let first = vreinterpretq_u64_s8(neon::load_8(first, offset));
        let second = vreinterpretq_u64_s8(neon::load_8(second, offset));
        vreinterpretq_u8_u64(vzip1q_u64(first, second))
    }
}

impl I8mm {
    /// See [`ByteProduct::accumulate`].
    ///
    /// # Safety
    /// As there, and rows must lie as `lie` says.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "iterators over rows or columns of a tile say less")]
    unsafe fn sum<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
        lie: Rows,
    ) -> [[int32x4_t; NV]; MR] {
        // SAFETY: reads a group of each row and NV vectors of weights at a time, as often as there are groups; the token
        // proves the instructions.
        unsafe {
            // Until the end, the sums of a pair of rows and four outputs lie as the instruction leaves them: those
            // of outputs 0 and 1 where the first row's belong, those of 2 and 3 where the second's do.
            let mut acc = [[vdupq_n_s32(0); NV]; MR];
            let (mut offset, mut weights_offset) = (0usize, 0usize);
            for _ in 0..groups {
                let mut pairs = [vdupq_n_u8(0); MR];
                for i in 0..MR / 2 {
                    let (first, second, neighbors) = lie.pair(i, MR);
                    pairs[i] = load_pair(rows[first], rows[second], offset, neighbors);
                }
                for v in 0..NV {
                    for half in 0..2 {
                        let w = neon::load_16(weights.add((2 * v + half) * 16).cast(), weights_offset);
                        for i in 0..MR / 2 {
                            acc[2 * i + half][v] = usmmla(acc[2 * i + half][v], pairs[i], w);
                        }
                    }
                }
                offset += Self::ROWS.step();
                weights_offset += NV * 32;
            }
            let mut sums = acc;
            for i in 0..MR / 2 {
                let (first, second, _) = lie.pair(i, MR);
                for v in 0..NV {
                    let left = vreinterpretq_s64_s32(acc[2 * i][v]);
                    let right = vreinterpretq_s64_s32(acc[2 * i + 1][v]);
                    sums[first][v] = vreinterpretq_s32_s64(vzip1q_s64(left, right));
                    sums[second][v] = vreinterpretq_s32_s64(vzip2q_s64(left, right));
                }
            }
            sums
        }
    }
}

// SAFETY: rows and weights are read group by group, as promised.
unsafe impl ByteProduct for I8mm {
    type Simd = Neon;
    type Words = Neon;
    type Bf16 = Self;
    type Sums = int32x4_t;
    const ROWS: RowLayout = RowLayout { group: 8, together: 2, signed: false };
    const MAY_SATURATE: bool = false;
    const RATE: f64 = 8.0;

    tiles!(for 32 registers);

    #[inline(always)]
    fn simd(self) -> Neon {
        self.0.neon()
    }

    #[inline(always)]
    fn words(self) -> Neon {
        self.0.neon()
    }

    #[inline(always)]
    fn bf16(self) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
    ) -> [[int32x4_t; NV]; MR] {
        const { assert!(MR.is_multiple_of(2)) };
        // A loop for each, in which nothing is asked.
        // SAFETY: the caller's promise; rows lie so.
        unsafe {
            match Rows::of(&rows) {
                Rows::Paired => self.sum(rows, weights, groups, Rows::Paired),
                Rows::Shifted => self.sum(rows, weights, groups, Rows::Shifted),
                Rows::Apart => self.sum(rows, weights, groups, Rows::Apart),
            }
        }
    }

    #[inline(always)]
    unsafe fn settle(self, sums: int32x4_t, zero_point: i32, column_sums: *const i32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { neon::settle(sums, zero_point, column_sums) }
    }
}

// SAFETY: rows and columns are read quad by quad, and a vector of quads is written, as promised.
unsafe impl Bf16Product for I8mm {
    type Simd = Neon;
    const RATE: f64 = 4.0;

    // With 24 accumulators four pairs of rows and a vector of columns are in registers.
    attention_tile!(8 x 3);

    #[inline(always)]
    fn simd(self) -> Neon {
        self.0.neon()
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "iterators over rows or columns of a tile say less")]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: *const bf16,
        pitch: usize,
        columns: *const bf16,
        quads: usize,
    ) -> [[float32x4_t; NV]; MR] {
        const { assert!(MR.is_multiple_of(2)) };
        // SAFETY: reads a quad of each row and of each column at a time, as often as there are quads; the token proves
        // the instructions.
        unsafe {
            let mut starts = [rows.cast::<u8>(); MR];
            for i in 0..MR / 2 {
                starts[i] = rows.add(i * pitch * 2 * QUAD).cast();
            }
            // Until the end, the sums of a pair of rows and four columns lie as those of bytes do.
            let mut acc = [[vdupq_n_f32(0.0); NV]; MR];
            let (mut offset, mut columns_offset) = (0usize, 0usize);
            for _ in 0..quads {
                let mut pairs = [vdupq_n_s8(0); MR];
                for i in 0..MR / 2 {
                    pairs[i] = neon::load_16(starts[i], offset);
                }
                for v in 0..NV {
                    for half in 0..2 {
                        let b = neon::load_16(columns.cast::<u8>().add((2 * v + half) * 16), columns_offset);
                        for i in 0..MR / 2 {
                            acc[2 * i + half][v] = bfmmla(acc[2 * i + half][v], pairs[i], b);
                        }
                    }
                }
                offset += 16;
                columns_offset += NV * 32;
            }
            let mut sums = acc;
            for i in 0..MR / 2 {
                for v in 0..NV {
                    let left = vreinterpretq_f64_f32(acc[2 * i][v]);
                    let right = vreinterpretq_f64_f32(acc[2 * i + 1][v]);
                    sums[2 * i][v] = vreinterpretq_f32_f64(vzip1q_f64(left, right));
                    sums[2 * i + 1][v] = vreinterpretq_f32_f64(vzip2q_f64(left, right));
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn store_quads(self, to: *mut bf16, x: [float32x4_t; QUAD]) {
        // SAFETY: the caller's promise; the token proves the instructions.
        unsafe {
            // Two vectors side by side, then their lanes two by two, then those of all four.
            let (first, second) = (bfcvtn(x[0], x[1]), bfcvtn(x[2], x[3]));
            let first = vreinterpretq_u32_u16(vzip1q_u16(first, vextq_u16::<4>(first, first)));
            let second = vreinterpretq_u32_u16(vzip1q_u16(second, vextq_u16::<4>(second, second)));
            vst1q_u32(to.cast(), vzip1q_u32(first, second));
            vst1q_u32(to.cast::<u32>().add(4), vzip2q_u32(first, second));
        }
    }
}
