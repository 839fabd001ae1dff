//! 256-bit vectors of AVX2, and their products of bytes by `vpmaddubsw` or, with AVX-VNNI, by `vpdpbusd`.

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
    /// AVX2 with fused multiply-add: Haswell, Zen and later.
    Avx2(()): "avx2", "fma"
}

feature_token! {
    is_x86_feature_detected:
    /// AVX2 with `vpdpbusd`: Alder Lake and later.
    AvxVnni(Avx2): "avx2", "fma", "avxvnni"
}

// SAFETY: loads and stores are those of a whole vector.
unsafe impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;

    tiles!(for 16 registers);
    // 10 accumulators of 16 registers: a compiler spills 12.
    attention_tile!(5 x 2);
    memory!(_mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps);
    intrinsics! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        max(a, b) = _mm256_max_ps(a, b);
        mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
        pow2(n) = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(
            _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)),
        ));
        scale_by_power(x, n) = _mm256_castsi256_ps(_mm256_add_epi32(
            _mm256_castps_si256(x),
            _mm256_slli_epi32::<23>(_mm256_castps_si256(n)),
        ));
    }

    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, x: Self::F) {
        // SAFETY: the caller's promise; the token proves the instructions.
        unsafe {
            let integers = _mm256_cvtps_epi32(x);
            let low = _mm256_castsi256_si128(integers);
            let high = _mm256_extracti128_si256::<1>(integers);
            let words = _mm_packs_epi32(low, high);
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
        }
    }
}

/// Products of words, whose dot product is `$dot`.
macro_rules! words {
    (
        $token:ty, $simd:ty, $self:ident => $as_simd:expr, ($sums:ident, $a:ident, $b:ident) => $dot:expr
        $(, bytes => $dot_bytes:expr)?
    ) => {
        // SAFETY: loads and stores are of one pair or of a whole vector.
        unsafe impl WordProduct for $token {
            type Simd = $simd;
            type I = __m256i;
            type Pair = __m256i;
            const RATE: f64 = 2.0;

            #[inline(always)]
            fn simd($self) -> $simd {
                $as_simd
            }

            #[inline(always)]
            fn zero(self) -> Self::I {
                // SAFETY: a token exists only where its instructions do.
                unsafe { _mm256_setzero_si256() }
            }

            #[inline(always)]
            unsafe fn splat_pair(self, from: *const i16) -> Self::Pair {
                // SAFETY: the caller's promise; the token proves the instructions.
                unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
            }

            #[inline(always)]
            unsafe fn load_pairs(self, from: *const i16) -> Self::I {
                // SAFETY: the caller's promise; the token proves the instructions.
                unsafe { _mm256_loadu_si256(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store_pairs(self, to: *mut i16, pairs: Self::I) {
                // SAFETY: the caller's promise; the token proves the instructions.
                unsafe { _mm256_storeu_si256(to.cast(), pairs) }
            }

            #[inline(always)]
            fn dot(self, $sums: Self::I, $a: Self::Pair, $b: Self::I) -> Self::I {
                // SAFETY: a token exists only where its instructions do.
                unsafe { $dot }
            }

            $(
                const MULTIPLIES_BYTES: bool = true;

                #[inline(always)]
                fn dot_bytes(self, $sums: Self::I, $a: Self::Pair, $b: Self::I) -> Self::I {
                    // SAFETY: a token exists only where its instructions do.
                    unsafe { $dot_bytes }
                }
            )?

            #[inline(always)]
            fn to_f32(self, x: Self::I) -> __m256 {
                // SAFETY: a token exists only where its instructions do.
                unsafe { _mm256_cvtepi32_ps(x) }
            }

            #[inline(always)]
            fn pair(self, first: __m256, second: __m256) -> Self::I {
                // SAFETY: a token exists only where its instructions do.
                unsafe {
                    let second = _mm256_slli_epi32::<16>(_mm256_castps_si256(second));
                    _mm256_blend_epi16::<0b1010_1010>(_mm256_castps_si256(first), second)
                }
            }
        }
    };
}

words!(Avx2, Avx2, self => self, (sums, a, b) => _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)));
words!(AvxVnni, Avx2, self => self.0, (sums, a, b) => _mm256_dpwssd_avx_epi32(sums, a, b), bytes => _mm256_dpbusd_avx_epi32(sums, a, b));

/// Loads of byte products, and the end of a sum.
macro_rules! bytes {
    () => {
        type A = __m256i;
        type W = __m256i;
        type Sums = __m256i;
        const GROUP: usize = 4;

        #[inline(always)]
        fn zero(self) -> Self::Sums {
            // SAFETY: a token exists only where its instructions do.
            unsafe { _mm256_setzero_si256() }
        }

        #[inline(always)]
        unsafe fn activations(self, from: *const u8) -> Self::A {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn weights(self, from: *const i8) -> Self::W {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }

        #[inline(always)]
        unsafe fn settle(self, sums: Self::Sums, zero_point: i32, column_sums: *const i32) -> __m256 {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe {
                let columns = _mm256_loadu_si256(column_sums.cast());
                let offset = _mm256_mullo_epi32(_mm256_set1_epi32(zero_point), columns);
                _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, offset))
            }
        }
    };
}

// SAFETY: loads are of four activations and of 32 weights.
unsafe impl Dot for Avx2 {
    const MAY_SATURATE: bool = true;
    const RATE: f64 = 2.0;

    bytes!();

    #[inline(always)]
    fn dot(self, sums: Self::Sums, a: Self::A, w: Self::W) -> Self::Sums {
        // SAFETY: a token exists only where its instructions do.
        unsafe {
            let pairs = _mm256_maddubs_epi16(a, w);
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

// SAFETY: loads are of four activations and of 32 weights.
unsafe impl Dot for AvxVnni {
    const MAY_SATURATE: bool = false;
    const RATE: f64 = 4.0;

    bytes!();

    #[inline(always)]
    fn dot(self, sums: Self::Sums, a: Self::A, w: Self::W) -> Self::Sums {
        // SAFETY: a token exists only where its instructions do.
        unsafe { _mm256_dpbusd_avx_epi32(sums, a, w) }
    }
}
