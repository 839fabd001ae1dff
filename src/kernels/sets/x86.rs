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
        fn splat(self, x: f32) -> Self::F {
            // SAFETY: a token exists only where its instructions do.
            unsafe { $splat(x) }
        }
    };
}

pub(super) use memory;
