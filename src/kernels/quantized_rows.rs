//! Activations as bytes with a scale and a zero point per row, and how a row becomes them; products are in `gemm_i8`.

use rayon::prelude::*;

use super::aligned::AlignedBuf;
use super::gather::PAD;
use super::simd::Simd;

/// How rows of bytes lie in memory, which is for the instruction set that multiplies them to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowLayout {
    /// Neighbouring values that are read together. Rows are padded to a multiple.
    pub group: usize,
    /// Neighbouring rows whose groups alternate: `[rows / together][groups][together][group]`.
    pub together: usize,
    /// Whether bytes lie there less 128, as i8, for products of signed bytes.
    pub signed: bool,
}

impl RowLayout {
    /// Bytes of a row of `depth` values.
    pub const fn stride(self, depth: usize) -> usize {
        depth.next_multiple_of(self.group)
    }

    /// Where row `row` begins among rows of `stride` bytes.
    #[inline(always)]
    pub const fn start(self, row: usize, stride: usize) -> usize {
        row / self.together * self.together * stride + row % self.together * self.group
    }

    /// From a group of a row to its next.
    pub const fn step(self) -> usize {
        self.together * self.group
    }

    /// What the bits of a byte differ in where it lies.
    const fn flipped(self) -> u8 {
        if self.signed { 0x80 } else { 0 }
    }

    /// Makes a row's bytes what lies in memory.
    #[inline(always)]
    pub fn flip(self, row: &mut [u8]) {
        if self.signed {
            row.iter_mut().for_each(|byte| *byte ^= self.flipped());
        }
    }

    /// Writes `row`, group by group, where `to` begins.
    pub fn scatter(self, row: &[u8], to: &mut [u8]) {
        for (to, group) in to.chunks_mut(self.step()).zip(row.chunks(self.group)) {
            to[..group.len()].copy_from_slice(group);
        }
    }
}

/// A matrix of u8 whose row r stands for `scale[r] * (value - zero[r])`, laid out for an instruction set.
///
/// Empty until an operation writes it (see [`super::RowsMut`]). The buffers are kept when the matrix becomes
/// smaller, so that one instance can serve many layers.
#[derive(Clone)]
pub struct QuantizedRows {
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) layout: RowLayout,
    /// Bytes of a row; those beyond `depth` are unspecified.
    pub(super) stride: usize,
    pub(super) values: AlignedBuf<u8>,
    pub(super) scales: Vec<f32>,
    /// Each in 0..=255.
    pub(super) zeros: Vec<i32>,
}

impl Default for QuantizedRows {
    fn default() -> Self {
        Self {
            rows: 0,
            depth: 0,
            layout: RowLayout { group: 1, together: 1, signed: false },
            stride: 0,
            values: AlignedBuf::zeros(0),
            scales: vec![],
            zeros: vec![],
        }
    }
}

impl QuantizedRows {
    /// Becomes `rows` x `depth`, of unspecified values.
    pub(super) fn resize(&mut self, rows: usize, depth: usize, layout: RowLayout) {
        self.layout = layout;
        self.stride = layout.stride(depth);
        self.rows = rows;
        self.depth = depth;
        self.values.reserve_len(rows.next_multiple_of(layout.together) * self.stride);
        self.scales.resize(rows, 0.0);
        self.zeros.resize(rows, 0);
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The bytes of row `row`.
    pub fn row(&self, row: usize) -> impl Iterator<Item = u8> {
        assert!(row < self.rows);
        let values = &self.values.as_slice()[self.layout.start(row, self.stride)..];
        let groups = values.chunks(self.layout.step()).map(|step| &step[..self.layout.group]);
        groups.flatten().map(|byte| byte ^ self.layout.flipped()).take(self.depth)
    }

    /// The rows of these numbers, in their order; padding stands for zeros.
    pub(super) fn in_order(&self, sources: &[u32]) -> Self {
        let RowLayout { group, together, .. } = self.layout;
        let (layout, stride) = (self.layout, self.stride);
        let mut rows = Self::default();
        rows.resize(sources.len(), self.depth, layout);
        let from = self.values.as_slice();
        // What lies together is written together.
        let some = rows.values.as_mut_slice()[..sources.len().next_multiple_of(together) * stride]
            .par_chunks_exact_mut(together * stride);
        some.zip(sources.par_chunks(together)).for_each(|(to, sources)| {
            for (number, &source) in sources.iter().enumerate().filter(|(_, source)| **source != PAD) {
                let from = &from[layout.start(source as usize, stride)..];
                for (to, from) in to.chunks_exact_mut(layout.step()).zip(from.chunks(layout.step())) {
                    to[number * group..][..group].copy_from_slice(&from[..group]);
                }
            }
        });
        let of_rows = rows.scales.iter_mut().zip(&mut rows.zeros).zip(sources);
        for ((scale, zero), &source) in of_rows.filter(|(_, source)| **source != PAD) {
            (*scale, *zero) = (self.scales[source as usize], self.zeros[source as usize]);
        }
        rows
    }

    /// One per row.
    pub fn scales(&self) -> &[f32] {
        &self.scales[..self.rows]
    }

    /// The values that row `row` stands for.
    pub fn dequantize(&self, row: usize) -> Vec<f32> {
        let (scale, zero) = (self.scales[row], self.zeros[row]);
        self.row(row).map(|q| scale * (q as i32 - zero) as f32).collect()
    }
}

/// Quantizes one row: the 256 values span its least to its greatest value, and zero, which is represented
/// exactly. Returns scale and zero point; the error of a value is at most half the scale.
///
/// The arithmetic has no fused operation, so all instruction sets give the same bytes.
///
/// # Panics
/// If `to` has not the length of `row`.
#[inline(always)]
pub(super) fn quantize_row<S: Simd>(simd: S, row: &[f32], to: &mut [u8]) -> (f32, i32) {
    assert_eq!(row.len(), to.len());
    // Rows narrower than a range this small are noise, and its reciprocal would overflow.
    const LEAST_RANGE: f32 = 1e-30;
    let zero = simd.splat(0.0);
    let mut least = [zero; 2];
    let mut greatest = [zero; 2];
    let mut at = 0;
    while at + 2 * S::LANES <= row.len() {
        for i in 0..2 {
            let x = simd.read(&row[at + i * S::LANES..]);
            least[i] = simd.min(x, least[i]);
            greatest[i] = simd.max(x, greatest[i]);
        }
        at += 2 * S::LANES;
    }
    while at < row.len() {
        let x = simd.read_up_to(&row[at..(at + S::LANES).min(row.len())]);
        least[0] = simd.min(x, least[0]);
        greatest[0] = simd.max(x, greatest[0]);
        at += S::LANES;
    }
    let least = simd.least(simd.min(least[0], least[1]));
    let greatest = simd.greatest(simd.max(greatest[0], greatest[1]));
    let range = greatest - least;
    let (scale, inverse) = if range < LEAST_RANGE { (0.0, 0.0) } else { (range / 255.0, 255.0 / range) };
    let zero_point = (-least * inverse).round_ties_even().clamp(0.0, 255.0);

    let (factor, offset) = (simd.splat(inverse), simd.splat(zero_point));
    let mut at = 0;
    while at + S::LANES <= row.len() {
        let x = simd.read(&row[at..]);
        let to = &mut to[at..at + S::LANES];
        // SAFETY: `to` holds LANES bytes.
        unsafe { simd.store_u8(to.as_mut_ptr(), byte_range(simd, x, factor, offset)) };
        at += S::LANES;
    }
    if at < row.len() {
        let mut bytes = [0u8; super::simd::MAX_LANES];
        // SAFETY: MAX_LANES is at least LANES.
        unsafe {
            simd.store_u8(bytes.as_mut_ptr(), byte_range(simd, simd.read_up_to(&row[at..]), factor, offset))
        };
        let rest = row.len() - at;
        to[at..].copy_from_slice(&bytes[..rest]);
    }
    (scale, zero_point as i32)
}

/// x * factor + offset, limited to [0, 255].
#[inline(always)]
fn byte_range<S: Simd>(simd: S, x: S::F, factor: S::F, offset: S::F) -> S::F {
    let y = simd.add(simd.mul(x, factor), offset);
    simd.min(simd.max(y, simd.splat(0.0)), simd.splat(255.0))
}
