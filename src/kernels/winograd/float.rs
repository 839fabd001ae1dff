//! Winograd's algorithm in f32.

use super::super::aligned::AlignedBuf;
use super::super::blocking::{Panels, Shape};
use super::super::epilogue::{Destination, Epilogue};
use super::super::gather::Conv2d;
use super::super::isa::Isa;
use super::super::micro_kernel;
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, with_scratch};
use super::super::read_only::{LentBytes, ReadOnly};
use super::super::simd::{Kernel, MAX_LANES, Simd};
use super::super::tile::TileKernel;
use super::transforms::{self, COMPONENTS, INPUT_SIDE, OUTPUT_SIDE};
use super::{Tiles, fits};

/// f32 of a block's transformed inputs or results at most, 4 MB: both stay in an L3 cache, and the
/// transformed weights are read rarely enough. Measured alike from 2 to 16 MB.
const BLOCK_VALUES: usize = 1 << 20;
/// f32 between the components' matrices: without it they lie a multiple of 4096 bytes apart, and the 36
/// lines that a tile touches compete for one set of the L1 cache.
const COMPONENT_GAP: usize = 16;
/// Input channels accumulated before the next tiles, as in `gemm_f32`.
const DEPTH_BLOCK: usize = 128;

/// A 3x3 convolution's weights, which are transformed anew at each call: held transformed, they would take four
/// times the memory.
#[derive(Clone)]
pub struct Winograd {
    isa: Isa,
    panels: Panels,
    depth: usize,
    /// `[out][3 * 3][depth]`
    weight: ReadOnly<f32>,
}

impl Winograd {
    /// Takes `weight`, `[out][3 * 3][depth]`.
    ///
    /// # Panics
    /// If a size is zero or `weight` has another length.
    pub fn new(weight: Vec<f32>, out: usize, depth: usize, isa: Isa) -> Self {
        assert!(out > 0 && depth > 0);
        assert_eq!(weight.len(), out * 9 * depth, "weights of {out} x 3 x 3 x {depth}");
        Self { isa, panels: Panels::plain(isa.properties().tiling, out), depth, weight: weight.into() }
    }

    /// The bytes of its parts, from which [`Self::of_parts`] makes it again.
    pub fn parts(&self) -> Vec<&[u8]> {
        vec![self.weight.bytes()]
    }

    /// What has been packed for this set and shape before, if `parts` fit.
    pub fn of_parts(parts: Vec<LentBytes>, shape: Shape, isa: Isa) -> Option<Self> {
        let Shape { out, depth, .. } = shape;
        let [weight] = parts.try_into().ok()?;
        let weight = ReadOnly::lent(weight, out * 9 * depth)?;
        Some(Self { isa, panels: shape.panels(isa.properties().tiling), depth, weight })
    }

    /// The weights as `[panel][component][depth][panel width]`, zeros beyond the last column.
    fn transformed(&self) -> AlignedBuf<f32> {
        let Self { isa, panels, depth, weight } = self;
        let weight = weight.as_slice();
        let (panel_width, depth) = (panels.width, *depth);
        let panel_len = COMPONENTS * depth * panel_width;
        let mut weights = AlignedBuf::zeros(panels.count() * panel_len);
        let shared = Disjoint::new(weights.as_mut_slice());
        let depth_blocks = depth.div_ceil(WEIGHT_DEPTH);
        for_each_index(panels.count() * depth_blocks, |index| {
            let (panel, block) = (index / depth_blocks, index % depth_blocks);
            isa.run(TransformWeights {
                weight,
                out: panels.out,
                depth,
                first_column: panel * panel_width,
                panel_width,
                depths: block * WEIGHT_DEPTH..((block + 1) * WEIGHT_DEPTH).min(depth),
                to: &shared,
                first: panel * panel_len,
            });
        });
        weights
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes that [`Winograd::apply`] takes for outputs of this size: transformed weights, and blocks of tiles.
    pub fn bytes(isa: Isa, out: usize, depth: usize, batch: usize, height: usize, width: usize) -> usize {
        let panels = Panels::plain(isa.properties().tiling, out);
        let pitch = panels.count() * panels.width;
        let tiles = Tiles::count_of(batch, height, width);
        let (_, input_stride, result_stride) = block_size(&panels, tiles, depth);
        size_of::<f32>() * COMPONENTS * (depth * pitch + input_stride + result_stride)
    }

    /// The convolution `conv` of `input`, `[batch, height, width, depth]`, into `output`, `[batch, seen height,
    /// seen width, out]` (see [`Conv2d::seen_size`]).
    ///
    /// Relative to the greatest output, errors are about 1e-5 (those of [`crate::kernels::PackedF32`] about 1e-6).
    /// Sums are in an order that depends only on the sizes and the instruction set.
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
        let rows = conv.batch * height * width;
        epilogue.validate(rows, &self.panels, output.len());
        let destination = Destination { epilogue, output: output.shared(), panels: self.panels, scale: None };
        let weights = self.transformed();

        let tiles = Tiles::new(conv);
        let panels = self.panels.count();
        let pitch = panels * self.panels.width;
        let (per_block, input_stride, result_stride) = block_size(&self.panels, tiles.count(), self.depth);
        // `[component][tiles of a block][depth]` and `[component][tiles of a block][pitch]`.
        let mut inputs = AlignedBuf::zeros(COMPONENTS * input_stride);
        let mut results = AlignedBuf::zeros(COMPONENTS * result_stride);

        for first in (0..tiles.count()).step_by(per_block) {
            let count = per_block.min(tiles.count() - first);
            let block = Block { layer: self, tiles, input_stride, pitch, result_stride, first };
            let shared = Disjoint::new(inputs.as_mut_slice());
            for_each_index(count, |tile| {
                self.isa.run(TransformInput { block: &block, input, tile, to: &shared })
            });
            let inputs = inputs.as_slice();
            let shared = Disjoint::new(results.as_mut_slice());
            for_each_index(COMPONENTS * panels, |index| {
                let (component, panel) = (index / panels, index % panels);
                let weights = weights.as_slice();
                self.isa.run(Multiply {
                    block: &block,
                    weights,
                    inputs,
                    count,
                    component,
                    panel,
                    to: &shared,
                });
            });
            let results = results.as_slice();
            for_each_index(count, |tile| {
                with_scratch(OUTPUT_SIDE * OUTPUT_SIDE * pitch, 0, |scratch| {
                    let sums = &mut scratch.floats.as_mut_slice()[..OUTPUT_SIDE * OUTPUT_SIDE * pitch];
                    let destination = &destination;
                    self.isa.run(TransformOutput { block: &block, results, tile, sums, destination });
                });
            });
        }
        // SAFETY: tiles cover all pixels, panels all columns.
        unsafe { Written::all_of(output) }
    }
}

/// Tiles of a block, and values from one component's inputs, or results, to the next's.
fn block_size(panels: &Panels, tiles: usize, depth: usize) -> (usize, usize, usize) {
    let pitch = panels.count() * panels.width;
    let most = (BLOCK_VALUES / COMPONENTS / depth.max(pitch)).max(1);
    let per_block = most.min(tiles).next_multiple_of(panels.tile.rows);
    (per_block, per_block * depth + COMPONENT_GAP, per_block * pitch + COMPONENT_GAP)
}

/// Input channels whose weights are transposed together, a cache line of them.
const WEIGHT_DEPTH: usize = 16;

/// Some input channels of a panel's weights.
struct TransformWeights<'a> {
    weight: &'a [f32],
    out: usize,
    depth: usize,
    first_column: usize,
    panel_width: usize,
    depths: std::ops::Range<usize>,
    to: &'a Disjoint<'a, f32>,
    /// Where the panel begins in `to`.
    first: usize,
}

impl Kernel for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { weight, out, depth, first_column, panel_width, depths, to, first } = self;
        for vector in (0..panel_width).step_by(S::LANES) {
            // Output channels side by side, `[depth][tap][lane]`; zeros beyond the last.
            let mut lanes = [[[0.0; MAX_LANES]; 9]; WEIGHT_DEPTH];
            for lane in 0..S::LANES {
                let o = first_column + vector + lane;
                if o < out {
                    for tap in 0..9 {
                        let from = &weight[(o * 9 + tap) * depth..][depths.clone()];
                        for (lanes, &w) in lanes.iter_mut().zip(from) {
                            lanes[tap][lane] = w;
                        }
                    }
                }
            }
            for (d, taps) in depths.clone().zip(&lanes) {
                let mut g = [[simd.splat(0.0); 3]; 3];
                for (tap, w) in taps.iter().enumerate() {
                    g[tap / 3][tap % 3] = simd.read(w);
                }
                let mut at = first + d * panel_width + vector;
                for row in &transforms::weight(simd, g) {
                    for &w in row {
                        // SAFETY: each task has a panel and channels of its own.
                        simd.write(unsafe { to.part(at..at + S::LANES) }, w);
                        at += depth * panel_width;
                    }
                }
            }
        }
    }
}

/// A block of tiles.
struct Block<'a> {
    layer: &'a Winograd,
    tiles: Tiles<'a>,
    /// From one component's inputs to the next's.
    input_stride: usize,
    /// Columns of a component's results.
    pitch: usize,
    /// From one component's results to the next's.
    result_stride: usize,
    /// The block's first tile.
    first: usize,
}

/// One tile of inputs to its components.
struct TransformInput<'a> {
    block: &'a Block<'a>,
    input: &'a [f32],
    tile: usize,
    to: &'a Disjoint<'a, f32>,
}

impl Kernel for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { block, input, tile, to } = self;
        let depth = block.layer.depth;
        let pixels = block.tiles.pixels(block.first + tile, input, depth);
        let mut at = 0;
        while at < depth {
            let end = (at + S::LANES).min(depth);
            let mut d = [[simd.splat(0.0); INPUT_SIDE]; INPUT_SIDE];
            for i in 0..INPUT_SIDE {
                for j in 0..INPUT_SIDE {
                    if let Some(pixel) = pixels[i][j] {
                        d[i][j] = simd.read_up_to(&pixel[at..end]);
                    }
                }
            }
            let mut start = tile * depth;
            for row in &transforms::input(simd, d) {
                for &v in row {
                    // SAFETY: each tile has a row of its own in every component.
                    simd.write_up_to(unsafe { to.part(start + at..start + end) }, v);
                    start += block.input_stride;
                }
            }
            at = end;
        }
    }
}

/// One component of all tiles times one panel of weights.
struct Multiply<'a> {
    block: &'a Block<'a>,
    /// Of all panels, see [`Winograd::transformed`].
    weights: &'a [f32],
    /// `[component][tiles][depth]`.
    inputs: &'a [f32],
    /// Tiles of this block.
    count: usize,
    component: usize,
    panel: usize,
    /// `[component][tiles][pitch]`.
    to: &'a Disjoint<'a, f32>,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        S::in_tile(self.block.layer.panels.tile.vectors, simd, self);
    }
}

impl<S: Simd> TileKernel<S> for Multiply<'_> {
    #[inline(always)]
    fn run<const MR: usize, const NV: usize>(self, simd: S) {
        self.product::<S, MR, NV>(simd);
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn product<S: Simd, const MR: usize, const NV: usize>(self, simd: S) {
        let Self { block, weights, inputs, count, component, panel, to } = self;
        let pitch = block.pitch;
        let Winograd { depth, panels: Panels { width, .. }, .. } = *block.layer;
        assert_eq!(width, NV * S::LANES);
        let component_len = depth * width;
        let weights = &weights[(panel * COMPONENTS + component) * component_len..][..component_len];
        let inputs = &inputs[component * block.input_stride..][..block.input_stride];
        let depth_step = depth.div_ceil(depth.div_ceil(DEPTH_BLOCK));
        for first_depth in (0..depth).step_by(depth_step) {
            let depth_len = depth_step.min(depth - first_depth);
            let b = &weights[first_depth * width..][..depth_len * width];
            for first in (0..count).step_by(MR) {
                let rows = &inputs[first * depth..][..MR * depth];
                let mut a = [rows.as_ptr(); MR];
                for (i, a) in a.iter_mut().enumerate() {
                    // SAFETY: within row i of the MR rows of `depth`.
                    *a = unsafe { a.add(i * depth + first_depth) };
                }
                let start = component * block.result_stride + first * pitch + panel * width;
                // SAFETY: each component and panel has rows and columns of its own; a block's
                // rows are a multiple of MR, so that overhanging ones exist.
                let sums = unsafe { to.rows(start, MR, pitch, width) };
                let mut acc = [[simd.splat(0.0); NV]; MR];
                if first_depth > 0 {
                    // SAFETY: MR rows of `width` = NV vectors, `pitch` apart, lie there.
                    acc = unsafe { micro_kernel::load(simd, sums, pitch) };
                }
                // SAFETY: each row has `depth_len` values from `first_depth`; `b` as many rows of NV vectors.
                acc = unsafe { simd.accumulate(a, 1, b.as_ptr(), depth_len, acc) };
                // SAFETY: as at the load.
                unsafe { micro_kernel::store(simd, sums, pitch, acc) };
            }
        }
    }
}

/// One tile's components to its outputs.
struct TransformOutput<'a> {
    block: &'a Block<'a>,
    /// `[component][tiles][pitch]`.
    results: &'a [f32],
    tile: usize,
    /// `[OUTPUT_SIDE * OUTPUT_SIDE][pitch]`.
    sums: &'a mut [f32],
    destination: &'a Destination<'a>,
}

impl Kernel for TransformOutput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { block, results, tile, sums, destination } = self;
        let pitch = block.pitch;
        for at in (0..pitch).step_by(S::LANES) {
            let mut m = [[simd.splat(0.0); INPUT_SIDE]; INPUT_SIDE];
            let mut from = tile * pitch + at;
            for row in &mut m {
                for m in row {
                    *m = simd.read(&results[from..]);
                    from += block.result_stride;
                }
            }
            let mut to = at;
            for row in &transforms::output(simd, m) {
                for &y in row {
                    simd.write(&mut sums[to..], y);
                    to += pitch;
                }
            }
        }
        let tile = block.first + tile;
        // SAFETY: each tile has output pixels of its own.
        unsafe { block.tiles.finish(simd, tile, sums, pitch, destination, 0..block.layer.panels.out) };
    }
}
