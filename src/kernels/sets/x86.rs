//! What the sets of x86-64 have in common in form: memory access of vectors.

/// Loads, stores and splats of f32 vectors.
macro_rules! memory {
    ($load:ident, $store:ident, $splat:ident) => {
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
        fn prefetch(self, from: *const u8) {
            // SAFETY: every x86-64 has the instruction, which may be given any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }

        #[inline(always)]
        fn prefetch_to_write(self, to: *const u8) {
            // SAFETY: every x86-64 has the instruction, if only as one that does nothing, and it may be given any address.
            unsafe {
                std::arch::asm!("prefetchw [{}]", in(reg) to, options(nostack, preserves_flags, readonly));
            }
        }

        #[inline(always)]
        fn splat(self, x: f32) -> Self::F {
            // SAFETY: a token exists only where its instructions do.
            unsafe { $splat(x) }
        }
    };
}

pub(super) use memory;
