//! What the sets of x86-64 have in common in form: tokens, and memory access of vectors.

/// A token of these features and of those of the token it holds, all of which have to be named.
macro_rules! x86_token {
    ($(#[$doc:meta])* $name:ident($base:ty): $($feature:tt),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name($base);

        // SAFETY: `detect` is the only constructor, and looks for what `compiled` enables.
        unsafe impl Token for $name {
            fn detect() -> Option<Self> {
                let found = $(is_x86_feature_detected!($feature))&&+;
                <$base>::detect().filter(|_| found).map(Self)
            }

            #[inline]
            fn compiled<W: Work>(self, work: W) -> W::Output {
                $(#[target_feature(enable = $feature)])+
                fn compiled<W: Work>(work: W) -> W::Output {
                    work.run()
                }
                // SAFETY: a token exists only where its instructions do.
                unsafe { compiled(work) }
            }
        }
    };
}

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

pub(super) use {memory, x86_token};
