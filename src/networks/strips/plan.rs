//! Which layers a pass over large maps computes together, which rows each needs of the others, and what is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::super::graph::{Conv, Enlarge, Extent, Graph, Operation, Through, Value};
use crate::layers::Padding;

/// The passes over the large maps of one network.
#[derive(Debug)]
pub struct Plan {
    pub passes: Vec<Pass>,
    /// Whether a value that is kept between passes is stored in half precision: the others are given to no norm.
    pub stored: Vec<bool>,
    last_uses: Vec<usize>,
}

/// Layers that are computed together, one strip after the other.
#[derive(Debug)]
pub struct Pass {
    /// In order; among them those that are computed anew in every pass that reads them.
    pub layers: Vec<usize>,
    /// Those that are taken by later passes or layers.
    pub keeps: Vec<usize>,
    /// Of these, those that are written over the residual they're added to.
    pub in_place: BTreeMap<usize, usize>,
    /// Values whose moments must be known before.
    pub normed: BTreeSet<usize>,
    /// Rows of the tallest map.
    pub height: usize,
    /// Values in a row of the widest.
    pub row: usize,
    last: usize,
}

impl Plan {
    /// A norm needs the moments of the whole map, so each layer that reads through one begins a pass. What changes
    /// the size and is read by a norm is cheaper computed twice than stored: its input is four times smaller, or
    /// its output is needed once.
    pub fn new(graph: &Graph, extents: &[Extent]) -> Self {
        let (operations, large, last_uses) = (graph.operations(), graph.large(), graph.last_uses());
        let mut normed = vec![false; operations.len()];
        for operation in operations {
            if let Some(value) = group_normed(operation) {
                normed[value.0] = true;
            }
        }
        let again =
            |at: usize| matches!(&operations[at], Operation::Conv(conv) if conv.resamples()) && normed[at];
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for at in large.clone().filter(|&at| !again(at)) {
            match groups.last_mut() {
                Some(group) if group_normed(&operations[at]).is_none() => group.push(at),
                _ => groups.push(vec![at]),
            }
        }
        let mut kept = BTreeSet::new();
        let mut plan = Self { passes: Vec::new(), stored: normed, last_uses };
        for group in groups {
            let pass = plan.pass(graph, extents, &group, &kept);
            kept.extend(pass.keeps.iter().copied());
            plan.passes.push(pass);
        }
        // A map that an enlarging layer reads is stored, too.
        for at in kept {
            plan.stored[at] |= plan.last_uses[at] < large.end;
        }
        plan
    }

    fn pass(&self, graph: &Graph, extents: &[Extent], group: &[usize], kept: &BTreeSet<usize>) -> Pass {
        let operations = graph.operations();
        let operands = |at: usize| operations[at].operands().into_iter().map(|operand| operand.0);
        let mut layers: BTreeSet<usize> = group.iter().copied().collect();
        let mut open = group.to_vec();
        while let Some(at) = open.pop() {
            for operand in operands(at) {
                let is_there = operand < graph.large().start || kept.contains(&operand);
                if !is_there && layers.insert(operand) {
                    open.push(operand);
                }
            }
        }
        let last = group.iter().copied().max().unwrap_or_default();
        let keeps: Vec<usize> = layers.iter().copied().filter(|&at| self.last_uses[at] > last).collect();
        let mut in_place = BTreeMap::new();
        for &at in &keeps {
            let Operation::Conv(Conv { residual: Some(residual), .. }) = &operations[at] else { continue };
            let others =
                layers.iter().filter(|&&other| other != at && operands(other).any(|o| o == residual.0));
            let is_stored =
                kept.contains(&residual.0) || (residual.0 < graph.large().start && self.stored[residual.0]);
            if is_stored && self.last_uses[residual.0] <= last && others.count() == 0 {
                in_place.insert(at, residual.0);
            }
        }
        let stages: BTreeSet<usize> = group.iter().map(|&at| graph.stage_of(at)).collect();
        let channels =
            stages.iter().flat_map(|&stage| graph.layers(stage..stage + 1)).map(|at| match &operations[at] {
                Operation::Conv(conv) => conv.shape.in_channels.max(conv.shape.out_channels),
                _ => graph.channels(Value(at)),
            });
        let tallest = layers.iter().copied().max_by_key(|&at| extents[at].height).unwrap_or_default();
        Pass {
            normed: group
                .iter()
                .filter_map(|&at| group_normed(&operations[at]))
                .map(|value| value.0)
                .collect(),
            height: extents[tallest].height,
            row: extents[tallest].width * channels.max().unwrap_or(1),
            layers: layers.into_iter().collect(),
            keeps,
            in_place,
            last,
        }
    }

    /// Whether something after `pass` takes a value that was there before it.
    pub fn is_used_after(&self, value: usize, pass: &Pass) -> bool {
        self.last_uses[value] > pass.last
    }
}

impl Pass {
    /// The rows of each layer that it takes to have `wanted`.
    pub fn needed(
        &self,
        graph: &Graph,
        extents: &[Extent],
        wanted: &[(usize, Range<usize>)],
    ) -> BTreeMap<usize, Range<usize>> {
        let mut needed: BTreeMap<usize, Range<usize>> = wanted.iter().cloned().collect();
        for &at in self.layers.iter().rev() {
            let (Some(rows), Operation::Conv(conv)) = (needed.get(&at).cloned(), &graph.operations()[at])
            else {
                continue;
            };
            let from = conv.read.value.0;
            let read = window(conv, &rows, extents[from].height).read;
            let residual = conv.residual.map(|residual| (residual.0, rows));
            for (value, rows) in [(from, read)].into_iter().chain(residual) {
                if self.layers.contains(&value) {
                    let all = needed.entry(value).or_insert_with(|| rows.clone());
                    *all = all.start.min(rows.start)..all.end.max(rows.end);
                }
            }
        }
        needed
    }
}

/// What a layer reads through a group norm.
fn group_normed(operation: &Operation) -> Option<Value> {
    let read = operation.read()?;
    matches!(read.through, Through::GroupNorm { .. }).then_some(read.value)
}

/// Rows a convolution reads, and those this gives, margins included.
#[derive(Debug, PartialEq, Eq)]
pub struct Window {
    pub read: Range<usize>,
    pub gives: Range<usize>,
}

/// What it takes to have `rows` of a convolution's output as they are in the whole map; its input has `height`.
pub fn window(conv: &Conv, rows: &Range<usize>, height: usize) -> Window {
    let margin = conv.shape.kernel / 2;
    let (read, first) = match (conv.enlarge, conv.shape.stride, conv.shape.padding) {
        (Some(Enlarge::Double | Enlarge::LikeMap(_)), ..) => {
            let read = (rows.start / 2).saturating_sub(margin)..(rows.end.div_ceil(2) + margin).min(height);
            (read.clone(), 2 * read.start)
        }
        (None, 1, _) => {
            let read = rows.start.saturating_sub(margin)..(rows.end + margin).min(height);
            (read.clone(), read.start)
        }
        // Beginning with a whole stride, so that the grid stays.
        (None, stride, Padding::Around) => {
            let before = rows.start.saturating_sub(margin);
            (stride * before..(stride * rows.end).min(height), before)
        }
        (None, stride, Padding::BottomRight) => {
            (stride * rows.start..(stride * rows.end + margin).min(height), rows.start)
        }
    };
    let seen = if conv.enlarge.is_some() { 2 * read.len() } else { read.len() };
    let (count, _) = conv.shape.output_size((seen, conv.shape.kernel));
    Window { gives: first..first + count, read }
}

/// The rows of a map of `height` that `strip`, of a map of `tallest`, stands for.
pub fn scaled(strip: &Range<usize>, tallest: usize, height: usize) -> Range<usize> {
    let factor = tallest.div_ceil(height);
    strip.start / factor..strip.end.div_ceil(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::ConvShape;

    /// The input row under a tap of an output row, none where it is padding.
    fn row_under(conv: &Conv, output: usize, tap: usize, height: usize) -> Option<usize> {
        let factor = if conv.enlarge.is_some() { 2 } else { 1 };
        let before = match conv.shape.padding {
            Padding::Around => conv.shape.kernel / 2,
            Padding::BottomRight => 0,
        };
        let seen = (output * conv.shape.stride + tap).checked_sub(before)?;
        (seen < factor * height).then_some(seen / factor)
    }

    #[test]
    fn a_window_has_every_row_under_the_kernel_in_its_place() {
        let mut graph = Graph::default();
        let map = graph.input(4);
        let same = |kernel| Conv::new("same", ConvShape::same(4, 4, kernel), map);
        let halving = |padding| Conv::new("halving", ConvShape::halving(4, padding), map);
        let convs = [
            same(1),
            same(3),
            Conv { enlarge: Some(Enlarge::Double), ..same(3) },
            halving(Padding::Around),
            halving(Padding::BottomRight),
        ];
        for conv in convs {
            for height in 2..14 {
                let seen = if conv.enlarge.is_some() { 2 * height } else { height };
                let (outputs, _) = conv.shape.output_size((seen, 3));
                for rows in (0..outputs).flat_map(|start| (start + 1..=outputs).map(move |end| start..end)) {
                    let Window { read, gives } = window(&conv, &rows, height);
                    let place = format!("{} {height} {rows:?} {read:?} {gives:?}", conv.name);
                    assert!(
                        gives.start <= rows.start && rows.end <= gives.end && read.end <= height,
                        "{place}"
                    );
                    for (row, tap) in rows.flat_map(|row| (0..conv.shape.kernel).map(move |tap| (row, tap))) {
                        let whole = row_under(&conv, row, tap, height);
                        let part = row_under(&conv, row - gives.start, tap, read.len());
                        assert_eq!(part.map(|part| read.start + part), whole, "{place}: row {row} tap {tap}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_strip_stands_for_as_much_of_a_smaller_map() {
        assert_eq!(scaled(&(4..8), 16, 16), 4..8);
        assert_eq!(scaled(&(4..8), 16, 8), 2..4);
        assert_eq!(scaled(&(4..5), 5, 3), 2..3);
    }
}
