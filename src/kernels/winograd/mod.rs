//! 3x3 convolutions of stride 1 with a quarter of the multiplications; other convolutions are products as they stand.
//!
//! F(4x4, 3x3) of Lavin and Gray (2015): each 6x6 tile of inputs becomes 36 components, each component of
//! all tiles is one matrix product over channels, and 36 results become 4x4 outputs. Tiles are taken in
//! blocks, so that memory is bounded whatever the image.

mod float;
mod transforms;
mod words;

use std::ops::Range;

pub use float::Winograd;
pub use words::WinogradWords;

use super::epilogue::Destination;
use super::gather::{Conv2d, Padding, repeated};
use super::simd::Simd;
use transforms::{INPUT_SIDE, OUTPUT_SIDE};

/// Whether this algorithm can do `conv`: a 3x3 kernel, stride 1, one pixel of padding all around.
fn fits(conv: &Conv2d) -> bool {
    conv.kernel == 3 && conv.stride == 1 && conv.padding == Padding::all(1)
}

/// The tiles of a convolution's output, image by image and row by row.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    conv: &'a Conv2d,
    /// Down and across one image.
    down: usize,
    across: usize,
}

/// A tile's pixels, each its channels; `None` is padding.
type Pixels<'a> = [[Option<&'a [f32]>; INPUT_SIDE]; INPUT_SIDE];

impl<'a> Tiles<'a> {
    fn new(conv: &'a Conv2d) -> Self {
        let (height, width) = conv.output_size();
        Self { conv, down: height.div_ceil(OUTPUT_SIDE), across: width.div_ceil(OUTPUT_SIDE) }
    }

    fn count(self) -> usize {
        self.conv.batch * self.down * self.across
    }

    /// How many there are of outputs of this size.
    fn count_of(batch: usize, height: usize, width: usize) -> usize {
        batch * height.div_ceil(OUTPUT_SIDE) * width.div_ceil(OUTPUT_SIDE)
    }

    /// The image of a tile, and the row and column of its first output pixel.
    fn position(self, tile: usize) -> (usize, usize, usize) {
        let (down, across) = (self.down, self.across);
        (tile / across / down, tile / across % down * OUTPUT_SIDE, tile % across * OUTPUT_SIDE)
    }

    /// What a tile reads of `input`, whose pixels have `depth` channels.
    fn pixels<'i>(self, tile: usize, input: &'i [f32], depth: usize) -> Pixels<'i> {
        let Conv2d { height, width, .. } = *self.conv;
        let (seen_height, seen_width) = self.conv.seen_size();
        let (image, y, x) = self.position(tile);
        let mut pixels = [[None; INPUT_SIDE]; INPUT_SIDE];
        for (i, row) in pixels.iter_mut().enumerate() {
            for (j, pixel) in row.iter_mut().enumerate() {
                let (in_y, in_x) = ((y + i).wrapping_sub(1), (x + j).wrapping_sub(1));
                if in_y < seen_height && in_x < seen_width {
                    let (in_y, in_x) =
                        (repeated(in_y, height, seen_height), repeated(in_x, width, seen_width));
                    let row = (image * height + in_y) * width + in_x;
                    *pixel = Some(&input[row * depth..][..depth]);
                }
            }
        }
        pixels
    }

    /// Asks for the memory that `finish` will want.
    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, tile: usize, destination: &Destination<'_>, columns: Range<usize>) {
        let (height, width) = self.conv.seen_size();
        let (image, y, x) = self.position(tile);
        for i in 0..OUTPUT_SIDE.min(height - y) {
            let row = (image * height + y + i) * width + x;
            destination.prefetch(simd, row..row + OUTPUT_SIDE.min(width - x), columns.clone());
        }
    }

    /// Finishes `columns` of a tile's outputs from `sums`, `[4 * 4][pitch]`.
    ///
    /// # Safety
    /// No other thread may use these columns of the tile's output meanwhile.
    #[inline(always)]
    unsafe fn finish<S: Simd>(
        self,
        simd: S,
        tile: usize,
        sums: &[f32],
        pitch: usize,
        destination: &Destination<'_>,
        columns: Range<usize>,
    ) {
        let (height, width) = self.conv.seen_size();
        let (image, y, x) = self.position(tile);
        for i in 0..OUTPUT_SIDE.min(height - y) {
            let row = (image * height + y + i) * width + x;
            let across = OUTPUT_SIDE.min(width - x);
            let sums = &sums[i * OUTPUT_SIDE * pitch..][..across * pitch];
            // SAFETY: the caller's promise.
            unsafe { destination.finish(simd, sums, pitch, row..row + across, columns.clone()) };
        }
    }
}
