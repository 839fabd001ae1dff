//! Winograd's algorithm by products of 16-bit integers: twice as fast as in f32, and more exact than int8 directly.
//!
//! Components are rounded with a scale for each tile, or output channel, and block of input channels, but for those of
//! weights of eight bits, which are integers as they are. Weights rest as they come, float, as words, or of eight or four
//! bits, and are transformed panel by panel at each call. The 36 components' rounding errors grow on their way to the
//! output, but 11 bits and more leave results 50 dB above them, where int8 inputs and weights, taken directly, leave 36
//! to 38.

mod blocks;
mod exact;
mod filters;
mod inputs;
mod products;
mod weights;

use std::ops::Range;

use super::super::blocking::{Panels, Shape};
use super::super::epilogue::{Destination, Epilogue};
use super::super::gather::Conv2d;
use super::super::isa::Isa;
use super::super::nibbles::Grouped;
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, keep_words, take_words, with_scratch};
use super::super::read_only::LentBytes;
use super::transforms::{COMPONENTS, OUTPUT_SIDE};
use super::{Tiles, fits};
use blocks::{Blocking, tiles_per_block, tiles_per_task};
use filters::{Filters, Room};
use inputs::{Inputs, InputsRoom, Limits, TransformInput};
use products::{Finish, Multiply, results_len};
use weights::{Values, Weights};

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
        Self::of_values(Values::of_f32(weight, &panels, depth), panels, depth, isa)
    }

    /// Takes `weight`, `[out][depth][3 * 3]`, and keeps 16 bits of each, with a scale for each output.
    ///
    /// # Panics
    /// If a size is zero or `weight` has another length.
    pub fn of_floats_in_words(weight: &[f32], out: usize, depth: usize, isa: Isa) -> Self {
        let panels = Self::panels(isa, out);
        Self::of_values(Values::of_floats_in_words(weight, &panels, depth), panels, depth, isa)
    }

    /// Takes `weight`, `[out][depth][3 * 3]`, where output o has weights `scales[o] * weight[o]`.
    ///
    /// # Panics
    /// If a size is zero or a slice has another length.
    pub fn of_i8(weight: &[i8], scales: Vec<f32>, out: usize, depth: usize, isa: Isa) -> Self {
        let panels = Self::panels(isa, out);
        Self::of_values(Values::of_i8(weight, scales, &panels, depth), panels, depth, isa)
    }

    /// Takes weights of four bits, `[out][depth][3 * 3]` with scales `[out][groups of depth][3 * 3]`.
    ///
    /// # Panics
    /// If a size is zero or a slice has another length.
    pub fn of_grouped(weight: Grouped<'_>, out: usize, depth: usize, isa: Isa) -> Self {
        let panels = Self::panels(isa, out);
        Self::of_values(Values::of_grouped(weight, &panels, depth), panels, depth, isa)
    }

    fn of_values(values: Values, panels: Panels, depth: usize, isa: Isa) -> Self {
        let greatest = filters::greatest(&values, &panels, Blocking::new(depth, isa), isa).into();
        Self { isa, panels, depth, weights: Weights { values, greatest } }
    }

    /// The bytes of its parts, from which [`Self::of_parts`] makes it again.
    pub fn parts(&self) -> Vec<&[u8]> {
        self.weights.parts()
    }

    /// What has been packed for this set and shape before, if `parts` fit.
    pub fn of_parts(parts: Vec<LentBytes>, shape: Shape, isa: Isa) -> Option<Self> {
        let Shape { out, depth, .. } = shape;
        let panels = Self::panels(isa, out);
        let weights = Weights::of_parts(parts, &panels, Blocking::new(depth, isa))?;
        Some(Self { isa, panels, depth, weights })
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

    /// Bytes that [`WinogradWords::apply`] takes at the most for outputs of this size, but for what each thread takes.
    pub fn bytes(isa: Isa, out: usize, depth: usize, batch: usize, height: usize, width: usize) -> usize {
        let tiles = Tiles::count_of(batch, height, width);
        let blocking = Blocking::new(depth, isa);
        let per_block = tiles_per_block(tiles, blocking);
        let inputs = COMPONENTS * blocking.component_len(per_block) * size_of::<i16>()
            + COMPONENTS * blocking.count * per_block * size_of::<f32>();
        if tiles_per_task(tiles, blocking).is_none() {
            return inputs;
        }
        let panels = Self::panels(isa, out);
        let filters = COMPONENTS * blocking.filters_len(panels.width) * size_of::<i16>();
        inputs.max(panels.count() * blocking.count * filters)
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

        let blocking = Blocking::new(self.depth, self.isa);
        let work = Work {
            layer: self,
            tiles: Tiles::new(conv),
            blocking,
            limits: self.weights.limits(blocking),
            input,
            destination: &destination,
        };
        match tiles_per_task(work.tiles.count(), blocking) {
            Some(per_task) => work.by_tiles(per_task / self.panels.tile.rows * self.panels.tile.rows),
            None => work.by_panels(),
        }
        // SAFETY: tiles cover all pixels, panels all columns.
        unsafe { Written::all_of(output) }
    }
}

/// A convolution to be done.
struct Work<'a> {
    layer: &'a WinogradWords,
    tiles: Tiles<'a>,
    blocking: Blocking,
    limits: Limits,
    input: &'a [f32],
    destination: &'a Destination<'a>,
}

impl Work<'_> {
    /// Transforms tile `number` of the inputs that are in the making, which is tile `first + number` of all.
    fn transform_input(&self, first: usize, number: usize, to: &InputsRoom<'_>, components: &mut [f32]) {
        let layer = self.layer;
        layer.isa.run_words(TransformInput {
            pixels: self.tiles.pixels(first + number, self.input, layer.depth),
            blocking: self.blocking,
            limits: &self.limits,
            tile: number,
            components: &mut components[..COMPONENTS * self.blocking.step],
            to,
        });
    }

    /// Weights are transformed once; each task brings the inputs of some tiles and meets them with all weights.
    fn by_tiles(&self, per_task: usize) {
        let Self { layer, tiles, blocking, .. } = *self;
        let (width, panels) = (layer.panels.width, layer.panels.count());
        let (words_len, scales_len) = (COMPONENTS * blocking.filters_len(width), COMPONENTS * width);
        let mut words = take_words(panels * blocking.count * words_len);
        let mut scales = vec![0.0; panels * blocking.count * scales_len];
        {
            let (words, scales) = (Disjoint::new(words.as_mut_slice()), Disjoint::new(&mut scales));
            let unpacked_len = filters::unpacked_len(&layer.weights.values, blocking, width);
            for_each_index(panels * blocking.count, |index| {
                with_scratch(0, 0, |scratch| {
                    scratch.words.reserve_len(unpacked_len);
                    // SAFETY: each panel and block is transformed once, to places of its own.
                    let (words, scales) = unsafe {
                        (
                            words.part(index * words_len..(index + 1) * words_len),
                            scales.part(index * scales_len..(index + 1) * scales_len),
                        )
                    };
                    let unpacked = &mut scratch.words.as_mut_slice()[..unpacked_len];
                    let which = (index / blocking.count, index % blocking.count);
                    filters::transform(layer, blocking, which, Room { unpacked, words, scales });
                });
            });
        }
        let inputs_len = COMPONENTS * blocking.component_len(per_task);
        let input_scales_len = COMPONENTS * blocking.count * per_task;
        let (results_len, _) = results_len(layer, per_task);
        let sums_len = OUTPUT_SIDE * OUTPUT_SIDE * width;
        for_each_index(tiles.count().div_ceil(per_task), |task| {
            let first = task * per_task;
            let rows = per_task.min(tiles.count() - first);
            let floats = COMPONENTS * blocking.step + input_scales_len + results_len + sums_len;
            with_scratch(floats, 0, |scratch| {
                scratch.words.reserve_len(inputs_len);
                let inputs = &mut scratch.words.as_mut_slice()[..inputs_len];
                let floats = scratch.floats.as_mut_slice();
                let (components, rest) = floats.split_at_mut(COMPONENTS * blocking.step);
                let (input_scales, rest) = rest.split_at_mut(input_scales_len);
                let (results, rest) = rest.split_at_mut(results_len);
                {
                    let to = InputsRoom {
                        words: Disjoint::new(inputs),
                        scales: Disjoint::new(input_scales),
                        per_block: per_task,
                    };
                    (0..rows).for_each(|number| self.transform_input(first, number, &to, components));
                }
                let inputs = Inputs { words: inputs, scales: input_scales, per_block: per_task };
                for panel in 0..panels {
                    for block in 0..blocking.count {
                        let index = panel * blocking.count + block;
                        let filters = Filters {
                            words: &words.as_slice()[index * words_len..][..words_len],
                            scales: &scales[index * scales_len..][..scales_len],
                        };
                        self.multiply(block, inputs, 0..rows, filters, results);
                    }
                    self.finish(panel, first, rows, results, &mut rest[..sums_len]);
                }
            });
        });
        keep_words(words);
    }

    /// Inputs of many tiles are transformed first; each task then transforms one panel of weights and meets it with some
    /// of them.
    fn by_panels(&self) {
        let Self { layer, tiles, blocking, .. } = *self;
        let width = layer.panels.width;
        let per_block = tiles_per_block(tiles.count(), blocking);
        let mut words = take_words(COMPONENTS * blocking.component_len(per_block));
        let mut scales = vec![0.0; COMPONENTS * blocking.count * per_block];
        for first in (0..tiles.count()).step_by(per_block) {
            let count = per_block.min(tiles.count() - first);
            {
                let to = InputsRoom {
                    words: Disjoint::new(words.as_mut_slice()),
                    scales: Disjoint::new(&mut scales),
                    per_block,
                };
                for_each_index(count, |number| {
                    with_scratch(COMPONENTS * blocking.step, 0, |scratch| {
                        self.transform_input(first, number, &to, scratch.floats.as_mut_slice());
                    });
                });
            }
            let inputs = Inputs { words: words.as_slice(), scales: &scales, per_block };
            let chunk = count.div_ceil(count.div_ceil(TASK_TILES));
            let (panels, chunks) = (layer.panels.count(), count.div_ceil(chunk));
            let words_len = COMPONENTS * blocking.filters_len(width);
            let unpacked_len = filters::unpacked_len(&layer.weights.values, blocking, width);
            for_each_index(panels * chunks, |index| {
                let (panel, first_row) = (index / chunks, index % chunks * chunk);
                let rows = chunk.min(count - first_row);
                let (results_len, _) = results_len(layer, rows);
                let scales_len = COMPONENTS * width;
                let sums_len = OUTPUT_SIDE * OUTPUT_SIDE * width;
                with_scratch(results_len + scales_len + sums_len, 0, |scratch| {
                    scratch.words.reserve_len(words_len + unpacked_len);
                    let (words, unpacked) = scratch.words.as_mut_slice().split_at_mut(words_len);
                    let (results, rest) = scratch.floats.as_mut_slice().split_at_mut(results_len);
                    let (scales, rest) = rest.split_at_mut(scales_len);
                    for block in 0..blocking.count {
                        let unpacked = &mut unpacked[..unpacked_len];
                        let room = Room { unpacked, words: &mut *words, scales: &mut *scales };
                        let filters = filters::transform(layer, blocking, (panel, block), room);
                        self.multiply(block, inputs, first_row..first_row + rows, filters, results);
                    }
                    self.finish(panel, first + first_row, rows, results, &mut rest[..sums_len]);
                });
            });
        }
        keep_words(words);
    }

    /// Adds the products of rows of `inputs` and `filters`, both of block `block`, to `results`.
    fn multiply(
        &self,
        block: usize,
        inputs: Inputs<'_>,
        rows: Range<usize>,
        filters: Filters<'_>,
        results: &mut [f32],
    ) {
        let Self { layer, blocking, .. } = *self;
        let (first_row, rows) = (rows.start, rows.len());
        layer.isa.run_words(Multiply { layer, blocking, block, inputs, first_row, rows, filters, results });
    }

    fn finish(&self, panel: usize, first_tile: usize, rows: usize, results: &[f32], sums: &mut [f32]) {
        let Self { layer, tiles, destination, .. } = *self;
        layer.isa.run_words(Finish { layer, tiles, first_tile, rows, panel, results, sums, destination });
    }
}
