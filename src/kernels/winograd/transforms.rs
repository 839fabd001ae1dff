//! The three transforms of F(4x4, 3x3) on vectors of channels; which pixels they meet is for the parent to say.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), with interpolation points
//! 0, 1, -1, 2, -2 and infinity.

use crate::kernels::simd::Simd;

/// Side of a tile of outputs.
pub(super) const OUTPUT_SIDE: usize = 4;
/// Side of the tile of inputs that they depend on.
pub(super) const INPUT_SIDE: usize = 6;
/// Products per tile and pair of channels.
pub(super) const COMPONENTS: usize = INPUT_SIDE * INPUT_SIDE;

/// B^T d B.
#[inline(always)]
pub(super) fn input<S: Simd>(simd: S, d: [[S::F; 6]; 6]) -> [[S::F; 6]; 6] {
    let mut half = [[simd.splat(0.0); 6]; 6];
    for x in 0..6 {
        let column = input_line(simd, [d[0][x], d[1][x], d[2][x], d[3][x], d[4][x], d[5][x]]);
        for y in 0..6 {
            half[y][x] = column[y];
        }
    }
    for row in &mut half {
        *row = input_line(simd, *row);
    }
    half
}

/// B^T d, with
/// ```text
///       4  0 -5  0  1  0
///       0 -4 -4  1  1  0
/// B^T = 0  4 -4 -1  1  0
///       0 -2 -1  2  1  0
///       0  2 -1 -2  1  0
///       0  4  0 -5  0  1
/// ```
#[inline(always)]
fn input_line<S: Simd>(simd: S, d: [S::F; 6]) -> [S::F; 6] {
    let (four, minus_five, minus_four, two) =
        (simd.splat(4.0), simd.splat(-5.0), simd.splat(-4.0), simd.splat(2.0));
    let even = simd.mul_add(d[2], minus_four, d[4]);
    let odd = simd.mul_add(d[1], minus_four, d[3]);
    let even_2 = simd.sub(d[4], d[2]);
    let odd_2 = simd.mul(simd.sub(d[3], d[1]), two);
    [
        simd.mul_add(d[0], four, simd.mul_add(d[2], minus_five, d[4])),
        simd.add(even, odd),
        simd.sub(even, odd),
        simd.add(even_2, odd_2),
        simd.sub(even_2, odd_2),
        simd.mul_add(d[1], four, simd.mul_add(d[3], minus_five, d[5])),
    ]
}

/// G g G^T.
#[inline(always)]
pub(super) fn weight<S: Simd>(simd: S, g: [[S::F; 3]; 3]) -> [[S::F; 6]; 6] {
    let mut columns = [[simd.splat(0.0); 6]; 3];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = weight_line(simd, [g[0][x], g[1][x], g[2][x]]);
    }
    let mut out = [[simd.splat(0.0); 6]; 6];
    for (y, row) in out.iter_mut().enumerate() {
        *row = weight_line(simd, [columns[0][y], columns[1][y], columns[2][y]]);
    }
    out
}

/// G g, with
/// ```text
///      1/4     0    0
///     -1/6  -1/6 -1/6
/// G = -1/6   1/6 -1/6
///     1/24  1/12  1/6
///     1/24 -1/12  1/6
///        0     0    1
/// ```
#[inline(always)]
fn weight_line<S: Simd>(simd: S, g: [S::F; 3]) -> [S::F; 6] {
    let (sixth, twelfth) = (simd.splat(1.0 / 6.0), simd.splat(1.0 / 12.0));
    let even = simd.mul(simd.add(g[0], g[2]), simd.splat(-1.0 / 6.0));
    let odd = simd.mul(g[1], sixth);
    let even_2 = simd.mul_add(g[0], simd.splat(1.0 / 24.0), simd.mul(g[2], sixth));
    let odd_2 = simd.mul(g[1], twelfth);
    [
        simd.mul(g[0], simd.splat(0.25)),
        simd.sub(even, odd),
        simd.add(even, odd),
        simd.add(even_2, odd_2),
        simd.sub(even_2, odd_2),
        g[2],
    ]
}

/// A^T m A.
#[inline(always)]
pub(super) fn output<S: Simd>(simd: S, m: [[S::F; 6]; 6]) -> [[S::F; 4]; 4] {
    let mut half = [[simd.splat(0.0); 6]; 4];
    for x in 0..6 {
        let column = output_line(simd, [m[0][x], m[1][x], m[2][x], m[3][x], m[4][x], m[5][x]]);
        for y in 0..4 {
            half[y][x] = column[y];
        }
    }
    let mut out = [[simd.splat(0.0); 4]; 4];
    for (out, half) in out.iter_mut().zip(&half) {
        *out = output_line(simd, *half);
    }
    out
}

/// A^T m, with
/// ```text
///       1  1  1  1  1  0
/// A^T = 0  1 -1  2 -2  0
///       0  1  1  4  4  0
///       0  1 -1  8 -8  1
/// ```
#[inline(always)]
fn output_line<S: Simd>(simd: S, m: [S::F; 6]) -> [S::F; 4] {
    let (sum, difference) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
    let (sum_2, difference_2) = (simd.add(m[3], m[4]), simd.sub(m[3], m[4]));
    [
        simd.add(m[0], simd.add(sum, sum_2)),
        simd.mul_add(difference_2, simd.splat(2.0), difference),
        simd.mul_add(sum_2, simd.splat(4.0), sum),
        simd.add(m[5], simd.mul_add(difference_2, simd.splat(8.0), difference)),
    ]
}
