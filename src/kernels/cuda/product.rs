//! Matrix products by cuBLAS, and linear layers and convolutions made of them.

use std::ffi::c_void;

use anyhow::{Result, bail, ensure};
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{CudaDevice, DType, Tensor};

use super::launch::{Arg, Grid, Module, address, device, launch, optional, pack, unwritten};
use crate::kernels::{Conv2d, Padding};

/// `output = alpha * a b + beta * output` for `count` matrices, each row-major: `[rows, depth]` by
/// `[depth, columns]`, or by `[columns, depth]` transposed. A pitch is from one row to the next, a stride from one
/// matrix to the next, both in values.
#[derive(Clone, Copy)]
pub(super) struct Gemm {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    pub transposed: bool,
    pub pitches: [usize; 3],
    pub strides: [usize; 3],
    pub count: usize,
    pub alpha: f32,
    pub beta: f32,
}

impl Gemm {
    /// A product with weights `[columns, depth]`.
    fn with_weights(rows: usize, columns: usize, depth: usize, beta: f32) -> Self {
        let pitches = [depth, depth, columns];
        Self { rows, columns, depth, transposed: true, pitches, strides: [0; 3], count: 1, alpha: 1.0, beta }
    }

    /// Sums are f32 whatever the operands are.
    ///
    /// # Safety
    /// The addresses are those of as many values of type `dtype` as the geometry names.
    pub unsafe fn run(&self, device: &CudaDevice, dtype: DType, a: u64, b: u64, output: u64) -> Result<()> {
        let of = match dtype {
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            other => bail!("products are of f16 and f32, not {other:?}"),
        };
        let transposed = sys::cublasOperation_t::CUBLAS_OP_T;
        let plain = sys::cublasOperation_t::CUBLAS_OP_N;
        let int = |size: usize| i32::try_from(size);
        let [pitch_a, pitch_b, pitch_output] = self.pitches;
        let [stride_a, stride_b, stride_output] = self.strides.map(|stride| stride as i64);
        // cuBLAS is column-major: it computes the transposed product of the swapped operands.
        // SAFETY: the caller's promise; the scalars are on the host, where cuBLAS looks for them by default.
        unsafe {
            result::gemm_strided_batched_ex(
                *device.cublas_handle().handle(),
                if self.transposed { transposed } else { plain },
                plain,
                int(self.columns)?,
                int(self.rows)?,
                int(self.depth)?,
                (&raw const self.alpha).cast::<c_void>(),
                b as *const c_void,
                of,
                int(pitch_b)?,
                stride_b,
                a as *const c_void,
                of,
                int(pitch_a)?,
                stride_a,
                (&raw const self.beta).cast::<c_void>(),
                output as *mut c_void,
                of,
                int(pitch_output)?,
                stride_output,
                int(self.count)?,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }?;
        Ok(())
    }
}

/// What is added to every row of a product, or to all of it.
#[derive(Default, Clone, Copy)]
pub struct Addends<'a> {
    /// `[channels]`
    pub bias: Option<&'a Tensor>,
    /// `[channels]`
    pub shift: Option<&'a Tensor>,
    /// The output's shape.
    pub residual: Option<&'a Tensor>,
}

impl Addends<'_> {
    /// Writes them to `output` `[rows, channels]`; gives what a product there has to keep: all or nothing.
    fn write(self, device: &CudaDevice, output: &Tensor, rows: usize, channels: usize) -> Result<f32> {
        let Self { bias, shift, residual } = self;
        if bias.or(shift).or(residual).is_none() {
            return Ok(0.0);
        }
        for row in [bias, shift].into_iter().flatten() {
            ensure!(row.elem_count() == channels, "{:?} is added to {channels} channels", row.shape());
        }
        let residual = residual.map(Tensor::contiguous).transpose()?;
        if let Some(whole) = &residual {
            ensure!(
                whole.elem_count() == rows * channels && whole.dtype() == output.dtype(),
                "{:?} is added to {:?}",
                whole.shape(),
                output.shape()
            );
        }
        let (size, name) = pack(output.dtype(), channels)?;
        let packs = channels / size;
        let addresses = [optional(bias)?, optional(shift)?, optional(residual.as_ref())?, address(output)?];
        let args = addresses.map(Arg::At).into_iter().chain([packs.into(), (rows * packs).into()]);
        let args: Vec<_> = args.collect();
        // SAFETY: all sizes were checked; bias and shift are of the output's type, as the layers load them.
        unsafe {
            launch(device, Module::Maps, &format!("addends_{name}"), &Grid::over(rows * packs), &args)
        }?;
        Ok(1.0)
    }
}

/// `[.., depth]` times weights `[out, depth]`, plus addends.
pub fn linear(input: &Tensor, weight: &Tensor, addends: Addends<'_>) -> Result<Tensor> {
    let device = device(input)?;
    let input = input.contiguous()?;
    let (out, depth) = weight.dims2()?;
    let mut shape = input.dims().to_vec();
    ensure!(
        shape.pop() == Some(depth) && input.dtype() == weight.dtype(),
        "{:?} times weights {:?}",
        input.shape(),
        weight.shape()
    );
    let rows = shape.iter().product();
    shape.push(out);
    // SAFETY: the product writes all of it; sizes were checked.
    unsafe {
        let output = unwritten(&device, input.dtype(), shape)?;
        let beta = addends.write(&device, &output, rows, out)?;
        let gemm = Gemm::with_weights(rows, out, depth, beta);
        gemm.run(&device, input.dtype(), address(&input)?, address(weight)?, address(&output)?)?;
        Ok(output)
    }
}

/// `[.., 2 * channels]`, values before gates, to `[.., channels]`: `value * gelu(gate)`, exact GELU.
pub fn geglu(input: &Tensor) -> Result<Tensor> {
    let device = device(input)?;
    let input = input.contiguous()?;
    let mut shape = input.dims().to_vec();
    let channels = shape.pop().unwrap_or_default() / 2;
    let rows: usize = shape.iter().product();
    shape.push(channels);
    ensure!(2 * rows * channels == input.elem_count(), "no gates in {:?}", input.shape());
    let (size, name) = pack(input.dtype(), channels)?;
    let packs = channels / size;
    // SAFETY: one thread writes each pack of the output, from two of the input's twice as many.
    unsafe {
        let output = unwritten(&device, input.dtype(), shape)?;
        let args =
            [Arg::At(address(&input)?), Arg::At(address(&output)?), packs.into(), (rows * packs).into()];
        launch(&device, Module::Maps, &format!("geglu_{name}"), &Grid::over(rows * packs), &args)?;
        Ok(output)
    }
}

/// Bytes of gathered pixels that are in memory at once.
const GATHERED: usize = 256 << 20;

/// A convolution of `[batch, height, width, channels]` with weights `[out, kernel * kernel * channels]`, plus addends:
/// the pixels under the kernel are gathered, some output pixels at a time, and multiplied.
pub fn conv2d(input: &Tensor, weight: &Tensor, conv: &Conv2d, addends: Addends<'_>) -> Result<Tensor> {
    let (batch, height, width, channels) = input.dims4()?;
    let (out, depth) = weight.dims2()?;
    ensure!(
        (batch, height, width) == (conv.batch, conv.height, conv.width)
            && depth == conv.kernel * conv.kernel * channels
            && input.dtype() == weight.dtype(),
        "a convolution of {:?} with weights {:?}",
        input.shape(),
        weight.shape()
    );
    let (out_height, out_width) = conv.output_size();
    let shape = (batch, out_height, out_width, out);
    let padding = conv.padding;
    if conv.kernel == 1 && conv.stride == 1 && conv.enlarged.is_none() && padding == Padding::default() {
        return linear(input, weight, addends);
    }
    let device = device(input)?;
    let input = input.contiguous()?;
    let pixels = batch * out_height * out_width;
    let value = input.dtype().size_in_bytes();
    // As wide as a pixel's bytes and its address allow.
    let unit =
        [16, 8, 4, 2].into_iter().find(|unit| (channels * value).is_multiple_of(*unit)).unwrap_or(value);
    let units = channels * value / unit;
    let at_once = (GATHERED / (depth * value)).clamp(1, pixels);
    let (seen_height, seen_width) = conv.seen_size();
    let window = [
        height,
        width,
        seen_height,
        seen_width,
        out_height,
        out_width,
        conv.kernel,
        conv.stride,
        padding.top,
        padding.left,
    ];
    let window = Arg::Window(window.map(|size| size as u32));
    // SAFETY: gathering writes all that a product reads; together the products write all of the output.
    unsafe {
        let output = unwritten(&device, input.dtype(), shape)?;
        let beta = addends.write(&device, &output, pixels, out)?;
        let gathered = unwritten(&device, input.dtype(), (at_once, depth))?;
        for first in (0..pixels).step_by(at_once) {
            let count = at_once.min(pixels - first);
            let total = count * depth / channels * units;
            let args = [
                Arg::At(address(&input)?),
                Arg::At(address(&gathered)?),
                units.into(),
                first.into(),
                total.into(),
                window,
            ];
            launch(&device, Module::Maps, &format!("gather_{unit}"), &Grid::over(total), &args)?;
            let gemm = Gemm::with_weights(count, out, depth, beta);
            let to = address(&output)? + (first * out * value) as u64;
            gemm.run(&device, input.dtype(), address(&gathered)?, address(weight)?, to)?;
        }
        Ok(output)
    }
}
