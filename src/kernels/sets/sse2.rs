//! SSE2, which every x86-64 processor has: bytes are widened to 16 bits, multiplied and added in pairs (`pmaddwd`).

use std::arch::x86_64::*;

use super::x86::memory;
use super::{feature_token, intrinsics};
use crate::kernels::byte_product::Dot;
use crate::kernels::simd::Simd;
use crate::kernels::tile::{attention_tile, tiles};
use crate::kernels::token::{Token, Work};
use crate::kernels::word_product::WordProduct;

feature_token! {
    is_x86_feature_detected:
    /// Every x86-64 processor.
    Sse2(()): "sse2"
}

// SAFETY: loads and stores are those of a whole vector.
unsafe impl Simd for Sse2 {
    type F = __m128;
    const LANES: usize = 4;

    tiles!(for 16 registers);
    // 10 accumulators of 16 registers: a compiler spills 12.
    attention_tile!(5 x 2);
    memory!(_mm_loadu_ps, _mm_storeu_ps, _mm_set1_ps);
    intrinsics! {
        add(a, b) = _mm_add_ps(a, b);
        sub(a, b) = _mm_sub_ps(a, b);
        mul(a, b) = _mm_mul_ps(a, b);
        div(a, b) = _mm_div_ps(a, b);
        min(a, b) = _mm_min_ps(a, b);
        max(a, b) = _mm_max_ps(a, b);
        mul_add(a, b, c) = _mm_add_ps(_mm_mul_ps(a, b), c);
        pow2(n) = _mm_castsi128_ps(_mm_slli_epi32::<23>(_mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127))));
        scale_by_power(x, n) = _mm_castsi128_ps(_mm_add_epi32(
            _mm_castps_si128(x),
            _mm_slli_epi32::<23>(_mm_castps_si128(n)),
        ));
    }

    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, x: Self::F) {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe {
            let words = _mm_packs_epi32(_mm_cvtps_epi32(x), _mm_setzero_si128());
            let bytes = _mm_packus_epi16(words, words);
            to.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(bytes));
        }
    }
}

// SAFETY: loads and stores are of one pair or of a whole vector.
unsafe impl WordProduct for Sse2 {
    type Simd = Self;
    type I = __m128i;
    type Pair = __m128i;
    const RATE: f64 = 2.0;

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_setzero_si128() }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, from: *const i16) -> Self::Pair {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe { _mm_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, from: *const i16) -> Self::I {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe { _mm_loadu_si128(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut i16, pairs: Self::I) {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe { _mm_storeu_si128(to.cast(), pairs) }
    }

    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::Pair, b: Self::I) -> Self::I {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_add_epi32(sums, _mm_madd_epi16(a, b)) }
    }

    #[inline(always)]
    fn to_f32(self, x: Self::I) -> __m128 {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn pair(self, first: __m128, second: __m128) -> Self::I {
        // SAFETY: SSE2 is part of x86-64.
        unsafe {
            let low = _mm_and_si128(_mm_castps_si128(first), _mm_set1_epi32(0xFFFF));
            _mm_or_si128(low, _mm_slli_epi32::<16>(_mm_castps_si128(second)))
        }
    }
}

// SAFETY: loads are of four activations and of 16 weights.
unsafe impl Dot for Sse2 {
    /// Four activations in 16 bits, twice.
    type A = __m128i;
    /// Outputs 0 and 1, outputs 2 and 3, in 16 bits.
    type W = [__m128i; 2];
    /// Two sums per output: of even and odd pairs of inputs.
    type Sums = [__m128i; 2];
    const GROUP: usize = 4;
    const MAY_SATURATE: bool = false;
    const RATE: f64 = 2.0;

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { [_mm_setzero_si128(); 2] }
    }

    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> Self::A {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe {
            let bytes = _mm_set1_epi32(from.cast::<i32>().read_unaligned());
            _mm_unpacklo_epi8(bytes, _mm_setzero_si128())
        }
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> Self::W {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            // Each byte in the upper half of 16 bits, shifted down with its sign.
            let low = _mm_srai_epi16::<8>(_mm_unpacklo_epi8(bytes, bytes));
            let high = _mm_srai_epi16::<8>(_mm_unpackhi_epi8(bytes, bytes));
            [low, high]
        }
    }

    #[inline(always)]
    fn dot(self, sums: Self::Sums, a: Self::A, w: Self::W) -> Self::Sums {
        // SAFETY: SSE2 is part of x86-64.
        unsafe {
            [_mm_add_epi32(sums[0], _mm_madd_epi16(a, w[0])), _mm_add_epi32(sums[1], _mm_madd_epi16(a, w[1]))]
        }
    }

    #[inline(always)]
    unsafe fn settle(self, sums: Self::Sums, zero_point: i32, column_sums: *const i32) -> __m128 {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe {
            let (low, high) = (_mm_castsi128_ps(sums[0]), _mm_castsi128_ps(sums[1]));
            let even = _mm_castps_si128(_mm_shuffle_ps::<0b10_00_10_00>(low, high));
            let odd = _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(low, high));
            // SSE2 multiplies 32 bits in lanes 0 and 2 only; the low half of the product has no sign.
            let columns = _mm_loadu_si128(column_sums.cast());
            let zero = _mm_set1_epi32(zero_point);
            let first = _mm_castsi128_ps(_mm_mul_epu32(columns, zero));
            let second = _mm_castsi128_ps(_mm_mul_epu32(_mm_srli_epi64::<32>(columns), zero));
            let mixed = _mm_castps_si128(_mm_shuffle_ps::<0b10_00_10_00>(first, second));
            let offset = _mm_shuffle_epi32::<0b11_01_10_00>(mixed);
            _mm_cvtepi32_ps(_mm_sub_epi32(_mm_add_epi32(even, odd), offset))
        }
    }
}
