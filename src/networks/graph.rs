//! What a network computes, as plain data: layers in the order they run, cut into stages; nothing is loaded or run here.
//!
//! A builder such as [`super::unet::describe`] reads like a forward pass. Everything else follows from what it
//! builds: loading, running whole or in strips, stopping and going on between two stages, counting
//! multiply-accumulates and the memory that activations take.

use std::ops::Range;

pub use super::operation::{
    Conv, Enlarge, Groups, Linear, Operation, Port, PromptRows, Read, Through, Value, activated, layer_norm,
    silu,
};

/// A skip connection: where it leaves the way down and where it comes in on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skip {
    /// What was saved.
    pub saved: Value,
    /// The map it is joined to.
    pub map: Value,
    /// The first stage that doesn't run before it is saved.
    pub after: usize,
    /// The stage that joins it.
    pub joins: usize,
}

/// How many values a layer loads.
#[derive(Debug, Clone)]
pub struct Weights<'a> {
    /// Of the layers that are multiplied as one.
    pub names: Vec<&'a str>,
    pub multiplied: usize,
    /// Pixels that each output reads.
    pub taps: usize,
    /// Of the products before and after.
    pub beside: Vec<&'a str>,
    /// Biases, and a norm's gains and offsets.
    pub added: usize,
}

#[derive(Debug, Clone)]
struct Stage {
    name: String,
    first: usize,
}

/// Height and width of a value and for how many pictures it is; a row is one pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
}

impl Extent {
    /// One row for the whole batch.
    pub const ROW: Self = Self { batch: 1, height: 1, width: 1 };

    pub fn pixels(self) -> usize {
        self.batch * self.height * self.width
    }
}

/// How many prompts a run is given, and of how many tokens: none where the network takes none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prompts {
    pub count: usize,
    pub tokens: usize,
}

/// A network without its weights. Inputs come first; the last layer's value is what the network gives.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    operations: Vec<Operation>,
    channels: Vec<usize>,
    stages: Vec<Stage>,
    prompt: Vec<PromptRows>,
    large: Range<usize>,
}

/// Building.
impl Graph {
    fn push(&mut self, operation: Operation, channels: usize) -> Value {
        self.operations.push(operation);
        self.channels.push(channels);
        Value(self.operations.len() - 1)
    }

    /// Begins a stage: a run can stop before it and go on with it.
    pub fn stage(&mut self, name: impl Into<String>) {
        self.stages.push(Stage { name: name.into(), first: self.operations.len() });
    }

    pub fn input(&mut self, channels: usize) -> Value {
        self.push(Operation::Input { channels }, channels)
    }

    pub fn conv(&mut self, conv: Conv) -> Value {
        let channels = conv.shape.out_channels;
        self.push(Operation::Conv(conv), channels)
    }

    pub fn linear(&mut self, linear: Linear) -> Value {
        let channels = linear.names.len() * linear.outputs;
        self.push(Operation::Linear(linear), channels)
    }

    pub fn self_attention(&mut self, stacked: Value, heads: usize) -> Value {
        let channels = self.channels(stacked) / 3;
        self.push(Operation::SelfAttention { stacked, heads, causal: false }, channels)
    }

    /// The same where no pixel sees a later one.
    pub fn causal_attention(&mut self, stacked: Value, heads: usize) -> Value {
        let channels = self.channels(stacked) / 3;
        self.push(Operation::SelfAttention { stacked, heads, causal: true }, channels)
    }

    /// Attention of `query` to keys and values that the prompt gives through `rows`.
    pub fn cross_attention(&mut self, query: Value, heads: usize, rows: PromptRows) -> Value {
        self.prompt.push(rows);
        let (channels, prompt) = (self.channels(query), self.prompt.len() - 1);
        self.push(Operation::CrossAttention { query, heads, prompt }, channels)
    }

    /// `map` with the skip of number `number` beside it.
    pub fn join(&mut self, map: Value, skip: Value, number: usize) -> Value {
        let channels = self.channels(map) + self.channels(skip);
        self.push(Operation::Join { map, skip, port: Port::Skip(number) }, channels)
    }

    /// `map`, open to what is added from outside.
    pub fn receive(&mut self, map: Value, port: Port) -> Value {
        let channels = self.channels(map);
        self.push(Operation::Receive { map, port }, channels)
    }

    /// From here on to [`Self::end_large`] maps are as large as a picture's: this part can run in strips.
    pub fn begin_large(&mut self) {
        self.large = self.operations.len()..usize::MAX;
    }

    pub fn end_large(&mut self) {
        self.large.end = self.operations.len();
    }
}

/// Reading.
impl Graph {
    pub fn channels(&self, value: Value) -> usize {
        self.channels[value.0]
    }

    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// What the network gives.
    pub fn output(&self) -> Value {
        Value(self.operations.len() - 1)
    }

    pub fn prompt(&self) -> &[PromptRows] {
        &self.prompt
    }

    /// The layers that may run in strips.
    pub fn large(&self) -> Range<usize> {
        self.large.clone()
    }

    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    pub fn stage_name(&self, stage: usize) -> &str {
        &self.stages[stage].name
    }

    /// The stage a layer belongs to.
    pub fn stage_of(&self, layer: usize) -> usize {
        self.stages.partition_point(|stage| stage.first <= layer).saturating_sub(1)
    }

    /// The layers of some stages.
    pub fn layers(&self, stages: Range<usize>) -> Range<usize> {
        let first = |stage: usize| self.stages.get(stage).map_or(self.operations.len(), |stage| stage.first);
        first(stages.start)..first(stages.end)
    }

    /// The last layer that takes each value; the output's is none.
    pub fn last_uses(&self) -> Vec<usize> {
        let mut last: Vec<usize> = (0..self.operations.len()).collect();
        for (at, operation) in self.operations.iter().enumerate() {
            for operand in operation.operands() {
                last[operand.0] = at;
            }
        }
        last[self.output().0] = usize::MAX;
        last
    }

    /// All skips, in the order in which they are saved.
    pub fn skips(&self) -> Vec<Skip> {
        let mut skips: Vec<(usize, Skip)> = Vec::new();
        for (at, operation) in self.operations.iter().enumerate() {
            if let Operation::Join { map, skip, port: Port::Skip(number) } = *operation {
                let (after, joins) = (self.stage_of(skip.0) + 1, self.stage_of(at));
                skips.push((number, Skip { saved: skip, map, after, joins }));
            }
        }
        skips.sort_unstable_by_key(|(number, _)| *number);
        skips.into_iter().map(|(_, skip)| skip).collect()
    }

    /// The layers of the products before and after operation `at`.
    pub fn beside(&self, at: usize) -> impl Iterator<Item = &str> {
        let before = self.operations[..at].iter().rev().map(Operation::names).find(|names| !names.is_empty());
        let after = self.operations[at + 1..].iter().map(Operation::names).find(|names| !names.is_empty());
        before.into_iter().chain(after).flatten().map(String::as_str)
    }

    /// What every layer loads, and what the prompt is multiplied with.
    pub fn weights(&self) -> impl Iterator<Item = Weights<'_>> {
        let norm = |read: &Read| match read.through {
            Through::GroupNorm { .. } | Through::LayerNorm { .. } => 2 * self.channels(read.value),
            Through::Nothing | Through::Activation(_) => 0,
        };
        let layers = self.operations.iter().enumerate().filter_map(move |(at, operation)| match operation {
            Operation::Conv(conv) => Some(Weights {
                names: vec![&conv.name],
                multiplied: conv.shape.macs(1),
                taps: conv.shape.kernel * conv.shape.kernel,
                beside: self.beside(at).collect(),
                added: norm(&conv.read) + if conv.shape.bias { conv.shape.out_channels } else { 0 },
            }),
            Operation::Linear(linear) => {
                let outputs = if linear.gated { 2 * self.channels[at] } else { self.channels[at] };
                Some(Weights {
                    names: linear.names.iter().map(String::as_str).collect(),
                    multiplied: self.channels(linear.read.value) * outputs,
                    taps: 1,
                    beside: self.beside(at).collect(),
                    added: norm(&linear.read) + if linear.bias { outputs } else { 0 },
                })
            }
            _ => None,
        });
        let prompt = self.prompt.iter().map(|rows| Weights {
            names: rows.names.iter().map(String::as_str).collect(),
            multiplied: rows.inputs * 2 * rows.outputs,
            taps: 1,
            beside: vec![],
            added: 0,
        });
        layers.chain(prompt)
    }

    /// The extent of every value, given those of the inputs. One picture that several prompts are for becomes several
    /// where the first of them is attended to.
    ///
    /// # Panics
    /// If there is not one for each input.
    pub fn extents(&self, inputs: &[Extent], prompts: Prompts) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for operation in &self.operations {
            let batches = operation.by_picture().into_iter().map(|value| extents[value.0].batch);
            let batch = batches.max().unwrap_or(0);
            let extent = match operation {
                Operation::Input { .. } => inputs[extents.len()],
                Operation::Conv(conv) => {
                    let from = extents[conv.read.value.0];
                    let seen = match conv.enlarge {
                        None => (from.height, from.width),
                        Some(Enlarge::Double) => (2 * from.height, 2 * from.width),
                        Some(Enlarge::LikeMap(map)) => (extents[map.0].height, extents[map.0].width),
                    };
                    let (height, width) = conv.shape.output_size(seen);
                    Extent { batch, height, width }
                }
                Operation::CrossAttention { query, .. } => {
                    Extent { batch: batch.max(prompts.count), ..extents[query.0] }
                }
                Operation::Linear(Linear { read: Read { value, .. }, .. })
                | Operation::SelfAttention { stacked: value, .. }
                | Operation::Join { skip: value, .. }
                | Operation::Receive { map: value, .. } => Extent { batch, ..extents[value.0] },
            };
            extents.push(extent);
        }
        extents
    }
}
