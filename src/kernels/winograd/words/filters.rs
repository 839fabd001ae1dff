//! Weights on their way to the products: filters become components, and these 16-bit integers.

use super::super::super::blocking::Panels;
use super::super::super::isa::Isa;
use super::super::super::simd::{MAX_LANES, Simd};
use super::super::super::tile::TileKernel;
use super::super::super::word_product::{WordKernel, WordProduct, shifted};
use super::super::transforms::{self, COMPONENTS, INPUT_SIDE};
use super::WinogradWords;
use super::blocks::{Blocking, LEAST};
use super::exact::TransformBytes;
use super::weights::{self, Values};

/// What is done with the filters of a panel for one block of input channels.
trait Work {
    /// Takes `filters`, `[channels][3 * 3][NV * LANES]`.
    fn run<P: WordProduct, const NV: usize, T: Copy + Into<f32>>(self, words: P, filters: &[T]);
}

/// The filters of panel `panel` for block `block`.
struct OfPanel<'a, W> {
    values: &'a Values,
    blocking: Blocking,
    panels: &'a Panels,
    panel: usize,
    block: usize,
    /// Room for [`unpacked_len`] words.
    unpacked: &'a mut [i16],
    work: W,
}

/// Words that filters of a panel for one block take which don't rest as they are transformed.
pub fn unpacked_len(values: &Values, blocking: Blocking, width: usize) -> usize {
    match values {
        Values::Nibbles(..) => blocking.step * 9 * width,
        Values::F32(_) | Values::I8(..) | Values::Words(..) => 0,
    }
}

impl<W: Work> WordKernel for OfPanel<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, words: P) {
        P::Simd::in_tile(self.panels.tile.vectors, words, self);
    }
}

impl<P: WordProduct, W: Work> TileKernel<P> for OfPanel<'_, W> {
    #[inline(always)]
    fn run<const MR: usize, const NV: usize>(self, words: P) {
        let Self { values, blocking, panels, panel, block, unpacked, work } = self;
        // Known when compiled, which spares loops their remainders.
        let width = const { NV * P::Simd::LANES };
        assert_eq!(panels.width, width);
        let (first, len) = blocking.block(block);
        let known = first..(first + len).min(blocking.depth);
        let (start, filter) = (panel * blocking.depth, 9 * width);
        let places = (start + known.start) * filter..(start + known.end) * filter;
        match values {
            Values::F32(weights) => work.run::<P, NV, _>(words, &weights.as_slice()[places]),
            Values::I8(weights, _) => work.run::<P, NV, _>(words, &weights.as_slice()[places]),
            Values::Words(weights, _) => work.run::<P, NV, _>(words, &weights.as_slice()[places]),
            Values::Nibbles(nibbles, _) => {
                let unpacked = &mut unpacked[..known.len() * filter];
                weights::unpack(nibbles, panel, blocking.depth, width, known, unpacked);
                work.run::<P, NV, _>(words, unpacked);
            }
        }
    }
}

/// The greatest magnitude of each component and column of a block, `[component][width]`.
struct Greatest<'a>(&'a mut [f32]);

impl Work for Greatest<'_> {
    #[inline(always)]
    fn run<P: WordProduct, const NV: usize, T: Copy + Into<f32>>(self, words: P, filters: &[T]) {
        let simd = words.simd();
        let width = const { NV * P::Simd::LANES };
        self.0.fill(0.0);
        for channel in 0..filters.len() / (9 * width) {
            for at in (0..width).step_by(P::Simd::LANES) {
                let components = transforms::weight(simd, filter(simd, filters, channel, width, at));
                for (&u, greatest) in components.as_flattened().iter().zip(self.0.chunks_exact_mut(width)) {
                    let magnitude = simd.max(u, simd.sub(simd.splat(0.0), u));
                    let greatest = &mut greatest[at..];
                    simd.write(greatest, simd.max(magnitude, simd.read(greatest)));
                }
            }
        }
    }
}

/// The greatest magnitudes of all panels' components, `[panel][block][component][panel width]`, in bfloat16, rounded up;
/// none of bytes, whose components are bounded well enough.
pub fn greatest(values: &Values, panels: &Panels, blocking: Blocking, isa: Isa) -> Vec<u16> {
    use rayon::prelude::*;
    let len = COMPONENTS * panels.width;
    if matches!(values, Values::I8(..)) {
        return Vec::new();
    }
    let mut all = vec![0; panels.count() * blocking.count * len];
    all.par_chunks_exact_mut(len).enumerate().for_each(|(index, to)| {
        let (panel, block) = (index / blocking.count, index % blocking.count);
        let mut greatest = vec![0.0; len];
        let mut unpacked = vec![0; unpacked_len(values, blocking, panels.width)];
        let work = Greatest(&mut greatest);
        isa.run_words(OfPanel { values, blocking, panels, panel, block, unpacked: &mut unpacked, work });
        for (to, greatest) in to.iter_mut().zip(&greatest) {
            *to = ((greatest.to_bits() + 0xFFFF) >> 16) as u16;
        }
    });
    all
}

/// The transformed weights of a panel for one block of input channels.
#[derive(Clone, Copy)]
pub struct Filters<'a> {
    /// `[component][channels / 2][panel width][2]` in the order of the inputs' pairs, with gaps between components.
    pub words: &'a [i16],
    /// `[component][panel width]`.
    pub scales: &'a [f32],
}

/// Room for the filters of a panel and block, which may hold anything.
pub struct Room<'a> {
    /// [`unpacked_len`] words.
    pub unpacked: &'a mut [i16],
    /// As in [`Filters`].
    pub words: &'a mut [i16],
    pub scales: &'a mut [f32],
}

/// Transforms the weights of panel `panel` for block `block`.
pub fn transform<'a>(
    layer: &WinogradWords,
    blocking: Blocking,
    (panel, block): (usize, usize),
    room: Room<'a>,
) -> Filters<'a> {
    let WinogradWords { isa, panels, weights, .. } = layer;
    let Room { unpacked, words, scales } = room;
    let (first, channels) = blocking.block(block);
    let (component_len, width) = (blocking.filters_len(panels.width), panels.width);
    if let Values::I8(bytes, _) = &weights.values {
        let channel = |channel: usize| (panel * blocking.depth + channel.min(blocking.depth)) * 9 * width;
        let filters = &bytes.as_slice()[channel(first)..channel(first + channels)];
        isa.run_words(TransformBytes { filters, width, channels, component_len, words: &mut *words });
        // Inputs' scales tell of the factors.
        scales.fill(1.0);
        return Filters { words, scales };
    }
    let len = COMPONENTS * width;
    let greatest = &weights.greatest.as_slice()[(panel * blocking.count + block) * len..][..len];
    let work = Transform {
        greatest,
        channels,
        component_len,
        limit: blocking.limit,
        words: &mut *words,
        scales: &mut *scales,
    };
    isa.run_words(OfPanel { values: &weights.values, blocking, panels, panel, block, unpacked, work });
    Filters { words, scales }
}

struct Transform<'a> {
    /// `[component][width]`
    greatest: &'a [u16],
    /// Of the block, padding included.
    channels: usize,
    /// Words from component to component.
    component_len: usize,
    /// The greatest integer.
    limit: f32,
    words: &'a mut [i16],
    scales: &'a mut [f32],
}

impl Work for Transform<'_> {
    #[inline(always)]
    fn run<P: WordProduct, const NV: usize, T: Copy + Into<f32>>(self, words: P, filters: &[T]) {
        let Self { greatest, channels, component_len, limit, words: to, scales } = self;
        let simd = words.simd();
        let (lanes, width) = (P::Simd::LANES, const { NV * P::Simd::LANES });
        assert!(channels * width <= component_len && to.len() >= COMPONENTS * component_len);
        for at in (0..width).step_by(lanes) {
            let mut inverses = [[simd.splat(0.0); INPUT_SIDE]; INPUT_SIDE];
            for (component, inverse) in inverses.as_flattened_mut().iter_mut().enumerate() {
                let place = component * width + at;
                let mut values = [0.0; MAX_LANES];
                for (value, &bits) in values.iter_mut().zip(&greatest[place..][..lanes]) {
                    *value = f32::from_bits(u32::from(bits) << 16);
                }
                let greatest = simd.max(simd.read(&values), simd.splat(LEAST));
                simd.write(&mut scales[place..], simd.mul(greatest, simd.splat(1.0 / limit)));
                *inverse = simd.div(simd.splat(limit), greatest);
            }
            for pair in 0..channels / 2 {
                let channel = pair / lanes * 2 * lanes + pair % lanes;
                let first = filter(simd, filters, channel, width, at);
                let second = filter(simd, filters, channel + lanes, width, at);
                let first = transforms::weight_columns(simd, first);
                let second = transforms::weight_columns(simd, second);
                let mut place = 2 * (pair * width + at);
                // Row by row, so that registers hold them.
                for (y, inverses) in inverses.iter().enumerate() {
                    let first = transforms::weight_line(simd, [first[0][y], first[1][y], first[2][y]]);
                    let second = transforms::weight_line(simd, [second[0][y], second[1][y], second[2][y]]);
                    for x in 0..INPUT_SIDE {
                        let first = shifted(simd, first[x], inverses[x]);
                        let second = shifted(simd, second[x], inverses[x]);
                        // SAFETY: within row `pair`, of `width` pairs, of one of the components asserted.
                        unsafe { words.store_pairs(to.as_mut_ptr().add(place), words.pair(first, second)) };
                        place += component_len;
                    }
                }
            }
        }
    }
}

/// A channel's filters of one vector of columns, from `at`; zeros beyond the last.
#[inline(always)]
fn filter<S: Simd, T: Copy + Into<f32>>(
    simd: S,
    filters: &[T],
    channel: usize,
    width: usize,
    at: usize,
) -> [[S::F; 3]; 3] {
    let mut g = [[simd.splat(0.0); 3]; 3];
    let start = channel * 9 * width;
    if start < filters.len() {
        for (tap, w) in filters[start..][..9 * width].chunks_exact(width).enumerate() {
            let mut values = [0.0; MAX_LANES];
            for (value, &w) in values.iter_mut().zip(&w[at..][..S::LANES]) {
                *value = w.into();
            }
            g[tap / 3][tap % 3] = simd.read(&values);
        }
    }
    g
}
