//! Two-dimensional convolution over `[batch, height, width, channels]`, with what is fused around it.

use anyhow::{Result, bail};
use candle_core::Tensor;

use super::meter::{self, Kind};
use super::product::{Added, Product, Reads};
use super::weight::{Form, Packing};
use super::{Input, Params};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::{self, Isa};

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct ConvShape {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    pub stride: usize,
    pub padding: Padding,
    pub bias: bool,
    /// Runs over so many pixels that transforming its weights at each call costs next to nothing.
    pub large_maps: bool,
}

/// Where zeros surround the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// `kernel / 2` on every side.
    Around,
    /// One row below, one column to the right: the VAE encoder's downsampling.
    BottomRight,
}

impl ConvShape {
    /// A convolution that keeps the size.
    pub fn same(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        let (stride, padding) = (1, Padding::Around);
        Self { in_channels, out_channels, kernel, stride, padding, bias: true, large_maps: false }
    }

    /// The same, over maps as large as a picture's.
    pub fn over_large_maps(self) -> Self {
        Self { large_maps: true, ..self }
    }

    fn packing(&self, isa: Isa, in_words: bool, all_in_words: bool) -> Packing {
        let Self { in_channels, out_channels, kernel, .. } = *self;
        let taps = kernel * kernel;
        let mut form = self.form(isa);
        if all_in_words && self.suits_winograd() {
            // Words take less time so than in any other way, whatever a set's products of bytes take.
            form = Form::Winograd { large_maps: self.large_maps };
        }
        Packing { outputs: out_channels, inputs: in_channels, taps, form, in_words, all_in_words }
    }

    /// Over large maps words are not only fast: nothing else is as exact beside int8.
    fn form(&self, isa: Isa) -> Form {
        let large_maps = self.large_maps;
        match self.suits_winograd() && (large_maps || isa.convolves_in_words()) {
            true => Form::Winograd { large_maps },
            false => Form::Plain,
        }
    }

    fn suits_winograd(&self) -> bool {
        self.kernel == 3 && self.stride == 1 && self.padding == Padding::Around
    }

    /// A 3x3 convolution that halves the size.
    pub fn halving(channels: usize, padding: Padding) -> Self {
        Self { stride: 2, padding, ..Self::same(channels, channels, 3) }
    }

    /// Height and width of the output for an input of this height and width, once it is enlarged.
    pub fn output_size(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let (before, after) = self.pads();
        let side = |side: usize| (side + before + after).saturating_sub(self.kernel) / self.stride + 1;
        (side(height), side(width))
    }

    /// Multiply-accumulates for `pixels` of the output: each reads a whole filter.
    pub fn macs(&self, pixels: usize) -> usize {
        pixels * self.out_channels * self.in_channels * self.kernel * self.kernel
    }

    /// Bytes that it takes beside input and output, for `batch` outputs of this height and width: what is transformed
    /// at each call, or quantized.
    pub fn workspace_bytes(&self, batch: usize, height: usize, width: usize, int8: bool) -> usize {
        // A set that this CPU lacks is refused when a model is loaded.
        let isa = Isa::chosen().unwrap_or_else(|_| Isa::best());
        let in_words =
            kernels::WinogradWords::bytes(isa, self.out_channels, self.in_channels, batch, height, width);
        match self.form(isa) {
            Form::Winograd { .. } if int8 && isa.multiplies_words_fast() => in_words,
            Form::Winograd { large_maps: true } => {
                let floats =
                    kernels::Winograd::bytes(isa, self.out_channels, self.in_channels, batch, height, width);
                floats.max(in_words)
            }
            _ => 0,
        }
    }

    /// Whether int8 weights meet inputs in f32.
    pub fn reads_floats_in_int8(&self) -> bool {
        let isa = Isa::chosen().unwrap_or_else(|_| Isa::best());
        matches!(self.form(isa), Form::Winograd { .. }) && isa.multiplies_words_fast()
    }

    /// Whether weights that are rounded in their file stay so, whatever they are multiplied in.
    pub fn keeps_rounded(&self) -> bool {
        self.large_maps && self.reads_floats_in_int8()
    }

    /// As what its time and its multiply-accumulates are booked.
    pub fn kind(&self) -> Kind {
        if self.kernel == 1 { Kind::Conv1x1 } else { Kind::Conv3x3 }
    }

    /// Zeros before the first and after the last row and column.
    fn pads(&self) -> (usize, usize) {
        match self.padding {
            Padding::Around => (self.kernel / 2, self.kernel / 2),
            Padding::BottomRight => (0, 1),
        }
    }
}

/// What happens in the same pass: enlarging before the convolution; then `out + shift + residual`, then ReLU.
#[derive(Default, Clone, Copy)]
pub struct Fused<'a> {
    /// Nearest-neighbour size `(height, width)` the input is enlarged to first.
    pub enlarge_to: Option<(usize, usize)>,
    /// Added to each output channel: `[out_channels]`.
    pub shift: Option<&'a Tensor>,
    /// Added to the output: its shape.
    pub residual: Option<&'a Tensor>,
    pub relu: bool,
}

/// A convolution whose weights are ready for the back end.
pub struct Conv2d {
    shape: ConvShape,
    weights: Weights,
}

enum Weights {
    Kernels(Box<Product>),
    /// `[out, in, kernel, kernel]` and `[out]`.
    Candle {
        weight: Tensor,
        bias: Option<Tensor>,
    },
    /// `[out, kernel * kernel * in]`, inputs side by side as in the maps, and `[out]`.
    #[cfg(feature = "cuda")]
    Cuda {
        weight: Tensor,
        bias: Option<Tensor>,
    },
}

impl Conv2d {
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(params: &Params, shape: ConvShape) -> Result<Self> {
        let ConvShape { in_channels, out_channels, kernel, .. } = shape;
        let dims = [out_channels, in_channels, kernel, kernel];
        let backend = params.backend();
        let weight = || match backend.multiplies_words() && shape.keeps_rounded() {
            true => params.weight_as_stored("weight", &dims),
            false => params.weight("weight", &dims),
        };
        let bias = shape.bias.then(|| params.floats("bias", &[out_channels])).transpose()?;
        let weights = match backend.kernels {
            Some(isa) => {
                let in_words =
                    if kernel == 1 { params.floats_in_words() } else { backend.multiplies_words() };
                let packing = shape.packing(isa, in_words, backend.words);
                let parts = std::slice::from_ref(params);
                Weights::Kernels(Box::new(Product::load(parts, packing, isa, weight, bias)?))
            }
            #[cfg(feature = "cuda")]
            None if backend.device.is_cuda() => {
                let taps = kernel * kernel;
                let weight = super::weight::taps_before_inputs(weight()?.into_f32(), in_channels, taps);
                Weights::Cuda {
                    weight: backend.tensor(weight, (out_channels, taps * in_channels))?,
                    bias: bias.map(|bias| backend.tensor(bias, out_channels)).transpose()?,
                }
            }
            None => Weights::Candle {
                weight: backend.tensor(weight()?.into_f32(), &dims)?,
                bias: bias.map(|bias| backend.tensor(bias, out_channels)).transpose()?,
            },
        };
        Ok(Self { shape, weights })
    }

    /// `[batch, height, width, in_channels]` to `[batch, height', width', out_channels]`.
    pub fn forward<'a>(&self, input: impl Into<Input<'a>>) -> Result<Tensor> {
        self.forward_fused(input, Fused::default())
    }

    /// The same with `fused` around it.
    pub fn forward_fused<'a>(&self, input: impl Into<Input<'a>>, fused: Fused<'_>) -> Result<Tensor> {
        let input = input.into();
        let gain = match &self.weights {
            Weights::Kernels(product) => product.gain(),
            _ => 1.0,
        };
        let macs = self.macs(&input.dims(), fused);
        meter::record(self.shape.kind(), macs, gain, || match &self.weights {
            Weights::Kernels(product) => self.run_kernels(product, input, fused),
            Weights::Candle { weight, bias } => {
                self.run_candle(weight, bias.as_ref(), &input.to_tensor()?, fused)
            }
            #[cfg(feature = "cuda")]
            Weights::Cuda { weight, bias } => {
                self.run_cuda(weight, bias.as_ref(), &input.to_tensor()?, fused)
            }
        })
    }

    /// Multiply-accumulates over an input of `dims`.
    fn macs(&self, dims: &[usize], fused: Fused<'_>) -> usize {
        let &[batch, height, width, _] = dims else { return 0 };
        let (height, width) = self.shape.output_size(fused.enlarge_to.unwrap_or((height, width)));
        self.shape.macs(batch * height * width)
    }

    /// How kernels walk over maps of `dims`.
    fn geometry(&self, dims: &[usize], fused: Fused<'_>) -> Result<kernels::Conv2d> {
        let &[batch, height, width, _] = dims else {
            bail!("a convolution takes feature maps, not {dims:?}")
        };
        let (before, after) = self.shape.pads();
        Ok(kernels::Conv2d {
            batch,
            height,
            width,
            enlarged: fused.enlarge_to,
            kernel: self.shape.kernel,
            stride: self.shape.stride,
            padding: kernels::Padding { top: before, bottom: after, left: before, right: after },
        })
    }

    #[cfg(feature = "cuda")]
    fn run_cuda(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        input: &Tensor,
        fused: Fused<'_>,
    ) -> Result<Tensor> {
        let geometry = self.geometry(input.dims(), fused)?;
        let addends = cuda::Addends { bias, shift: fused.shift, residual: fused.residual };
        let output = cuda::conv2d(input, weight, &geometry, addends)?;
        Ok(if fused.relu { output.relu()? } else { output })
    }

    fn run_kernels(&self, product: &Product, input: Input<'_>, fused: Fused<'_>) -> Result<Tensor> {
        let geometry = self.geometry(&input.dims(), fused)?;
        let (out_height, out_width) = geometry.output_size();
        let added = Added { shift: fused.shift, residual: fused.residual, relu: fused.relu };
        let shape = (geometry.batch, out_height, out_width, self.shape.out_channels);
        product.apply(input, &Reads::Pixels(geometry), added, shape)
    }

    fn run_candle(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        input: &Tensor,
        fused: Fused<'_>,
    ) -> Result<Tensor> {
        let (before, after) = self.shape.pads();
        let mut input = input.permute((0, 3, 1, 2))?.contiguous()?;
        if let Some((height, width)) = fused.enlarge_to {
            input = input.upsample_nearest2d(height, width)?;
        }
        let padding = if before == after {
            before
        } else {
            input = input.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
            0
        };
        let output = input.conv2d(weight, padding, self.shape.stride, 1, 1)?;
        let mut output = output.permute((0, 2, 3, 1))?.contiguous()?;
        for addend in [bias, fused.shift].into_iter().flatten() {
            output = output.broadcast_add(addend)?;
        }
        if let Some(residual) = fused.residual {
            output = (output + residual)?;
        }
        Ok(if fused.relu { output.relu()? } else { output })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_place_of_floats_take_a_quarter_of_the_products_on_every_set() {
        let halving = ConvShape::halving(8, Padding::Around);
        for &isa in Isa::available() {
            for large_maps in [false, true] {
                let shape = ConvShape { large_maps, ..ConvShape::same(8, 8, 3) };
                assert_eq!(shape.packing(isa, true, true).form, Form::Winograd { large_maps }, "{isa}");
                let in_words = large_maps || isa.convolves_in_words();
                let form = if in_words { Form::Winograd { large_maps } } else { Form::Plain };
                assert_eq!(shape.packing(isa, true, false).form, form, "{isa}");
            }
            assert_eq!(halving.packing(isa, true, true).form, Form::Plain, "{isa}");
        }
    }
}
