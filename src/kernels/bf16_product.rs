//! Products of bfloat16 as one trait, with sets that have no instruction for them; its use is in `attention`.

use half::bf16;

use super::simd::{MAX_LANES, Simd};
use super::tile::{TileKernel, attention_tile};
use super::token::{Token, Work};

/// Numbers that are multiplied at a time.
pub(super) const QUAD: usize = 4;

/// Products of numbers rounded to bfloat16, four at a time, with sums in f32.
///
/// # Safety
/// What reads and writes memory must touch what its callers promise, no more.
pub(super) unsafe trait Bf16Product: Token {
    /// The f32 vectors of the same set.
    type Simd: Simd;
    /// Products in the time of one of f32, at the most.
    const RATE: f64;
    /// See [`Simd::ATTENTION_TILE`]; rows are even.
    const ATTENTION_TILE: (usize, usize);

    fn simd(self) -> Self::Simd;

    /// Runs `kernel` with the tile of attention.
    fn in_attention_tile<T, K: TileKernel<T>>(token: T, kernel: K);

    /// The sums of MR rows by NV vectors of columns over `quads` quads. Rows lie in pairs, `[MR / 2][pitch][2]` quads;
    /// columns as `[quads][NV * LANES]` quads.
    ///
    /// # Safety
    /// All of these must be readable.
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: *const bf16,
        pitch: usize,
        columns: *const bf16,
        quads: usize,
    ) -> [[<Self::Simd as Simd>::F; NV]; MR];

    /// Writes `LANES` quads: what four vectors have in a lane, rounded to nearest, ties to even.
    ///
    /// # Safety
    /// `to` must be writable for as many.
    unsafe fn store_quads(self, to: *mut bf16, x: [<Self::Simd as Simd>::F; QUAD]);
}

/// Rounded numbers that are multiplied as f32: no faster, and less exact.
#[derive(Clone, Copy)]
pub(super) struct InFloats<S>(pub S);

// SAFETY: `S` is the proof of its own instructions; no others are used.
unsafe impl<S: Token> Token for InFloats<S> {
    fn detect() -> Option<Self> {
        S::detect().map(Self)
    }

    #[inline]
    fn compiled<W: Work>(self, work: W) -> W::Output {
        self.0.compiled(work)
    }
}

// SAFETY: reads one number of a row and `LANES` of columns at a time, all of them promised, and writes `LANES` quads.
unsafe impl<S: Simd> Bf16Product for InFloats<S> {
    type Simd = S;
    const RATE: f64 = 1.0;

    attention_tile!(4 x 2);

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: *const bf16,
        pitch: usize,
        columns: *const bf16,
        quads: usize,
    ) -> [[S::F; NV]; MR] {
        const { assert!(MR.is_multiple_of(2)) };
        let simd = self.0;
        let mut acc = [[simd.splat(0.0); NV]; MR];
        for at in 0..quads * QUAD {
            let (quad, place) = (at / QUAD, at % QUAD);
            let mut of_columns = [simd.splat(0.0); NV];
            for (v, of_columns) in of_columns.iter_mut().enumerate() {
                let mut lanes = [0.0; MAX_LANES];
                for (lane, to) in lanes[..S::LANES].iter_mut().enumerate() {
                    let column = (quad * NV + v) * S::LANES + lane;
                    // SAFETY: the caller's promise.
                    *to = unsafe { *columns.add(column * QUAD + place) }.to_f32();
                }
                *of_columns = simd.read(&lanes);
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let row = (i / 2 * pitch + quad) * 2 + i % 2;
                // SAFETY: the caller's promise.
                let x = simd.splat(unsafe { *rows.add(row * QUAD + place) }.to_f32());
                for (acc, of_columns) in acc.iter_mut().zip(of_columns) {
                    *acc = simd.mul_add(x, of_columns, *acc);
                }
            }
        }
        acc
    }

    #[inline(always)]
    unsafe fn store_quads(self, to: *mut bf16, x: [S::F; QUAD]) {
        for (place, x) in x.into_iter().enumerate() {
            for (lane, &x) in self.0.lanes(x)[..S::LANES].iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { *to.add(lane * QUAD + place) = bf16::from_f32(x) };
            }
        }
    }
}

/// Work with products of bfloat16 to be compiled once per instruction set.
pub(super) trait Bf16Kernel {
    type Output;
    /// Implementations must be `#[inline(always)]`, or the work is compiled for the baseline.
    fn run<P: Bf16Product>(self, product: P) -> Self::Output;
}

/// Runs `kernel` compiled for `product`.
pub(super) fn vectorize<P: Bf16Product, K: Bf16Kernel>(product: P, kernel: K) -> K::Output {
    struct With<P, K>(P, K);
    impl<P: Bf16Product, K: Bf16Kernel> Work for With<P, K> {
        type Output = K::Output;
        #[inline(always)]
        fn run(self) -> K::Output {
            self.1.run(self.0)
        }
    }
    product.compiled(With(product, kernel))
}
