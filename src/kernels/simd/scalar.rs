//! Vectors as arrays, for processors without an implementation of their own and as a check of the others.

use super::{Kernel, Simd};

/// Any processor.
#[derive(Clone, Copy, Debug)]
pub struct Scalar(());

impl Scalar {
    pub fn new() -> Self {
        Self(())
    }
}

/// Methods that work lane by lane.
macro_rules! lanewise {
    ($($name:ident($($arg:ident),*) = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: Self::F),*) -> Self::F {
            std::array::from_fn(|lane| {
                $(let $arg = $arg[lane];)*
                $body
            })
        })*
    };
}

// SAFETY: no instructions beyond the target's are used.
unsafe impl Simd for Scalar {
    type F = [f32; 4];
    const LANES: usize = 4;
    const REGISTERS: usize = 16;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller's promise; an array has its element's alignment.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: the caller's promise; an array has its element's alignment.
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 4]
    }

    lanewise! {
        add(a, b) = a + b;
        sub(a, b) = a - b;
        mul(a, b) = a * b;
        div(a, b) = a / b;
        min(a, b) = if a < b { a } else { b };
        max(a, b) = if a > b { a } else { b };
        mul_add(a, b, c) = a * b + c;
        pow2(n) = f32::from_bits(((n as i32 + 127) as u32) << 23);
    }

    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, x: Self::F) {
        let bytes = x.map(|lane| lane.round_ties_even() as u8);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; 4]>().write(bytes) }
    }
}
