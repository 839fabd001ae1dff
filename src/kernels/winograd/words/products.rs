//! Products of transformed inputs and weights, and their way to outputs.

use super::super::super::epilogue::Destination;
use super::super::super::simd::Simd;
use super::super::super::tile::TileKernel;
use super::super::super::word_product::{WordKernel, WordProduct, add_products};
use super::super::Tiles;
use super::super::transforms::{self, COMPONENTS, INPUT_SIDE};
use super::WinogradWords;
use super::blocks::{Blocking, COMPONENT_GAP};
use super::filters::Filters;
use super::inputs::Inputs;

/// Tiles between asking for an output's memory and writing to it.
const AHEAD: usize = 2;

/// f32 of results of some tiles, and from component to component.
pub fn results_len(layer: &WinogradWords, tiles: usize) -> (usize, usize) {
    let whole = tiles.next_multiple_of(layer.panels.tile.rows);
    let component = whole * layer.panels.width + COMPONENT_GAP;
    (COMPONENTS * component, component)
}

/// Some tiles times one panel of weights, both of one block of input channels.
pub struct Multiply<'a> {
    pub layer: &'a WinogradWords,
    pub blocking: Blocking,
    pub block: usize,
    pub inputs: Inputs<'a>,
    /// Of the inputs.
    pub first_row: usize,
    pub rows: usize,
    pub filters: Filters<'a>,
    /// `[component][rows in whole register tiles][panel width]`, with gaps between components; sums of earlier blocks,
    /// or anything if this is the first.
    pub results: &'a mut [f32],
}

impl WordKernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        P::Simd::in_tile(self.layer.panels.tile.vectors, words, self);
    }
}

impl<P: WordProduct> TileKernel<P> for Multiply<'_> {
    #[inline(always)]
    fn run<const MR: usize, const NV: usize>(self, words: P) {
        let Self { layer, blocking, block, inputs, first_row, rows, filters, results } = self;
        let width = const { NV * P::Simd::LANES };
        assert_eq!(layer.panels.width, width);
        let (first_depth, len) = blocking.block(block);
        let Inputs { words: inputs, scales, per_block } = inputs;
        let stride = blocking.component_len(per_block);
        let filters_len = blocking.filters_len(width);
        let (_, results_stride) = results_len(layer, rows);
        for component in 0..COMPONENTS {
            let weights = &filters.words[component * filters_len..][..len * width];
            let weight_scales = &filters.scales[component * width..][..width];
            let start = component * stride + per_block * first_depth + first_row * len;
            let inputs = &inputs[start..][..rows * len];
            let scales = &scales[(component * blocking.count + block) * per_block + first_row..][..rows];
            let results = &mut results[component * results_stride..];
            for first in (0..rows).step_by(MR) {
                let mut a = [inputs.as_ptr(); MR];
                let mut row_scales = [0.0; MR];
                for i in 0..MR {
                    // Overhanging rows repeat the last.
                    let row = (first + i).min(rows - 1);
                    // SAFETY: the row's words lie in `inputs`.
                    a[i] = unsafe { inputs.as_ptr().add(row * len) };
                    row_scales[i] = scales[row];
                }
                // What is read next may have to come from far away: rows of this component, or the next one's first.
                let next = if first + MR < rows { (first + MR) * len } else { stride };
                let next = inputs.as_ptr().wrapping_add(next).cast::<u8>();
                for line in (0..MR * len * size_of::<i16>()).step_by(64) {
                    words.simd().prefetch(next.wrapping_add(line));
                }
                let results = &mut results[first * width..][..MR * width];
                // SAFETY: each row has `len` words; `weights` as many rows of NV vectors.
                unsafe {
                    add_products::<P, MR, NV>(
                        words,
                        a,
                        &row_scales,
                        weights,
                        weight_scales,
                        results,
                        block == 0,
                    );
                }
            }
        }
    }
}

/// Results of some tiles and one panel to their outputs.
pub struct Finish<'a> {
    pub layer: &'a WinogradWords,
    pub tiles: Tiles<'a>,
    /// Of all tiles.
    pub first_tile: usize,
    pub rows: usize,
    pub panel: usize,
    /// As those of [`Multiply`].
    pub results: &'a [f32],
    /// `[4 * 4][panel width]`, of unspecified contents.
    pub sums: &'a mut [f32],
    pub destination: &'a Destination<'a>,
}

impl WordKernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        let Self { layer, tiles, first_tile, rows, panel, results, sums, destination } = self;
        let simd = words.simd();
        let width = layer.panels.width;
        let columns = layer.panels.columns(panel);
        let (_, stride) = results_len(layer, rows);
        // Integers have been transformed without their scales.
        let mut scales = vec![1.0; width];
        if let Some(all) = layer.weights.scales() {
            scales[..columns.len()].copy_from_slice(&all[columns.clone()]);
        }
        for row in 0..AHEAD.min(rows) {
            tiles.prefetch(simd, first_tile + row, destination, columns.clone());
        }
        for row in 0..rows {
            if row + AHEAD < rows {
                tiles.prefetch(simd, first_tile + row + AHEAD, destination, columns.clone());
            }
            for at in (0..width).step_by(P::Simd::LANES) {
                let mut m = [[simd.splat(0.0); INPUT_SIDE]; INPUT_SIDE];
                let mut from = row * width + at;
                for row in &mut m {
                    for m in row {
                        *m = simd.read(&results[from..]);
                        from += stride;
                    }
                }
                let scale = simd.read(&scales[at..]);
                let mut to = at;
                for row in &transforms::output(simd, m) {
                    for &y in row {
                        simd.write(&mut sums[to..], simd.mul(y, scale));
                        to += width;
                    }
                }
            }
            let (tile, sums) = (first_tile + row, &*sums);
            // SAFETY: each task has tiles and columns of its own.
            unsafe { tiles.finish(simd, tile, sums, width, destination, columns.clone()) };
        }
    }
}
