//! Products of bytes by `sdot`, which sums four signed ones: Cortex-A55, A76 and Apple A13 and later.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::feature_token;
use super::neon::{self, Neon};
use crate::kernels::bf16_product::InFloats;
use crate::kernels::byte_product::ByteProduct;
use crate::kernels::quantized_rows::RowLayout;
use crate::kernels::tile::tiles;
use crate::kernels::token::{Token, Work};

feature_token! {
    is_aarch64_feature_detected:
    /// NEON with `sdot`.
    DotProd(Neon): "dotprod"
}

/// Inputs that one lane of an activation register has.
const QUAD: usize = 4;

/// `sums[j] += w[j] . a[LANE]` of four bytes each. In assembly, because the intrinsic is not stable.
///
/// # Safety
/// The processor must have dotprod.
#[inline(always)]
unsafe fn sdot<const LANE: usize>(mut sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; nothing but registers is touched.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {w:v}.16b, {a:v}.4b[{lane}]",
            sums = inout(vreg) sums,
            w = in(vreg) w,
            a = in(vreg) a,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

impl DotProd {
    #[inline(always)]
    pub fn neon(self) -> Neon {
        self.0
    }

    /// Adds to the sums the products of four inputs, in lane `LANE` of each row.
    ///
    /// # Safety
    /// `weights` must be readable for NV vectors of four outputs.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "iterators over rows or columns of a tile say less")]
    unsafe fn multiply_lane<const LANE: usize, const MR: usize, const NV: usize>(
        self,
        acc: &mut [[int32x4_t; NV]; MR],
        rows: [int8x16_t; MR],
        weights: *const i8,
    ) {
        for v in 0..NV {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe {
                let w = vld1q_s8(weights.add(v * 16));
                for i in 0..MR {
                    acc[i][v] = sdot::<LANE>(acc[i][v], w, rows[i]);
                }
            }
        }
    }
}

// SAFETY: rows and weights are read group by group, as promised.
unsafe impl ByteProduct for DotProd {
    type Simd = Neon;
    type Words = Neon;
    type Bf16 = InFloats<Neon>;
    type Sums = int32x4_t;
    const ROWS: RowLayout = RowLayout { group: 4 * QUAD, together: 1, signed: true };
    const MAY_SATURATE: bool = false;
    const LINE: usize = QUAD;
    const RATE: f64 = 4.0;

    // With a group of each row in a register, 24 accumulators leave two of 32 for weights.
    tiles! { 6 x 4 at 100, 8 x 2 at 104, 8 x 1 at 150 }

    #[inline(always)]
    fn simd(self) -> Neon {
        self.0
    }

    #[inline(always)]
    fn words(self) -> Neon {
        self.0
    }

    #[inline(always)]
    fn bf16(self) -> InFloats<Neon> {
        InFloats(self.0)
    }

    /// `[groups][4][width][4 inputs]`.
    #[inline(always)]
    fn pack_column(weights: &[i8], column: usize, width: usize, panel: &mut [i8]) {
        for (quad, weights) in weights.chunks(QUAD).enumerate() {
            panel[(quad * width + column) * QUAD..][..weights.len()].copy_from_slice(weights);
        }
    }

    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
    ) -> [[int32x4_t; NV]; MR] {
        // SAFETY: reads a group of each row and as many inputs' weights at a time, as often as there are groups; the
        // token proves the instructions.
        unsafe {
            let mut acc = [[vdupq_n_s32(0); NV]; MR];
            for group in 0..groups {
                let mut a = [vdupq_n_s8(0); MR];
                for i in 0..MR {
                    a[i] = neon::load_16(rows[i], group * Self::ROWS.group);
                }
                let weights = weights.add(group * NV * 64);
                self.multiply_lane::<0, MR, NV>(&mut acc, a, weights);
                self.multiply_lane::<1, MR, NV>(&mut acc, a, weights.add(NV * 16));
                self.multiply_lane::<2, MR, NV>(&mut acc, a, weights.add(2 * NV * 16));
                self.multiply_lane::<3, MR, NV>(&mut acc, a, weights.add(3 * NV * 16));
            }
            acc
        }
    }

    #[inline(always)]
    unsafe fn settle(self, sums: int32x4_t, zero_point: i32, column_sums: *const i32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { neon::settle_signed(sums, zero_point, column_sums) }
    }
}
