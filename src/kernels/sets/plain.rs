//! Byte dot products in plain arithmetic, for sets without fitting instructions.

use crate::kernels::byte_product::Dot;
use crate::kernels::simd::{MAX_LANES, Simd};
use crate::kernels::token::{Token, Work};

/// The f32 vectors of `S` with integer arithmetic left to the compiler.
#[derive(Clone, Copy)]
pub struct Plain<S>(S);

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

// SAFETY: loads are of four activations and of four weights of each lane.
unsafe impl<S: Simd> Dot for Plain<S> {
    type Simd = S;
    type A = [i32; 4];
    type W = [[i8; 4]; MAX_LANES];
    type I = [i32; MAX_LANES];
    const GROUP: usize = 4;
    const MAY_SATURATE: bool = false;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
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
    fn dot(self, mut sums: Self::I, a: Self::A, w: Self::W) -> Self::I {
        for (sum, w) in sums[..S::LANES].iter_mut().zip(&w) {
            for (a, &w) in a.iter().zip(w) {
                *sum = sum.wrapping_add(a.wrapping_mul(i32::from(w)));
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn settle(self, sums: Self::I, zero_point: i32, column_sums: *const i32) -> S::F {
        let mut settled = [0.0; MAX_LANES];
        for lane in 0..S::LANES {
            // SAFETY: the caller's promise.
            let column_sum = unsafe { *column_sums.add(lane) };
            settled[lane] = sums[lane].wrapping_sub(zero_point.wrapping_mul(column_sum)) as f32;
        }
        self.0.read(&settled)
    }
}
