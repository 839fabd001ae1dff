//! Products of pairs of i16 as one trait; its implementations are in `sets`, its uses in products.

use super::micro_kernel;
use super::simd::{ROUNDING, Simd};
use super::token::{Token, Work};

/// Products of 16-bit integers, two at a time, beside the f32 vectors of the same set.
///
/// # Safety
/// What reads and writes memory must touch what its callers promise, no more.
pub(super) unsafe trait WordProduct: Token {
    /// The f32 vectors of the same set.
    type Simd: Simd;
    /// `LANES` i32, or as many pairs of i16.
    type I: Copy;
    /// One pair of i16 that meets every lane.
    type Pair: Copy;
    /// Products in the time of one of f32, at the most.
    const RATE: f64;

    fn simd(self) -> Self::Simd;

    fn zero(self) -> Self::I;

    /// # Safety
    /// `from` must be readable for two i16.
    unsafe fn splat_pair(self, from: *const i16) -> Self::Pair;

    /// # Safety
    /// `from` must be readable for `LANES` pairs.
    unsafe fn load_pairs(self, from: *const i16) -> Self::I;

    /// # Safety
    /// `to` must be writable for `LANES` pairs.
    unsafe fn store_pairs(self, to: *mut i16, pairs: Self::I);

    /// `sums + a[0] * b[0] + a[1] * b[1]` in each lane, exact unless i32 overflows.
    fn dot(self, sums: Self::I, a: Self::Pair, b: Self::I) -> Self::I;

    /// Whether [`Self::dot_bytes`] is to be used.
    const MULTIPLIES_BYTES: bool = false;

    /// `sums + a . b` in each lane, of four u8 by four i8 in the place of two words by two, exact unless i32 overflows.
    fn dot_bytes(self, _sums: Self::I, _a: Self::Pair, _b: Self::I) -> Self::I {
        unreachable!("a set without products of bytes beside those of words")
    }

    fn to_f32(self, x: Self::I) -> <Self::Simd as Simd>::F;

    /// Pairs of the integers that two vectors hold in a lane; they must lie in [-32768, 32767] and come with
    /// [`ROUNDING`] added to them.
    fn pair(self, first: <Self::Simd as Simd>::F, second: <Self::Simd as Simd>::F) -> Self::I;
}

/// x * factor, to become one of a pair: the nearest integer, ties to even, with [`ROUNDING`] added to it.
#[inline(always)]
pub(super) fn shifted<S: Simd>(simd: S, x: S::F, factor: S::F) -> S::F {
    simd.mul_add(x, factor, simd.splat(ROUNDING))
}

/// x, of magnitude below 2^15, rounded to nearest, ties to even.
#[inline(always)]
pub(super) fn round_to_word(x: f32) -> i16 {
    (x + ROUNDING).to_bits() as i16
}

/// The scale that brings values of this greatest magnitude to integers up to `limit`, and its inverse. NaN and
/// infinity go into the scale.
#[inline(always)]
pub(super) fn scale_of(greatest: f32, limit: f32) -> (f32, f32) {
    // The inverse of less would overflow.
    if greatest < 1e-30 { (0.0, 0.0) } else { (greatest / limit, limit / greatest) }
}

/// The greatest magnitude of `values`, and zero, or NaN if there is NaN or infinity.
#[inline(always)]
pub(super) fn magnitude<S: Simd>(simd: S, values: &[f32]) -> (f32, f32) {
    let zero = simd.splat(0.0);
    let (mut greatest, mut poison) = (zero, zero);
    for values in values.chunks(S::LANES) {
        let x = simd.read_up_to(values);
        greatest = simd.max(simd.max(x, simd.sub(zero, x)), greatest);
        poison = simd.mul_add(x, zero, poison);
    }
    (simd.greatest(greatest), simd.sum(poison))
}

/// Sums of MR rows by NV vectors over `pairs` pairs: row i has its pairs `a_step` i16 apart from `a[i]`, `b` is
/// `[pairs][NV]` vectors of pairs.
///
/// # Safety
/// Each `a[i]` must be readable for a pair at `k * a_step` for all `k < pairs`, and `b` for `pairs * NV` vectors.
#[inline(always)]
pub(super) unsafe fn accumulate<P: WordProduct, const MR: usize, const NV: usize>(
    words: P,
    a: [*const i16; MR],
    a_step: usize,
    b: *const i16,
    pairs: usize,
) -> [[P::I; NV]; MR] {
    // SAFETY: the caller's promise.
    unsafe { accumulate_from::<P, false, MR, NV>(words, a, a_step, b, pairs, [words.zero(); NV]) }
}

/// The same in addition to what each column has, and of four bytes instead of each pair if `BYTES`: u8 in rows, i8 in
/// columns.
///
/// # Safety
/// As for [`accumulate`].
#[inline(always)]
pub(super) unsafe fn accumulate_from<P: WordProduct, const BYTES: bool, const MR: usize, const NV: usize>(
    words: P,
    a: [*const i16; MR],
    a_step: usize,
    b: *const i16,
    pairs: usize,
    columns: [P::I; NV],
) -> [[P::I; NV]; MR] {
    let mut acc = [columns; MR];
    let vector_len = const { 2 * P::Simd::LANES };
    let mut b = b;
    let mut offset = 0usize;
    for _ in 0..pairs {
        let mut columns = [words.zero(); NV];
        for column in &mut columns {
            // SAFETY: one of the vectors promised for `b`.
            *column = unsafe { words.load_pairs(b) };
            b = b.wrapping_add(vector_len);
        }
        for i in 0..MR {
            // SAFETY: `offset` is `k * a_step` with `k < pairs`, as promised for `a`.
            let x = unsafe { words.splat_pair(a[i].add(offset)) };
            for v in 0..NV {
                acc[i][v] = match BYTES {
                    true => words.dot_bytes(acc[i][v], x, columns[v]),
                    false => words.dot(acc[i][v], x, columns[v]),
                };
            }
        }
        // Wrapping, because the last step may leave the allocation.
        offset = offset.wrapping_add(a_step);
    }
    acc
}

/// Adds to `sums`, `[MR][NV * LANES]`, the products of MR rows by NV vectors of columns, each row and column with its
/// scale, or puts them there if they are the first. `weights` has as many pairs of every column as there are.
///
/// # Safety
/// Each `a[i]` must be readable for as many words as a column has.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "iterators over rows or columns of a tile say less")]
pub(super) unsafe fn add_products<P: WordProduct, const MR: usize, const NV: usize>(
    words: P,
    a: [*const i16; MR],
    row_scales: &[f32; MR],
    weights: &[i16],
    weight_scales: &[f32],
    sums: &mut [f32],
    first: bool,
) {
    let simd = words.simd();
    let lanes = P::Simd::LANES;
    let width = NV * lanes;
    assert!(sums.len() == MR * width && weight_scales.len() == width);
    // SAFETY: the caller's promise; `weights` holds whole rows of NV vectors of pairs.
    let acc = unsafe { accumulate::<P, MR, NV>(words, a, 2, weights.as_ptr(), weights.len() / (2 * width)) };
    let mut tile = [[simd.splat(0.0); NV]; MR];
    if !first {
        // SAFETY: `sums` holds MR rows of NV vectors.
        tile = unsafe { micro_kernel::load(simd, sums.as_ptr(), width) };
    }
    for v in 0..NV {
        let scale = simd.read(&weight_scales[v * lanes..]);
        for i in 0..MR {
            let scale = simd.mul(scale, simd.splat(row_scales[i]));
            tile[i][v] = simd.mul_add(words.to_f32(acc[i][v]), scale, tile[i][v]);
        }
    }
    // SAFETY: as at the load.
    unsafe { micro_kernel::store(simd, sums.as_mut_ptr(), width, tile) };
}

/// Work with products of words to be compiled once per instruction set.
pub(super) trait WordKernel {
    type Output;
    /// Implementations must be `#[inline(always)]`, or the work is compiled for the baseline.
    fn run<P: WordProduct>(self, words: P) -> Self::Output;
}

/// Runs `kernel` compiled for `words`.
pub(super) fn vectorize<P: WordProduct, K: WordKernel>(words: P, kernel: K) -> K::Output {
    struct With<P, K>(P, K);
    impl<P: WordProduct, K: WordKernel> Work for With<P, K> {
        type Output = K::Output;
        #[inline(always)]
        fn run(self) -> K::Output {
            self.1.run(self.0)
        }
    }
    words.compiled(With(words, kernel))
}
