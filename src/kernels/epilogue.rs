//! What happens to a product's sums on their way to memory: scale, bias, residual, activation, gate.

use std::ops::Range;

use super::aligned::LINE;
use super::blocking::Panels;
use super::math;
use super::parallel::Disjoint;
use super::simd::Simd;

/// `activation(sum + bias + residual)`, written once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One per column of weights: `[out]`, or `[2 * out]` of a gated product.
    pub bias: Option<&'a [f32]>,
    /// Of the output's shape.
    pub residual: Option<&'a [f32]>,
    /// Whether max(x, 0) follows.
    pub relu: bool,
}

impl Epilogue<'_> {
    /// Checks the operands against an output of `rows` rows, which has `output` values.
    ///
    /// # Panics
    /// If any has the wrong size.
    pub(super) fn validate(&self, rows: usize, panels: &Panels, output: usize) {
        let out = panels.out;
        assert_eq!(output, rows * out, "an output of {rows} x {out}");
        if let Some(bias) = self.bias {
            let columns = panels.weight_columns();
            assert_eq!(bias.len(), columns, "one bias for each of {columns} columns");
        }
        if let Some(residual) = self.residual {
            assert_eq!(residual.len(), output, "a residual of the output's size");
        }
        let plain = self.residual.is_none() && !self.relu;
        assert!(plain || !panels.gated, "a gated product takes nothing but a bias");
    }
}

/// Where finished sums go: a validated output of `panels.out` columns.
pub(super) struct Destination<'a> {
    pub epilogue: &'a Epilogue<'a>,
    pub output: Disjoint<'a, f32>,
    pub panels: Panels,
    /// Multiplies the sums, one per column of weights: the scales of integer weights.
    pub scale: Option<&'a [f32]>,
}

impl Destination<'_> {
    /// Asks for the memory that `finish` of the same rows and columns will want, which takes no processor's prefetching
    /// by surprise but its own: stores to lines that are far away wait for each other.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, simd: S, rows: Range<usize>, columns: Range<usize>) {
        let out = self.panels.out;
        for row in rows {
            let start = row * out + columns.start;
            for at in (start..start + columns.len()).step_by(LINE / size_of::<f32>()) {
                simd.prefetch_to_write(self.output.address(at).cast());
                if let Some(residual) = self.epilogue.residual {
                    simd.prefetch(residual.as_ptr().wrapping_add(at).cast());
                }
            }
        }
    }

    /// Finishes output `rows` x `columns` from `sums`, whose rows are `pitch` apart.
    ///
    /// # Safety
    /// No other thread may use these rows and columns of the output meanwhile.
    #[inline(always)]
    pub unsafe fn finish<S: Simd>(
        &self,
        simd: S,
        sums: &[f32],
        pitch: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        let epilogue = self.epilogue;
        let out = self.panels.out;
        let width = columns.len();
        if self.panels.gated {
            // SAFETY: the caller's promise.
            unsafe { self.finish_gated(simd, sums, pitch, rows, columns) };
            return;
        }
        let count = rows.len().min(sums.len().div_ceil(pitch));
        let first = rows.start * out + columns.start;
        let whole = width - width % S::LANES;
        if count == 0 {
            return;
        }
        // SAFETY: the caller's promise.
        let output = unsafe { self.output.rows(first, count, out, width) };
        let residual = epilogue.residual.map(|residual| &residual[first..][..(count - 1) * out + width]);
        assert!(sums.len() >= (count - 1) * pitch + width);
        // What is the same for all rows is read once per column.
        for at in (0..whole).step_by(S::LANES) {
            let column = columns.start + at;
            let scale = self.scale.map_or(simd.splat(1.0), |scale| simd.read(&scale[column..]));
            let bias = epilogue.bias.map_or(simd.splat(0.0), |bias| simd.read(&bias[column..]));
            for row in 0..count {
                // SAFETY: a vector of row `row`, in `sums` and in the residual as asserted, in the output as promised.
                unsafe {
                    let mut x = simd.load(sums.as_ptr().add(row * pitch + at));
                    x = simd.add(simd.mul(x, scale), bias);
                    if let Some(residual) = residual {
                        x = simd.add(x, simd.load(residual.as_ptr().add(row * out + at)));
                    }
                    if epilogue.relu {
                        x = simd.max(x, simd.splat(0.0));
                    }
                    simd.store(output.add(row * out + at), x);
                }
            }
        }
        for row in 0..count * usize::from(whole < width) {
            for at in whole..width {
                let column = columns.start + at;
                let mut x = sums[row * pitch + at] * self.scale.map_or(1.0, |scale| scale[column]);
                x += epilogue.bias.map_or(0.0, |bias| bias[column]);
                x += residual.map_or(0.0, |residual| residual[row * out + at]);
                if epilogue.relu {
                    x = x.max(0.0);
                }
                // SAFETY: within row `row` of the output, as promised.
                unsafe { *output.add(row * out + at) = x };
            }
        }
    }

    /// As `finish`, for sums of which each row holds values in its first half and gates in its second.
    ///
    /// # Safety
    /// As for `finish`.
    #[inline(always)]
    unsafe fn finish_gated<S: Simd>(
        &self,
        simd: S,
        sums: &[f32],
        pitch: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        let out = self.panels.out;
        let (count, width) = (rows.len().min(sums.len() / pitch), columns.len());
        let first = rows.start * out + columns.start;
        if count == 0 {
            return;
        }
        // SAFETY: the caller's promise.
        let output = unsafe { self.output.rows(first, count, out, width) };
        assert!(width <= pitch / 2 && sums.len() >= count * pitch);
        let whole = width - width % S::LANES;
        for at in (0..width).step_by(S::LANES) {
            // What is the same for all rows is read once per column.
            let lanes = columns.start + at..columns.start + (at + S::LANES).min(width);
            let gate_lanes = out + lanes.start..out + lanes.end;
            let one = simd.splat(1.0);
            let [scale, gate_scale] = match self.scale {
                Some(scale) => {
                    [simd.read_up_to(&scale[lanes.clone()]), simd.read_up_to(&scale[gate_lanes.clone()])]
                }
                None => [one, one],
            };
            let zero = simd.splat(0.0);
            let [bias, gate_bias] = match self.epilogue.bias {
                Some(bias) => [simd.read_up_to(&bias[lanes]), simd.read_up_to(&bias[gate_lanes])],
                None => [zero, zero],
            };
            for row in 0..count {
                // SAFETY: vectors of either half of row `row`, as asserted.
                let (value, gate) = unsafe {
                    let row = sums.as_ptr().add(row * pitch + at);
                    (simd.load(row), simd.load(row.add(pitch / 2)))
                };
                let value = simd.add(simd.mul(value, scale), bias);
                let gate = simd.add(simd.mul(gate, gate_scale), gate_bias);
                let y = simd.mul(value, math::gelu(simd, gate));
                if at < whole {
                    // SAFETY: a vector of row `row` of the output, as promised.
                    unsafe { simd.store(output.add(row * out + at), y) };
                } else {
                    for (lane, &y) in simd.lanes(y)[..width - at].iter().enumerate() {
                        // SAFETY: within row `row` of the output, as promised.
                        unsafe { *output.add(row * out + at + lane) = y };
                    }
                }
            }
        }
    }
}
