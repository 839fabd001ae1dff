//! Packing integer weights for products: their order, their column sums, and scales that keep 16-bit sums exact.

use rayon::prelude::*;

use super::{MAX_DEPTH, PackedI8, Sizes, Weights};
use crate::kernels::aligned::AlignedBuf;
use crate::kernels::blocking::Panels;
use crate::kernels::byte_product::{ByteKernel, ByteProduct};
use crate::kernels::isa::Isa;
use crate::kernels::nibbles::{self, GROUP, Grouped, Nibbles};

impl PackedI8 {
    pub(super) fn pack_grouped_into(
        weight: Grouped<'_>,
        panels: Panels,
        taps: usize,
        depth: usize,
        isa: Isa,
    ) -> Self {
        assert!(taps > 0 && depth > 0 && depth <= MAX_DEPTH);
        let columns = panels.weight_columns();
        let (filter, groups) = (taps * depth, depth.div_ceil(GROUP));
        assert_eq!(weight.values.len(), columns * filter, "weights of {columns} x {taps} x {depth}");
        assert_eq!(weight.scales.len(), columns * taps * groups, "scales of {columns} x {taps} x {groups}");
        let pairs = isa.properties().may_saturate;
        let filters =
            weight.values.par_chunks_exact(filter).zip(weight.scales.par_chunks_exact(taps * groups));
        let scales = filters.map(|(values, scales)| {
            let taps = values.chunks_exact(depth).zip(scales.chunks_exact(groups));
            let groups = taps.flat_map(|(values, scales)| values.chunks(GROUP).zip(scales));
            nibbles::unit(
                groups.map(|(values, scale)| largest(values, pairs) * scale.abs()).fold(0.0, f32::max),
            )
        });
        let scales: Vec<f32> = scales.collect();
        let sizes = Sizes::new(&panels, taps, depth, isa);
        let mut values = AlignedBuf::zeros(panels.count() * sizes.nibbles);
        let mut factors = AlignedBuf::zeros(panels.count() * sizes.factors);
        let mut column_sums = AlignedBuf::zeros(panels.count() * sizes.sums);
        let packed = values.as_mut_slice().par_chunks_exact_mut(sizes.nibbles);
        let packed = packed.zip(factors.as_mut_slice().par_chunks_exact_mut(sizes.factors));
        let packed = packed.zip(column_sums.as_mut_slice().par_chunks_exact_mut(sizes.sums));
        packed.enumerate().for_each(|(panel, ((values, factors), sums))| {
            let (panels, scales) = (&panels, &scales);
            isa.run_bytes(PackGroupedPanel {
                weight,
                scales,
                panels,
                panel,
                taps,
                depth,
                values,
                factors,
                sums,
            });
        });
        let weights = Weights::Nibbles(Nibbles { values: values.into(), factors: factors.into() });
        let (column_sums, scales) = (column_sums.into(), scales.into());
        Self { isa, panels, taps, depth, weights, column_sums, scales, zeros: sizes.zeros() }
    }

    pub(super) fn pack_into(
        weight: &[i8],
        scales: &[f32],
        panels: Panels,
        taps: usize,
        depth: usize,
        isa: Isa,
    ) -> Self {
        assert!(taps > 0 && depth > 0 && depth <= MAX_DEPTH);
        let columns = panels.weight_columns();
        assert_eq!(weight.len(), columns * taps * depth, "weights of {columns} x {taps} x {depth}");
        assert_eq!(scales.len(), columns, "one scale for each of {columns} columns");
        assert!(!weight.contains(&i8::MIN), "symmetric weights end at -127");
        let factors: Vec<f32> = if isa.properties().may_saturate {
            let outputs = weight.par_chunks_exact(taps * depth);
            outputs.map(|weight| isa.run_bytes(Unsaturating { weight, depth })).collect()
        } else {
            vec![1.0; columns]
        };
        let sizes = Sizes::new(&panels, taps, depth, isa);
        let mut weights = AlignedBuf::zeros(panels.count() * sizes.bytes);
        let mut column_sums = AlignedBuf::zeros(panels.count() * sizes.sums);
        let packed = weights.as_mut_slice().par_chunks_exact_mut(sizes.bytes);
        let sums = column_sums.as_mut_slice().par_chunks_exact_mut(sizes.sums);
        packed.zip(sums).enumerate().for_each(|(panel, (packed, sums))| {
            let (panels, factors) = (&panels, &factors);
            isa.run_bytes(PackPanel { weight, factors, panels, panel, taps, depth, packed, sums });
        });
        let scales: Vec<f32> = scales.iter().zip(&factors).map(|(scale, factor)| scale / factor).collect();
        let (weights, column_sums) = (Weights::Bytes(weights.into()), column_sums.into());
        Self { isa, panels, taps, depth, weights, column_sums, scales: scales.into(), zeros: sizes.zeros() }
    }
}

/// What the weights of one output, `[taps][depth]`, are to be multiplied with so that no two neighbours can
/// bring the sum of their products with bytes to 2^15: half at most, and for most layers little.
struct Unsaturating<'a> {
    weight: &'a [i8],
    depth: usize,
}

impl ByteKernel for Unsaturating<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<B: ByteProduct>(self, _: B) -> f32 {
        // Loops over 16-bit numbers side by side, which run on vectors.
        const ABREAST: usize = 32;
        let mut largest = [0i16; ABREAST];
        for tap in self.weight.chunks_exact(self.depth) {
            let (pairs, single) = tap.as_chunks();
            for pairs in pairs.chunks(ABREAST) {
                for (largest, pair) in largest.iter_mut().zip(pairs) {
                    let pair = i16::from_le_bytes(pair.map(i8::cast_unsigned));
                    let (a, b) = ((pair << 8) >> 8, pair >> 8);
                    *largest = (*largest).max(a.max(0) + b.max(0)).max(-(a.min(0) + b.min(0)));
                }
            }
            for &w in single {
                largest[0] = largest[0].max(i16::from(w).abs());
            }
        }
        let largest = largest.into_iter().fold(0, i16::max);
        // 255 * 128 is below 2^15. Rounding adds at most one half to each of the two.
        if largest <= 128 { 1.0 } else { 127.0 / f32::from(largest) }
    }
}

/// w * factor for a factor of at most 1, ties to even: 1.5 * 2^23 leaves no bits for a fraction, and those of the
/// integer, two's complement, in the lowest byte.
#[inline(always)]
fn scaled(w: i8, factor: f32) -> i8 {
    (f32::from(w) * factor + 12_582_912.0).to_bits() as i8
}

/// The weights of one panel, `[taps][depth]` of each column, to their places and their sums.
struct PackPanel<'a> {
    weight: &'a [i8],
    /// One per column of weights; see [`unsaturating`].
    factors: &'a [f32],
    panels: &'a Panels,
    panel: usize,
    taps: usize,
    depth: usize,
    packed: &'a mut [i8],
    sums: &'a mut [i32],
}

impl ByteKernel for PackPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<B: ByteProduct>(self, _: B) {
        let Self { weight, factors, panels, panel, taps, depth, packed, sums } = self;
        let width = panels.width;
        let tap_len = packed.len() / taps;
        let mut used = vec![0; depth];
        for (column, o) in panels.members(panel) {
            let factor = factors[o];
            for tap in 0..taps {
                // One loop for each, so that all run on vectors.
                for (used, &w) in used.iter_mut().zip(&weight[(o * taps + tap) * depth..][..depth]) {
                    *used = scaled(w, factor);
                }
                sums[tap * width + column] = used.iter().map(|&w| i32::from(w)).sum();
                B::pack_column(&used, column, width, &mut packed[tap * tap_len..][..tap_len]);
            }
        }
    }
}

/// The largest magnitude of some values, or, of `pairs`, what two neighbors of one sign make. Rounding adds at most one
/// half to each of the two, and 255 * 128 is below 2^15.
fn largest(values: &[i8], pairs: bool) -> f32 {
    let single = values.iter().map(|value| value.unsigned_abs()).max();
    let pair = values
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&[a, b]| if (a < 0) == (b < 0) { (a + b).unsigned_abs() } else { 0 });
    f32::from(single.max(pair.max().filter(|_| pairs)).unwrap_or(0))
}

/// The four-bit weights of one panel, `[taps][depth]` of each column, to their places, factors and sums.
struct PackGroupedPanel<'a> {
    weight: Grouped<'a>,
    /// One per column of weights.
    scales: &'a [f32],
    panels: &'a Panels,
    panel: usize,
    taps: usize,
    depth: usize,
    values: &'a mut [u8],
    /// `[tap][group][panel width]`.
    factors: &'a mut [i16],
    sums: &'a mut [i32],
}

impl ByteKernel for PackGroupedPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<B: ByteProduct>(self, _: B) {
        let Self { weight, scales, panels, panel, taps, depth, values, factors, sums } = self;
        let width = panels.width;
        let groups = depth.div_ceil(GROUP);
        let (tap_factors, tap_len) = (factors.len() / taps, B::ROWS.stride(depth) * width);
        let mut placed = vec![0; tap_len];
        for tap in 0..taps {
            placed.fill(0);
            for (column, o) in panels.members(panel) {
                let from = &weight.values[(o * taps + tap) * depth..][..depth];
                B::pack_column(from, column, width, &mut placed);
                let group_scales = &weight.scales[(o * taps + tap) * groups..][..groups];
                for (group, (from, &scale)) in from.chunks(GROUP).zip(group_scales).enumerate() {
                    let factor = nibbles::factor(scale, scales[o]);
                    factors[tap * tap_factors + group * width + column] = factor;
                    let bytes = from.iter().map(|&value| nibbles::byte(i16::from(value), factor));
                    sums[tap * width + column] += bytes.map(i32::from).sum::<i32>();
                }
            }
            let lines = placed.chunks_exact(B::LINE * width);
            let values = &mut values[tap * nibbles::line_bytes(tap_len)..];
            for (line, to) in lines.zip(values.chunks_exact_mut(nibbles::line_bytes(B::LINE * width))) {
                nibbles::pack_line(line, to);
            }
        }
    }
}
