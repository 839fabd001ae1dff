//! Second moments of what a layer reads: the sums from which learned rounding knows which errors cancel.

use std::ops::Range;

use rayon::prelude::*;

use super::cholesky::add_symmetric;
use crate::kernels::Isa;

/// Rows that are gathered before they are multiplied.
const BATCH: usize = 512;

/// Columns whose products with each other are kept: those of a 3x3 convolution over 1280 channels. Wider layers are
/// taken in parts, between which nothing is known.
const WIDEST: usize = 11520;

/// Sums of products of the columns of some rows, `[inputs][taps]` each.
pub struct Moments {
    isa: Isa,
    inputs: usize,
    taps: usize,
    rows: usize,
    /// Of each column.
    sums: Vec<f64>,
    parts: Vec<Part>,
    /// `[BATCH][columns]`, of which `waiting` rows have not been multiplied yet.
    batch: Vec<f32>,
    waiting: usize,
}

/// The products of some columns with each other.
pub struct Part {
    pub columns: Range<usize>,
    /// `[columns][columns]`, on the diagonal and below.
    pub products: Vec<f32>,
}

impl Moments {
    pub fn new(isa: Isa, inputs: usize, taps: usize) -> Self {
        let parts = parts(inputs, taps).into_iter();
        let parts = parts.map(|columns| Part { products: vec![0.0; columns.len().pow(2)], columns });
        let columns = inputs * taps;
        Self {
            isa,
            inputs,
            taps,
            rows: 0,
            sums: vec![0.0; columns],
            parts: parts.collect(),
            batch: vec![0.0; BATCH * columns],
            waiting: 0,
        }
    }

    /// Bytes that those of such a layer take.
    pub fn bytes(inputs: usize, taps: usize) -> usize {
        let products: usize = parts(inputs, taps).iter().map(|columns| columns.len().pow(2)).sum();
        size_of::<f32>() * (products + BATCH * inputs * taps)
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn taps(&self) -> usize {
        self.taps
    }

    /// Adds `count` rows, which `write` writes by their numbers.
    pub fn add(&mut self, count: usize, write: impl Fn(usize, &mut [f32]) + Sync) {
        let columns = self.sums.len();
        let mut first = 0;
        while first < count {
            let many = (BATCH - self.waiting).min(count - first);
            let rows = self.batch[self.waiting * columns..].par_chunks_exact_mut(columns).take(many);
            rows.enumerate().for_each(|(row, to)| write(first + row, to));
            self.waiting += many;
            first += many;
            if self.waiting == BATCH {
                self.multiply();
            }
        }
    }

    fn multiply(&mut self) {
        let (columns, depth) = (self.sums.len(), self.waiting);
        if depth == 0 {
            return;
        }
        let batch = &self.batch[..depth * columns];
        let mut turned = vec![0.0; depth * columns];
        turned.par_chunks_exact_mut(depth).zip(&mut self.sums).enumerate().for_each(|(column, (to, sum))| {
            for (to, row) in to.iter_mut().zip(batch.chunks_exact(columns)) {
                *to = row[column];
                *sum += f64::from(*to);
            }
        });
        for Part { columns, products } in &mut self.parts {
            let rows = &turned[columns.start * depth..columns.end * depth];
            add_symmetric(self.isa, rows, depth, 1.0, products, columns.len());
        }
        self.rows += depth;
        self.waiting = 0;
    }

    /// The sums of everything that was added.
    pub fn finish(mut self) -> Finished {
        self.multiply();
        let count = self.rows.max(1) as f64;
        let mut squares = vec![0.0; self.sums.len()];
        for Part { columns, products } in &self.parts {
            for (at, column) in columns.clone().enumerate() {
                squares[column] = (f64::from(products[at * columns.len() + at]) / count) as f32;
            }
        }
        if squares.iter().all(|square| *square == 0.0) {
            // Of inputs that never were anything, one counts like the other.
            squares.fill(1.0);
        }
        Finished {
            isa: self.isa,
            inputs: self.inputs,
            taps: self.taps,
            rows: self.rows,
            means: self.sums.iter().map(|sum| (sum / count) as f32).collect(),
            squares,
            parts: self.parts,
        }
    }
}

/// Moments to which nothing is added any more.
pub struct Finished {
    pub isa: Isa,
    pub inputs: usize,
    pub taps: usize,
    /// How many there were.
    pub rows: usize,
    /// Of each column.
    pub means: Vec<f32>,
    /// The means of the columns' squares; ones if all are zero.
    pub squares: Vec<f32>,
    pub parts: Vec<Part>,
}

/// Whole inputs, about as many in each part.
fn parts(inputs: usize, taps: usize) -> Vec<Range<usize>> {
    let most = (WIDEST / taps).max(1);
    let step = inputs.div_ceil(inputs.div_ceil(most).max(1));
    (0..inputs).step_by(step.max(1)).map(|first| first * taps..(first + step).min(inputs) * taps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_layers_are_taken_in_parts() {
        assert!(parts(1280, 9).iter().eq([&(0..11520)]));
        assert_eq!(parts(2560, 9), [0..11520, 11520..23040]);
        assert_eq!(parts(1920, 9), [0..8640, 8640..17280]);
        assert!(parts(5, 1).iter().eq([&(0..5)]));
    }

    #[test]
    fn moments_are_those_of_all_rows() {
        let value = |row: usize, column: usize| ((row * 31 + column * 17) % 23) as f32 - 8.0;
        let mut moments = Moments::new(Isa::best(), 3, 2);
        let counts = [5, 700, 0, 512, 1];
        let mut first = 0;
        for count in counts {
            moments.add(count, |row, to| {
                to.iter_mut().enumerate().for_each(|(column, to)| *to = value(first + row, column));
            });
            first += count;
        }
        let found = moments.finish();
        assert_eq!(found.rows, first);
        let sum = |of: &dyn Fn(usize) -> f32| (0..first).map(|row| f64::from(of(row))).sum::<f64>();
        for column in 0..6 {
            let mean = sum(&|row| value(row, column)) / first as f64;
            assert!((f64::from(found.means[column]) - mean).abs() < 1e-4);
            for other in 0..=column {
                let product = sum(&|row| value(row, column) * value(row, other));
                assert!((f64::from(found.parts[0].products[column * 6 + other]) - product).abs() < 1.0);
            }
            let square = sum(&|row| value(row, column).powi(2)) / first as f64;
            assert!((f64::from(found.squares[column]) / square - 1.0).abs() < 1e-4);
        }
    }
}
