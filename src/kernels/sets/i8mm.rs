//! Products of bytes by `usmmla`, two rows by two outputs over eight inputs: Cortex-A510, X2, Neoverse V1, Apple M2.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::dotprod::DotProd;
use super::feature_token;
use super::neon::{self, Neon};
use crate::kernels::byte_product::ByteProduct;
use crate::kernels::quantized_rows::RowLayout;
use crate::kernels::tile::tiles;
use crate::kernels::token::{Token, Work};

feature_token! {
    is_aarch64_feature_detected:
    /// `sdot` and `usmmla`.
    I8mm(DotProd): "dotprod", "i8mm"
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
