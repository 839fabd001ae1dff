//! A set in the manner of Intel's AMX, in plain arithmetic: a model that only tests have.
//!
//! `tdpbusd` sums 16 rows by a register's outputs over 64 inputs, and takes weights in fours: all outputs of
//! inputs 0 to 3, then of inputs 4 to 7. Its packing is therefore its own.

use super::plain::Plain;
use super::scalar::Scalar;
use crate::kernels::byte_product::ByteProduct;
use crate::kernels::quantized_rows::RowLayout;
use crate::kernels::simd::Simd;
use crate::kernels::tile::tiles;
use crate::kernels::token::{Token, Work};

#[derive(Clone, Copy)]
pub struct AmxModel(Scalar);

const ROWS: usize = 16;
const LANES: usize = Scalar::LANES;

// SAFETY: no instructions beyond the target's are used.
unsafe impl Token for AmxModel {
    fn detect() -> Option<Self> {
        Scalar::detect().map(Self)
    }

    fn compiled<W: Work>(self, work: W) -> W::Output {
        work.run()
    }
}

// SAFETY: rows and weights are read group by group, as promised.
unsafe impl ByteProduct for AmxModel {
    type Simd = Scalar;
    type Words = Plain<Scalar>;
    type Sums = [i32; LANES];
    const ROWS: RowLayout = RowLayout { group: 64, together: 1, signed: false };
    const MAY_SATURATE: bool = false;
    const LINE: usize = 4;
    const RATE: f64 = 1.0;

    tiles! { 16 x 2 at 100, 16 x 1 at 110 }

    fn simd(self) -> Scalar {
        self.0
    }

    fn words(self) -> Plain<Scalar> {
        Plain(self.0)
    }

    fn pack_column(weights: &[i8], column: usize, width: usize, panel: &mut [i8]) {
        for (number, four) in weights.chunks(4).enumerate() {
            panel[(number * width + column) * 4..][..four.len()].copy_from_slice(four);
        }
    }

    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
    ) -> [[[i32; LANES]; NV]; MR] {
        const { assert!(MR == ROWS) };
        let mut acc = [[[0; LANES]; NV]; MR];
        for group in 0..groups {
            for v in 0..NV {
                for four in 0..16 {
                    let at = ((group * 16 + four) * NV + v) * LANES * 4;
                    // SAFETY: four inputs of LANES of the `NV * LANES` outputs of group `group`.
                    let w = unsafe { weights.add(at).cast::<[[i8; 4]; LANES]>().read() };
                    for (row, acc) in rows.iter().zip(&mut acc) {
                        // SAFETY: four inputs of group `group` of the row.
                        let a = unsafe { row.add(group * 64 + four * 4).cast::<[u8; 4]>().read() };
                        for (sum, w) in acc[v].iter_mut().zip(&w) {
                            *sum += a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum::<i32>();
                        }
                    }
                }
            }
        }
        acc
    }

    unsafe fn settle(self, sums: [i32; LANES], zero_point: i32, column_sums: *const i32) -> [f32; LANES] {
        std::array::from_fn(|lane| {
            // SAFETY: the caller's promise.
            (sums[lane] - zero_point * unsafe { *column_sums.add(lane) }) as f32
        })
    }
}
