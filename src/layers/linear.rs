//! Linear layers over the last dimension.

use anyhow::{Context, Result};
use candle_core::{D, Tensor};

use super::meter::{self, Kind};
use super::product::{Added, Product, Reads};
use super::weight::{self, Form, Packing};
use super::{Input, Params};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;

/// `y = x W^T + b`.
pub struct Linear {
    packing: Packing,
    weights: Weights,
    /// What inputs are multiplied with before they may be quantized, `[in]`.
    factors: Option<Tensor>,
}

enum Weights {
    Kernels(Box<Product>),
    /// `[out, in]` and `[out]`.
    Candle {
        weight: Tensor,
        bias: Option<Tensor>,
    },
}

impl Linear {
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(params: &Params, inputs: usize, outputs: usize) -> Result<Self> {
        Self::load_stacked(std::slice::from_ref(params), inputs, outputs, true)
    }

    /// A gated layer: `value * gelu(gate)` of `2 * outputs` outputs, values first (GEGLU, Shazeer 2020; exact
    /// GELU).
    pub fn load_gated(params: &Params, inputs: usize, outputs: usize) -> Result<Self> {
        Self::load_as(Form::Gated, std::slice::from_ref(params), inputs, 2 * outputs, true)
    }

    /// Several layers of equal size that read the same input, as one: their outputs lie side by side.
    pub fn load_stacked(parts: &[Params], inputs: usize, outputs: usize, biased: bool) -> Result<Self> {
        Self::load_as(Form::Plain, parts, inputs, outputs, biased)
    }

    fn load_as(form: Form, parts: &[Params], inputs: usize, outputs: usize, biased: bool) -> Result<Self> {
        let backend = parts.first().context("no layers to stack")?.backend();
        let mut bias = Vec::new();
        for part in parts.iter().filter(|_| biased) {
            bias.append(&mut part.floats("bias", &[outputs])?);
        }
        let stacked = || {
            let weights = parts.iter().map(|part| part.weight("weight", &[outputs, inputs]));
            weight::stack(weights.collect::<Result<_>>()?)
        };
        let in_words = parts.iter().all(Params::floats_in_words);
        let (outputs_of_all, all_in_words) = (parts.len() * outputs, backend.words);
        let packing = Packing { outputs: outputs_of_all, inputs, taps: 1, form, in_words, all_in_words };
        let bias = biased.then_some(bias);
        let weights = match backend.kernels {
            Some(isa) => Weights::Kernels(Box::new(Product::load(parts, packing, isa, stacked, bias)?)),
            None => Weights::Candle {
                weight: backend.tensor(stacked()?.into_f32(), (packing.outputs, inputs))?,
                bias: bias.map(|bias| backend.tensor(bias, packing.outputs)).transpose()?,
            },
        };
        let factors = parts.first().and_then(Params::input_factors);
        let factors = factors.map(|factors| backend.tensor(factors.to_vec(), factors.len())).transpose()?;
        Ok(Self { packing, weights, factors })
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward<'a>(&self, input: impl Into<Input<'a>>) -> Result<Tensor> {
        self.forward_fused(input, None)
    }

    /// The same plus `residual`, which has the output's shape.
    pub fn forward_fused<'a>(
        &self,
        input: impl Into<Input<'a>>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let input = input.into();
        if let Some(factors) = &self.factors {
            let scaled = input.to_tensor()?.broadcast_mul(factors)?;
            return self.apply(Input::Plain(&scaled), residual);
        }
        self.apply(input, residual)
    }

    fn apply(&self, input: Input<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        let macs = input.dims().iter().product::<usize>() * self.packing.outputs;
        let gated = self.packing.form == Form::Gated;
        let gain = match &self.weights {
            Weights::Kernels(product) => product.gain(),
            Weights::Candle { .. } => 1.0,
        };
        meter::record(Kind::Linear, macs, gain, || match &self.weights {
            Weights::Kernels(product) => {
                let mut shape = input.dims();
                shape.pop().context("a linear layer takes rows")?;
                let reads = Reads::Rows(shape.iter().product());
                shape.push(if gated { self.packing.outputs / 2 } else { self.packing.outputs });
                product.apply(input, &reads, Added { residual, ..Added::default() }, shape)
            }
            #[cfg(feature = "cuda")]
            Weights::Candle { weight, bias } if weight.device().is_cuda() => {
                let added = |residual| cuda::Addends { bias: bias.as_ref(), residual, shift: None };
                if !gated {
                    return cuda::linear(&input.to_tensor()?, weight, added(residual));
                }
                let output = cuda::geglu(&cuda::linear(&input.to_tensor()?, weight, added(None))?)?;
                Ok(match residual {
                    Some(residual) => (output + residual)?,
                    None => output,
                })
            }
            Weights::Candle { weight, bias } => {
                let input = input.to_tensor()?;
                let rows = input.reshape(((), weight.dim(1)?))?;
                let mut output = rows.matmul(&weight.t()?)?;
                if let Some(bias) = bias {
                    output = output.broadcast_add(bias)?;
                }
                if gated {
                    let halves = output.chunk(2, D::Minus1)?;
                    output = (&halves[0] * halves[1].gelu_erf()?)?;
                }
                let outer = &input.dims()[..input.rank() - 1];
                let output = output.reshape([outer, &[output.dim(1)?]].concat())?;
                Ok(match residual {
                    Some(residual) => (output + residual)?,
                    None => output,
                })
            }
        })
    }
}
