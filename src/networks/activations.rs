//! How many bytes a network's activations take at the most, and its weights, found by walking its description.
//!
//! Everything is in f32 but what an int8 product reads. A layer takes its output and what its kernel needs, beside
//! all values that it or a later one takes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::graph::{Conv, Extent, Graph, Operation, Prompts, Read, Skip, Through, Value, Weights};
use super::strips::Strips;
use super::strips::plan::{self, Pass, Plan};
use crate::quantize::grid::GROUP;

/// How a layer's weights are held: the largest of its parts is what they are stacked as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// With a scale for each group.
    Int4,
    Int8,
    /// As 16-bit integers, with scales for blocks of inputs.
    Word,
    Float,
}

impl Held {
    /// As all of the layers of `names` together are held.
    fn together(names: &[&str], held: &dyn Fn(&str) -> Self) -> Self {
        names.iter().map(|name| held(name)).max().unwrap_or(Self::Float)
    }

    fn bytes(self, count: u64) -> u64 {
        match self {
            Self::Int4 => count / 2 + 2 * count.div_ceil(GROUP as u64),
            Self::Int8 => count,
            Self::Word => WORD * count + count / 16,
            Self::Float => FLOAT * count,
        }
    }
}

/// Bytes of a network's weights, given how each layer's are held, and whether floats of layers that read one pixel become
/// 16-bit integers beside int8.
pub fn weight_bytes(graph: &Graph, held: &dyn Fn(&str) -> Held, words: bool) -> u64 {
    let is_rounded = |name: &str| held(name) != Held::Float;
    let bytes = |weights: Weights<'_>| {
        let multiplied = match Held::together(&weights.names, held) {
            Held::Float
                if words && weights.taps == 1 && weights.beside.iter().any(|name| is_rounded(name)) =>
            {
                WORD * weights.multiplied as u64
            }
            held => held.bytes(weights.multiplied as u64),
        };
        multiplied + FLOAT * weights.added as u64
    };
    graph.weights().map(bytes).sum()
}

/// Bytes that reading the largest layer takes, given as what layers that are rounded both in their file and when they
/// run are held: its weights twice, as they come and as a kernel has them, those of four bits as bytes in between;
/// floats that become int8 or are equalized, three times.
pub fn reading_bytes(graph: &Graph, held: &dyn Fn(&str) -> Held) -> u64 {
    let bytes = |weights: Weights<'_>| {
        let times = if Held::together(&weights.names, held) == Held::Float { 3 * FLOAT } else { 2 };
        times * weights.multiplied as u64 + FLOAT * weights.added as u64
    };
    graph.weights().map(bytes).max().unwrap_or(0)
}

/// The memory of one network's run.
pub struct Activations<'a> {
    graph: &'a Graph,
    extents: Vec<Extent>,
    /// Whether the weights of a layer are multiplied in int8.
    int8: &'a dyn Fn(&str) -> bool,
}

/// Bytes of an f32.
const FLOAT: u64 = 4;
/// Bytes of a 16-bit integer.
const WORD: u64 = 2;
/// Bytes of a value stored in half precision.
const HALF: u64 = 2;
/// Scale and zero point of a quantized row.
const ROW: u64 = 8;

impl<'a> Activations<'a> {
    /// Of a run with inputs of these extents and these prompts.
    pub fn new(
        graph: &'a Graph,
        inputs: &[Extent],
        prompts: Prompts,
        int8: &'a dyn Fn(&str) -> bool,
    ) -> Self {
        Self { extents: graph.extents(inputs, prompts), graph, int8 }
    }

    /// Bytes that a run takes at the most.
    pub fn peak_bytes(&self) -> u64 {
        self.whole(0..self.graph.operations().len())
    }

    /// The same of a run in strips.
    pub fn peak_bytes_in_strips(&self, strips: Strips) -> u64 {
        let (large, all) = (self.graph.large(), self.graph.operations().len());
        let plan = Plan::new(self.graph, &self.extents);
        let last_uses = self.graph.last_uses();
        let kept = |at: usize| self.floats(at) / FLOAT * if plan.stored[at] { HALF } else { FLOAT };
        let entering = (0..large.start).filter(|&value| last_uses[value] >= large.start);
        let mut held: BTreeMap<usize, u64> = entering.map(|value| (value, kept(value))).collect();
        let mut peak = self.whole(0..large.start).max(self.whole(large.end..all));
        for pass in &plan.passes {
            for residual in pass.in_place.values() {
                held.remove(residual);
            }
            let keeps: u64 = pass.keeps.iter().map(|&at| kept(at)).sum();
            let between = held.values().sum::<u64>() + keeps;
            // The third strip and all later ones are like the second.
            let first = strips.of(pass.height, pass.row).take(2);
            let largest = first.map(|strip| self.strip(&plan, pass, &strip)).max();
            peak = peak.max(between + largest.unwrap_or(0));
            held.retain(|value, _| plan.is_used_after(*value, pass));
            held.extend(pass.keeps.iter().map(|&at| (at, kept(at))));
        }
        peak
    }

    /// Bytes of the maps beside a UNet's skip that a step cache keeps: what goes down there and what comes up.
    pub fn kept_bytes(&self, skip: usize) -> u64 {
        let maps = |skip: &Skip| self.floats(skip.saved.0) + self.floats(skip.map.0);
        self.graph.skips().get(skip).map_or(0, maps)
    }

    /// Bytes of the keys and values of these prompts.
    pub fn prompt_bytes(graph: &Graph, prompts: Prompts) -> u64 {
        let channels: usize = graph.prompt().iter().map(|rows| 2 * rows.outputs).sum();
        FLOAT * (prompts.count * prompts.tokens * channels) as u64
    }

    /// The most while `layers` run whole, with what they are given and give.
    fn whole(&self, layers: Range<usize>) -> u64 {
        let last_uses = self.graph.last_uses();
        let mut bytes: Vec<u64> = (0..self.extents.len()).map(|value| self.floats(value)).collect();
        let given = (0..layers.start).filter(|&value| last_uses[value] >= layers.start);
        let mut live: u64 = given.map(|value| bytes[value]).sum();
        let mut peak = live;
        for at in layers {
            let operation = &self.graph.operations()[at];
            // A picture that is the same for all prompts is repeated where it meets those that are not.
            for Value(value) in operation.by_picture() {
                let repeated = self.extents[at].batch / self.extents[value].batch.max(1);
                let whole = self.floats(value) * repeated.max(1) as u64;
                live += whole.saturating_sub(bytes[value]);
                bytes[value] = bytes[value].max(whole);
            }
            live += bytes[at];
            peak = peak.max(live + self.workspace(operation, None, self.extents[at].height));
            for operand in operation.operands() {
                if last_uses[operand.0] == at {
                    live -= bytes[operand.0];
                }
            }
        }
        peak
    }

    /// The most while a pass computes `strip`, beside what is held between passes.
    fn strip(&self, plan: &Plan, pass: &Pass, strip: &Range<usize>) -> u64 {
        let scaled = |at: usize| plan::scaled(strip, pass.height, self.extents[at].height);
        let wanted: Vec<_> = pass.keeps.iter().map(|&at| (at, scaled(at))).collect();
        let needed = pass.needed(self.graph, &self.extents, &wanted);
        let row = |at: usize| self.floats(at) / self.extents[at].height as u64;
        let mut live: BTreeMap<usize, u64> = BTreeMap::new();
        let mut peak = 0;
        for &at in &pass.layers {
            let (Some(rows), Operation::Conv(conv)) = (needed.get(&at), &self.graph.operations()[at]) else {
                continue;
            };
            let from = conv.read.value.0;
            let window = plan::window(conv, rows, self.extents[from].height);
            // Rows that are stored become floats; others are looked at where they are.
            let is_stored = |value: usize| !pass.layers.contains(&value) && plan.stored[value];
            let input = if is_stored(from) { window.read.len() as u64 * row(from) } else { 0 };
            let given = window.gives.len() as u64 * row(at);
            let workspace =
                self.workspace(&self.graph.operations()[at], Some(&window.read), window.gives.len());
            let here: u64 = live.values().sum();
            // A stored residual is added to the finished rows.
            let adding = match conv.residual {
                Some(residual) if !live.contains_key(&residual.0) => 2 * rows.len() as u64 * row(at),
                _ => 0,
            };
            peak = peak.max(here + input + given + workspace.max(adding));
            live.insert(at, given);
            live.retain(|value, _| {
                let later = |&&layer: &&usize| layer > at && needed.contains_key(&layer);
                let mut later =
                    pass.layers.iter().filter(later).map(|&layer| &self.graph.operations()[layer]);
                pass.keeps.contains(value) || later.any(|o| o.operands().contains(&Value(*value)))
            });
        }
        // Rows on their way into a stored map.
        let written =
            pass.keeps.iter().filter(|&&at| plan.stored[at]).map(|&at| scaled(at).len() as u64 * row(at));
        peak.max(live.values().sum::<u64>() + 2 * written.max().unwrap_or(0))
    }

    /// What a layer takes beside its input and output: `rows` of the output from `read` of the input, or from all.
    fn workspace(&self, operation: &Operation, read: Option<&Range<usize>>, rows: usize) -> u64 {
        match operation {
            Operation::Conv(conv) => {
                let int8 = (self.int8)(&conv.name);
                let reads_bytes = int8 && !conv.shape.reads_floats_in_int8();
                self.read_bytes(&conv.read, read, reads_bytes) + self.transformed(conv, rows, int8)
            }
            Operation::Linear(linear) => {
                let int8 = linear.names.iter().all(|name| (self.int8)(name));
                self.read_bytes(&linear.read, None, int8)
            }
            _ => 0,
        }
    }

    /// A product's input in the form it is read in, if that is not the one it has.
    fn read_bytes(&self, read: &Read, rows: Option<&Range<usize>>, int8: bool) -> u64 {
        let Extent { batch, height, width } = self.extents[read.value.0];
        let pixels = (batch * rows.map_or(height, Range::len) * width) as u64;
        let channels = self.graph.channels(read.value) as u64;
        let floats = match read.through {
            Through::Nothing => 0,
            Through::Activation(_) if int8 => 0,
            Through::Activation(_) => FLOAT * pixels * channels,
            Through::GroupNorm { .. } | Through::LayerNorm { .. } if int8 => 0,
            Through::GroupNorm { .. } | Through::LayerNorm { .. } => FLOAT * pixels * channels,
        };
        floats + if int8 { pixels * (channels + ROW) } else { 0 }
    }

    fn transformed(&self, conv: &Conv, rows: usize, int8: bool) -> u64 {
        let Extent { batch, width, .. } = self.extents[conv.read.value.0];
        let width = if conv.enlarge.is_some() { 2 * width } else { width };
        conv.shape.workspace_bytes(batch, rows, width, int8) as u64
    }

    /// Bytes of a value in f32.
    fn floats(&self, value: usize) -> u64 {
        FLOAT * (self.extents[value].pixels() * self.graph.channels(Value(value))) as u64
    }
}
