//! Reading and writing the register tiles of products; what is summed in them says `simd`, blocking is the products'.

use super::simd::Simd;

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
