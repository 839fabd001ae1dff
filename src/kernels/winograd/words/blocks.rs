//! How input channels are cut into blocks, whose sums fit into 32 bits, and tiles into blocks that stay in a cache.

use super::super::super::isa::Isa;
use super::super::transforms::COMPONENTS;

/// Input channels of a block: with more, integers would have to be smaller, so that their sums stay below 2^31. A
/// panel's transformed weights are 180 KB of L2 cache on AVX2.
const DEPTH_BLOCK: usize = 160;
/// Bytes of transformed inputs at most, which have to come from an L3 cache for each panel.
const INPUT_BYTES: usize = 8 << 20;
/// The same of inputs that have to stay in an L2 cache.
const TASK_BYTES: usize = 512 << 10;
/// Tiles of such a task at least: with fewer it would wait for weights.
const LEAST_PER_TASK: usize = 24;
/// Such tasks at least: fewer would not make up for weights that are written to memory.
const MANY_TASKS: usize = 32;
/// i16 or f32 between the components' matrices, lest they compete for the same sets of the L1 cache.
pub const COMPONENT_GAP: usize = 32;

/// Components below this count as no greater, so that their scale's inverse stays finite.
pub const LEAST: f32 = 1e-30;

/// How input channels are cut into blocks, and these into groups of two vectors: a pair is of two channels that have
/// the same place in either.
#[derive(Clone, Copy)]
pub struct Blocking {
    pub depth: usize,
    /// `depth` in whole groups.
    pub padded: usize,
    /// Channels of a block, whole groups.
    pub step: usize,
    pub count: usize,
    /// The greatest component as an integer.
    pub limit: f32,
}

impl Blocking {
    pub fn new(depth: usize, isa: Isa) -> Self {
        let group = 2 * isa.properties().tiling.lanes;
        let padded = depth.next_multiple_of(group);
        let step = padded.div_ceil(padded.div_ceil(DEPTH_BLOCK)).next_multiple_of(group);
        let limit = (f64::from(i32::MAX) / step as f64).sqrt().floor().min(32767.0) as f32;
        Self { depth, padded, step, count: padded.div_ceil(step), limit }
    }

    /// First channel and number of channels, padding included, of a block.
    pub fn block(self, block: usize) -> (usize, usize) {
        (block * self.step, self.step.min(self.padded - block * self.step))
    }

    /// Words of a component's weights of a panel, one block's.
    pub fn filters_len(self, width: usize) -> usize {
        self.step * width + COMPONENT_GAP
    }

    /// Words of a component's inputs of some tiles.
    pub fn component_len(self, tiles: usize) -> usize {
        tiles * self.padded + COMPONENT_GAP
    }
}

/// Tiles of a task that brings its own inputs, which stay in an L2 cache for all panels; `None` if tasks that bring
/// their own weights are the better way for so many tiles.
pub fn tiles_per_task(tiles: usize, blocking: Blocking) -> Option<usize> {
    let most = TASK_BYTES / size_of::<i16>() / COMPONENTS / blocking.padded;
    (most >= LEAST_PER_TASK && tiles >= MANY_TASKS * most).then_some(most)
}

/// Tiles whose transformed inputs exist at once.
pub fn tiles_per_block(tiles: usize, blocking: Blocking) -> usize {
    let most = (INPUT_BYTES / size_of::<i16>() / COMPONENTS / blocking.padded).max(1);
    tiles.div_ceil(tiles.div_ceil(most).max(1)).max(1)
}
