//! A set in the manner of Arm's i8mm, in plain arithmetic: a model that only tests have.
//!
//! `usmmla` sums 2 rows by 2 outputs over 8 inputs. Rows lie in pairs, so that one load takes both.

use super::plain::Plain;
use super::scalar::Scalar;
use crate::kernels::bf16_product::InFloats;
use crate::kernels::byte_product::ByteProduct;
use crate::kernels::quantized_rows::RowLayout;
use crate::kernels::tile::tiles;
use crate::kernels::token::{Token, Work};

#[derive(Clone, Copy)]
pub struct SmmlaModel(Scalar);

// SAFETY: no instructions beyond the target's are used.
unsafe impl Token for SmmlaModel {
    fn detect() -> Option<Self> {
        Scalar::detect().map(Self)
    }

    fn compiled<W: Work>(self, work: W) -> W::Output {
        work.run()
    }
}

/// The instruction: `sums[2 * i + j] += a[i] . w[j]` of eight bytes each.
fn usmmla(mut sums: [i32; 4], a: [u8; 16], w: [i8; 16]) -> [i32; 4] {
    for (at, sum) in sums.iter_mut().enumerate() {
        let (a, w) = (&a[at / 2 * 8..][..8], &w[at % 2 * 8..][..8]);
        *sum += a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum::<i32>();
    }
    sums
}

// SAFETY: rows and weights are read group by group, as promised.
unsafe impl ByteProduct for SmmlaModel {
    type Simd = Scalar;
    type Words = Plain<Scalar>;
    type Bf16 = InFloats<Scalar>;
    type Sums = [i32; 4];
    const ROWS: RowLayout = RowLayout { group: 8, together: 2, signed: false };
    const MAY_SATURATE: bool = false;
    const RATE: f64 = 1.0;

    tiles! { 4 x 2 at 100, 2 x 1 at 120 }

    fn simd(self) -> Scalar {
        self.0
    }

    fn words(self) -> Plain<Scalar> {
        Plain(self.0)
    }

    fn bf16(self) -> InFloats<Scalar> {
        InFloats(self.0)
    }

    unsafe fn accumulate<const MR: usize, const NV: usize>(
        self,
        rows: [*const u8; MR],
        weights: *const i8,
        groups: usize,
    ) -> [[[i32; 4]; NV]; MR] {
        const { assert!(MR.is_multiple_of(2)) };
        // Until the end, the sums of a pair of rows and four outputs lie as the instruction leaves them: those
        // of outputs 0 and 1 where the first row's belong, those of 2 and 3 where the second's do.
        let mut acc = [[[0; 4]; NV]; MR];
        for group in 0..groups {
            for pair in (0..MR).step_by(2) {
                let at = group * Self::ROWS.step();
                let first = rows[pair].wrapping_add(at);
                let second = rows[pair + 1].wrapping_add(at);
                let a = if second == first.wrapping_add(8) {
                    // SAFETY: group `group` of both rows.
                    unsafe { first.cast::<[u8; 16]>().read() }
                } else {
                    let mut both = [0; 16];
                    // SAFETY: group `group` of each row.
                    unsafe {
                        both[..8].copy_from_slice(&first.cast::<[u8; 8]>().read());
                        both[8..].copy_from_slice(&second.cast::<[u8; 8]>().read());
                    }
                    both
                };
                for half in 0..2 {
                    for (v, sums) in acc[pair + half].iter_mut().enumerate() {
                        let at = ((group * NV + v) * 4 + 2 * half) * 8;
                        // SAFETY: two of the `NV * 4` outputs of group `group`.
                        let w = unsafe { weights.add(at).cast::<[i8; 16]>().read() };
                        *sums = usmmla(*sums, a, w);
                    }
                }
            }
        }
        for [first, second] in acc.as_chunks_mut::<2>().0 {
            for (first, second) in first.iter_mut().zip(second) {
                let ([a, b, e, f], [c, d, g, h]) = (*first, *second);
                (*first, *second) = ([a, b, c, d], [e, f, g, h]);
            }
        }
        acc
    }

    unsafe fn settle(self, sums: [i32; 4], zero_point: i32, column_sums: *const i32) -> [f32; 4] {
        std::array::from_fn(|lane| {
            // SAFETY: the caller's promise.
            (sums[lane] - zero_point * unsafe { *column_sums.add(lane) }) as f32
        })
    }
}
