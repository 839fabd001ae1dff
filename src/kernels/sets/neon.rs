//! AArch64 vectors: NEON, which every AArch64 processor has.

use std::arch::aarch64::*;

use super::intrinsics;
use crate::kernels::simd::Simd;
use crate::kernels::tile::{attention_tile, tiles};
use crate::kernels::token::{Token, Work};

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

// SAFETY: loads and stores are those of a whole vector.
unsafe impl Simd for Neon {
    type F = float32x4_t;
    const LANES: usize = 4;

    tiles!(for 32 registers);
    // 24 accumulators of 32 registers.
    attention_tile!(8 x 3);

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
