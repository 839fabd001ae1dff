//! Products of bytes by AMX's tiles, `tdpbusd`, beside the vectors of AVX-512: Sapphire Rapids and later.
//!
//! Instructions are assembly, because their intrinsics are not stable. The compiler never touches a tile register, so
//! what one piece of assembly leaves there the next one finds.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, __m512i};

use super::avx512::{Avx512, Avx512Vnni};
use super::tiled::{TILE_ROWS, TileUnit, Tiled};
use crate::kernels::byte_product::ByteProduct;
use crate::kernels::simd::Simd;
use crate::kernels::token::{Token, Work};

/// `tdpbusd`, and the system's leave to use tiles.
pub type Amx = Tiled<Unit>;

/// The unit that holds and multiplies tiles.
#[derive(Clone, Copy)]
pub struct Unit(Avx512Vnni);

/// What `ldtilecfg` reads: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    const ALL_FULL: Self = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            row_bytes[tile] = 64;
            rows[tile] = TILE_ROWS as u8;
            tile += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    };
}

/// Tiles in use, which are given back so that the system needn't save them.
struct Configured;

impl Configured {
    /// # Safety
    /// The processor must have tiles and the system must permit them.
    unsafe fn new() -> Self {
        static SHAPES: Shapes = Shapes::ALL_FULL;
        // SAFETY: the caller's promise; 64 bytes are read.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(readonly, nostack, preserves_flags))
        };
        Self
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: whoever made `self` has promised that there are tiles.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Asks the system for the state of tiles, which a process has only on request.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: this call touches no memory of the process.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

/// Other systems have other ways to ask, which are not known to work here.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

// SAFETY: `detect` finds AVX-512 VNNI, whose code this is compiled for, and what `Configured` needs.
unsafe impl Token for Unit {
    fn detect() -> Option<Self> {
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        let vnni = Avx512Vnni::detect()?;
        #[allow(unused_unsafe, reason = "unsafe in older compilers")]
        // SAFETY: every processor with AVX-512 has this leaf.
        let features = unsafe { __cpuid_count(7, 0) }.edx;
        (features & (TILE | INT8) == (TILE | INT8) && is_permitted()).then_some(Self(vnni))
    }

    #[inline]
    fn compiled<W: Work>(self, work: W) -> W::Output {
        // SAFETY: a token exists only where its instructions do.
        let _tiles = unsafe { Configured::new() };
        self.0.compiled(work)
    }
}

// SAFETY: tiles are read and written as `Shapes` says: 16 rows of 64 bytes.
unsafe impl TileUnit for Unit {
    type Simd = Avx512;
    type Words = Avx512Vnni;
    type Sums = __m512i;
    // 16 x 16 x 64 products in 16 cycles, where there are 32 of f32 in one.
    const RATE: f64 = 32.0;

    #[inline(always)]
    fn words(self) -> Avx512Vnni {
        self.0
    }

    #[inline(always)]
    unsafe fn clear<const TILE: usize>(self) {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilezero tmm{tile}", tile = const TILE, options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn load<const TILE: usize>(self, from: *const u8, pitch: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm{tile}, [{from} + {pitch}*1]",
                tile = const TILE,
                from = in(reg) from,
                pitch = in(reg) pitch,
                options(readonly, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn multiply<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tdpbusd tmm{sums}, tmm{rows}, tmm{weights}",
                sums = const SUMS,
                rows = const ROWS,
                weights = const WEIGHTS,
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: usize>(self, to: *mut u8, pitch: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilestored [{to} + {pitch}*1], tmm{tile}",
                tile = const TILE,
                to = in(reg) to,
                pitch = in(reg) pitch,
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn settle(
        self,
        sums: Self::Sums,
        zero_point: i32,
        column_sums: *const i32,
    ) -> <Avx512 as Simd>::F {
        // SAFETY: the caller's promise.
        unsafe { ByteProduct::settle(self.0, sums, zero_point, column_sums) }
    }
}
