//! The three transforms of F(4x4, 3x3) on vectors of channels; which pixels they meet is for the parent to say.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), with interpolation points
//! 0, 1, -1, 2, -1/2 and infinity, whose rounding errors are smaller than those of the more usual -2 (Barabasz et
//! al., "Error Analysis and Improving the Accuracy of Winograd Convolution", 2018).

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
///       1  3/2  -2 -3/2   1  0
///       0   2    5   1   -2  0
/// B^T = 0   2    1  -5    2  0
///       0  -1   -2   1    2  0
///       0   2   -1  -2    1  0
///       0   1   3/2 -2  -3/2  1
/// ```
#[inline(always)]
fn input_line<S: Simd>(simd: S, d: [S::F; 6]) -> [S::F; 6] {
    let (two, minus_two, minus_three_halves) = (simd.splat(2.0), simd.splat(-2.0), simd.splat(-1.5));
    let odd = simd.sub(d[3], d[1]);
    let even = simd.sub(d[4], d[2]);
    let first = simd.mul_add(d[2], minus_two, simd.add(d[0], d[4]));
    let last = simd.mul_add(d[3], minus_two, simd.add(d[1], d[5]));
    [
        simd.mul_add(odd, minus_three_halves, first),
        simd.mul_add(simd.sub(d[1], d[4]), two, simd.mul_add(d[2], simd.splat(5.0), d[3])),
        simd.mul_add(simd.add(d[1], d[4]), two, simd.mul_add(d[3], simd.splat(-5.0), d[2])),
        simd.mul_add(even, two, odd),
        simd.mul_add(odd, minus_two, even),
        simd.mul_add(even, minus_three_halves, last),
    ]
}

/// G g G^T.
#[inline(always)]
pub(super) fn weight<S: Simd>(simd: S, g: [[S::F; 3]; 3]) -> [[S::F; 6]; 6] {
    let columns = weight_columns(simd, g);
    let mut out = [[simd.splat(0.0); 6]; 6];
    for (y, row) in out.iter_mut().enumerate() {
        *row = weight_line(simd, [columns[0][y], columns[1][y], columns[2][y]]);
    }
    out
}

/// The columns of G g.
#[inline(always)]
pub(super) fn weight_columns<S: Simd>(simd: S, g: [[S::F; 3]; 3]) -> [[S::F; 6]; 3] {
    let mut columns = [[simd.splat(0.0); 6]; 3];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = weight_line(simd, [g[0][x], g[1][x], g[2][x]]);
    }
    columns
}

/// G g, with
/// ```text
///         1     0     0
///        1/6   1/6   1/6
/// G =    1/6  -1/6   1/6
///       1/30  1/15  2/15
///     -16/15  8/15 -4/15
///         0     0     1
/// ```
#[inline(always)]
pub(super) fn weight_line<S: Simd>(simd: S, g: [S::F; 3]) -> [S::F; 6] {
    let even = simd.mul(simd.add(g[0], g[2]), simd.splat(1.0 / 6.0));
    let odd = simd.mul(g[1], simd.splat(1.0 / 6.0));
    let two = simd.mul_add(g[1], simd.splat(1.0 / 15.0), simd.mul(g[2], simd.splat(2.0 / 15.0)));
    let minus_half = simd.mul_add(g[1], simd.splat(8.0 / 15.0), simd.mul(g[2], simd.splat(-4.0 / 15.0)));
    [
        g[0],
        simd.add(even, odd),
        simd.sub(even, odd),
        simd.mul_add(g[0], simd.splat(1.0 / 30.0), two),
        simd.mul_add(g[0], simd.splat(-16.0 / 15.0), minus_half),
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
///       1  1  1  1    1   0
/// A^T = 0  1 -1  2  -1/2  0
///       0  1  1  4   1/4  0
///       0  1 -1  8  -1/8  1
/// ```
#[inline(always)]
fn output_line<S: Simd>(simd: S, m: [S::F; 6]) -> [S::F; 4] {
    let (sum, difference) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
    let (two, minus_half) = (m[3], m[4]);
    [
        simd.add(simd.add(m[0], sum), simd.add(two, minus_half)),
        simd.mul_add(two, simd.splat(2.0), simd.mul_add(minus_half, simd.splat(-0.5), difference)),
        simd.mul_add(two, simd.splat(4.0), simd.mul_add(minus_half, simd.splat(0.25), sum)),
        simd.mul_add(
            two,
            simd.splat(8.0),
            simd.mul_add(minus_half, simd.splat(-0.125), simd.add(difference, m[5])),
        ),
    ]
}
