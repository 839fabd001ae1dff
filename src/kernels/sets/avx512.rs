//! 512-bit vectors of AVX-512, and their products of bytes by `vpmaddubsw` or, with AVX-512 VNNI, by `vpdpbusd`.

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
    /// AVX-512 with byte and word instructions: Skylake-X, Zen 4 and later.
    Avx512(()): "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"
}

feature_token! {
    is_x86_feature_detected:
    /// AVX-512 with `vpdpbusd`: Ice Lake, Zen 4 and later.
    Avx512Vnni(Avx512): "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx2", "fma"
}

// SAFETY: loads and stores are those of a whole vector.
unsafe impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = 16;

    tiles!(for 32 registers);
    // 24 accumulators of 32 registers.
    attention_tile!(8 x 3);
    memory!(_mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps);
    intrinsics! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        max(a, b) = _mm512_max_ps(a, b);
        mul_add(a, b, c) = _mm512_fmadd_ps(a, b, c);
        pow2(n) = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(
            _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)),
        ));
        scale_by_power(x, n) = _mm512_scalef_ps(x, n);
    }

    /// What is less than a vector by a mask, where others copy.
    #[inline(always)]
    fn read_up_to(self, from: &[f32]) -> Self::F {
        if from.len() >= Self::LANES {
            return self.read(from);
        }
        let mask = ((1u32 << from.len()) - 1) as u16;
        // SAFETY: lanes beyond the slice are not read; a token exists only where its instructions do.
        unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
    }

    /// n as it is, which is `vscalefps`'s form.
    #[inline(always)]
    fn split(self, x: Self::F) -> (Self::F, Self::F) {
        // SAFETY: a token exists only where its instructions do.
        let r = unsafe { _mm512_reduce_ps::<0>(x) };
        (r, self.sub(x, r))
    }

    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, x: Self::F) {
        // SAFETY: the caller's promise; the token proves the instructions.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))) }
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
            type I = __m512i;
            type Pair = __m512i;
            const RATE: f64 = 2.0;

            #[inline(always)]
            fn simd($self) -> $simd {
                $as_simd
            }

            #[inline(always)]
            fn zero(self) -> Self::I {
                // SAFETY: a token exists only where its instructions do.
                unsafe { _mm512_setzero_si512() }
            }

            #[inline(always)]
            unsafe fn splat_pair(self, from: *const i16) -> Self::Pair {
                // SAFETY: the caller's promise; the token proves the instructions.
                unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
            }

            #[inline(always)]
            unsafe fn load_pairs(self, from: *const i16) -> Self::I {
                // SAFETY: the caller's promise; the token proves the instructions.
                unsafe { _mm512_loadu_si512(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store_pairs(self, to: *mut i16, pairs: Self::I) {
                // SAFETY: the caller's promise; the token proves the instructions.
                unsafe { _mm512_storeu_si512(to.cast(), pairs) }
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
            fn to_f32(self, x: Self::I) -> __m512 {
                // SAFETY: a token exists only where its instructions do.
                unsafe { _mm512_cvtepi32_ps(x) }
            }

            #[inline(always)]
            fn pair(self, first: __m512, second: __m512) -> Self::I {
                // SAFETY: a token exists only where its instructions do.
                unsafe {
                    let second = _mm512_slli_epi32::<16>(_mm512_castps_si512(second));
                    _mm512_mask_blend_epi16(0xAAAA_AAAA, _mm512_castps_si512(first), second)
                }
            }
        }
    };
}

words!(Avx512, Avx512, self => self, (sums, a, b) => _mm512_add_epi32(sums, _mm512_madd_epi16(a, b)));
words!(Avx512Vnni, Avx512, self => self.0, (sums, a, b) => _mm512_dpwssd_epi32(sums, a, b), bytes => _mm512_dpbusd_epi32(sums, a, b));

/// Loads of byte products, and the end of a sum.
macro_rules! bytes {
    () => {
        type A = __m512i;
        type W = __m512i;
        type Sums = __m512i;
        const GROUP: usize = 4;

        #[inline(always)]
        fn zero(self) -> Self::Sums {
            // SAFETY: a token exists only where its instructions do.
            unsafe { _mm512_setzero_si512() }
        }

        #[inline(always)]
        unsafe fn activations(self, from: *const u8) -> Self::A {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn weights(self, from: *const i8) -> Self::W {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn settle(self, sums: Self::Sums, zero_point: i32, column_sums: *const i32) -> __m512 {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe {
                let columns = _mm512_loadu_si512(column_sums.cast());
                let offset = _mm512_mullo_epi32(_mm512_set1_epi32(zero_point), columns);
                _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, offset))
            }
        }
    };
}

// SAFETY: loads are of four activations and of 64 weights.
unsafe impl Dot for Avx512 {
    const MAY_SATURATE: bool = true;
    const RATE: f64 = 2.0;

    bytes!();

    #[inline(always)]
    fn dot(self, sums: Self::Sums, a: Self::A, w: Self::W) -> Self::Sums {
        // SAFETY: a token exists only where its instructions do.
        unsafe {
            let pairs = _mm512_maddubs_epi16(a, w);
            _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
}

// SAFETY: loads are of four activations and of 64 weights.
unsafe impl Dot for Avx512Vnni {
    const MAY_SATURATE: bool = false;
    const RATE: f64 = 4.0;

    bytes!();

    #[inline(always)]
    fn dot(self, sums: Self::Sums, a: Self::A, w: Self::W) -> Self::Sums {
        // SAFETY: a token exists only where its instructions do.
        unsafe { _mm512_dpbusd_epi32(sums, a, w) }
    }
}
