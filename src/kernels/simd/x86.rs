//! x86-64 vectors: SSE2 (every x86-64), AVX2 with FMA, AVX-512; integer dot products are in `dot`.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// Methods whose bodies are intrinsics of the set whose token `self` is.
macro_rules! intrinsics {
    ($($name:ident($($arg:ident),*) = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: Self::F),*) -> Self::F {
            // SAFETY: a token exists only where its instructions do.
            unsafe { $body }
        })*
    };
}

/// Methods shared by all sets in form: memory, splat and entry.
macro_rules! memory {
    ($load:ident, $store:ident, $splat:ident, $features:literal) => {
        #[inline(always)]
        unsafe fn load(self, from: *const f32) -> Self::F {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe { $load(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32, x: Self::F) {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe { $store(to, x) }
        }

        #[inline(always)]
        fn splat(self, x: f32) -> Self::F {
            // SAFETY: a token exists only where its instructions do.
            unsafe { $splat(x) }
        }

        #[inline]
        fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = $features)]
            fn compiled<S: Simd, K: Kernel>(simd: S, kernel: K) -> K::Output {
                kernel.run(simd)
            }
            // SAFETY: a token exists only where its instructions do.
            unsafe { compiled(self, kernel) }
        }
    };
}

/// Every x86-64 processor.
#[derive(Clone, Copy, Debug)]
pub struct Sse2(());

impl Sse2 {
    pub fn new() -> Self {
        Self(())
    }
}

// SAFETY: SSE2 is part of x86-64.
unsafe impl Simd for Sse2 {
    type F = __m128;
    const LANES: usize = 4;
    const REGISTERS: usize = 16;

    memory!(_mm_loadu_ps, _mm_storeu_ps, _mm_set1_ps, "sse2");
    intrinsics! {
        add(a, b) = _mm_add_ps(a, b);
        sub(a, b) = _mm_sub_ps(a, b);
        mul(a, b) = _mm_mul_ps(a, b);
        div(a, b) = _mm_div_ps(a, b);
        min(a, b) = _mm_min_ps(a, b);
        max(a, b) = _mm_max_ps(a, b);
        mul_add(a, b, c) = _mm_add_ps(_mm_mul_ps(a, b), c);
        pow2(n) = _mm_castsi128_ps(_mm_slli_epi32::<23>(_mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127))));
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

/// AVX2 with fused multiply-add: Haswell, Zen and later.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    pub fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

// SAFETY: `new` is the only constructor and detects the features.
unsafe impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    memory!(_mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, "avx2,fma");
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

/// AVX-512 with byte and word instructions: Skylake-X, Zen 4 and later.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    pub fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Self(()))
    }
}

// SAFETY: `new` is the only constructor and detects the features.
unsafe impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

    memory!(_mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
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
    }

    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, x: Self::F) {
        // SAFETY: the caller's promise; the token proves the instructions.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))) }
    }
}
