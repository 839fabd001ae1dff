//! Cholesky's factorization of large matrices, and the symmetric products it takes, by the f32 product kernels.

use rayon::prelude::*;

use crate::kernels::{Epilogue, Gather, Isa, PackedF32};

/// Columns that are factored at a time.
pub const BLOCK: usize = 128;

/// Columns of a symmetric product that are computed at a time: its results take as many times the matrix's side.
const PANEL: usize = 512;

/// `[m][n]`, the products of the rows of `left`, `[m][depth]`, with those of `right`, `[n][depth]`.
pub fn products(isa: Isa, left: &[f32], right: &[f32], depth: usize) -> Vec<f32> {
    let (m, n) = (left.len() / depth, right.len() / depth);
    let mut output = vec![0.0; m * n];
    if m > 0 && n > 0 {
        let packed = PackedF32::pack(right, n, 1, depth, isa);
        packed.apply(left, &Gather::identity(m), &Epilogue::default(), &mut output);
    }
    output
}

/// Adds `factor` times the products of `rows`, `[m][depth]`, with each other to the last m rows and columns of `matrix`,
/// `[side][side]`, on its diagonal and below.
pub fn add_symmetric(isa: Isa, rows: &[f32], depth: usize, factor: f32, matrix: &mut [f32], side: usize) {
    let offset = side - rows.len() / depth;
    for first in (offset..side).step_by(PANEL) {
        let end = (first + PANEL).min(side);
        let below = &rows[(first - offset) * depth..];
        let products = products(isa, below, &below[..(end - first) * depth], depth);
        let sums = matrix[first * side..].par_chunks_exact_mut(side).enumerate();
        sums.zip(products.par_chunks_exact(end - first)).for_each(|((row, sums), products)| {
            for (sum, product) in sums[first..end.min(first + row + 1)].iter_mut().zip(products) {
                *sum += factor * product;
            }
        });
    }
}

/// Replaces a symmetric matrix, `[side][side]`, of which only the diagonal and what is below it is read, by the lower
/// triangular L for which it is L times L transposed; what is above the diagonal is left as it was. Tells whether
/// that was possible: otherwise the matrix is not positive definite, and what is in its place is of no use.
#[must_use]
pub fn factor(isa: Isa, matrix: &mut [f32], side: usize) -> bool {
    for start in (0..side).step_by(BLOCK) {
        let end = (start + BLOCK).min(side);
        let width = end - start;
        let Some(diagonal) = factor_block(matrix, side, start, width) else { return false };
        let below = &mut matrix[end * side..];
        let mut panel = vec![0.0; below.len() / side * width];
        below.par_chunks_exact_mut(side).zip(panel.par_chunks_exact_mut(width)).for_each(|(row, copy)| {
            let row = &mut row[start..end];
            for column in 0..width {
                let factors = &diagonal[column * width..][..=column];
                let sum = dot(&row[..column], &factors[..column]);
                row[column] = (row[column] - sum) / factors[column];
            }
            copy.copy_from_slice(row);
        });
        if end < side {
            add_symmetric(isa, &panel, width, -1.0, matrix, side);
        }
    }
    true
}

/// Factors the `width` rows and columns from `start` on in f64, and gives a dense copy of the factor.
fn factor_block(matrix: &mut [f32], side: usize, start: usize, width: usize) -> Option<Vec<f32>> {
    let mut block = vec![0.0f64; width * width];
    for row in 0..width {
        for column in 0..=row {
            let products = block[row * width..][..column].iter().zip(&block[column * width..][..column]);
            let sum: f64 = products.map(|(a, b)| a * b).sum();
            let rest = f64::from(matrix[(start + row) * side + start + column]) - sum;
            block[row * width + column] = if column < row {
                rest / block[column * width + column]
            } else if rest > 0.0 && rest.is_finite() {
                rest.sqrt()
            } else {
                return None;
            };
        }
    }
    let block: Vec<f32> = block.into_iter().map(|value| value as f32).collect();
    for (row, values) in block.chunks_exact(width).enumerate() {
        matrix[(start + row) * side + start..][..=row].copy_from_slice(&values[..=row]);
    }
    Some(block)
}

/// Of a matrix, on one side of its diagonal.
#[derive(Clone, Copy, PartialEq)]
pub enum Half {
    Lower,
    Upper,
}

/// Copies one half to the other.
pub fn mirror(matrix: &mut [f32], side: usize, from: Half) {
    for row in 0..side {
        for column in 0..row {
            let (lower, upper) = (row * side + column, column * side + row);
            match from {
                Half::Lower => matrix[upper] = matrix[lower],
                Half::Upper => matrix[lower] = matrix[upper],
            }
        }
    }
}

/// The sum of products, in eight sums that run on vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn a_factor_times_itself_is_the_matrix() {
        // One block, whole blocks, a rest, several panels.
        for side in [1, 7, 128, 300, 700] {
            let depth = side + 20;
            let rows = noise(side * depth);
            let mut matrix = vec![0.0; side * side];
            add_symmetric(Isa::best(), &rows, depth, 1.0, &mut matrix, side);
            let expected = matrix.clone();
            assert!(factor(Isa::best(), &mut matrix, side));
            let lower = |row: usize, column: usize| f64::from(matrix[row * side + column]);
            for row in (0..side).step_by(37).chain([side - 1]) {
                for column in (0..=row).step_by(11) {
                    let found: f64 = (0..=column).map(|at| lower(row, at) * lower(column, at)).sum();
                    let by_hand = rows[row * depth..][..depth].iter().zip(&rows[column * depth..][..depth]);
                    let by_hand: f64 = by_hand.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let tolerance = 1e-4 * f64::from(expected[0]);
                    assert!((by_hand - f64::from(expected[row * side + column])).abs() < tolerance);
                    assert!((found - by_hand).abs() < tolerance, "{side}: {row} {column}: {found} {by_hand}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_has_no_factor() {
        assert!(!factor(Isa::best(), &mut [1.0, 0.0, 2.0, 1.0], 2));
        assert!(!factor(Isa::best(), &mut [0.0], 1));
        assert!(!factor(Isa::best(), &mut [f32::NAN], 1));
    }
}
