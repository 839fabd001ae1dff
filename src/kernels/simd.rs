//! Vectors of f32 as one trait; its implementations are in `sets`, formulas are in `math`.

use super::tile::{Tile, TileKernel};
use super::token::{Token, Work};

/// The widest vector of any implementation, in f32 lanes.
pub(super) const MAX_LANES: usize = 16;

/// Adding 1.5 * 2^23 to a number below 2^22 rounds it, ties to even, and leaves the integer in its lowest bits.
pub(super) const ROUNDING: f32 = 12_582_912.0;

/// f32 arithmetic of an instruction set.
///
/// # Safety
/// What reads and writes memory must touch `LANES` values, no more; `LANES` must not exceed `MAX_LANES`.
pub(super) unsafe trait Simd: Token {
    /// A vector of `LANES` f32.
    type F: Copy;
    /// Lanes of a vector, at most `MAX_LANES`.
    const LANES: usize;
    /// The tiles of products; see `tiles!`, which makes this and `in_tile`.
    const TILES: &'static [Tile];
    /// Rows and vectors of attention's tile; see `attention_tile!`, which makes this and `in_attention_tile`.
    /// Heights divide the usual head sizes.
    const ATTENTION_TILE: (usize, usize);

    /// Runs `kernel` with the tile that is `vectors` wide, for this set or one with the same tiles.
    fn in_tile<T, K: TileKernel<T>>(vectors: usize, token: T, kernel: K);

    /// Runs `kernel` with the tile of attention.
    fn in_attention_tile<T, K: TileKernel<T>>(token: T, kernel: K);

    /// # Safety
    /// `from` must be readable for `LANES` f32; no alignment is required.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// # Safety
    /// `to` must be writable for `LANES` f32; no alignment is required.
    unsafe fn store(self, to: *mut f32, x: Self::F);

    fn splat(self, x: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once where the set has it.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// 2^n for integral n in [-126, 127].
    fn pow2(self, n: Self::F) -> Self::F;
    /// x * 2^n, with n in the form that [`Self::split`] gives it; x and the result must be normal.
    fn scale_by_power(self, x: Self::F, n: Self::F) -> Self::F;
    /// Writes `LANES` bytes: each lane rounded to nearest, ties to even; lanes must lie in [0, 255].
    ///
    /// # Safety
    /// `to` must be writable for `LANES` bytes.
    unsafe fn store_u8(self, to: *mut u8, x: Self::F);

    /// Asks for the cache line at `from`, which may be any address, to be read soon.
    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}

    /// Asks for the cache line at `to`, which may be any address, to be written soon.
    #[inline(always)]
    fn prefetch_to_write(self, _to: *const u8) {}

    /// See [`accumulate_singly`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        a: [*const f32; MR],
        a_step: usize,
        b: *const f32,
        depth: usize,
        acc: [[Self::F; NV]; MR],
    ) -> [[Self::F; NV]; MR] {
        // SAFETY: the caller's promise.
        unsafe { accumulate_singly(self, a, a_step, b, depth, acc) }
    }

    /// The nearest integer for |x| < 2^22, ties to even.
    #[inline(always)]
    fn round(self, x: Self::F) -> Self::F {
        let rounding = self.splat(ROUNDING);
        self.sub(self.add(x, rounding), rounding)
    }

    /// r and n, whose sum is x and of which n is the nearest integer, here with [`ROUNDING`] added to it. x below -126
    /// may count as -126.
    #[inline(always)]
    fn split(self, x: Self::F) -> (Self::F, Self::F) {
        let rounding = self.splat(ROUNDING);
        let x = self.max(x, self.splat(-126.0));
        let n = self.add(x, rounding);
        (self.sub(x, self.sub(n, rounding)), n)
    }

    /// The first `LANES` values of `from`; panics if there are fewer.
    #[inline(always)]
    fn read(self, from: &[f32]) -> Self::F {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice holds LANES values.
        unsafe { self.load(from.as_ptr()) }
    }

    /// Writes to the first `LANES` values of `to`; panics if there are fewer.
    #[inline(always)]
    fn write(self, to: &mut [f32], x: Self::F) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice holds LANES values.
        unsafe { self.store(to.as_mut_ptr(), x) }
    }

    /// All values of `from`, at most `LANES`, then zeros.
    #[inline(always)]
    fn read_up_to(self, from: &[f32]) -> Self::F {
        if from.len() == Self::LANES {
            return self.read(from);
        }
        let mut lanes = [0.0; MAX_LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.read(&lanes)
    }

    /// Writes as many lanes as `to` holds, at most `LANES`.
    #[inline(always)]
    fn write_up_to(self, to: &mut [f32], x: Self::F) {
        if to.len() == Self::LANES {
            self.write(to, x);
        } else {
            to.copy_from_slice(&self.lanes(x)[..to.len()]);
        }
    }

    /// The lanes as an array; those beyond `LANES` are zero.
    #[inline(always)]
    fn lanes(self, x: Self::F) -> [f32; MAX_LANES] {
        let mut lanes = [0.0; MAX_LANES];
        self.write(&mut lanes, x);
        lanes
    }

    /// The sum of all lanes, in a fixed order.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        self.fold(x, |a, b| a + b)
    }

    /// The least lane.
    #[inline(always)]
    fn least(self, x: Self::F) -> f32 {
        self.fold(x, |a, b| if b < a { b } else { a })
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest(self, x: Self::F) -> f32 {
        self.fold(x, |a, b| if b > a { b } else { a })
    }

    /// All lanes made one by halves, which compilers take as vectors: lane after lane takes ten times as long.
    #[inline(always)]
    fn fold(self, x: Self::F, join: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = self.lanes(x);
        let mut len = const {
            assert!(Self::LANES.is_power_of_two());
            Self::LANES
        };
        while len > 1 {
            len /= 2;
            for lane in 0..len {
                lanes[lane] = join(lanes[lane], lanes[lane + len]);
            }
        }
        lanes[0]
    }
}

/// Work with f32 vectors to be compiled once per instruction set.
pub(super) trait Kernel {
    type Output;
    /// Implementations must be `#[inline(always)]`, or the work is compiled for the baseline.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` compiled for `simd`.
pub(super) fn vectorize<S: Simd, K: Kernel>(simd: S, kernel: K) -> K::Output {
    struct With<S, K>(S, K);
    impl<S: Simd, K: Kernel> Work for With<S, K> {
        type Output = K::Output;
        #[inline(always)]
        fn run(self) -> K::Output {
            self.1.run(self.0)
        }
    }
    simd.compiled(With(simd, kernel))
}
/// `acc[i][v] += sum over k of a[i][k * a_step] * b[k][v]`, where `b` is `[depth][NV]` vectors.
///
/// Every product is added in order of k, so the result depends on nothing but the operands. This is what
/// [`Simd::accumulate`] does, for sets that know no faster way.
///
/// # Safety
/// Each `a[i]` must be readable at `k * a_step` for all `k < depth`, and `b` for `depth * NV * S::LANES` f32.
#[inline(always)]
pub(super) unsafe fn accumulate_singly<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    a: [*const f32; MR],
    a_step: usize,
    b: *const f32,
    depth: usize,
    mut acc: [[S::F; NV]; MR],
) -> [[S::F; NV]; MR] {
    let mut b = b;
    let mut offset = 0usize;
    for _ in 0..depth {
        let mut columns = [simd.splat(0.0); NV];
        for (v, column) in columns.iter_mut().enumerate() {
            // SAFETY: within the `depth * NV` vectors promised for `b`.
            *column = unsafe { simd.load(b.add(v * S::LANES)) };
        }
        for i in 0..MR {
            // SAFETY: `offset` is `k * a_step` with `k < depth`, as promised for `a`.
            let x = simd.splat(unsafe { *a[i].add(offset) });
            for v in 0..NV {
                acc[i][v] = simd.mul_add(x, columns[v], acc[i][v]);
            }
        }
        // Wrapping steps, because the last may leave the allocation.
        b = b.wrapping_add(NV * S::LANES);
        offset = offset.wrapping_add(a_step);
    }
    acc
}
