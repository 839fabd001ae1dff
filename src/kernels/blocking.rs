//! How a product is cut: panel widths, chunks of rows, and the order of the pieces; the arithmetic is in the products.

use std::ops::Range;

use super::tile::Tile;

/// Rows of a chunk at most, rounded up to whole tiles: sums of 192 x 64 f32 fit in L2 beside the rows they come
/// from.
const CHUNK_ROWS: usize = 192;

/// The tiles that an instruction set has for a product.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    /// Columns of a vector.
    pub lanes: usize,
    pub tiles: &'static [Tile],
}

/// What a product's weights are, however they are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Columns of the output.
    pub out: usize,
    pub taps: usize,
    /// Inputs at each tap.
    pub depth: usize,
    /// Whether each output column has two of weights; see [`super::PackedF32::pack_gated`].
    pub gated: bool,
}

impl Shape {
    /// The panels of these weights.
    pub(super) fn panels(self, tiling: Tiling) -> Panels {
        match self.gated {
            true => Panels::gated(tiling, self.out),
            false => Panels::plain(tiling, self.out),
        }
    }
}

/// Which columns of weights lie in which panel.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    /// The tile that panels are cut into: as wide, and so high.
    pub tile: &'static Tile,
    /// Columns of weights in a panel.
    pub width: usize,
    /// Columns of the output.
    pub out: usize,
    /// Whether each output column has two of weights, a value and a gate. A panel then has the values of some
    /// output columns in its first half and their gates in its second.
    pub gated: bool,
}

impl Panels {
    /// Panels for `out` columns, of the width that does least work: counting the columns that overhang and the
    /// lower reuse of narrow panels.
    pub fn plain(tiling: Tiling, out: usize) -> Self {
        Self::narrow(tiling, out, usize::MAX)
    }

    /// The same of panels at most `vectors` wide.
    pub fn narrow(tiling: Tiling, out: usize, vectors: usize) -> Self {
        let narrow = tiling.tiles.iter().filter(|tile| tile.vectors <= vectors);
        let cost =
            |tile: &&'static Tile| out.div_ceil(tile.vectors * tiling.lanes) * tile.vectors * tile.cost;
        Self::new(tiling, narrow.min_by_key(cost), out, false)
    }

    /// Panels for `out` values and as many gates, of the greatest width that has halves.
    pub fn gated(tiling: Tiling, out: usize) -> Self {
        let even = tiling.tiles.iter().filter(|tile| tile.vectors.is_multiple_of(2));
        Self::new(tiling, even.max_by_key(|tile| tile.vectors), out, true)
    }

    fn new(tiling: Tiling, tile: Option<&'static Tile>, out: usize, gated: bool) -> Self {
        let tile = tile.expect("every set has a tile for every product");
        Self { tile, width: tile.vectors * tiling.lanes, out, gated }
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
    tile_rows: usize,
}

impl Blocks {
    pub fn new(rows: usize, panels: &Panels) -> Self {
        let tile_rows = panels.tile.rows;
        let chunks = rows.div_ceil(CHUNK_ROWS).max(1);
        let chunk = rows.div_ceil(chunks).next_multiple_of(tile_rows);
        Self { rows, chunk, chunks: rows.div_ceil(chunk), panels: panels.count(), tile_rows }
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
    /// `rows` rounded up to whole tiles, whose overhang needs memory too.
    pub fn whole_tiles(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.tile_rows)
    }
}
