//! Which input row an output row reads at each kernel tap: the tables that make a matrix product a convolution.
//!
//! The idea is the indirection buffer of Dukhan, "The Indirect Convolution Algorithm" (2019), held here as
//! one small table per axis instead of one pointer per output pixel and tap.

mod lined_up;

use std::ops::Range;

pub(super) use lined_up::LinedUp;

/// The row index of padding: a row whose values are all zero.
pub(super) const PAD: u32 = u32::MAX;

/// Rows of zeros around an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    pub top: usize,
    pub bottom: usize,
    pub left: usize,
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub fn all(pixels: usize) -> Self {
        Self { top: pixels, bottom: pixels, left: pixels, right: pixels }
    }
}

/// The geometry of a two-dimensional convolution over channels-last images `[batch, height, width, depth]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    pub batch: usize,
    /// Of the input as stored, before it is enlarged.
    pub height: usize,
    pub width: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    pub stride: usize,
    pub padding: Padding,
    /// Height and width to which the input is enlarged first by repeating pixels (nearest neighbour).
    pub enlarged: Option<(usize, usize)>,
}

impl Conv2d {
    /// Height and width of the input as the kernel sees it.
    pub fn seen_size(&self) -> (usize, usize) {
        self.enlarged.unwrap_or((self.height, self.width))
    }

    /// Height and width of the output.
    ///
    /// # Panics
    /// If the kernel is larger than the padded input, or a size is zero.
    pub fn output_size(&self) -> (usize, usize) {
        let sizes = [self.kernel, self.stride, self.height, self.width];
        assert!(sizes.iter().all(|&size| size > 0), "a zero size in {self:?}");
        let (height, width) = self.seen_size();
        let side = |enlarged: usize, before: usize, after: usize| {
            let padded = enlarged + before + after;
            assert!(padded >= self.kernel, "a kernel larger than the padded input in {self:?}");
            (padded - self.kernel) / self.stride + 1
        };
        (
            side(height, self.padding.top, self.padding.bottom),
            side(width, self.padding.left, self.padding.right),
        )
    }
}

/// The pixel of `stored` that stands at `i` of `seen`, by nearest neighbour.
pub(super) fn repeated(i: usize, stored: usize, seen: usize) -> usize {
    i * stored / seen
}

/// For each of `out_rows` output rows and each of `taps` taps, an input row below `in_rows` or padding.
#[derive(Debug, Clone)]
pub struct Gather {
    in_rows: usize,
    out_rows: usize,
    taps: usize,
    plan: Plan,
}

#[derive(Debug, Clone)]
enum Plan {
    /// Output row i reads input row i.
    Identity,
    /// Output pixel (image, y, x) at tap (i, j) reads input pixel (image, ys[y][i], xs[x][j]).
    Image { kernel: usize, in_height: usize, in_width: usize, ys: Vec<u32>, xs: Vec<u32>, conv: Conv2d },
}

impl Gather {
    /// Row i from row i, one tap: a linear layer or a 1x1 convolution over `rows` rows.
    pub fn identity(rows: usize) -> Self {
        Self { in_rows: rows, out_rows: rows, taps: 1, plan: Plan::Identity }
    }

    /// The pixels of a convolution; output rows are (image, y, x), taps (i, j), both row-major.
    ///
    /// # Panics
    /// See [`Conv2d::output_size`]; also if the input has 2^32 - 1 pixels or more.
    pub fn conv2d(conv: &Conv2d) -> Self {
        let (out_height, out_width) = conv.output_size();
        let in_rows = conv.batch * conv.height * conv.width;
        assert!(in_rows < PAD as usize, "{in_rows} pixels are too many to index");
        if conv.kernel == 1
            && conv.stride == 1
            && conv.enlarged.is_none()
            && conv.padding == Padding::default()
        {
            return Self::identity(in_rows);
        }
        let seen = conv.seen_size();
        let axis = |out: usize, input: usize, seen: usize, before: usize| -> Vec<u32> {
            (0..out)
                .flat_map(|o| (0..conv.kernel).map(move |tap| o * conv.stride + tap))
                .map(|padded| match padded.checked_sub(before) {
                    Some(i) if i < seen => repeated(i, input, seen) as u32,
                    _ => PAD,
                })
                .collect()
        };
        Self {
            in_rows,
            out_rows: conv.batch * out_height * out_width,
            taps: conv.kernel * conv.kernel,
            plan: Plan::Image {
                kernel: conv.kernel,
                in_height: conv.height,
                in_width: conv.width,
                ys: axis(out_height, conv.height, seen.0, conv.padding.top),
                xs: axis(out_width, conv.width, seen.1, conv.padding.left),
                conv: *conv,
            },
        }
    }

    pub fn in_rows(&self) -> usize {
        self.in_rows
    }

    pub fn out_rows(&self) -> usize {
        self.out_rows
    }

    pub fn taps(&self) -> usize {
        self.taps
    }

    /// Writes all that output row `row` reads of `input`, `[in_rows, depth]`, as `to`, `[depth][taps]`: the row of the
    /// matrix (im2col) that a filter is multiplied with.
    ///
    /// # Panics
    /// If a size does not fit the others.
    pub fn copy_row(&self, input: &[f32], depth: usize, row: usize, to: &mut [f32]) {
        assert_eq!((input.len(), to.len()), (self.in_rows * depth, self.taps * depth));
        let mut table = vec![0; self.taps];
        self.fill(row..row + 1, 1, &mut table);
        for (tap, &row) in table.iter().enumerate() {
            let places = to[tap..].iter_mut().step_by(self.taps);
            if row == PAD {
                places.for_each(|to| *to = 0.0);
            } else {
                places.zip(&input[row as usize * depth..]).for_each(|(to, value)| *to = *value);
            }
        }
    }

    /// Writes the input rows of output rows `rows` as `table[tap * pitch + i]` for the i-th of them; entries
    /// up to `pitch` repeat the last row, so that tiles may overhang. Every entry is `PAD` or below `in_rows`.
    ///
    /// # Panics
    /// If `rows` is empty, exceeds the output or `pitch`, or `table` is shorter than `taps * pitch`.
    pub(super) fn fill(&self, rows: Range<usize>, pitch: usize, table: &mut [u32]) {
        assert!(!rows.is_empty() && rows.end <= self.out_rows && rows.len() <= pitch);
        let count = rows.len();
        match &self.plan {
            Plan::Identity => {
                for (entry, row) in table[..count].iter_mut().zip(rows) {
                    *entry = row as u32;
                }
            }
            Plan::Image { kernel, in_height, in_width, ys, xs, .. } => {
                let (out_height, out_width) = (ys.len() / kernel, xs.len() / kernel);
                let mut x = rows.start % out_width;
                let mut y = rows.start / out_width % out_height;
                let mut image = rows.start / out_width / out_height;
                for i in 0..count {
                    let mut entry = i;
                    for &in_y in &ys[y * kernel..][..*kernel] {
                        // Of padding a number that is not used.
                        let line = (image * in_height).wrapping_add(in_y as usize).wrapping_mul(*in_width);
                        for &in_x in &xs[x * kernel..][..*kernel] {
                            let inside = in_y != PAD && in_x != PAD;
                            table[entry] = if inside { line as u32 + in_x } else { PAD };
                            entry += pitch;
                        }
                    }
                    x += 1;
                    if x == out_width {
                        x = 0;
                        y += 1;
                    }
                    if y == out_height {
                        y = 0;
                        image += 1;
                    }
                }
            }
        }
        for tap in table[..self.taps * pitch].chunks_exact_mut(pitch) {
            let last = tap[count - 1];
            tap[count..].fill(last);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The definition: pad, repeat pixels, slide.
    fn expected(conv: &Conv2d) -> Vec<Vec<u32>> {
        let (out_height, out_width) = conv.output_size();
        let pixel = |image: usize, y: isize, x: isize| {
            let (height, width) = conv.seen_size();
            let inside = |i: isize, size: usize| i >= 0 && (i as usize) < size;
            if !inside(y, height) || !inside(x, width) {
                return PAD;
            }
            let (y, x) = (y as usize * conv.height / height, x as usize * conv.width / width);
            ((image * conv.height + y) * conv.width + x) as u32
        };
        let mut rows = Vec::new();
        for image in 0..conv.batch {
            for y in 0..out_height {
                for x in 0..out_width {
                    let mut taps = Vec::new();
                    for ky in 0..conv.kernel {
                        for kx in 0..conv.kernel {
                            let in_y = (y * conv.stride + ky) as isize - conv.padding.top as isize;
                            let in_x = (x * conv.stride + kx) as isize - conv.padding.left as isize;
                            taps.push(pixel(image, in_y, in_x));
                        }
                    }
                    rows.push(taps);
                }
            }
        }
        rows
    }

    /// Of every kind: plain, with strides, enlarged by whole numbers and others, a single pixel.
    pub(super) fn convolutions() -> [Conv2d; 7] {
        let same = Conv2d {
            batch: 2,
            height: 5,
            width: 3,
            kernel: 3,
            stride: 1,
            padding: Padding::all(1),
            enlarged: None,
        };
        let down = Padding { top: 0, bottom: 1, left: 0, right: 1 };
        [
            same,
            Conv2d { stride: 2, ..same },
            Conv2d { stride: 2, padding: down, height: 4, width: 6, ..same },
            Conv2d { enlarged: Some((10, 6)), ..same },
            Conv2d { enlarged: Some((9, 5)), ..same },
            Conv2d { kernel: 1, padding: Padding::default(), ..same },
            Conv2d { height: 1, width: 1, ..same },
        ]
    }

    #[test]
    fn tables_follow_the_definition_of_a_convolution() {
        for conv in convolutions() {
            let gather = Gather::conv2d(&conv);
            let expected = expected(&conv);
            assert_eq!(gather.out_rows(), expected.len());
            for start in 0..gather.out_rows() {
                let end = (start + 4).min(gather.out_rows());
                let pitch = 6;
                let mut table = vec![0; gather.taps() * pitch];
                gather.fill(start..end, pitch, &mut table);
                for tap in 0..gather.taps() {
                    for i in 0..pitch {
                        let row = (start + i).min(end - 1);
                        assert_eq!(
                            table[tap * pitch + i],
                            expected[row][tap],
                            "{conv:?} row {row} tap {tap}"
                        );
                    }
                }
            }
        }
    }
}
