//! Proof that the processor has some instructions, and the entry into code compiled for them.

/// A value exists only where the processor has the instructions it stands for.
///
/// Vectors of f32 ([`super::simd::Simd`]) and products of bytes ([`super::byte_product::ByteProduct`]) are such
/// tokens with arithmetic, whose methods are safe because of that. They are fast only when inlined into
/// a function compiled for the instructions, that is, below [`Token::compiled`]; hence `inline(always)` on
/// everything generic over a token, and no closures that take vectors: one left as a call is compiled for the
/// baseline.
///
/// The crate is built without overflow checks: with them the standard library's iterators count in checked steps,
/// which are then too large to be inlined into the innermost loops.
///
/// # Safety
/// Values may come from `detect` only, which finds every instruction that `compiled` lets `work` use.
pub(super) unsafe trait Token: Copy + Send + Sync + 'static {
    /// The token, if the processor has the instructions.
    fn detect() -> Option<Self>;

    /// Runs `work` compiled for the instructions.
    fn compiled<W: Work>(self, work: W) -> W::Output;
}

/// Work to be compiled for a token that it holds.
pub(super) trait Work {
    type Output;
    /// Implementations must be `#[inline(always)]`, or the work is compiled for the baseline.
    fn run(self) -> Self::Output;
}

// SAFETY: no instructions beyond the baseline's are used.
unsafe impl Token for () {
    fn detect() -> Option<Self> {
        Some(())
    }

    #[inline(always)]
    fn compiled<W: Work>(self, work: W) -> W::Output {
        work.run()
    }
}
