//! The f32 micro-kernel: what matrix products do in one register tile; blocking and packing are theirs.

use super::simd::Simd;

/// `acc[i][v] += sum over k of a[i][k * a_step] * b[k][v]`, where `b` is `[depth][NV]` vectors.
///
/// Every product is added in order of k, so the result depends on nothing but the operands. This is what
/// [`Simd::accumulate`] does, for sets that know no faster way.
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
        // Wrapping steps, because the last may leave the allocation.
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
