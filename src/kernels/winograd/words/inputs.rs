//! Inputs on their way to the products: tiles of pixels become components, and these 16-bit integers.

use std::ops::Range;

use super::super::super::parallel::Disjoint;
use super::super::super::simd::Simd;
use super::super::super::word_product::{WordKernel, WordProduct, shifted};
use super::super::Pixels;
use super::super::transforms::{self, COMPONENTS, INPUT_SIDE, OUTPUT_SIDE};
use super::blocks::{Blocking, LEAST};

/// One tile of inputs to its components.
pub struct TransformInput<'a> {
    pub pixels: Pixels<'a>,
    pub blocking: Blocking,
    pub limits: &'a Limits,
    /// Of those for which there is room.
    pub tile: usize,
    /// `[vector][component][lanes]` of a depth block, of unspecified contents.
    pub components: &'a mut [f32],
    pub to: &'a InputsRoom<'a>,
}

/// What integers of the inputs may be, and stand for.
pub struct Limits {
    /// The greatest of each component.
    pub greatest: [f32; COMPONENTS],
    /// What the scale of each component, the greatest value's, is multiplied with.
    pub factors: [f32; COMPONENTS],
}

impl Limits {
    /// For weights of which an integer stands for this much.
    pub fn new(greatest: [f32; COMPONENTS], mut factors: [f32; COMPONENTS]) -> Self {
        factors.iter_mut().zip(&greatest).for_each(|(factor, greatest)| *factor /= greatest);
        Self { greatest, factors }
    }
}

/// Room for [`Inputs`].
pub struct InputsRoom<'a> {
    pub words: Disjoint<'a, i16>,
    pub scales: Disjoint<'a, f32>,
    pub per_block: usize,
}

impl WordKernel for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        let Self { pixels, blocking, limits, tile, components, to } = self;
        let InputsRoom { words: ref to, ref scales, per_block } = *to;
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
                let greatest = simd.greatest(greatest[component]).max(LEAST);
                *inverse = limits.greatest[component] / greatest;
                let at = (component * blocking.count + block) * per_block + tile;
                // SAFETY: each tile has a scale of its own in every component and block.
                let place = unsafe { scales.part(at..at + 1) };
                place[0] = greatest * limits.factors[component] + poison;
            }
            for (component, &inverse) in inverses.iter().enumerate() {
                let at = blocking.component_len(per_block) * component + per_block * first + tile * len;
                // SAFETY: each tile has a row of its own in every component and block.
                let row = unsafe { to.part(at..at + len) };
                let inverse = simd.splat(inverse);
                for (group, row) in row.chunks_exact_mut(2 * lanes).enumerate() {
                    let pair = &components[(2 * group * COMPONENTS + component) * lanes..];
                    let pair = words.pair(
                        shifted(simd, simd.read(pair), inverse),
                        shifted(simd, simd.read(&pair[COMPONENTS * lanes..]), inverse),
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
    for (d, pixels) in d.iter_mut().zip(pixels) {
        for (x, (d, pixel)) in d.iter_mut().zip(pixels).enumerate() {
            if let Some(pixel) = pixel {
                let values = &pixel[channels.clone()];
                *d = if whole { simd.read(values) } else { simd.read_up_to(values) };
                // What the next tile reads and this one doesn't: no processor finds that out in time by itself.
                if x >= INPUT_SIDE - OUTPUT_SIDE {
                    simd.prefetch(values.as_ptr().wrapping_add(OUTPUT_SIDE * pixel.len()).cast());
                }
            }
        }
    }
    d
}

/// The transformed inputs of a block of tiles.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[component][depth block][tile][channels of the block]`, in groups of pairs, with gaps between components.
    pub words: &'a [i16],
    /// `[component][depth block][tile]`.
    pub scales: &'a [f32],
    /// Tiles for which there is room.
    pub per_block: usize,
}
