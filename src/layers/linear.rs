//! Linear layers over the last dimension.

use anyhow::{Context, Result};
use candle_core::Tensor;

use super::meter::{self, Kind};
use super::product::{Added, Product, Reads};
use super::simulation::Trial;
use super::{Input, Params, weight};

/// `y = x W^T + b`.
pub struct Linear {
    outputs: usize,
    weights: Weights,
}

enum Weights {
    Kernels(Product),
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

    /// Several layers of equal size that read the same input, as one: their outputs lie side by side.
    pub fn load_stacked(parts: &[Params], inputs: usize, outputs: usize, biased: bool) -> Result<Self> {
        let backend = parts.first().context("no layers to stack")?.backend();
        let (mut weights, mut bias) = (Vec::new(), Vec::new());
        for part in parts {
            weights.push(part.weight("weight", &[outputs, inputs])?);
            if biased {
                bias.append(&mut part.floats("bias", &[outputs])?);
            }
        }
        let stacked = weight::stack(weights);
        let outputs = parts.len() * outputs;
        let bias = biased.then_some(bias);
        let weights = match backend.kernels {
            Some(isa) => {
                let names = || parts.iter().map(|part| part.path(&"weight")).collect();
                let trial = Trial::enroll(backend, names, &stacked, outputs, 1)?;
                let packed = weight::pack(stacked, outputs, inputs, 1, isa);
                Weights::Kernels(Product::new(packed, bias).on_trial(trial))
            }
            None => Weights::Candle {
                weight: backend.tensor(stacked.into_f32(), (outputs, inputs))?,
                bias: bias.map(|bias| backend.tensor(bias, outputs)).transpose()?,
            },
        };
        Ok(Self { outputs, weights })
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward<'a>(&self, input: impl Into<Input<'a>>) -> Result<Tensor> {
        self.run(input.into(), None)
    }

    /// The same plus `residual`, which has the output's shape.
    pub fn forward_residual<'a>(&self, input: impl Into<Input<'a>>, residual: &Tensor) -> Result<Tensor> {
        self.run(input.into(), Some(residual))
    }

    fn run(&self, input: Input<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        let macs = input.dims().iter().product::<usize>() * self.outputs;
        meter::record(Kind::Linear, macs, || match &self.weights {
            Weights::Kernels(product) => {
                let mut shape = input.dims();
                shape.pop().context("a linear layer takes rows")?;
                let reads = Reads::Rows(shape.iter().product());
                shape.push(self.outputs);
                product.apply(input, &reads, Added { residual, ..Added::default() }, shape)
            }
            Weights::Candle { weight, bias } => {
                let mut output = input.to_tensor(None)?.broadcast_matmul(&weight.t()?)?;
                if let Some(bias) = bias {
                    output = output.broadcast_add(bias)?;
                }
                Ok(match residual {
                    Some(residual) => (output + residual)?,
                    None => output,
                })
            }
        })
    }
}
