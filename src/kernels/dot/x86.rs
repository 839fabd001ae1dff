//! Byte dot products on x86-64: `pmaddwd` (SSE2), `vpmaddubsw` (AVX2, AVX-512), `vpdpbusd` (AVX-VNNI, AVX-512 VNNI).

use std::arch::x86_64::*;

use super::{Dot, DotKernel};
use crate::kernels::simd::x86::{Avx2, Avx512, Sse2};

/// Entry into code compiled for `$features`.
macro_rules! entry {
    ($simd:ty, $features:literal) => {
        #[inline(always)]
        fn simd(self) -> $simd {
            self.0
        }

        #[inline]
        fn vectorize<K: DotKernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = $features)]
            fn compiled<D: Dot, K: DotKernel>(dot: D, kernel: K) -> K::Output {
                kernel.run(dot)
            }
            // SAFETY: a token exists only where its instructions do.
            unsafe { compiled(self, kernel) }
        }
    };
}

/// 256-bit loads, and the end of a sum: shared by AVX2 and AVX-VNNI.
macro_rules! memory_256 {
    () => {
        type A = __m256i;
        type W = __m256i;
        type I = __m256i;

        #[inline(always)]
        fn zero(self) -> Self::I {
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
        unsafe fn settle(self, sums: Self::I, zero_point: i32, column_sums: *const i32) -> __m256 {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe {
                let columns = _mm256_loadu_si256(column_sums.cast());
                let offset = _mm256_mullo_epi32(_mm256_set1_epi32(zero_point), columns);
                _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, offset))
            }
        }
    };
}

/// 512-bit loads, and the end of a sum: shared by AVX-512 with and without VNNI.
macro_rules! memory_512 {
    () => {
        type A = __m512i;
        type W = __m512i;
        type I = __m512i;

        #[inline(always)]
        fn zero(self) -> Self::I {
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
        unsafe fn settle(self, sums: Self::I, zero_point: i32, column_sums: *const i32) -> __m512 {
            // SAFETY: the caller's promise; the token proves the instructions.
            unsafe {
                let columns = _mm512_loadu_si512(column_sums.cast());
                let offset = _mm512_mullo_epi32(_mm512_set1_epi32(zero_point), columns);
                _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, offset))
            }
        }
    };
}

/// Bytes widened to 16 bits, multiplied and added in pairs.
#[derive(Clone, Copy)]
pub struct DotSse2(Sse2);

impl DotSse2 {
    pub fn new() -> Self {
        Self(Sse2::new())
    }
}

// SAFETY: SSE2 is part of x86-64.
unsafe impl Dot for DotSse2 {
    type Simd = Sse2;
    /// Four activations in 16 bits, twice.
    type A = __m128i;
    /// Outputs 0 and 1, outputs 2 and 3, in 16 bits.
    type W = [__m128i; 2];
    /// Two sums per output: of even and odd pairs of inputs.
    type I = [__m128i; 2];
    const MAY_SATURATE: bool = false;

    entry!(Sse2, "sse2");

    #[inline(always)]
    fn zero(self) -> Self::I {
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
    fn dot(self, sums: Self::I, a: Self::A, w: Self::W) -> Self::I {
        // SAFETY: SSE2 is part of x86-64.
        unsafe {
            [_mm_add_epi32(sums[0], _mm_madd_epi16(a, w[0])), _mm_add_epi32(sums[1], _mm_madd_epi16(a, w[1]))]
        }
    }

    #[inline(always)]
    unsafe fn settle(self, sums: Self::I, zero_point: i32, column_sums: *const i32) -> __m128 {
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

/// Products of bytes added in pairs to 16 bits, then to 32.
#[derive(Clone, Copy)]
pub struct DotAvx2(Avx2);

impl DotAvx2 {
    pub fn new() -> Option<Self> {
        Avx2::new().map(Self)
    }
}

// SAFETY: `new` is the only constructor and detects the features.
unsafe impl Dot for DotAvx2 {
    type Simd = Avx2;
    const MAY_SATURATE: bool = true;

    entry!(Avx2, "avx2,fma");
    memory_256!();

    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::A, w: Self::W) -> Self::I {
        // SAFETY: a token exists only where its instructions do.
        unsafe {
            let pairs = _mm256_maddubs_epi16(a, w);
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

/// `vpdpbusd` on 256 bits.
#[derive(Clone, Copy)]
pub struct DotAvxVnni(Avx2);

impl DotAvxVnni {
    pub fn new() -> Option<Self> {
        Avx2::new().filter(|_| is_x86_feature_detected!("avxvnni")).map(Self)
    }
}

// SAFETY: `new` is the only constructor and detects the features.
unsafe impl Dot for DotAvxVnni {
    type Simd = Avx2;
    const MAY_SATURATE: bool = false;

    entry!(Avx2, "avx2,fma,avxvnni");
    memory_256!();

    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::A, w: Self::W) -> Self::I {
        // SAFETY: a token exists only where its instructions do.
        unsafe { _mm256_dpbusd_avx_epi32(sums, a, w) }
    }
}

/// As [`DotAvx2`] on 512 bits.
#[derive(Clone, Copy)]
pub struct DotAvx512(Avx512);

impl DotAvx512 {
    pub fn new() -> Option<Self> {
        Avx512::new().map(Self)
    }
}

// SAFETY: `new` is the only constructor and detects the features.
unsafe impl Dot for DotAvx512 {
    type Simd = Avx512;
    const MAY_SATURATE: bool = true;

    entry!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
    memory_512!();

    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::A, w: Self::W) -> Self::I {
        // SAFETY: a token exists only where its instructions do.
        unsafe {
            let pairs = _mm512_maddubs_epi16(a, w);
            _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
}

/// `vpdpbusd` on 512 bits.
#[derive(Clone, Copy)]
pub struct DotAvx512Vnni(Avx512);

impl DotAvx512Vnni {
    pub fn new() -> Option<Self> {
        Avx512::new().filter(|_| is_x86_feature_detected!("avx512vnni")).map(Self)
    }
}

// SAFETY: `new` is the only constructor and detects the features.
unsafe impl Dot for DotAvx512Vnni {
    type Simd = Avx512;
    const MAY_SATURATE: bool = false;

    entry!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma");
    memory_512!();

    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::A, w: Self::W) -> Self::I {
        // SAFETY: a token exists only where its instructions do.
        unsafe { _mm512_dpbusd_epi32(sums, a, w) }
    }
}
