//! Dot products of four bytes at a time as one trait with one implementation per instruction set; f32 vectors are in `simd`.

pub(super) mod plain;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

use super::simd::Simd;

/// A token of an instruction set: products of u8 activations and i8 weights summed in i32.
///
/// Weights come in vectors of as many outputs as f32 lanes, four consecutive inputs of each output together:
/// `[LANES][4]` i8. What was said of inlining at [`Simd`] holds here.
///
/// # Safety
/// Implementors must be constructible only after their instructions have been detected.
pub(super) unsafe trait Dot: Copy + Send + Sync + 'static {
    /// The f32 vectors of the same set.
    type Simd: Simd;
    /// Four activations, ready to meet every output.
    type A: Copy;
    /// Four weights of each of `LANES` outputs.
    type W: Copy;
    /// Sums of `LANES` outputs, perhaps in several parts.
    type I: Copy;
    /// Whether products of two neighbours are summed in 16 bits: their weights must not exceed 128 together.
    const MAY_SATURATE: bool;

    fn simd(self) -> Self::Simd;

    /// Runs `kernel` compiled for this set.
    fn vectorize<K: DotKernel>(self, kernel: K) -> K::Output;

    fn zero(self) -> Self::I;

    /// # Safety
    /// `from` must be readable for 4 bytes.
    unsafe fn activations(self, from: *const u8) -> Self::A;

    /// # Safety
    /// `from` must be readable for `4 * LANES` bytes.
    unsafe fn weights(self, from: *const i8) -> Self::W;

    /// `sums + a . w` for each output, exact unless i32 overflows or `MAY_SATURATE` is disregarded.
    fn dot(self, sums: Self::I, a: Self::A, w: Self::W) -> Self::I;

    /// `sums - zero_point * column_sums`, exact in i32, then rounded to f32.
    ///
    /// # Safety
    /// `column_sums` must be readable for `LANES` i32.
    unsafe fn settle(
        self,
        sums: Self::I,
        zero_point: i32,
        column_sums: *const i32,
    ) -> <Self::Simd as Simd>::F;
}

/// Work with dot products to be compiled once per instruction set.
pub(super) trait DotKernel {
    type Output;
    /// Implementations must be `#[inline(always)]`, or the work is compiled for the baseline.
    fn run<D: Dot>(self, dot: D) -> Self::Output;
}
