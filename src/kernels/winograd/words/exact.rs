//! Filters of bytes on their way to the products: multiples of their components are integers, so nothing is rounded.

use super::super::super::word_product::{WordKernel, WordProduct};
use super::super::transforms::{COMPONENTS, INPUT_SIDE};
use super::blocks::Blocking;

/// What each line of G (see [`super::super::transforms`]) is a multiple of, by which factor, and the sum of its
/// coefficients' magnitudes then.
const LINES: [(f64, u32); INPUT_SIDE] = [
    (1.0, 1),         // 1 0 0
    (1.0 / 6.0, 3),   // 1 1 1
    (1.0 / 6.0, 3),   // 1 -1 1
    (1.0 / 30.0, 7),  // 1 2 4
    (-4.0 / 15.0, 7), // 4 -2 1
    (1.0, 1),         // 0 0 1
];
/// The greatest magnitude of a weight.
const GREATEST: u32 = 127;

/// For each component the greatest integer that inputs may be, so that sums stay below 2^31, and what an integer of the
/// weights stands for.
pub fn limits(blocking: Blocking) -> ([f32; COMPONENTS], [f32; COMPONENTS]) {
    let (mut limits, mut factors) = ([0.0; COMPONENTS], [0.0; COMPONENTS]);
    for (component, (limit, factor)) in limits.iter_mut().zip(&mut factors).enumerate() {
        let [y, x] = [component / INPUT_SIDE, component % INPUT_SIDE].map(|line| LINES[line]);
        let most = u64::from(GREATEST * y.1 * x.1) * blocking.step as u64;
        *limit = (i32::MAX as u64 / most).min(32767) as f32;
        *factor = (y.0 * x.0) as f32;
    }
    (limits, factors)
}

/// Transforms some channels' filters.
pub struct TransformBytes<'a> {
    /// `[channels][3 * 3][width]`; those beyond the last are zero.
    pub filters: &'a [i8],
    pub width: usize,
    /// Padding included.
    pub channels: usize,
    /// Words from component to component.
    pub component_len: usize,
    /// As in [`super::filters::Filters`].
    pub words: &'a mut [i16],
}

impl WordKernel for TransformBytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: WordProduct>(self, _: P) {
        // Columns as many as compilers hold in few registers.
        match self.width {
            width if width.is_multiple_of(32) => self.transform::<P, 32>(),
            width if width.is_multiple_of(16) => self.transform::<P, 16>(),
            width if width.is_multiple_of(8) => self.transform::<P, 8>(),
            _ => self.transform::<P, 4>(),
        }
    }
}

impl TransformBytes<'_> {
    #[inline(always)]
    fn transform<P: WordProduct, const N: usize>(self) {
        use super::super::super::simd::Simd;
        let Self { filters, width, channels, component_len, words } = self;
        let lanes = const { P::Simd::LANES };
        assert!(width.is_multiple_of(N) && channels * width <= component_len);
        for at in (0..width).step_by(N) {
            for pair in 0..channels / 2 {
                let channel = pair / lanes * 2 * lanes + pair % lanes;
                let first = columns::<N>(filters, channel, width, at);
                let second = columns::<N>(filters, channel + lanes, width, at);
                let place = 2 * (pair * width + at);
                for y in 0..INPUT_SIDE {
                    let first = line([first[0][y], first[1][y], first[2][y]]);
                    let second = line([second[0][y], second[1][y], second[2][y]]);
                    for x in 0..INPUT_SIDE {
                        let place = (y * INPUT_SIDE + x) * component_len + place;
                        let to = words[place..place + 2 * N].as_chunks_mut::<2>().0;
                        for n in 0..N {
                            to[n] = [first[x][n], second[x][n]];
                        }
                    }
                }
            }
        }
    }
}

/// The first half of transforming a channel's filters, N columns from `at`.
#[inline(always)]
fn columns<const N: usize>(
    filters: &[i8],
    channel: usize,
    width: usize,
    at: usize,
) -> [[[i16; N]; INPUT_SIDE]; 3] {
    let mut g = [[[0; N]; 3]; 3];
    let start = channel * 9 * width;
    if start < filters.len() {
        for (tap, weights) in filters[start..][..9 * width].chunks_exact(width).enumerate() {
            let to = &mut g[tap % 3][tap / 3];
            for n in 0..N {
                to[n] = i16::from(weights[at..at + N][n]);
            }
        }
    }
    [line(g[0]), line(g[1]), line(g[2])]
}

/// The multiples of G g that [`LINES`] tells of.
#[inline(always)]
fn line<const N: usize>([a, b, c]: [[i16; N]; 3]) -> [[i16; N]; INPUT_SIDE] {
    let mut to = [[0; N]; INPUT_SIDE];
    for n in 0..N {
        let (a, b, c) = (a[n], b[n], c[n]);
        let (even, twice) = (a.wrapping_add(c), b.wrapping_add(b));
        to[0][n] = a;
        to[1][n] = even.wrapping_add(b);
        to[2][n] = even.wrapping_sub(b);
        to[3][n] = a.wrapping_add(twice).wrapping_add(c << 2);
        to[4][n] = (a << 2).wrapping_sub(twice).wrapping_add(c);
        to[5][n] = c;
    }
    to
}
