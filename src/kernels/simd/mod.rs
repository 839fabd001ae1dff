//! Vectors of f32 as one trait with one implementation per instruction set; detection is in `isa`, formulas are in `math`.

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// The widest vector of any implementation, in f32 lanes.
pub(super) const MAX_LANES: usize = 16;

/// A token of an instruction set: a value exists only where the processor has it.
///
/// The arithmetic methods are safe because of that. They are fast only when inlined into a function
/// compiled for the set, that is, below [`Simd::vectorize`]; hence `inline(always)` on everything generic
/// over this trait, and no closures that take vectors: one left as a call is compiled for the baseline.
///
/// # Safety
/// Implementors must be constructible only after their instructions have been detected.
pub(super) unsafe trait Simd: Copy + Send + Sync + 'static {
    /// A vector of `LANES` f32.
    type F: Copy;
    /// Lanes of a vector, at most `MAX_LANES`.
    const LANES: usize;
    /// Architectural vector registers: how large a tile of accumulators may be.
    const REGISTERS: usize;

    /// Runs `kernel` compiled for this set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

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
    /// Writes `LANES` bytes: each lane rounded to nearest, ties to even; lanes must lie in [0, 255].
    ///
    /// # Safety
    /// `to` must be writable for `LANES` bytes.
    unsafe fn store_u8(self, to: *mut u8, x: Self::F);

    /// The nearest integer for |x| < 2^22, ties to even: adding 1.5 * 2^23 leaves no bits for a fraction.
    #[inline(always)]
    fn round(self, x: Self::F) -> Self::F {
        let magic = self.splat(12_582_912.0);
        self.sub(self.add(x, magic), magic)
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
        self.lanes(x)[..Self::LANES].iter().sum()
    }

    /// The least lane.
    #[inline(always)]
    fn least(self, x: Self::F) -> f32 {
        self.lanes(x)[..Self::LANES].iter().copied().fold(f32::INFINITY, f32::min)
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest(self, x: Self::F) -> f32 {
        self.lanes(x)[..Self::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Work to be compiled once per instruction set.
pub(super) trait Kernel {
    type Output;
    /// Implementations must be `#[inline(always)]`, or the work is compiled for the baseline.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
