//! NEON, which every AArch64 processor has: products of bytes are summed in pairs in 16 bits, then in 32.

use std::arch::aarch64::*;
use std::arch::asm;

use super::intrinsics;
use crate::kernels::bf16_product::InFloats;
use crate::kernels::byte_product::ByteProduct;
use crate::kernels::quantized_rows::RowLayout;
use crate::kernels::simd::{self, Simd};
use crate::kernels::tile::{attention_tile, tiles};
use crate::kernels::token::{Token, Work};
use crate::kernels::word_product::WordProduct;

/// Every AArch64 processor.
#[derive(Clone, Copy)]
pub struct Neon(());

// SAFETY: NEON is part of AArch64.
unsafe impl Token for Neon {
    fn detect() -> Option<Self> {
        Some(Self(()))
    }

    #[inline]
    fn compiled<W: Work>(self, work: W) -> W::Output {
        work.run()
    }
}

/// Loads from `base + offset`, of which the compiler is told nothing else: it would step each of a tile's pointers
/// along, which is an operation more, or load through a register for integers.
macro_rules! loads {
    ($($(#[$doc:meta])* $name:ident: $size:literal;)+) => {
        $($(#[$doc])*
        ///
        /// # Safety
        /// They must be readable.
        #[inline(always)]
        pub(super) unsafe fn $name(base: *const u8, offset: usize) -> int8x16_t {
            let bytes;
            // SAFETY: the caller's promise; NEON is part of AArch64.
            unsafe {
                asm!(
                    concat!("ldr {bytes:", $size, "}, [{base}, {offset}]"),
                    bytes = out(vreg) bytes,
                    base = in(reg) base,
                    offset = in(reg) offset,
                    options(pure, readonly, nostack, preserves_flags)
                );
            }
            bytes
        })+
    };
}

loads! {
    /// 4 bytes, then zeros.
    load_4: "s";
    /// 8 bytes, then zeros.
    load_8: "d";
    /// 16 bytes.
    load_16: "q";
}

/// Adds to the sums value `LANE` of each row times NV vectors from `b`.
///
/// # Safety
/// The vectors must be readable.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "iterators over rows or columns of a tile say less")]
unsafe fn multiply_lane<const LANE: i32, const MR: usize, const NV: usize>(
    acc: &mut [[float32x4_t; NV]; MR],
    rows: [float32x4_t; MR],
    b: *const f32,
) {
    for v in 0..NV {
        // SAFETY: the caller's promise; NEON is part of AArch64.
        unsafe {
            let column = vld1q_f32(b.add(v * 4));
            for i in 0..MR {
                acc[i][v] = vfmaq_laneq_f32::<LANE>(acc[i][v], column, rows[i]);
            }
        }
    }
}

// SAFETY: loads and stores are those of a whole vector.
unsafe impl Simd for Neon {
    type F = float32x4_t;
    const LANES: usize = 4;

    // With four values of each row in a register, 24 accumulators leave two of 32 for columns.
    tiles! { 6 x 4 at 100, 8 x 2 at 104, 8 x 1 at 150 }
    attention_tile!(5 x 4);

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(to, x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: NEON is part of AArch64.
        unsafe { vdupq_n_f32(x) }
    }

    intrinsics! {
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        min(a, b) = vminq_f32(a, b);
        max(a, b) = vmaxq_f32(a, b);
        mul_add(a, b, c) = vfmaq_f32(c, a, b);
        pow2(n) = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127))));
        scale_by_power(x, n) = vreinterpretq_f32_s32(vaddq_s32(
            vreinterpretq_s32_f32(x),
            vshlq_n_s32::<23>(vreinterpretq_s32_f32(n)),
        ));
    }

    /// Four values of a row are one load where they lie side by side.
    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        a: [*const f32; MR],
        a_step: usize,
        b: *const f32,
        depth: usize,
        mut acc: [[Self::F; NV]; MR],
    ) -> [[Self::F; NV]; MR] {
        let whole = if a_step == 1 { depth / 4 * 4 } else { 0 };
        // SAFETY: reads four values of each row and as many rows of `b` at a time, then what is left, as promised; NEON
        // is part of AArch64.
        unsafe {
            for first in (0..whole).step_by(4) {
                let mut rows = [vdupq_n_f32(0.0); MR];
                for i in 0..MR {
                    rows[i] = vreinterpretq_f32_s8(load_16(a[i].cast(), first * size_of::<f32>()));
                }
                let b = b.add(first * NV * Self::LANES);
                multiply_lane::<0, MR, NV>(&mut acc, rows, b);
                multiply_lane::<1, MR, NV>(&mut acc, rows, b.add(NV * Self::LANES));
                multiply_lane::<2, MR, NV>(&mut acc, rows, b.add(2 * NV * Self::LANES));
                multiply_lane::<3, MR, NV>(&mut acc, rows, b.add(3 * NV * Self::LANES));
            }
            let a = a.map(|a| a.add(whole));
            simd::accumulate_singly(self, a, a_step, b.add(whole * NV * Self::LANES), depth - whole, acc)
        }
    }

    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, x: Self::F) {
        // SAFETY: the caller's promise; NEON is part of AArch64.
        unsafe {
            let words = vmovn_u32(vcvtnq_u32_f32(x));
            let bytes = vmovn_u16(vcombine_u16(words, words));
            to.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)));
        }
    }
}

// Products of pairs are two `smlal`, which take as long as two products of f32 or longer. In registers the first words of
// all pairs come before the second ones, so that either half meets one word of the pair that meets every lane.
//
// SAFETY: loads and stores are of one pair or of four.
unsafe impl WordProduct for Neon {
    type Simd = Self;
    type I = int32x4_t;
    type Pair = int16x4_t;
    const RATE: f64 = 1.0;

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        // SAFETY: NEON is part of AArch64.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, from: *const i16) -> Self::Pair {
        // SAFETY: the caller's promise; NEON is part of AArch64.
        unsafe {
            let pair = from.cast::<i32>().read_unaligned();
            vreinterpret_s16_s32(vset_lane_s32::<0>(pair, vdup_n_s32(0)))
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, from: *const i16) -> Self::I {
        // SAFETY: the caller's promise; NEON is part of AArch64.
        unsafe {
            let int16x4x2_t(first, second) = vld2_s16(from);
            vreinterpretq_s32_s16(vcombine_s16(first, second))
        }
    }

    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut i16, pairs: Self::I) {
        // SAFETY: the caller's promise; NEON is part of AArch64.
        unsafe {
            let pairs = vreinterpretq_s16_s32(pairs);
            vst2_s16(to, int16x4x2_t(vget_low_s16(pairs), vget_high_s16(pairs)));
        }
    }

    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::Pair, b: Self::I) -> Self::I {
        // SAFETY: NEON is part of AArch64.
        unsafe {
            let b = vreinterpretq_s16_s32(b);
            vmlal_high_lane_s16::<1>(vmlal_lane_s16::<0>(sums, vget_low_s16(b), a), b, a)
        }
    }

    #[inline(always)]
    fn to_f32(self, x: Self::I) -> float32x4_t {
        // SAFETY: NEON is part of AArch64.
        unsafe { vcvtq_f32_s32(x) }
    }

    #[inline(always)]
    fn pair(self, first: float32x4_t, second: float32x4_t) -> Self::I {
        // SAFETY: NEON is part of AArch64.
        unsafe {
            let (first, second) = (vreinterpretq_s16_f32(first), vreinterpretq_s16_f32(second));
            vreinterpretq_s32_s16(vuzp1q_s16(first, second))
        }
    }
}

/// The end of a sum over bytes that lie less 128: see [`RowLayout::signed`].
///
/// # Safety
/// `column_sums` must be readable for four i32.
#[inline(always)]
pub(super) unsafe fn settle_signed(sums: int32x4_t, zero_point: i32, column_sums: *const i32) -> float32x4_t {
    // SAFETY: the caller's promise; NEON is part of AArch64.
    unsafe { settle(sums, zero_point - 128, column_sums) }
}

/// The end of a sum over bytes: see [`ByteProduct::settle`].
///
/// # Safety
/// `column_sums` must be readable for four i32.
#[inline(always)]
pub(super) unsafe fn settle(sums: int32x4_t, zero_point: i32, column_sums: *const i32) -> float32x4_t {
    // SAFETY: the caller's promise; NEON is part of AArch64.
    unsafe { vcvtq_f32_s32(vmlsq_s32(sums, vld1q_s32(column_sums), vdupq_n_s32(zero_point))) }
}

/// Adds to the sums of four rows and four outputs their products over four inputs: `a` has the first two of a row four
/// times, then the other two, `w` the outputs' weights in the same order.
///
/// In assembly, because a compiler begins all products of a tile before it adds the first, for which there are too few
/// registers; here just enough of them are under way for a processor that takes instructions in order.
#[inline(always)]
fn add_products(sums: [int32x4_t; 4], a: [int8x16_t; 4], w: int8x16_t) -> [int32x4_t; 4] {
    let [mut s0, mut s1, mut s2, mut s3] = sums;
    // Sums of two products in 16 bits are at most 2 * 128 * 127, since weights end at -127: below 2^15.
    // SAFETY: NEON is part of AArch64; nothing but registers is touched.
    unsafe {
        asm!(
            "smull {p0:v}.8h, {a0:v}.8b, {w:v}.8b",
            "smull {p1:v}.8h, {a1:v}.8b, {w:v}.8b",
            "smull {p2:v}.8h, {a2:v}.8b, {w:v}.8b",
            "smull {p3:v}.8h, {a3:v}.8b, {w:v}.8b",
            "smlal2 {p0:v}.8h, {a0:v}.16b, {w:v}.16b",
            "smlal2 {p1:v}.8h, {a1:v}.16b, {w:v}.16b",
            "smlal2 {p2:v}.8h, {a2:v}.16b, {w:v}.16b",
            "smlal2 {p3:v}.8h, {a3:v}.16b, {w:v}.16b",
            "sadalp {s0:v}.4s, {p0:v}.8h",
            "sadalp {s1:v}.4s, {p1:v}.8h",
            "sadalp {s2:v}.4s, {p2:v}.8h",
            "sadalp {s3:v}.4s, {p3:v}.8h",
            s0 = inout(vreg) s0,
            s1 = inout(vreg) s1,
            s2 = inout(vreg) s2,
            s3 = inout(vreg) s3,
            a0 = in(vreg) a[0],
            a1 = in(vreg) a[1],
            a2 = in(vreg) a[2],
            a3 = in(vreg) a[3],
            w = in(vreg) w,
            p0 = out(vreg) _,
            p1 = out(vreg) _,
            p2 = out(vreg) _,
            p3 = out(vreg) _,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [s0, s1, s2, s3]
}

// SAFETY: rows and weights are read group by group, as promised.
unsafe impl ByteProduct for Neon {
    type Simd = Self;
    type Words = Self;
    type Bf16 = InFloats<Self>;
    type Sums = int32x4_t;
    const ROWS: RowLayout = RowLayout { group: 4, together: 1, signed: true };
    const MAY_SATURATE: bool = false;
    const RATE: f64 = 4.0 / 3.0;

    // 16 accumulators of 32 registers: products on their way to them need some, too.
    tiles! { 4 x 4 at 100, 8 x 2 at 106, 8 x 1 at 125 }

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn words(self) -> Self {
        self
    }

    #[inline(always)]
    fn bf16(self) -> InFloats<Self> {
        InFloats(self)
    }

    /// `[groups][width / 4][2][4 outputs][2 inputs]`: half a vector has one pair of inputs of each of its outputs.
    #[inline(always)]
    fn pack_column(weights: &[i8], column: usize, width: usize, panel: &mut [i8]) {
        for (pair, weights) in weights.chunks(2).enumerate() {
            let half = (pair / 2 * width + column / 4 * 4) * 4 + pair % 2 * 8;
            panel[half + column % 4 * 2..][..weights.len()].copy_from_slice(weights);
        }
    }

    #[inline(always)]
    fn spread(of_columns: &[i16], line: &mut [i16]) {
        for (halves, of_columns) in line.chunks_exact_mut(16).zip(of_columns.chunks_exact(4)) {
            for (place, to) in halves.iter_mut().enumerate() {
                *to = of_columns[place % 8 / 2];
            }
        }
    }

    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
    ) -> [[int32x4_t; NV]; MR] {
        const { assert!(MR.is_multiple_of(4)) };
        // SAFETY: reads a group of each row and NV vectors of weights at a time, as often as there are groups; NEON is
        // part of AArch64.
        unsafe {
            let spread = vld1q_u8([0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3].as_ptr());
            let mut acc = [[vdupq_n_s32(0); NV]; MR];
            let mut weights = weights;
            let mut offset = 0usize;
            for _ in 0..groups {
                let mut columns = [vdupq_n_s8(0); NV];
                for column in &mut columns {
                    *column = vld1q_s8(weights);
                    weights = weights.wrapping_add(16);
                }
                for first in (0..MR).step_by(4) {
                    let mut a = [vdupq_n_s8(0); 4];
                    for i in 0..4 {
                        a[i] = vqtbl1q_s8(load_4(rows[first + i], offset), spread);
                    }
                    for v in 0..NV {
                        let mut sums = [vdupq_n_s32(0); 4];
                        for i in 0..4 {
                            sums[i] = acc[first + i][v];
                        }
                        let sums = add_products(sums, a, columns[v]);
                        for i in 0..4 {
                            acc[first + i][v] = sums[i];
                        }
                    }
                }
                offset += 4;
            }
            acc
        }
    }

    #[inline(always)]
    unsafe fn settle(self, sums: int32x4_t, zero_point: i32, column_sums: *const i32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { settle_signed(sums, zero_point, column_sums) }
    }
}
