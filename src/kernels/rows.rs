//! Row-by-row operations whose result is kept as f32 or quantized on the way out; the norms are in `norm`.

use super::isa::Isa;
use super::math;
use super::output::{Output, Written};
use super::parallel::{Disjoint, for_each_index, with_scratch};
use super::quantized_rows::{QuantizedRows, RowLayout, quantize_row};
use super::simd::{Kernel, Simd};

/// Values of one task: enough to outweigh its dispatch, few enough to spread over many threads.
const TASK_VALUES: usize = 16 * 1024;

/// Where a row-wise operation writes: f32, or u8 with a scale and zero point per row.
///
/// An operation takes `impl Into<RowsMut>`, so that `&mut [f32]` and `&mut QuantizedRows` both do; the
/// latter becomes what fits, laid out for the operation's instruction set.
pub enum RowsMut<'a> {
    F32(Output<'a>),
    U8(&'a mut QuantizedRows),
}

impl<'a> From<Output<'a>> for RowsMut<'a> {
    fn from(output: Output<'a>) -> Self {
        Self::F32(output)
    }
}

impl<'a> From<&'a mut [f32]> for RowsMut<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self::F32(values.into())
    }
}

impl<'a> From<&'a mut Vec<f32>> for RowsMut<'a> {
    fn from(values: &'a mut Vec<f32>) -> Self {
        Self::F32(values.into())
    }
}

impl<'a> From<&'a mut QuantizedRows> for RowsMut<'a> {
    fn from(rows: &'a mut QuantizedRows) -> Self {
        Self::U8(rows)
    }
}

/// Computes any one row of a matrix.
pub(super) trait RowOperation: Sync {
    /// Writes row `row`, all of `to`, which it does not read before. Implementations must be `#[inline(always)]`.
    fn row<S: Simd>(&self, simd: S, row: usize, to: &mut [f32]);
}

/// The rows of a matrix, computed in parallel and written to `output`.
///
/// # Panics
/// If an f32 output is not `rows * width` long.
pub(super) fn for_each_row<'a>(
    isa: Isa,
    rows: usize,
    width: usize,
    operation: &impl RowOperation,
    output: RowsMut<'a>,
) -> Written<'a> {
    let layout = isa.properties().rows;
    let per_task = (TASK_VALUES / width.max(1)).max(1).next_multiple_of(layout.together);
    let tasks = rows.div_ceil(per_task);
    let task = |index: usize| (index * per_task, ((index + 1) * per_task).min(rows));
    match output {
        RowsMut::F32(output) => {
            assert_eq!(output.len(), rows * width, "an output of {rows} x {width}");
            let output = output.into_disjoint();
            for_each_index(tasks, |index| {
                let (first, end) = task(index);
                // SAFETY: each task has rows of its own.
                let output = unsafe { output.part(first * width..end * width) };
                isa.run(Float { first, width, operation, output });
            });
            // SAFETY: an operation writes all of its row, and there is a task for each.
            unsafe { Written::all_of(output) }
        }
        RowsMut::U8(output) => {
            output.resize(rows, width, layout);
            let stride = output.stride;
            let values = Disjoint::new(output.values.as_mut_slice());
            let scales = Disjoint::new(&mut output.scales);
            let zeros = Disjoint::new(&mut output.zeros);
            for_each_index(tasks, |index| {
                let (first, end) = task(index);
                // SAFETY: each task has rows of its own, and only whole lots of those that lie together.
                let (values, scales, zeros) = unsafe {
                    (
                        values.part(first * stride..end.next_multiple_of(layout.together) * stride),
                        scales.part(first..end),
                        zeros.part(first..end),
                    )
                };
                with_scratch(width, 0, |scratch| {
                    let scratch = &mut scratch.floats.as_mut_slice()[..width];
                    isa.run(Quantized { first, layout, stride, operation, scratch, values, scales, zeros });
                });
            });
            Written::nothing()
        }
    }
}

struct Float<'a, O> {
    first: usize,
    width: usize,
    operation: &'a O,
    output: &'a mut [f32],
}

impl<O: RowOperation> Kernel for Float<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (i, to) in self.output.chunks_exact_mut(self.width).enumerate() {
            self.operation.row(simd, self.first + i, to);
        }
    }
}

struct Quantized<'a, O> {
    /// A multiple of the rows that lie together.
    first: usize,
    layout: RowLayout,
    stride: usize,
    operation: &'a O,
    /// One row.
    scratch: &'a mut [f32],
    values: &'a mut [u8],
    scales: &'a mut [f32],
    zeros: &'a mut [i32],
}

impl<O: RowOperation> Kernel for Quantized<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.scratch.len();
        let scattered = self.layout.together > 1;
        let mut row = vec![0; if scattered { width } else { 0 }];
        for i in 0..self.scales.len() {
            self.operation.row(simd, self.first + i, self.scratch);
            let to = &mut self.values[self.layout.start(i, self.stride)..];
            let whole = if scattered { row.as_mut_slice() } else { &mut to[..width] };
            (self.scales[i], self.zeros[i]) = quantize_row(simd, self.scratch, whole);
            self.layout.flip(whole);
            if scattered {
                self.layout.scatter(&row, to);
            }
        }
    }
}

/// Quantizes rows of `depth` values; see [`QuantizedRows`].
///
/// # Panics
/// If `input` is not whole rows.
pub fn quantize_rows<'a>(
    isa: Isa,
    input: &[f32],
    depth: usize,
    output: &'a mut QuantizedRows,
) -> Written<'a> {
    let rows = input.len() / depth;
    assert_eq!(input.len(), rows * depth, "rows of {depth}");
    for_each_row(isa, rows, depth, &Copied { input }, RowsMut::U8(output))
}

/// A function of single values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)` (Elfwing et al. 2017).
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2` (Hendrycks and Gimpel 2016).
    Gelu,
    /// Its approximation `x * sigmoid(1.702 x)`.
    QuickGelu,
}

impl Activation {
    /// The function of each value of rows of `depth`.
    ///
    /// # Panics
    /// If `input` is not whole rows, or an f32 output is of another size.
    pub fn apply<'a>(
        self,
        isa: Isa,
        input: &[f32],
        depth: usize,
        output: impl Into<RowsMut<'a>>,
    ) -> Written<'a> {
        let rows = input.len() / depth;
        assert_eq!(input.len(), rows * depth, "rows of {depth}");
        for_each_row(isa, rows, depth, &Activated { function: self, input }, output.into())
    }
}

struct Activated<'a> {
    function: Activation,
    input: &'a [f32],
}

impl RowOperation for Activated<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, row: usize, to: &mut [f32]) {
        let from = &self.input[row * to.len()..][..to.len()];
        for (to, from) in to.chunks_mut(S::LANES).zip(from.chunks(S::LANES)) {
            let x = simd.read_up_to(from);
            let y = match self.function {
                Activation::Silu => math::silu(simd, x),
                Activation::Gelu => math::gelu(simd, x),
                Activation::QuickGelu => math::quick_gelu(simd, x),
            };
            simd.write_up_to(to, y);
        }
    }
}

struct Copied<'a> {
    input: &'a [f32],
}

impl RowOperation for Copied<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, row: usize, to: &mut [f32]) {
        to.copy_from_slice(&self.input[row * to.len()..][..to.len()]);
    }
}
