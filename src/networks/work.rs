//! Multiply-accumulates of a network, counted by walking its description.

use std::ops::Range;

use super::graph::{Extent, Graph, Operation, Prompts, Value};
use crate::layers::meter::{Kind, Macs};

impl Graph {
    /// Of one run with inputs of these extents and prompts whose rows are there already.
    pub fn macs(&self, inputs: &[Extent], prompts: Prompts) -> Macs {
        self.macs_in(0..self.stages(), inputs, prompts)
    }

    /// The same of some stages.
    pub fn macs_in(&self, stages: Range<usize>, inputs: &[Extent], prompts: Prompts) -> Macs {
        let extents = self.extents(inputs, prompts);
        let mut macs = Macs::default();
        for at in self.layers(stages) {
            let operation = &self.operations()[at];
            let (channels, extent) = (self.channels(Value(at)), extents[at]);
            match operation {
                Operation::Conv(conv) => macs.add(conv.shape.kind(), conv.shape.macs(extent.pixels())),
                Operation::Linear(linear) => {
                    let outputs = if linear.gated { 2 * channels } else { channels };
                    let filters = self.channels(linear.read.value) * outputs;
                    macs.add(Kind::Linear, extent.pixels() * filters);
                }
                // Scores, then what they weigh.
                Operation::SelfAttention { .. } => {
                    let pixels = extent.height * extent.width;
                    macs.add(Kind::SelfAttention, 2 * extent.pixels() * pixels * channels);
                }
                Operation::CrossAttention { .. } => {
                    macs.add(Kind::CrossAttention, 2 * extent.pixels() * prompts.tokens * channels);
                }
                Operation::Input { .. } | Operation::Join { .. } | Operation::Receive { .. } => {}
            }
        }
        macs
    }

    /// Of preparing the prompts.
    pub fn prompt_macs(&self, prompts: Prompts) -> Macs {
        let mut macs = Macs::default();
        for rows in self.prompt() {
            macs.add(Kind::Linear, prompts.count * prompts.tokens * rows.inputs * 2 * rows.outputs);
        }
        macs
    }
}
