//! Register tiles of matrix products: their shapes, and the f32 micro-kernel; blocking and packing are in the products.

use super::simd::Simd;

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

/// `acc[i][v] += sum over k of a[i][k * a_step] * b[k][v]`, where `b` is `[depth][NV]` vectors.
///
/// Every product is added in order of k, so the result depends on nothing but the operands.
///
/// # Safety
/// Each `a[i]` must be readable at `k * a_step` for all `k < depth`, and `b` for `depth * NV * S::LANES` f32.
#[inline(always)]
pub(super) unsafe fn accumulate<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    a: [*const f32; MR],
    a_step: usize,
    b: *const f32,
    depth: usize,
    mut acc: [[S::F; NV]; MR],
) -> [[S::F; NV]; MR] {
    let mut b = b;
    let mut offset = 0usize;
    for _ in 0..depth {
        let mut columns = [simd.splat(0.0); NV];
        for (v, column) in columns.iter_mut().enumerate() {
            // SAFETY: within the `depth * NV` vectors promised for `b`.
            *column = unsafe { simd.load(b.add(v * S::LANES)) };
        }
        for i in 0..MR {
            // SAFETY: `offset` is `k * a_step` with `k < depth`, as promised for `a`.
            let x = simd.splat(unsafe { *a[i].add(offset) });
            for v in 0..NV {
                acc[i][v] = simd.mul_add(x, columns[v], acc[i][v]);
            }
        }
        // Wrapping steps: they are not checked in each round, and the last may leave the allocation.
        b = b.wrapping_add(NV * S::LANES);
        offset = offset.wrapping_add(a_step);
    }
    acc
}

/// Reads a tile of `MR` rows of `NV` vectors, `pitch` f32 apart.
///
/// # Safety
/// `from` must be readable for `NV * S::LANES` f32 at each of `MR` rows.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    from: *const f32,
    pitch: usize,
) -> [[S::F; NV]; MR] {
    let mut tile = [[simd.splat(0.0); NV]; MR];
    let mut from = from;
    for row in &mut tile {
        for (v, x) in row.iter_mut().enumerate() {
            // SAFETY: as promised for `from`.
            *x = unsafe { simd.load(from.add(v * S::LANES)) };
        }
        from = from.wrapping_add(pitch);
    }
    tile
}

/// Writes a tile of `MR` rows of `NV` vectors, `pitch` f32 apart.
///
/// # Safety
/// `to` must be writable for `NV * S::LANES` f32 at each of `MR` rows.
#[inline(always)]
pub(super) unsafe fn store<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    to: *mut f32,
    pitch: usize,
    tile: [[S::F; NV]; MR],
) {
    let mut to = to;
    for row in &tile {
        for (v, &x) in row.iter().enumerate() {
            // SAFETY: as promised for `to`.
            unsafe { simd.store(to.add(v * S::LANES), x) };
        }
        to = to.wrapping_add(pitch);
    }
}
