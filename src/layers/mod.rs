//! The layers networks are made of: one interface each, with its parameters and its precision behind it.

mod activation;
mod attention;
mod calibration;
mod conv;
mod host;
mod input;
mod linear;
pub mod meter;
mod norm;
mod prepacked;
mod product;
mod simulation;
mod weight;

use std::fmt::Display;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Shape, Tensor};

pub use activation::{Activation, Function, concat_channels};
pub use attention::Attention;
pub use calibration::{Calibrated, Calibration};
pub use conv::{Conv2d, ConvShape, Fused, Padding};
pub use input::Input;
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm, measure};
pub use prepacked::layout;
pub use simulation::{Candidate, Rounded, Simulation};

use crate::checkpoint::{Keeper, TensorSet};
use crate::kernels::{self, Isa};
use crate::quantize::{Balance, Policy, QuantizedWeight, Weight};

/// What computes the layers.
#[derive(Debug, Clone)]
pub struct Backend {
    pub device: Device,
    /// Type of weights and activations.
    pub dtype: DType,
    /// Whether kernels compute in int8 wherever the policy allows it.
    pub int8: bool,
    /// Whether kernels multiply 16-bit integers in place of floats everywhere.
    pub words: bool,
    /// Our kernels for this instruction set, or candle's own operations: on GPUs, and as the oracle of the
    /// kernels.
    pub kernels: Option<Isa>,
    /// Has float layers of ours enroll when they are loaded.
    pub simulation: Option<Arc<Simulation>>,
    /// Has float layers of ours tell what they read.
    pub calibration: Option<Arc<Calibration>>,
    /// Hears what weights become when layers are loaded.
    pub keeper: Option<Arc<dyn Keeper>>,
}

impl Backend {
    /// Our f32 kernels for the instruction set that is chosen on this CPU.
    ///
    /// # Errors
    /// When the environment chooses one that this CPU lacks; see [`Isa::chosen`].
    pub fn cpu() -> Result<Self> {
        Ok(Self {
            device: Device::Cpu,
            dtype: DType::F32,
            int8: false,
            words: false,
            kernels: Some(Isa::chosen().context(kernels::VARIABLE)?),
            simulation: None,
            calibration: None,
            keeper: None,
        })
    }

    /// Our int8 kernels, and f32 ones where int8 would cost too much of the picture.
    ///
    /// # Errors
    /// See [`Backend::cpu`].
    pub fn cpu_int8() -> Result<Self> {
        Ok(Self { int8: true, ..Self::cpu()? })
    }

    /// Our kernels for 16-bit integers in place of floats.
    ///
    /// # Errors
    /// See [`Backend::cpu`], and where such products are no faster than floats'.
    pub fn cpu_words() -> Result<Self> {
        let backend = Self { words: true, ..Self::cpu()? };
        ensure!(
            backend.multiplies_words(),
            "precision f16 is no faster than f32 with kernel '{}'",
            backend.name()
        );
        Ok(backend)
    }

    /// Our f32 kernels, some of which can be made to lose what int8 would.
    ///
    /// # Errors
    /// See [`Backend::cpu`].
    pub fn cpu_simulating(simulation: Arc<Simulation>) -> Result<Self> {
        Ok(Self { simulation: Some(simulation), ..Self::cpu()? })
    }

    /// Our f32 kernels, which tell what layers read.
    ///
    /// # Errors
    /// See [`Backend::cpu`].
    pub fn cpu_calibrating(calibration: Arc<Calibration>) -> Result<Self> {
        Ok(Self { calibration: Some(calibration), ..Self::cpu()? })
    }

    /// candle's operations in `dtype` on any device.
    pub fn candle(device: Device, dtype: DType) -> Self {
        Self {
            device,
            dtype,
            int8: false,
            words: false,
            kernels: None,
            simulation: None,
            calibration: None,
            keeper: None,
        }
    }

    /// Whether products of 16-bit integers take the place of others: more exact than those of bytes beside them.
    fn multiplies_words(&self) -> bool {
        (self.int8 || self.words) && self.kernels.is_some_and(Isa::multiplies_words_fast)
    }

    /// `values` as a tensor of this back end's type on its device.
    ///
    /// # Errors
    /// When there are more or fewer than `shape` holds, or the device has no room.
    pub fn tensor(&self, values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape.into(), &self.device)?.to_dtype(self.dtype)?)
    }

    /// Names what computes, e.g. `x86_64-avx2` or `candle-cuda`.
    pub fn name(&self) -> String {
        match (&self.kernels, &self.device) {
            (Some(isa), _) => isa.name().to_owned(),
            (None, Device::Cpu) => "candle-cpu".to_owned(),
            (None, Device::Cuda(_)) => "candle-cuda".to_owned(),
            (None, Device::Metal(_)) => "candle-metal".to_owned(),
        }
    }
}

/// Whether what an int8 model's UNet has as floats in linear layers and 1x1 convolutions becomes 16-bit integers.
pub fn floats_become_words() -> bool {
    // A set that this CPU lacks is refused when a model is loaded.
    Isa::chosen().unwrap_or_else(|_| Isa::best()).multiplies_words_fast()
}

/// Parameters of one part of a network, found by name below a prefix.
#[derive(Clone)]
pub struct Params<'a> {
    tensors: &'a TensorSet,
    backend: &'a Backend,
    balance: Option<&'a Balance>,
    prefix: String,
    placement: Placement,
    beside_int8: bool,
}

/// Where a network's weights are between its layers' runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    Memory,
    /// Their file, from which each layer is read whenever it runs: to the same results in less memory.
    File,
}

/// Parameters that outlive what they were made from.
pub struct Source {
    tensors: TensorSet,
    backend: Backend,
    balance: Option<Balance>,
    prefix: String,
}

impl Source {
    pub fn params(&self) -> Params<'_> {
        let Self { tensors, backend, balance, prefix } = self;
        let params = Params::new(tensors, backend, prefix);
        balance.iter().fold(params, |params, balance| params.balanced(balance))
    }
}

impl<'a> Params<'a> {
    pub fn new(tensors: &'a TensorSet, backend: &'a Backend, prefix: &str) -> Self {
        Self {
            tensors,
            backend,
            balance: None,
            prefix: prefix.to_owned(),
            placement: Placement::Memory,
            beside_int8: false,
        }
    }

    /// The same parameters of a network whose weights stay there.
    #[must_use]
    pub fn placed(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// The same of a layer with a neighbor that takes bytes: 16-bit integers then take the place of its floats, which
    /// lose nothing that counts.
    #[must_use]
    pub fn beside_int8(self, beside_int8: bool) -> Self {
        Self { beside_int8, ..self }
    }

    /// Whether a layer that reads one pixel has its floats as 16-bit integers.
    fn floats_in_words(&self) -> bool {
        (self.beside_int8 || self.backend.words) && self.backend.multiplies_words()
    }

    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The same to be kept; values are not copied.
    pub fn source(&self) -> Source {
        let (tensors, backend) = (self.tensors.clone(), self.backend.clone());
        Source { tensors, backend, balance: self.balance.cloned(), prefix: self.prefix.clone() }
    }

    /// Has the system read the weights called `name` from disk in the meantime.
    pub fn read_ahead(&self, name: &str) {
        self.tensors.read_ahead(&self.path(&name));
    }

    /// The same parameters, equalized.
    #[must_use]
    pub fn balanced(self, balance: &'a Balance) -> Self {
        Self { balance: Some(balance), ..self }
    }

    /// The parameters of the part called `name`.
    pub fn at(&self, name: impl Display) -> Self {
        Self { prefix: self.path(&name), ..self.clone() }
    }

    pub fn backend(&self) -> &'a Backend {
        self.backend
    }

    /// # Errors
    /// When the tensor is missing or has another shape.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let path = self.path(&name);
        let values = self.tensors.f32(&path, shape)?;
        match self.balance {
            Some(balance) => balance.vector(&path, values).with_context(|| format!("tensor '{path}'")),
            None => Ok(values),
        }
    }

    /// Whether the weights called `name` are multiplied in int8.
    pub fn computes_int8(&self, name: &str) -> bool {
        let path = self.path(&name);
        let kept = self.balance.is_some_and(|balance| balance.keeps(&path));
        self.backend.int8 && !kept && Policy::default().computes_int8(&path, self.tensors.origin(&path))
    }

    /// Weights of a layer with `shape[0]` outputs, in the precision the layer runs in.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape or holds NaN or infinity.
    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let stored = self.tensors.weight(&self.path(&name), shape)?;
        self.prepared(name, stored, shape[0])
    }

    fn prepared(&self, name: &str, stored: Weight, outputs: usize) -> Result<Weight> {
        let path = self.path(&name);
        let int8 = self.computes_int8(name);
        let weight = match (self.balance, stored) {
            (Some(balance), stored) => balance.weight(&path, stored, outputs, int8),
            (None, stored) if int8 && is_plain(&stored) => Ok(stored),
            (None, stored) if int8 => QuantizedWeight::round(&stored.into_f32(), outputs).map(Weight::Int8),
            (None, stored) => Ok(Weight::Float(stored.into_f32())),
        };
        weight.with_context(|| format!("tensor '{path}'"))
    }

    /// The same, but for rounded weights that are not equalized, which stay as they are stored.
    ///
    /// # Errors
    /// As [`Self::weight`].
    pub(super) fn weight_as_stored(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let stored = self.tensors.weight(&self.path(&name), shape)?;
        if self.balance.is_none() && is_plain(&stored) {
            Ok(stored)
        } else {
            self.prepared(name, stored, shape[0])
        }
    }

    /// What the layer has to multiply its inputs with, `[in]`, if they are not equalized where they come from.
    pub(super) fn input_factors(&self) -> Option<&'a [f32]> {
        self.balance?.inputs(&self.path(&"weight"))
    }

    /// The same as a tensor of the back end's type on its device.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = self.floats(name, shape)?;
        self.backend.tensor(values, shape).with_context(|| format!("tensor '{}'", self.path(&name)))
    }

    pub fn tensors(&self) -> &'a TensorSet {
        self.tensors
    }

    /// The full name of the part or tensor called `name`.
    pub fn path(&self, name: &impl Display) -> String {
        format!("{}.{name}", self.prefix)
    }
}

/// Whether weights are rounded, without factors of their columns.
fn is_plain(weight: &Weight) -> bool {
    match weight {
        Weight::Float(_) => false,
        Weight::Int8(weight) => weight.columns.is_none(),
        Weight::Int4(weight) => weight.columns.is_none(),
    }
}
