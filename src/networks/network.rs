//! A described network with its weights: loading it and running any of its stages, whole; in strips is said in `strips`.

use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Tensor};

use super::graph::{Conv, Enlarge, Extent, Graph, Operation, Port, Prompts, Value};
use super::layer::{Layer, Layers, Norm};
use crate::layers::{Conv2d, Fused, Params, concat_channels};

/// Keys and values of one transformer's cross-attention: they depend on the prompt alone.
pub struct ContextRows {
    /// `[batch, tokens, channels]`
    key: Tensor,
    /// `[batch, tokens, channels]`
    value: Tensor,
}

impl ContextRows {
    /// Of the last text alone.
    pub(super) fn last(&self) -> Result<Self> {
        Ok(Self { key: last(&self.key)?, value: last(&self.value)? })
    }

    /// How many tokens the text has.
    pub(super) fn tokens(&self) -> usize {
        self.key.dims()[1]
    }
}

/// The last of a batch, as a batch of one.
pub(super) fn last(batch: &Tensor) -> Result<Tensor> {
    let count = batch.dim(0)?;
    Ok(batch.narrow(0, count - 1, 1)?.contiguous()?)
}

/// What is added from outside to what a UNet saves on its way down and to what comes out of its middle, e.g. by a
/// ControlNet (Zhang et al. 2023).
pub struct Residuals {
    /// One for each skip in the order in which they are saved, `[batch, height, width, channels]` like them.
    pub skips: Vec<Tensor>,
    /// Of the middle.
    pub middle: Tensor,
}

/// What layers take beside values.
#[derive(Clone, Copy, Default)]
pub struct Beside<'a> {
    /// By transformer.
    pub prompt: &'a [ContextRows],
    pub residuals: Option<&'a Residuals>,
}

impl<'a> Beside<'a> {
    /// What comes to the map at `port` from outside.
    fn residual(&self, port: Port) -> Option<&'a Tensor> {
        let residuals = self.residuals?;
        match port {
            Port::Middle => Some(&residuals.middle),
            Port::Skip(number) => residuals.skips.get(number),
        }
    }
}

/// The values at hand between two stages: a copy can be kept and gone on with. Copying copies no values.
#[derive(Clone)]
pub struct Maps(Vec<Option<Tensor>>);

impl Maps {
    pub(super) fn get(&self, value: Value) -> Option<&Tensor> {
        self.0[value.0].as_ref()
    }

    pub(super) fn take(&mut self, value: Value) -> Option<Tensor> {
        self.0[value.0].take()
    }

    pub(super) fn set(&mut self, value: Value, map: Tensor) {
        self.0[value.0] = Some(map);
    }
}

/// A network that can run.
pub struct Network {
    graph: Graph,
    layers: Layers,
    last_uses: Vec<usize>,
    dtype: DType,
}

impl Network {
    /// Reads all layers, also those that stay in their file: what is wrong with one shows before anything runs.
    ///
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, graph: Graph) -> Result<Self> {
        let layers = Layers::load(params, &graph)?;
        Ok(Self { layers, last_uses: graph.last_uses(), dtype: params.backend().dtype, graph })
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Type of the values.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The rows of each transformer for text embeddings `[batch, tokens, channels]`.
    pub fn context_rows(&self, embeddings: &Tensor) -> Result<Vec<ContextRows>> {
        let embeddings = embeddings.to_dtype(self.dtype)?;
        let rows = |transformer: usize| {
            let stacked = self.layers.prompt(&self.graph, transformer)?.forward(&embeddings)?.chunk(2, 2)?;
            Ok(ContextRows { key: stacked[0].clone(), value: stacked[1].clone() })
        };
        (0..self.graph.prompt().len()).map(rows).collect()
    }

    /// A run that has not begun, with what it is given, in the description's order.
    ///
    /// # Errors
    /// When it is given too little, too much or something of another width.
    pub fn start(&self, inputs: impl IntoIterator<Item = Tensor>) -> Result<Maps> {
        let mut maps: Vec<_> = inputs.into_iter().map(Some).collect();
        let declared = self.graph.operations().iter().map_while(|operation| match operation {
            Operation::Input { channels } => Some(*channels),
            _ => None,
        });
        let found = maps.iter().flatten().map(|map| map.dims().last().copied().unwrap_or(0));
        let (declared, found): (Vec<_>, Vec<_>) = (declared.collect(), found.collect());
        ensure!(declared == found, "a network of inputs {declared:?} channels wide was given {found:?}");
        maps.resize(self.graph.operations().len(), None);
        Ok(Maps(maps))
    }

    /// Runs `stages` and drops what only earlier ones take.
    ///
    /// # Errors
    /// When a stage takes what has not been computed, or shapes don't fit.
    pub fn run(&self, maps: &mut Maps, stages: Range<usize>, beside: Beside<'_>) -> Result<()> {
        let count = self.graph.stages();
        ensure!(stages.start <= stages.end && stages.end <= count, "stages {stages:?} of {count}");
        self.run_layers(maps, self.graph.layers(stages), beside)
    }

    /// The same for layers.
    pub(super) fn run_layers(&self, maps: &mut Maps, layers: Range<usize>, beside: Beside<'_>) -> Result<()> {
        for (value, map) in maps.0.iter_mut().enumerate() {
            if self.last_uses[value] < layers.start {
                *map = None;
            }
        }
        for at in layers {
            self.repeat(at, maps, beside)?;
            let output = self.compute(at, maps, beside)?;
            maps.0[at] = Some(output);
            self.release(maps, at);
        }
        Ok(())
    }

    /// Repeats maps of a single picture for the prompts that it is for, where layer `at` takes them beside maps of
    /// several or attends to several prompts: until then the computations are the same.
    fn repeat(&self, at: usize, maps: &mut Maps, beside: Beside<'_>) -> Result<()> {
        let operation = &self.graph.operations()[at];
        let outside = match operation {
            Operation::CrossAttention { prompt, .. } => beside.prompt.get(*prompt).map(|rows| &rows.key),
            Operation::Join { port, .. } | Operation::Receive { port, .. } => beside.residual(*port),
            _ => None,
        };
        let values = operation.by_picture();
        let taken = values.iter().filter_map(|value| maps.get(*value)).chain(outside);
        let batch = taken.map(|map| map.dims()[0]).max().unwrap_or(1);
        for value in values {
            if let Some(map) = maps.get(value).filter(|map| map.dims()[0] < batch) {
                let repeated = repeated(map, batch)?;
                maps.set(value, repeated);
            }
        }
        Ok(())
    }

    /// Drops what layer `at` was the last to take.
    fn release(&self, maps: &mut Maps, at: usize) {
        for operand in self.graph.operations()[at].operands() {
            if self.last_uses[operand.0] == at {
                maps.0[operand.0] = None;
            }
        }
    }

    /// What the network gives, once its last stage has run.
    pub fn output(&self, mut maps: Maps) -> Result<Tensor> {
        maps.0[self.graph.output().0].take().context("the network has not run to its end")
    }

    /// A whole run from one map to another: `[batch, channels, height, width]` both.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let mut maps = self.start([self.channels_last(input)?])?;
        self.run(&mut maps, 0..self.graph.stages(), Beside::default())?;
        channels_first(&self.output(maps)?)
    }

    /// `[batch, channels, height, width]` as the layers take it.
    pub fn channels_last(&self, map: &Tensor) -> Result<Tensor> {
        Ok(map.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?)
    }

    fn compute(&self, at: usize, maps: &Maps, beside: Beside<'_>) -> Result<Tensor> {
        let map = |value: Value| {
            maps.get(value).with_context(|| {
                let name = |layer: usize| self.graph.stage_name(self.graph.stage_of(layer));
                format!("stage '{}' takes what '{}' gives, which has not run", name(at), name(value.0))
            })
        };
        let optional = |value: Option<Value>| value.map(map).transpose();
        match (&self.graph.operations()[at], &*self.layers.layer(&self.graph, at)?) {
            (Operation::Conv(conv), Layer::Conv(norm, layer)) => {
                let input = map(conv.read.value)?;
                let enlarge_to = match conv.enlarge {
                    None => None,
                    Some(Enlarge::Double) => Some((2 * input.dim(1)?, 2 * input.dim(2)?)),
                    Some(Enlarge::LikeMap(like)) => Some((map(like)?.dim(1)?, map(like)?.dim(2)?)),
                };
                let shift = optional(conv.shift)?.map(Tensor::flatten_all).transpose()?;
                let (shift, residual) = (shift.as_ref(), optional(conv.residual)?);
                let fused = Fused { enlarge_to, shift, residual, relu: conv.relu };
                layer.forward_fused(norm.of(input), fused)
            }
            (Operation::Linear(linear), Layer::Linear(norm, layer)) => {
                layer.forward_fused(norm.of(map(linear.read.value)?), optional(linear.residual)?)
            }
            (Operation::SelfAttention { stacked, .. }, Layer::Attention(attention)) => {
                let (stacked, shape) = rows(map(*stacked)?)?;
                let parts = stacked.chunk(3, 2)?;
                map_of(&attention.to_itself(&parts[0], &parts[1], &parts[2])?, shape)
            }
            (Operation::CrossAttention { query, prompt, .. }, Layer::Attention(attention)) => {
                let (query, shape) = rows(map(*query)?)?;
                let ContextRows { key, value } =
                    beside.prompt.get(*prompt).context("the context was made for another unet")?;
                map_of(&attention.to_context(&query, key, value)?, shape)
            }
            (Operation::Join { map: other, skip, port }, _) => {
                concat_channels(map(*other)?, &received(map(*skip)?, *port, beside)?)
            }
            (Operation::Receive { map: value, port }, _) => received(map(*value)?, *port, beside),
            _ => bail!("stage '{}' has not been given its input", self.graph.stage_name(0)),
        }
    }

    /// A convolution's part in a strip: its description, what it reads through and its weights.
    ///
    /// # Errors
    /// When it is another layer, or stays in its file: each strip would read it.
    pub(super) fn conv(&self, at: usize) -> Result<(&Conv, &Norm, &Conv2d)> {
        match (&self.graph.operations()[at], self.layers.loaded(at)?) {
            (Operation::Conv(conv), Layer::Conv(norm, layer)) => Ok((conv, norm, layer)),
            _ => bail!("only convolutions run in strips"),
        }
    }

    /// The shapes that residuals must have in a run whose inputs have these extents: of every skip in their order,
    /// then of the middle.
    pub fn residual_shapes(&self, inputs: &[Extent]) -> Vec<Vec<usize>> {
        let extents = self.graph.extents(inputs, Prompts::default());
        let shape = |value: Value| {
            let Extent { batch, height, width } = extents[value.0];
            vec![batch, height, width, self.graph.channels(value)]
        };
        let received = self.graph.operations().iter().filter_map(|operation| match operation {
            Operation::Receive { map, .. } => Some(*map),
            _ => None,
        });
        self.graph.skips().iter().map(|skip| skip.saved).chain(received).map(shape).collect()
    }
}

impl Residuals {
    /// # Errors
    /// Says which residuals are missing or have another of the `shapes` that [`Network::residual_shapes`] gives.
    pub(super) fn check(&self, shapes: &[Vec<usize>]) -> Result<()> {
        let (middle, skips) = shapes.split_last().context("this network takes no residuals")?;
        let found = self.skips.len();
        ensure!(found == skips.len(), "{found} residuals where the unet has {} skips", skips.len());
        for (number, (residual, shape)) in self.skips.iter().zip(skips).enumerate() {
            let found = residual.dims();
            ensure!(
                found == shape,
                "residual {number} has shape {found:?} where skip {number} has {shape:?}"
            );
        }
        let found = self.middle.dims();
        ensure!(found == middle, "the middle's residual has shape {found:?} where {middle:?} is expected");
        Ok(())
    }
}

/// A map of a single picture as one of `batch` equal ones.
///
/// # Errors
/// When it is of several pictures, but not as many.
pub fn repeated(map: &Tensor, batch: usize) -> Result<Tensor> {
    match map.dim(0)? {
        found if found == batch => Ok(map.clone()),
        1 => Ok(Tensor::cat(&vec![map; batch], 0)?),
        found => bail!("{found} pictures where one is, or {batch} are"),
    }
}

/// Layers' `[batch, height, width, channels]` as `[batch, channels, height, width]` in f32.
pub fn channels_first(map: &Tensor) -> Result<Tensor> {
    Ok(map.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?)
}

/// `map` with what comes to it from outside.
fn received(map: &Tensor, port: Port, beside: Beside<'_>) -> Result<Tensor> {
    if beside.residuals.is_none() {
        return Ok(map.clone());
    }
    let residual = beside.residual(port).with_context(|| format!("{port:?} has no residual"))?;
    Ok((map + residual.to_dtype(map.dtype())?)?)
}

/// `[batch, height, width, channels]` as rows, and the former shape.
fn rows(map: &Tensor) -> Result<(Tensor, [usize; 3])> {
    let (batch, height, width, channels) = map.dims4()?;
    Ok((map.reshape((batch, height * width, channels))?, [batch, height, width]))
}

fn map_of(rows: &Tensor, [batch, height, width]: [usize; 3]) -> Result<Tensor> {
    Ok(rows.reshape((batch, height, width, rows.dim(2)?))?)
}
