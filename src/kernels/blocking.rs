//! How a product is cut: panel widths, chunks of rows, and the order of the pieces; the arithmetic is in the products.

use std::ops::Range;

use super::isa::Isa;
use super::simd::{Kernel, Simd};

/// Rows of a chunk at most: a multiple of every tile height (6, 8), so that only the last chunk has
/// overhanging tiles; its sums, 192 x 64 f32, fit in L2 beside the rows they come from.
const CHUNK_ROWS: usize = 192;
/// The least common multiple of the tile heights.
pub(super) const TILE_HEIGHTS: usize = 24;

struct VectorShape;

impl Kernel for VectorShape {
    type Output = (usize, usize);
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize) {
        (S::LANES, S::REGISTERS)
    }
}

/// Vectors and columns of a panel for `out` columns: the width that does least work, counting the columns
/// that overhang and the lower reuse of narrow panels.
pub(super) fn panel(isa: Isa, out: usize) -> (usize, usize) {
    let (lanes, registers) = isa.run(VectorShape);
    // Cost of a vector of columns, in percent of the widest panel's.
    let widths: &[(usize, usize)] =
        if registers == 32 { &[(4, 100), (3, 100), (2, 106), (1, 130)] } else { &[(2, 100), (1, 125)] };
    let cost = |&&(vectors, percent): &&(usize, usize)| out.div_ceil(vectors * lanes) * vectors * percent;
    let (vectors, _) = widths.iter().min_by_key(cost).expect("not empty");
    (*vectors, vectors * lanes)
}

/// Which columns of weights lie in which panel.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    /// Vectors of a panel's width.
    pub vectors: usize,
    /// Columns of weights in a panel.
    pub width: usize,
    /// Columns of the output.
    pub out: usize,
    /// Whether each output column has two of weights, a value and a gate. A panel then has the values of some
    /// output columns in its first half and their gates in its second.
    pub gated: bool,
}

impl Panels {
    pub fn plain(isa: Isa, out: usize) -> Self {
        let (vectors, width) = panel(isa, out);
        Self { vectors, width, out, gated: false }
    }

    /// Panels of an even number of vectors for `out` values and as many gates.
    pub fn gated(isa: Isa, out: usize) -> Self {
        let (lanes, registers) = isa.run(VectorShape);
        let vectors = if registers == 32 { 4 } else { 2 };
        Self { vectors, width: vectors * lanes, out, gated: true }
    }

    /// Columns of weights: the output's, or those of its values and then those of its gates.
    pub fn weight_columns(&self) -> usize {
        if self.gated { 2 * self.out } else { self.out }
    }

    /// Output columns of a panel.
    fn out_width(&self) -> usize {
        if self.gated { self.width / 2 } else { self.width }
    }

    pub fn count(&self) -> usize {
        self.out.div_ceil(self.out_width())
    }

    /// The columns of weights in a panel: where each lies there, and its number.
    pub fn members(&self, panel: usize) -> impl Iterator<Item = (usize, usize)> {
        let columns = self.columns(panel);
        let (out, first, half) = (self.out, columns.start, self.out_width());
        let values = columns.clone().map(move |column| (column - first, column));
        let gates = columns.map(move |column| (half + column - first, out + column));
        values.chain(gates.take(if self.gated { usize::MAX } else { 0 }))
    }

    /// The output columns of a panel.
    pub fn columns(&self, panel: usize) -> Range<usize> {
        panel * self.out_width()..((panel + 1) * self.out_width()).min(self.out)
    }
}

/// A product's pieces: chunks of rows by panels of columns.
pub(super) struct Blocks {
    rows: usize,
    chunk: usize,
    chunks: usize,
    panels: usize,
}

impl Blocks {
    pub fn new(rows: usize, panels: usize) -> Self {
        let chunks = rows.div_ceil(CHUNK_ROWS).max(1);
        let chunk = rows.div_ceil(chunks).next_multiple_of(TILE_HEIGHTS);
        Self { rows, chunk, chunks: rows.div_ceil(chunk), panels }
    }

    pub fn count(&self) -> usize {
        self.chunks * self.panels
    }

    /// First and end row and the panel of piece `index`. Neighbouring indices share their chunk of rows, or
    /// their panel if `panels_first`: whichever of input and weights is larger should be read once.
    pub fn block(&self, index: usize, panels_first: bool) -> (usize, usize, usize) {
        let (chunk, panel) = if panels_first {
            (index % self.chunks, index / self.chunks)
        } else {
            (index / self.panels, index % self.panels)
        };
        let first = chunk * self.chunk;
        (first, (first + self.chunk).min(self.rows), panel)
    }
}
