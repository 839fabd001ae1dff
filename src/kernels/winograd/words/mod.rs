//! Winograd's algorithm by products of 16-bit integers: twice as fast as in f32, and more exact than int8 directly.
//!
//! Components are rounded with a scale for each tile, or output channel, and block of input channels; weights rest
//! as they come, float or of eight or four bits, and are transformed panel by panel at each call. The 36 components'
//! rounding errors grow on their way to the output, but 12 bits leave results 50 dB above them, where int8 inputs and
//! weights, taken directly, leave 36 to 38.

mod blocks;
mod inputs;
mod weights;

use super::super::blocking::{Panels, Shape};
use super::super::epilogue::{Destination, Epilogue};
use super::super::gather::Conv2d;
use super::super::isa::Isa;
use super::super::nibbles::Grouped;
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, keep_words, take_words, with_scratch};
use super::super::read_only::LentBytes;
use super::super::simd::{MAX_LANES, Simd};
use super::super::tile::TileKernel;
use super::super::word_product::{WordKernel, WordProduct, add_products, scale_of};
use super::transforms::{self, COMPONENTS, INPUT_SIDE, OUTPUT_SIDE};
use super::{Tiles, fits};
use blocks::{Blocking, COMPONENT_GAP, tiles_per_block};
use inputs::{Inputs, TransformInput};
use weights::Weights;

/// Tiles of one task at most, for which a panel's weights are transformed once; their results are 600 KB on AVX2.
const TASK_TILES: usize = 256;
/// Vectors of a panel at most, for the sake of the results' size.
const PANEL_VECTORS: usize = 2;

/// A 3x3 convolution's weights at rest.
#[derive(Clone)]
pub struct WinogradWords {
    isa: Isa,
    panels: Panels,
    depth: usize,
    weights: Weights,
}

impl WinogradWords {
    /// Takes `weight`, `[out][depth][3 * 3]`.
    ///
    /// # Panics
    /// If a size is zero or `weight` has another length.
    pub fn of_f32(weight: &[f32], out: usize, depth: usize, isa: Isa) -> Self {
        let panels = Self::panels(isa, out);
        Self { isa, panels, depth, weights: Weights::of_f32(weight, &panels, depth) }
    }

    /// Takes `weight`, `[out][depth][3 * 3]`, where output o has weights `scales[o] * weight[o]`.
    ///
    /// # Panics
    /// If a size is zero or a slice has another length.
    pub fn of_i8(weight: &[i8], scales: Vec<f32>, out: usize, depth: usize, isa: Isa) -> Self {
        let panels = Self::panels(isa, out);
        Self { isa, panels, depth, weights: Weights::of_i8(weight, scales, &panels, depth) }
    }

    /// Takes weights of four bits, `[out][depth][3 * 3]` with scales `[out][groups of depth][3 * 3]`.
    ///
    /// # Panics
    /// If a size is zero or a slice has another length.
    pub fn of_grouped(weight: Grouped<'_>, out: usize, depth: usize, isa: Isa) -> Self {
        let panels = Self::panels(isa, out);
        Self { isa, panels, depth, weights: Weights::of_grouped(weight, &panels, depth) }
    }

    /// The bytes of its parts, from which [`Self::of_parts`] makes it again.
    pub fn parts(&self) -> Vec<&[u8]> {
        self.weights.parts()
    }

    /// What has been packed for this set and shape before, if `parts` fit.
    pub fn of_parts(parts: Vec<LentBytes>, shape: Shape, isa: Isa) -> Option<Self> {
        let Shape { out, depth, .. } = shape;
        let panels = Self::panels(isa, out);
        Some(Self { isa, panels, depth, weights: Weights::of_parts(parts, &panels, depth)? })
    }

    fn panels(isa: Isa, out: usize) -> Panels {
        assert!(out > 0);
        Panels::narrow(isa.properties().tiling, out, PANEL_VECTORS)
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes that [`WinogradWords::apply`] takes for outputs of this size, but for what each thread takes.
    pub fn bytes(isa: Isa, depth: usize, batch: usize, height: usize, width: usize) -> usize {
        let tiles = Tiles::count_of(batch, height, width);
        let blocking = Blocking::new(depth, isa);
        let per_block = tiles_per_block(tiles, blocking);
        COMPONENTS * blocking.component_len(per_block) * size_of::<i16>()
            + COMPONENTS * blocking.count * per_block * size_of::<f32>()
    }

    /// The convolution `conv` of `input`, `[batch, height, width, depth]`, into `output`, `[batch, seen height,
    /// seen width, out]` (see [`Conv2d::seen_size`]).
    ///
    /// Results are 50 dB above the error for inputs that are spread like a network's. NaN or infinity in a tile of
    /// the input makes all its outputs NaN. Sums are in an order that depends only on the sizes and the instruction
    /// set.
    ///
    /// # Panics
    /// If `conv` is anything but a 3x3 kernel, stride 1 and one pixel of padding all around, or a size is zero or does
    /// not fit the others.
    pub fn apply<'a>(
        &self,
        input: &[f32],
        conv: &Conv2d,
        epilogue: &Epilogue<'_>,
        output: impl Into<Output<'a>>,
    ) -> Written<'a> {
        let output = output.into().into_disjoint();
        assert!(fits(conv), "not a convolution for Winograd's algorithm: {conv:?}");
        let (height, width) = conv.output_size();
        assert_eq!(input.len(), conv.batch * conv.height * conv.width * self.depth, "an input of {conv:?}");
        epilogue.validate(conv.batch * height * width, &self.panels, output.len());
        let destination = Destination { epilogue, output: output.shared(), panels: self.panels, scale: None };

        let tiles = Tiles::new(conv);
        let blocking = Blocking::new(self.depth, self.isa);
        let per_block = tiles_per_block(tiles.count(), blocking);
        let component_len = blocking.component_len(per_block);
        let mut words = take_words(COMPONENTS * component_len);
        let mut scales = vec![0.0; COMPONENTS * blocking.count * per_block];
        for first in (0..tiles.count()).step_by(per_block) {
            let count = per_block.min(tiles.count() - first);
            {
                let words = Disjoint::new(words.as_mut_slice());
                let scales = Disjoint::new(&mut scales);
                for_each_index(count, |tile| {
                    with_scratch(COMPONENTS * blocking.step, 0, |scratch| {
                        let pixels = tiles.pixels(first + tile, input, self.depth);
                        let components = &mut scratch.floats.as_mut_slice()[..COMPONENTS * blocking.step];
                        let (words, scales) = (&words, &scales);
                        self.isa.run_words(TransformInput {
                            pixels,
                            blocking,
                            tile,
                            per_block,
                            components,
                            words,
                            scales,
                        });
                    });
                });
            }
            let inputs = Inputs { words: words.as_slice(), scales: &scales, per_block };
            let chunk = count.div_ceil(count.div_ceil(TASK_TILES));
            let (panels, chunks) = (self.panels.count(), count.div_ceil(chunk));
            let width = self.panels.width;
            for_each_index(panels * chunks, |index| {
                let (panel, first_row) = (index / chunks, index % chunks * chunk);
                let rows = chunk.min(count - first_row);
                let whole = rows.next_multiple_of(self.panels.tile.rows);
                let results_len = COMPONENTS * (whole * width + COMPONENT_GAP);
                let scales_len = COMPONENTS * width;
                let sums_len = OUTPUT_SIDE * OUTPUT_SIDE * width;
                with_scratch(results_len + scales_len + sums_len, 0, |scratch| {
                    let weights_len = COMPONENTS * blocking.step * width;
                    let unpacked_len = match self.weights {
                        Weights::Nibbles(..) => blocking.step * 9 * width,
                        _ => 0,
                    };
                    scratch.words.reserve_len(weights_len + unpacked_len);
                    let (weights, unpacked) = scratch.words.as_mut_slice().split_at_mut(weights_len);
                    let (results, rest) = scratch.floats.as_mut_slice().split_at_mut(results_len);
                    let (weight_scales, rest) = rest.split_at_mut(scales_len);
                    self.isa.run_words(Multiply {
                        layer: self,
                        blocking,
                        tiles,
                        first_tile: first + first_row,
                        inputs,
                        first_row,
                        rows,
                        whole,
                        panel,
                        weights,
                        unpacked: &mut unpacked[..unpacked_len],
                        weight_scales,
                        results,
                        sums: &mut rest[..sums_len],
                        destination: &destination,
                    });
                });
            });
        }
        keep_words(words);
        // SAFETY: tiles cover all pixels, panels all columns.
        unsafe { Written::all_of(output) }
    }
}

/// Some tiles times one panel of weights, to their outputs.
struct Multiply<'a> {
    layer: &'a WinogradWords,
    blocking: Blocking,
    tiles: Tiles<'a>,
    /// Of all tiles.
    first_tile: usize,
    inputs: Inputs<'a>,
    /// Of the inputs.
    first_row: usize,
    rows: usize,
    /// `rows` in whole register tiles.
    whole: usize,
    panel: usize,
    /// `[component][blocking.step / 2][panel width][2]` in the order of the inputs' pairs, of unspecified contents like all that follows.
    weights: &'a mut [i16],
    /// `[blocking.step][3 * 3][panel width]` as they were before that, if they aren't at rest so.
    unpacked: &'a mut [i16],
    /// `[component][panel width]`.
    weight_scales: &'a mut [f32],
    /// `[component][whole][panel width]`, with gaps between components.
    results: &'a mut [f32],
    /// `[4 * 4][panel width]`.
    sums: &'a mut [f32],
    destination: &'a Destination<'a>,
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
    fn run<const MR: usize, const NV: usize>(mut self, words: P) {
        let layer = self.layer;
        let (panel, depth) = (self.panel * self.blocking.depth, 9 * layer.panels.width);
        assert_eq!(layer.panels.width, NV * P::Simd::LANES);
        for block in 0..self.blocking.count {
            let (first, len) = self.blocking.block(block);
            let known = first..(first + len).min(self.blocking.depth);
            let places = (panel + known.start) * depth..(panel + known.end) * depth;
            match &layer.weights {
                Weights::F32(weights) => self.transform_weights(words, block, &weights.as_slice()[places]),
                Weights::I8(weights, _) => self.transform_weights(words, block, &weights.as_slice()[places]),
                Weights::Nibbles(nibbles, _) => {
                    let unpacked = std::mem::take(&mut self.unpacked);
                    // Known when compiled, which spares loops their remainders.
                    let (width, depths) = (NV * P::Simd::LANES, self.blocking.depth);
                    let to = &mut unpacked[..known.len() * depth];
                    weights::unpack(nibbles, self.panel, depths, width, known.clone(), to);
                    self.transform_weights(words, block, &unpacked[..known.len() * depth]);
                    self.unpacked = unpacked;
                }
            }
            self.multiply::<P, MR, NV>(words, block);
        }
        self.finish(words.simd());
    }
}

/// The transformed weights of one vector of columns from `vector` and one input channel, zeros beyond the last.
#[inline(always)]
fn weight_components<S: Simd, T: Copy + Into<f32>>(
    simd: S,
    weights: &[T],
    width: usize,
    vector: usize,
    channel: usize,
) -> [[S::F; INPUT_SIDE]; INPUT_SIDE] {
    let mut g = [[simd.splat(0.0); 3]; 3];
    let start = channel * 9 * width;
    if start < weights.len() {
        for (tap, w) in weights[start..][..9 * width].chunks_exact(width).enumerate() {
            let mut values = [0.0; MAX_LANES];
            for (value, &w) in values.iter_mut().zip(&w[vector..][..S::LANES]) {
                *value = w.into();
            }
            g[tap / 3][tap % 3] = simd.read(&values);
        }
    }
    transforms::weight(simd, g)
}

impl Multiply<'_> {
    /// The weights of the panel for one block of input channels, `[channels][3 * 3][panel width]`.
    #[inline(always)]
    fn transform_weights<P: WordProduct, T: Copy + Into<f32>>(
        &mut self,
        words: P,
        block: usize,
        weights: &[T],
    ) {
        let simd = words.simd();
        let lanes = P::Simd::LANES;
        let Blocking { step, limit, .. } = self.blocking;
        let width = self.layer.panels.width;
        let (_, len) = self.blocking.block(block);
        let known = weights.len() / (9 * width);
        let component_len = step * width;
        for vector in (0..width).step_by(lanes) {
            let mut greatest = [[simd.splat(0.0); INPUT_SIDE]; INPUT_SIDE];
            for d in 0..known {
                let u = weight_components(simd, weights, width, vector, d);
                for i in 0..INPUT_SIDE {
                    for j in 0..INPUT_SIDE {
                        let magnitude = simd.max(u[i][j], simd.sub(simd.splat(0.0), u[i][j]));
                        greatest[i][j] = simd.max(greatest[i][j], magnitude);
                    }
                }
            }
            let mut inverses = [[simd.splat(0.0); INPUT_SIDE]; INPUT_SIDE];
            for i in 0..INPUT_SIDE {
                for j in 0..INPUT_SIDE {
                    let mut all = simd.lanes(greatest[i][j]);
                    let to = &mut self.weight_scales[(i * INPUT_SIDE + j) * width + vector..][..lanes];
                    for (scale, greatest) in to.iter_mut().zip(&mut all) {
                        (*scale, *greatest) = scale_of(*greatest, limit);
                    }
                    inverses[i][j] = simd.read(&all);
                }
            }
            assert!(self.weights.len() >= COMPONENTS * component_len && len <= step);
            for pair in 0..len / 2 {
                let channel = pair / lanes * 2 * lanes + pair % lanes;
                let first = weight_components(simd, weights, width, vector, channel);
                let second = weight_components(simd, weights, width, vector, channel + lanes);
                let mut at = 2 * (pair * width + vector);
                let both = first.as_flattened().iter().zip(second.as_flattened());
                for ((&first, &second), &inverse) in both.zip(inverses.as_flattened()) {
                    let pair = words.pair(simd.mul(first, inverse), simd.mul(second, inverse));
                    // SAFETY: within row `pair`, of `width` pairs, of one of the components asserted.
                    unsafe { words.store_pairs(self.weights.as_mut_ptr().add(at), pair) };
                    at += component_len;
                }
            }
        }
    }

    /// Adds the products of one block of input channels to the results.
    #[inline(always)]
    fn multiply<P: WordProduct, const MR: usize, const NV: usize>(&mut self, words: P, block: usize) {
        let width = self.layer.panels.width;
        assert_eq!(width, NV * P::Simd::LANES);
        let Blocking { step, count, .. } = self.blocking;
        let (first_depth, len) = self.blocking.block(block);
        let Inputs { words: inputs, scales, per_block } = self.inputs;
        let stride = self.blocking.component_len(per_block);
        for component in 0..COMPONENTS {
            let weights = &self.weights[component * step * width..][..len * width];
            let weight_scales = &self.weight_scales[component * width..][..width];
            let inputs = &inputs[component * stride + per_block * first_depth + self.first_row * len..];
            let inputs = &inputs[..self.rows * len];
            let scales = &scales[(component * count + block) * per_block + self.first_row..][..self.rows];
            let results = &mut self.results[component * (self.whole * width + COMPONENT_GAP)..];
            for first in (0..self.rows).step_by(MR) {
                let mut a = [inputs.as_ptr(); MR];
                let mut row_scales = [0.0; MR];
                for i in 0..MR {
                    // Overhanging rows repeat the last.
                    let row = (first + i).min(self.rows - 1);
                    // SAFETY: the row's words lie in `inputs`.
                    a[i] = unsafe { inputs.as_ptr().add(row * len) };
                    row_scales[i] = scales[row];
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

    /// Results to outputs.
    #[inline(always)]
    fn finish<S: Simd>(self, simd: S) {
        let width = self.layer.panels.width;
        let columns = self.layer.panels.columns(self.panel);
        let stride = self.whole * width + COMPONENT_GAP;
        // Integers have been transformed without their scales.
        let mut scales = vec![1.0; width];
        if let Some(all) = self.layer.weights.scales() {
            scales[..columns.len()].copy_from_slice(&all[columns.clone()]);
        }
        for row in 0..self.rows {
            for at in (0..width).step_by(S::LANES) {
                let mut m = [[simd.splat(0.0); INPUT_SIDE]; INPUT_SIDE];
                let mut from = row * width + at;
                for row in &mut m {
                    for m in row {
                        *m = simd.read(&self.results[from..]);
                        from += stride;
                    }
                }
                let scale = simd.read(&scales[at..]);
                let mut to = at;
                for row in &transforms::output(simd, m) {
                    for &y in row {
                        simd.write(&mut self.sums[to..], simd.mul(y, scale));
                        to += width;
                    }
                }
            }
            let (tile, sums) = (self.first_tile + row, &*self.sums);
            // SAFETY: each task has tiles and columns of its own.
            unsafe { self.tiles.finish(simd, tile, sums, width, self.destination, columns.clone()) };
        }
    }
}
