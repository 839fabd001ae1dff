//! Shapes of the register tiles of matrix products, and the choice between them; what is done in one is elsewhere.

/// The part of a product whose sums are held in registers: some rows by some vectors of columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub rows: usize,
    /// Vectors, which are a panel's width, too.
    pub vectors: usize,
    /// Time of a vector of columns, relative to that of the set's other tiles.
    pub cost: usize,
}

/// Whether a set with these tiles can do every product: a gated one takes an even number of vectors.
pub(super) const fn suffice(tiles: &[Tile]) -> bool {
    let mut i = 0;
    while i < tiles.len() {
        if tiles[i].vectors.is_multiple_of(2) {
            return true;
        }
        i += 1;
    }
    false
}

/// Work that is compiled for each tile of a set; `T` is the set's token.
pub(super) trait TileKernel<T> {
    /// Implementations must be `#[inline(always)]`, or the work is compiled for the baseline.
    fn run<const ROWS: usize, const VECTORS: usize>(self, token: T);
}

/// A set's tiles, as `rows x vectors at cost`, and the choice between them.
macro_rules! tiles {
    (for 16 registers) => { tiles! { 6 x 2 at 100, 8 x 1 at 125 } };
    (for 32 registers) => { tiles! { 6 x 4 at 100, 8 x 3 at 100, 8 x 2 at 106, 8 x 1 at 130 } };
    ($($rows:literal x $vectors:literal at $cost:literal),+) => {
        const TILES: &'static [$crate::kernels::tile::Tile] =
            &[$($crate::kernels::tile::Tile { rows: $rows, vectors: $vectors, cost: $cost }),+];

        #[inline(always)]
        fn in_tile<T, K: $crate::kernels::tile::TileKernel<T>>(vectors: usize, token: T, kernel: K) {
            match vectors {
                $($vectors => kernel.run::<$rows, $vectors>(token),)+
                _ => unreachable!("no tile is {vectors} vectors wide"),
            }
        }
    };
}
/// The tile of attention: keys or channels by vectors of queries.
macro_rules! attention_tile {
    ($rows:literal x $vectors:literal) => {
        const ATTENTION_TILE: (usize, usize) = ($rows, $vectors);

        #[inline(always)]
        fn in_attention_tile<T, K: $crate::kernels::tile::TileKernel<T>>(token: T, kernel: K) {
            kernel.run::<$rows, $vectors>(token);
        }
    };
}
pub(super) use {attention_tile, tiles};
