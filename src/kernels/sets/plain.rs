//! Products of bytes and words in plain arithmetic, for sets without fitting instructions.

use crate::kernels::byte_product::Dot;
use crate::kernels::simd::{MAX_LANES, Simd};
use crate::kernels::token::{Token, Work};
use crate::kernels::word_product::WordProduct;

/// The f32 vectors of `S` with integer arithmetic left to the compiler.
#[derive(Clone, Copy)]
pub struct Plain<S>(pub(super) S);

// SAFETY: `S` is the proof of its own instructions; no others are used.
unsafe impl<S: Token> Token for Plain<S> {
    fn detect() -> Option<Self> {
        S::detect().map(Self)
    }

    #[inline]
    fn compiled<W: Work>(self, work: W) -> W::Output {
        self.0.compiled(work)
    }
}

// SAFETY: loads and stores are of one pair or of `LANES` pairs.
unsafe impl<S: Simd> WordProduct for Plain<S> {
    type Simd = S;
    type I = [i32; MAX_LANES];
    type Pair = [i32; 2];
    const RATE: f64 = 1.0;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        [0; MAX_LANES]
    }

    #[inline(always)]
    unsafe fn splat_pair(self, from: *const i16) -> Self::Pair {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[i16; 2]>().read_unaligned() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn load_pairs(self, from: *const i16) -> Self::I {
        let mut pairs = [0; MAX_LANES];
        for (lane, pair) in pairs[..S::LANES].iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *pair = unsafe { from.add(2 * lane).cast::<i32>().read_unaligned() };
        }
        pairs
    }

    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut i16, pairs: Self::I) {
        for (lane, &pair) in pairs[..S::LANES].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.add(2 * lane).cast::<i32>().write_unaligned(pair) };
        }
    }

    #[inline(always)]
    fn dot(self, mut sums: Self::I, a: Self::Pair, b: Self::I) -> Self::I {
        for (sum, b) in sums[..S::LANES].iter_mut().zip(b) {
            for (a, b) in a.into_iter().zip(words(b)) {
                *sum = sum.wrapping_add(a * i32::from(b));
            }
        }
        sums
    }

    #[inline(always)]
    fn to_f32(self, x: Self::I) -> S::F {
        self.0.read(&x.map(|x| x as f32))
    }

    #[inline(always)]
    fn pair(self, first: S::F, second: S::F) -> Self::I {
        let (first, second) = (self.0.lanes(first), self.0.lanes(second));
        let integer = |x: f32| x.to_bits().cast_signed();
        std::array::from_fn(|lane| (integer(first[lane]) & 0xFFFF) | (integer(second[lane]) << 16))
    }
}

/// The pair that lies in these bytes.
fn words(pair: i32) -> [i16; 2] {
    let [a, b, c, d] = pair.to_ne_bytes();
    [i16::from_ne_bytes([a, b]), i16::from_ne_bytes([c, d])]
}

// SAFETY: loads are of four activations and of four weights of each lane.
unsafe impl<S: Simd> Dot for Plain<S> {
    type A = [i32; 4];
    type W = [[i8; 4]; MAX_LANES];
    type Sums = [i32; MAX_LANES];
    const GROUP: usize = 4;
    const MAY_SATURATE: bool = false;
    const RATE: f64 = 1.0;

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        [0; MAX_LANES]
    }

    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> Self::A {
        // SAFETY: the caller's promise; bytes have no alignment.
        unsafe { from.cast::<[u8; 4]>().read() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> Self::W {
        let mut weights = [[0; 4]; MAX_LANES];
        for (lane, to) in weights[..S::LANES].iter_mut().enumerate() {
            // SAFETY: the caller's promise; bytes have no alignment.
            *to = unsafe { from.add(4 * lane).cast::<[i8; 4]>().read() };
        }
        weights
    }

    /// With wrapping sums, which no check keeps from being vectorized.
    #[inline(always)]
    fn dot(self, mut sums: Self::Sums, a: Self::A, w: Self::W) -> Self::Sums {
        for (sum, w) in sums[..S::LANES].iter_mut().zip(&w) {
            for (a, &w) in a.iter().zip(w) {
                *sum = sum.wrapping_add(a.wrapping_mul(i32::from(w)));
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn settle(self, sums: Self::Sums, zero_point: i32, column_sums: *const i32) -> S::F {
        let mut settled = [0.0; MAX_LANES];
        for lane in 0..S::LANES {
            // SAFETY: the caller's promise.
            let column_sum = unsafe { *column_sums.add(lane) };
            settled[lane] = sums[lane].wrapping_sub(zero_point.wrapping_mul(column_sum)) as f32;
        }
        self.0.read(&settled)
    }
}
