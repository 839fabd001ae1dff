//! Vectors as arrays, for processors without an implementation of their own and as a check of the others.

use crate::kernels::simd::Simd;
use crate::kernels::tile::{attention_tile, tiles};
use crate::kernels::token::{Token, Work};

/// Any processor.
#[derive(Clone, Copy)]
pub struct Scalar(());

// SAFETY: no instructions beyond the target's are used.
unsafe impl Token for Scalar {
    fn detect() -> Option<Self> {
        Some(Self(()))
    }

    #[inline]
    fn compiled<W: Work>(self, work: W) -> W::Output {
        work.run()
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

// SAFETY: loads and stores are those of one array.
unsafe impl Simd for Scalar {
    type F = [f32; 4];
    const LANES: usize = 4;

    tiles!(for 16 registers);
    // 10 accumulators of 16 registers: a compiler spills 12.
    attention_tile!(5 x 2);

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
        pow2(n) = f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23);
        scale_by_power(x, n) = f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23));
    }

    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, x: Self::F) {
        let bytes = x.map(|lane| lane.round_ties_even() as u8);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; 4]>().write(bytes) }
    }
}
