//! The layers of a network with their weights, in memory or read from their file whenever they run; running is `network`'s.

use std::ops::Deref;

use anyhow::{Result, bail};
use candle_core::Tensor;

use super::graph::{Graph, Operation, PromptRows, Read, Through};
use crate::layers::{
    self, Activation, Attention, Conv2d, GroupNorm, Input, LayerNorm, Params, Placement, Source,
};

/// A layer's weights.
pub(super) enum Layer {
    Conv(Norm, Conv2d),
    Linear(Norm, layers::Linear),
    Attention(Attention),
    None,
}

/// What a product reads its input through.
pub(super) enum Norm {
    Nothing,
    Group(GroupNorm, bool),
    Layer(LayerNorm),
    Activation(Activation),
}

impl Norm {
    fn load(params: &Params, through: &Through, channels: usize) -> Result<Self> {
        Ok(match through {
            Through::Nothing => Self::Nothing,
            Through::Activation(function) => Self::Activation(Activation::new(params, *function)),
            Through::GroupNorm { name, groups, eps, silu } => {
                Self::Group(GroupNorm::load(&params.at(name), *groups, channels, *eps)?, *silu)
            }
            Through::LayerNorm { name, eps } => {
                Self::Layer(LayerNorm::load(&params.at(name), channels, *eps)?)
            }
        })
    }

    pub fn of<'a>(&'a self, input: &'a Tensor) -> Input<'a> {
        match self {
            Self::Nothing => input.into(),
            Self::Group(norm, false) => norm.of(input),
            Self::Group(norm, true) => norm.silu_of(input),
            Self::Layer(norm) => norm.of(input),
            Self::Activation(activation) => activation.of(input),
        }
    }
}

impl Layer {
    fn load(params: &Params, graph: &Graph, at: usize) -> Result<Self> {
        let norm = |read: &Read| Norm::load(params, &read.through, graph.channels(read.value));
        let int8 = |name: &str| params.at(name).computes_int8("weight");
        let params = &params.clone().beside_int8(graph.beside(at).any(int8));
        Ok(match &graph.operations()[at] {
            Operation::Conv(conv) => {
                Self::Conv(norm(&conv.read)?, Conv2d::load(&params.at(&conv.name), conv.shape)?)
            }
            Operation::Linear(linear) => {
                let inputs = graph.channels(linear.read.value);
                let parts: Vec<_> = linear.names.iter().map(|name| params.at(name)).collect();
                let layer = match (linear.gated, parts.as_slice()) {
                    (true, [gated]) => layers::Linear::load_gated(gated, inputs, linear.outputs),
                    (true, _) => bail!("gated layers can't be stacked"),
                    (false, parts) => {
                        layers::Linear::load_stacked(parts, inputs, linear.outputs, linear.bias)
                    }
                };
                Self::Linear(norm(&linear.read)?, layer?)
            }
            Operation::SelfAttention { heads, causal: true, .. } => {
                Self::Attention(Attention::causal(params, *heads))
            }
            Operation::SelfAttention { heads, stacked: query, .. }
            | Operation::CrossAttention { heads, query, .. } => {
                let names = graph.operations()[query.0].names();
                let rows = match &graph.operations()[at] {
                    Operation::CrossAttention { prompt, .. } => &graph.prompt()[*prompt].names[..],
                    _ => &[],
                };
                let int8 = |name: &String| params.at(name).computes_int8("weight");
                let beside_int8 = !names.is_empty() && names.iter().chain(rows).all(int8);
                Self::Attention(Attention::new(params, *heads, beside_int8))
            }
            Operation::Input { .. } | Operation::Join { .. } | Operation::Receive { .. } => Self::None,
        })
    }

    /// The layer of a prompt's rows.
    fn load_prompt(params: &Params, rows: &PromptRows) -> Result<layers::Linear> {
        let parts = rows.names.each_ref().map(|name| params.at(name));
        layers::Linear::load_stacked(&parts, rows.inputs, rows.outputs, false)
    }
}

/// All layers of a network.
pub(super) enum Layers {
    Memory {
        layers: Vec<Layer>,
        /// For the prompt's rows of each transformer.
        prompt: Vec<layers::Linear>,
    },
    File(Box<Source>),
}

impl Layers {
    /// # Errors
    /// Names the tensor that is missing or misshapen, wherever the layers stay.
    pub fn load(params: &Params, graph: &Graph) -> Result<Self> {
        let mut layers = (0..graph.operations().len()).map(|at| Layer::load(params, graph, at));
        let mut prompt = graph.prompt().iter().map(|rows| Layer::load_prompt(params, rows));
        match params.placement() {
            Placement::Memory => {
                let layers = layers.collect::<Result<_>>()?;
                Ok(Self::Memory { layers, prompt: prompt.collect::<Result<_>>()? })
            }
            Placement::File => {
                layers.try_for_each(|layer| layer.map(drop))?;
                prompt.try_for_each(|layer| layer.map(drop))?;
                Ok(Self::File(Box::new(params.source())))
            }
        }
    }

    /// Layer `at`; meanwhile the system reads the next one.
    pub fn layer(&self, graph: &Graph, at: usize) -> Result<Lent<'_, Layer>> {
        match self {
            Self::Memory { layers, .. } => Ok(Lent::Kept(&layers[at])),
            Self::File(source) => {
                let params = source.params();
                let layer = Layer::load(&params, graph, at)?;
                let later = graph.operations()[at + 1..].iter().map(Operation::names);
                for name in later.into_iter().find(|names| !names.is_empty()).into_iter().flatten() {
                    params.at(name).read_ahead("weight");
                }
                Ok(Lent::Read(layer))
            }
        }
    }

    /// The layer of the prompt's rows of this transformer.
    pub fn prompt(&self, graph: &Graph, transformer: usize) -> Result<Lent<'_, layers::Linear>> {
        match self {
            Self::Memory { prompt, .. } => Ok(Lent::Kept(&prompt[transformer])),
            Self::File(source) => {
                Layer::load_prompt(&source.params(), &graph.prompt()[transformer]).map(Lent::Read)
            }
        }
    }

    /// Layer `at`.
    ///
    /// # Errors
    /// When it stays in its file.
    pub fn loaded(&self, at: usize) -> Result<&Layer> {
        match self {
            Self::Memory { layers, .. } => Ok(&layers[at]),
            Self::File(_) => bail!("layer {at} stays in its file"),
        }
    }
}

/// What is in memory, or was read for one run.
pub(super) enum Lent<'a, T> {
    Kept(&'a T),
    Read(T),
}

impl<T> Deref for Lent<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Kept(layer) => layer,
            Self::Read(layer) => layer,
        }
    }
}
