//! A unit of tiles in the manner of Intel's AMX, in plain arithmetic: a model that only tests have.

use std::cell::RefCell;

use super::plain::Plain;
use super::scalar::Scalar;
use super::tiled::{TILE_ROWS, TileUnit, Tiled};
use crate::kernels::simd::Simd;
use crate::kernels::token::{Token, Work};

pub type TilesModel = Tiled<Unit>;

#[derive(Clone, Copy)]
pub struct Unit(Scalar);

const LANES: usize = Scalar::LANES;

/// The registers of a thread; weights and sums have no more than `4 * LANES` bytes in a line.
type Registers = [[[u8; 64]; TILE_ROWS]; 8];

thread_local! {
    /// Unlike anything that was ever loaded.
    static REGISTERS: RefCell<Registers> = const { RefCell::new([[[0xA5; 64]; TILE_ROWS]; 8]) };
}

// SAFETY: no instructions beyond the target's are used.
unsafe impl Token for Unit {
    fn detect() -> Option<Self> {
        Scalar::detect().map(Self)
    }

    fn compiled<W: Work>(self, work: W) -> W::Output {
        work.run()
    }
}

fn sums(line: &mut [u8; 64]) -> &mut [[u8; 4]] {
    &mut line.as_chunks_mut().0[..LANES]
}

// SAFETY: lines are read and written as promised: of 64 bytes, where they are rows.
unsafe impl TileUnit for Unit {
    type Simd = Scalar;
    type Words = Plain<Scalar>;
    type Sums = [i32; LANES];
    const RATE: f64 = 1.0;

    fn words(self) -> Plain<Scalar> {
        Plain(self.0)
    }

    unsafe fn clear<const TILE: usize>(self) {
        REGISTERS.with_borrow_mut(|tiles| tiles[TILE] = [[0; 64]; TILE_ROWS]);
    }

    unsafe fn load<const TILE: usize>(self, from: *const u8, pitch: usize) {
        // Tiles from 6 on hold weights.
        let length = if TILE < 6 { 64 } else { 4 * LANES };
        REGISTERS.with_borrow_mut(|tiles| {
            for (number, line) in tiles[TILE].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let from = unsafe { std::slice::from_raw_parts(from.wrapping_add(number * pitch), length) };
                line[..length].copy_from_slice(from);
            }
        });
    }

    unsafe fn multiply<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(self) {
        REGISTERS.with_borrow_mut(|tiles| {
            let (rows, weights) = (tiles[ROWS], tiles[WEIGHTS]);
            for (row, line) in rows.iter().zip(&mut tiles[SUMS]) {
                for (lane, sum) in sums(line).iter_mut().enumerate() {
                    let mut total = i32::from_ne_bytes(*sum);
                    for (inputs, line) in row.as_chunks::<4>().0.iter().zip(&weights) {
                        let weights = line.as_chunks::<4>().0[lane];
                        let products = inputs.iter().zip(weights);
                        total +=
                            products.map(|(&a, w)| i32::from(a) * i32::from(w.cast_signed())).sum::<i32>();
                    }
                    *sum = total.to_ne_bytes();
                }
            }
        });
    }

    unsafe fn store<const TILE: usize>(self, to: *mut u8, pitch: usize) {
        REGISTERS.with_borrow_mut(|tiles| {
            for (number, line) in tiles[TILE].iter_mut().enumerate() {
                let to = to.wrapping_add(number * pitch).cast::<[[u8; 4]; LANES]>();
                let row: [[u8; 4]; LANES] = std::array::from_fn(|lane| sums(line)[lane]);
                // SAFETY: the caller's promise.
                unsafe { to.write_unaligned(row) };
            }
        });
    }

    unsafe fn settle(self, sums: [i32; LANES], zero_point: i32, column_sums: *const i32) -> [f32; LANES] {
        std::array::from_fn(|lane| {
            // SAFETY: the caller's promise.
            (sums[lane] - zero_point * unsafe { *column_sums.add(lane) }) as f32
        })
    }
}
