//! Winograd's algorithm by products of 16-bit integers: twice as fast as in f32, and more exact than int8 directly.
//!
//! Components are rounded with a scale for each tile, or output channel, and block of input channels; weights rest
//! as they come, float or of eight or four bits, and are transformed panel by panel at each call. The 36 components' rounding errors
//! grow on their way to the output, but 12 bits leave results 50 dB above them, where int8 inputs and weights, taken
//! directly, leave 36 to 38.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::aligned::AlignedBuf;
use super::super::blocking::Panels;
use super::super::epilogue::{Destination, Epilogue};
use super::super::gather::Conv2d;
use super::super::interleave::Interleave;
use super::super::isa::Isa;
use super::super::micro_kernel;
use super::super::nibbles::{self, GROUP, Grouped, Nibbles};
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, with_scratch};
use super::super::simd::{MAX_LANES, Simd};
use super::super::tile::TileKernel;
use super::super::word_product::{WordKernel, WordProduct, accumulate, scale_of};
use super::transforms::{self, COMPONENTS, INPUT_SIDE, OUTPUT_SIDE};
use super::{Pixels, Tiles, fits};

/// Input channels of a block: with more, integers would have to be smaller, so that their sums stay below 2^31. A
/// panel's transformed weights are 180 KB of L2 cache on AVX2.
const DEPTH_BLOCK: usize = 160;
/// Bytes of transformed inputs at most, which have to come from an L3 cache for each panel.
const INPUT_BYTES: usize = 8 << 20;
/// Tiles of one task at most, for which a panel's weights are transformed once; their results are 600 KB on AVX2.
const TASK_TILES: usize = 256;
/// i16 or f32 between the components' matrices, lest they compete for the same sets of the L1 cache.
const COMPONENT_GAP: usize = 32;
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

/// `[panel][depth][3 * 3][panel width]`, zeros beyond the last column.
#[derive(Clone)]
enum Weights {
    F32(Vec<f32>),
    /// With one scale per output.
    I8(Vec<i8>, Vec<f32>),
    /// The same in lines of one input, which become words.
    Nibbles(Nibbles, Vec<f32>),
}

/// How input channels are cut into blocks, and these into groups of two vectors: a pair is of two channels that have
/// the same place in either.
#[derive(Clone, Copy)]
struct Blocking {
    depth: usize,
    /// `depth` in whole groups.
    padded: usize,
    /// Channels of a block, whole groups.
    step: usize,
    count: usize,
    /// The greatest component as an integer.
    limit: f32,
}

impl Blocking {
    fn new(depth: usize, isa: Isa) -> Self {
        let group = 2 * isa.properties().tiling.lanes;
        let padded = depth.next_multiple_of(group);
        let step = padded.div_ceil(padded.div_ceil(DEPTH_BLOCK)).next_multiple_of(group);
        let limit = (f64::from(i32::MAX) / step as f64).sqrt().floor().min(32767.0) as f32;
        Self { depth, padded, step, count: padded.div_ceil(step), limit }
    }

    /// First channel and number of channels, padding included, of a block.
    fn block(self, block: usize) -> (usize, usize) {
        (block * self.step, self.step.min(self.padded - block * self.step))
    }

    /// Words of a component's inputs of some tiles.
    fn component_len(self, tiles: usize) -> usize {
        tiles * self.padded + COMPONENT_GAP
    }
}

impl WinogradWords {
    /// Takes `weight`, `[out][depth][3 * 3]`.
    ///
    /// # Panics
    /// If a size is zero or `weight` has another length.
    pub fn of_f32(weight: &[f32], out: usize, depth: usize, isa: Isa) -> Self {
        let panels = Self::panels(isa, out);
        Self { isa, panels, depth, weights: Weights::F32(at_rest(weight, &panels, depth)) }
    }

    /// Takes `weight`, `[out][depth][3 * 3]`, where output o has weights `scales[o] * weight[o]`.
    ///
    /// # Panics
    /// If a size is zero or a slice has another length.
    pub fn of_i8(weight: &[i8], scales: Vec<f32>, out: usize, depth: usize, isa: Isa) -> Self {
        assert_eq!(scales.len(), out, "one scale for each of {out} columns");
        let panels = Self::panels(isa, out);
        Self { isa, panels, depth, weights: Weights::I8(at_rest(weight, &panels, depth), scales) }
    }

    /// Takes weights of four bits, `[out][depth][3 * 3]` with scales `[out][groups of depth][3 * 3]`.
    ///
    /// # Panics
    /// If a size is zero or a slice has another length.
    pub fn of_grouped(weight: Grouped<'_>, out: usize, depth: usize, isa: Isa) -> Self {
        assert!(depth > 0);
        let panels = Self::panels(isa, out);
        let (filter, filter_scales) = (depth * 9, depth.div_ceil(GROUP) * 9);
        assert_eq!(weight.values.len(), out * filter, "weights of {out} x {depth} x 3 x 3");
        assert_eq!(weight.scales.len(), out * filter_scales, "scales of {out} x {depth} x 3 x 3");
        let filters =
            weight.values.par_chunks_exact(filter).zip(weight.scales.par_chunks_exact(filter_scales));
        let largest = filters.map(|(values, scales)| {
            let groups = values.chunks(GROUP * 9).zip(scales.as_chunks::<9>().0);
            let taps = groups
                .flat_map(|(values, scales)| values.as_chunks::<9>().0.iter().map(move |v| (v, scales)));
            let weights = taps.flat_map(|(values, scales)| values.iter().zip(scales));
            weights.map(|(&value, scale)| (f32::from(value) * scale).abs()).fold(0.0, f32::max)
        });
        let largest: Vec<f32> = largest.collect();
        let width = panels.width;
        let line = 9 * width;
        let (values_len, factors_len) = (depth * nibbles::line_bytes(line), filter_scales * width);
        let mut values = AlignedBuf::zeros(panels.count() * values_len);
        let mut factors = AlignedBuf::zeros(panels.count() * factors_len);
        let panels_values = values.as_mut_slice().par_chunks_exact_mut(values_len);
        let packed = panels_values.zip(factors.as_mut_slice().par_chunks_exact_mut(factors_len));
        packed.enumerate().for_each_init(Vec::new, |placed, (panel, (values, factors))| {
            let columns = panels.columns(panel);
            placed.clear();
            placed.resize(depth * line, 0);
            place(&weight.values[columns.start * filter..], filter, columns.len(), placed, width);
            let lines = placed.chunks_exact(line).zip(values.chunks_exact_mut(nibbles::line_bytes(line)));
            lines.for_each(|(line, to)| nibbles::pack_line(line, to));
            for (column, o) in columns.enumerate() {
                let scales = &weight.scales[o * filter_scales..][..filter_scales];
                for (factor, &scale) in factors[column..].iter_mut().step_by(width).zip(scales) {
                    *factor = nibbles::factor(scale, nibbles::unit(largest[o]));
                }
            }
        });
        let scales = largest.into_iter().map(nibbles::word_unit).collect();
        Self { isa, panels, depth, weights: Weights::Nibbles(Nibbles { values, factors }, scales) }
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

thread_local! {
    /// What the last call on this thread had for its inputs: fresh memory costs as much as the transform.
    static INPUTS: Cell<Option<AlignedBuf<i16>>> = const { Cell::new(None) };
}

/// At least `len` words of unspecified contents, to be given back with [`keep_words`].
fn take_words(len: usize) -> AlignedBuf<i16> {
    let mut words = INPUTS.take().unwrap_or_else(|| AlignedBuf::zeros(0));
    words.reserve_len(len);
    words
}

fn keep_words(words: AlignedBuf<i16>) {
    INPUTS.set(Some(words));
}

/// Tiles whose transformed inputs exist at once.
fn tiles_per_block(tiles: usize, blocking: Blocking) -> usize {
    let most = (INPUT_BYTES / size_of::<i16>() / COMPONENTS / blocking.padded).max(1);
    tiles.div_ceil(tiles.div_ceil(most).max(1)).max(1)
}

/// `weight`, `[out][depth][3 * 3]`, as [`Weights`] lie.
fn at_rest<T: Interleave>(weight: &[T], panels: &Panels, depth: usize) -> Vec<T> {
    assert!(depth > 0);
    let filter = depth * 9;
    assert_eq!(weight.len(), panels.out * filter, "weights of {} x {depth} x 3 x 3", panels.out);
    let width = panels.width;
    let mut placed = vec![T::default(); panels.count() * filter * width];
    placed.par_chunks_exact_mut(filter * width).enumerate().for_each(|(panel, to)| {
        let columns = panels.columns(panel);
        place(&weight[columns.start * filter..], filter, columns.len(), to, width);
    });
    placed
}

/// Some filters of `weight` as the first columns of a panel.
fn place<T: Interleave>(weight: &[T], filter: usize, columns: usize, to: &mut [T], width: usize) {
    /// As many as stay in the L1 cache while one column after the other is written.
    const PLACES: usize = 128;
    for (block, to) in to.chunks_mut(PLACES * width).enumerate() {
        T::interleave(&weight[block * PLACES..], filter, columns, to, width);
    }
}

/// One tile of inputs to its components.
struct TransformInput<'a> {
    pixels: Pixels<'a>,
    blocking: Blocking,
    /// Of this block of tiles.
    tile: usize,
    per_block: usize,
    /// `[vector][component][lanes]` of a depth block, of unspecified contents.
    components: &'a mut [f32],
    /// See [`Inputs`].
    words: &'a Disjoint<'a, i16>,
    scales: &'a Disjoint<'a, f32>,
}

impl WordKernel for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        let Self { pixels, blocking, tile, per_block, components, words: to, scales } = self;
        let simd = words.simd();
        let lanes = const { P::Simd::LANES };
        let zero = simd.splat(0.0);
        for block in 0..blocking.count {
            let (first, len) = blocking.block(block);
            let components = &mut components[..COMPONENTS * len];
            let mut greatest = [zero; COMPONENTS];
            // Stays zero, unless there is NaN or infinity in one of the components that all pixels go into.
            let mut poison = zero;
            for (vector, components) in components.chunks_exact_mut(COMPONENTS * lanes).enumerate() {
                let start = (first + vector * lanes).min(blocking.depth);
                let channels = start..(start + lanes).min(blocking.depth);
                let v = transforms::input(simd, read_pixels(simd, &pixels, channels));
                let places = components.chunks_exact_mut(lanes).zip(&mut greatest);
                for (&v, (place, greatest)) in v.as_flattened().iter().zip(places) {
                    simd.write(place, v);
                    *greatest = simd.max(simd.max(v, simd.sub(zero, v)), *greatest);
                }
                for v in [v[0][0], v[0][5], v[5][0], v[5][5]] {
                    poison = simd.mul_add(v, zero, poison);
                }
            }
            let poison = simd.sum(poison);
            let mut inverses = [0.0; COMPONENTS];
            for (component, inverse) in inverses.iter_mut().enumerate() {
                let scale;
                (scale, *inverse) = scale_of(simd.greatest(greatest[component]), blocking.limit);
                let at = (component * blocking.count + block) * per_block + tile;
                // SAFETY: each tile has a scale of its own in every component and block.
                let place = unsafe { scales.part(at..at + 1) };
                place[0] = scale + poison;
            }
            for (component, &inverse) in inverses.iter().enumerate() {
                let at = blocking.component_len(per_block) * component + per_block * first + tile * len;
                // SAFETY: each tile has a row of its own in every component and block.
                let row = unsafe { to.part(at..at + len) };
                let inverse = simd.splat(inverse);
                for (group, row) in row.chunks_exact_mut(2 * lanes).enumerate() {
                    let pair = &components[(2 * group * COMPONENTS + component) * lanes..];
                    let pair = words.pair(
                        simd.mul(simd.read(pair), inverse),
                        simd.mul(simd.read(&pair[COMPONENTS * lanes..]), inverse),
                    );
                    // SAFETY: `row` holds as many pairs as a vector.
                    unsafe { words.store_pairs(row.as_mut_ptr(), pair) };
                }
            }
        }
    }
}

/// Some channels of a tile's pixels, at most a vector of them, then zeros.
#[inline(always)]
fn read_pixels<S: Simd>(
    simd: S,
    pixels: &Pixels<'_>,
    channels: Range<usize>,
) -> [[S::F; INPUT_SIDE]; INPUT_SIDE] {
    let mut d = [[simd.splat(0.0); INPUT_SIDE]; INPUT_SIDE];
    let whole = channels.len() == S::LANES;
    for (d, pixel) in d.as_flattened_mut().iter_mut().zip(pixels.as_flattened()) {
        if let Some(pixel) = pixel {
            let values = &pixel[channels.clone()];
            *d = if whole { simd.read(values) } else { simd.read_up_to(values) };
        }
    }
    d
}

/// The transformed inputs of a block of tiles.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// `[component][depth block][tile][channels of the block]`, in groups of pairs, with gaps between components.
    words: &'a [i16],
    /// `[component][depth block][tile]`.
    scales: &'a [f32],
    /// Tiles for which there is room.
    per_block: usize,
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
        for block in 0..self.blocking.count {
            let (first, len) = self.blocking.block(block);
            let known = first..(first + len).min(self.blocking.depth);
            let places = (panel + known.start) * depth..(panel + known.end) * depth;
            match &layer.weights {
                Weights::F32(weights) => self.transform_weights(words, block, &weights[places]),
                Weights::I8(weights, _) => self.transform_weights(words, block, &weights[places]),
                Weights::Nibbles(nibbles, _) => {
                    let unpacked = std::mem::take(&mut self.unpacked);
                    self.unpack(nibbles, known.clone(), &mut unpacked[..known.len() * depth]);
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
    /// The panel's weights of some input channels.
    #[inline(always)]
    fn unpack(&self, nibbles: &Nibbles, channels: Range<usize>, to: &mut [i16]) {
        let line = 9 * self.layer.panels.width;
        let Blocking { depth, .. } = self.blocking;
        let values = &nibbles.values.as_slice()[self.panel * depth * nibbles::line_bytes(line)..];
        let factors = &nibbles.factors.as_slice()[self.panel * depth.div_ceil(GROUP) * line..];
        for (channel, to) in channels.zip(to.chunks_exact_mut(line)) {
            let values = &values[channel * nibbles::line_bytes(line)..][..nibbles::line_bytes(line)];
            nibbles::unpack_line(values, &factors[channel / GROUP * line..][..line], to, nibbles::word);
        }
    }

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
        let simd = words.simd();
        let lanes = P::Simd::LANES;
        let width = self.layer.panels.width;
        assert_eq!(width, NV * lanes);
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
                // SAFETY: each row has `len` words; `weights` as many rows of NV vectors.
                let acc = unsafe { accumulate::<P, MR, NV>(words, a, 2, weights.as_ptr(), len / 2) };
                let results = &mut results[first * width..][..MR * width];
                let mut tile = [[simd.splat(0.0); NV]; MR];
                if block > 0 {
                    // SAFETY: `results` holds MR rows of `width` = NV vectors.
                    tile = unsafe { micro_kernel::load(simd, results.as_ptr(), width) };
                }
                for v in 0..NV {
                    let scale = simd.read(&weight_scales[v * lanes..]);
                    for i in 0..MR {
                        let scale = simd.mul(scale, simd.splat(row_scales[i]));
                        tile[i][v] = simd.mul_add(words.to_f32(acc[i][v]), scale, tile[i][v]);
                    }
                }
                // SAFETY: as at the load.
                unsafe { micro_kernel::store(simd, results.as_mut_ptr(), width, tile) };
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
        if let Weights::I8(_, all) | Weights::Nibbles(_, all) = &self.layer.weights {
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
