//! Running an autoencoder's large maps strip by strip in bounded memory; which layers follow each other is said by its description.
//!
//! What distinguishes it from decoding tiles that overlap and are blended: group norms take their statistics from
//! the whole map, and each convolution sees its true neighbors. There are no seams; the result differs from that
//! of whole maps by the rounding of what is stored between two layers to half precision.

mod map;
pub mod plan;

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor};

use super::graph::{Enlarge, Extent, Prompts, Value};
use super::layer::Norm;
use super::network::{Beside, Maps, Network, channels_first};
use crate::kernels::ChannelMoments;
use crate::layers::{Fused, Input, measure};
use map::Map;
use plan::{Pass, Plan, Window};

/// How much of a map is computed at once.
#[derive(Debug, Clone, Copy)]
pub struct Strips {
    /// Size of a strip's widest map in f32, in bytes; a strip has at least one row.
    pub bytes: usize,
}

impl Default for Strips {
    /// Large enough that the rows computed twice, at most two above and two below, are few.
    fn default() -> Self {
        Self { bytes: 32 << 20 }
    }
}

impl Strips {
    /// The strips of a map of `height` rows, each `row` values wide; an even number of rows but the last.
    pub fn of(self, height: usize, row: usize) -> impl Iterator<Item = Range<usize>> {
        let rows = (self.bytes / (4 * row)).next_multiple_of(2).max(2);
        (0..height).step_by(rows).map(move |first| first..(first + rows).min(height))
    }
}

impl Network {
    /// [`Self::forward`] for one picture in less memory: the part whose maps are large runs in strips.
    ///
    /// # Errors
    /// When shapes don't fit, or there is more than one picture.
    pub fn forward_in_strips(&self, input: &Tensor, strips: Strips) -> Result<Tensor> {
        let (batch, _, height, width) = input.dims4()?;
        ensure!(batch == 1, "strips are of one map, not of {batch}");
        let (all, large) = (self.graph().layers(0..self.graph().stages()), self.graph().large());
        let mut maps = self.start([self.channels_last(input)?])?;
        self.run_layers(&mut maps, all.start..large.start, Beside::default())?;
        let extents = self.graph().extents(&[Extent { batch, height, width }], Prompts::default());
        let plan = Plan::new(self.graph(), &extents);
        let (device, held) = (input.device(), BTreeMap::new());
        let mut run = Run { network: self, device, extents: &extents, strips, plan: &plan, held };
        run.take_over(&mut maps, large.start)?;
        for pass in &plan.passes {
            run.sweep(pass)?;
        }
        run.hand_over(&mut maps)?;
        self.run_layers(&mut maps, large.end..all.end, Beside::default())?;
        channels_first(&self.output(maps)?)
    }
}

/// A value between two passes.
enum Held {
    Whole(Tensor),
    Stored(Map),
}

impl Held {
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        match self {
            Self::Whole(map) => Ok(map.narrow(1, rows.start, rows.len())?.contiguous()?),
            Self::Stored(map) => map.rows(rows),
        }
    }
}

/// What a pass leaves of a layer.
enum Kept {
    /// Strips one below the other.
    Strips(Vec<Tensor>),
    Stored(Map),
    /// In the place of the residual that it's added to.
    InPlace(Map),
}

/// Rows of the layers of a pass.
type Rows = BTreeMap<usize, (Range<usize>, Tensor)>;

struct Run<'a> {
    network: &'a Network,
    device: &'a Device,
    extents: &'a [Extent],
    strips: Strips,
    plan: &'a Plan,
    held: BTreeMap<usize, Held>,
}

impl Run<'_> {
    /// Takes the values that layers from `first` on take.
    fn take_over(&mut self, maps: &mut Maps, first: usize) -> Result<()> {
        for value in (0..first).map(Value) {
            let Some(map) = maps.take(value) else { continue };
            let held =
                if self.plan.stored[value.0] { Held::Stored(Map::store(&map)?) } else { Held::Whole(map) };
            self.held.insert(value.0, held);
        }
        Ok(())
    }

    /// Gives back what later layers take.
    fn hand_over(self, maps: &mut Maps) -> Result<()> {
        for (value, held) in self.held {
            let map = match held {
                Held::Whole(map) => map,
                Held::Stored(map) => map.whole()?,
            };
            maps.set(Value(value), map);
        }
        Ok(())
    }

    /// One pass over the maps.
    fn sweep(&mut self, pass: &Pass) -> Result<()> {
        let moments = self.moments(pass)?;
        let mut kept = BTreeMap::new();
        for &at in &pass.keeps {
            let residual = pass.in_place.get(&at).and_then(|residual| self.held.remove(residual));
            let keep = match residual {
                Some(Held::Stored(mut map)) => {
                    map.forget_moments();
                    Kept::InPlace(map)
                }
                _ if self.plan.stored[at] => Kept::Stored(self.empty_map(at)),
                _ => Kept::Strips(Vec::new()),
            };
            kept.insert(at, keep);
        }
        for strip in self.strips.of(pass.height, pass.row) {
            let wanted: Vec<_> = pass
                .keeps
                .iter()
                .map(|&at| (at, plan::scaled(&strip, pass.height, self.extents[at].height)))
                .collect();
            let mut rows = self.compute(pass, &wanted, &moments, &kept)?;
            for (at, wanted) in wanted {
                let (_, rows) = cut(rows.remove(&at).context("a kept layer is computed")?, &wanted)?;
                match kept.get_mut(&at) {
                    Some(Kept::Stored(map) | Kept::InPlace(map)) => map.write(wanted.start, &rows)?,
                    Some(Kept::Strips(strips)) => strips.push(rows),
                    None => {}
                }
            }
        }
        self.held.retain(|value, _| self.plan.is_used_after(*value, pass));
        for (at, kept) in kept {
            let held = match kept {
                Kept::Stored(map) | Kept::InPlace(map) => Held::Stored(map),
                Kept::Strips(strips) => Held::Whole(Tensor::cat(&strips, 1)?),
            };
            self.held.insert(at, held);
        }
        Ok(())
    }

    fn empty_map(&self, at: usize) -> Map {
        let Extent { height, width, .. } = self.extents[at];
        let channels = self.network.graph().channels(Value(at));
        Map::new(height, width, channels, self.device, self.network.dtype())
    }

    /// The moments of every map that a norm of this pass reads.
    fn moments(&self, pass: &Pass) -> Result<BTreeMap<usize, ChannelMoments>> {
        let mut all = BTreeMap::new();
        for &value in &pass.normed {
            let moments = match self.held.get(&value) {
                Some(Held::Stored(map)) => map.moments.clone(),
                Some(Held::Whole(_)) => bail!("a map that a norm reads is stored"),
                None => {
                    let channels = self.network.graph().channels(Value(value));
                    let Extent { height, width, .. } = self.extents[value];
                    let mut moments = ChannelMoments::new(channels);
                    for strip in self.strips.of(height, width * channels) {
                        let wanted = [(value, strip.clone())];
                        let mut rows = self.compute(pass, &wanted, &all, &BTreeMap::new())?;
                        let (_, rows) = cut(rows.remove(&value).context("it is computed")?, &strip)?;
                        measure(&rows, &mut moments)?;
                    }
                    moments
                }
            };
            all.insert(value, moments);
        }
        Ok(all)
    }

    /// The rows `wanted` of some layers of a pass, and perhaps more above and below.
    fn compute(
        &self,
        pass: &Pass,
        wanted: &[(usize, Range<usize>)],
        moments: &BTreeMap<usize, ChannelMoments>,
        kept: &BTreeMap<usize, Kept>,
    ) -> Result<Rows> {
        let needed = pass.needed(self.network.graph(), self.extents, wanted);
        let mut computed = Rows::new();
        for &at in &pass.layers {
            let Some(rows) = needed.get(&at) else { continue };
            let rows = self.layer(at, rows, &computed, moments, kept)?;
            computed.insert(at, rows);
            computed.retain(|value, _| {
                let later = pass.layers.iter().filter(|&&layer| layer > at && needed.contains_key(&layer));
                let mut later = later.flat_map(|&layer| self.network.graph().operations()[layer].operands());
                wanted.iter().any(|(wanted, _)| wanted == value) || later.any(|operand| operand.0 == *value)
            });
        }
        Ok(computed)
    }

    /// Rows of a convolution, with the rows they are.
    fn layer(
        &self,
        at: usize,
        rows: &Range<usize>,
        computed: &Rows,
        moments: &BTreeMap<usize, ChannelMoments>,
        kept: &BTreeMap<usize, Kept>,
    ) -> Result<(Range<usize>, Tensor)> {
        let (conv, norm, layer) = self.network.conv(at)?;
        let from = conv.read.value;
        let Window { read, gives } = plan::window(conv, rows, self.extents[from.0].height);
        let input = self.rows(from, read, computed)?;
        let enlarge_to = match conv.enlarge {
            Some(Enlarge::Double) => Some((2 * input.dim(1)?, 2 * input.dim(2)?)),
            Some(Enlarge::LikeMap(_)) => bail!("strips are enlarged to twice their size"),
            None => None,
        };
        let input = match (norm, moments.get(&from.0)) {
            (Norm::Nothing, _) => Input::from(&input),
            (Norm::Group(norm, true), Some(moments)) => norm.silu_of_part(&input, moments),
            _ => bail!("convolutions in strips read maps as they are or through norm and SiLU"),
        };
        // Rows that have been computed in the same pass are there for the margins, too.
        let residual = conv.residual.and_then(|residual| computed.get(&residual.0));
        let residual = residual.filter(|(have, _)| have.start <= gives.start && have.end >= gives.end);
        let residual = residual.map(|(have, map)| map.narrow(1, gives.start - have.start, gives.len()));
        let residual = residual.transpose()?.map(|rows| rows.contiguous()).transpose()?;
        let later = if residual.is_some() { None } else { conv.residual };
        let relu = conv.relu && later.is_none();
        let fused = Fused { enlarge_to, residual: residual.as_ref(), relu, ..Fused::default() };
        let (_, mut output) = cut((gives, layer.forward_fused(input, fused)?), rows)?;
        if let Some(residual) = later {
            let residual = match kept.get(&at) {
                Some(Kept::InPlace(map)) => map.rows(rows.clone())?,
                _ => self.rows(residual, rows.clone(), computed)?,
            };
            output = (residual + output)?;
            if conv.relu {
                output = output.relu()?;
            }
        }
        Ok((rows.clone(), output))
    }

    fn rows(&self, value: Value, rows: Range<usize>, computed: &Rows) -> Result<Tensor> {
        match (computed.get(&value.0), self.held.get(&value.0)) {
            (Some((have, map)), _) => Ok(map.narrow(1, rows.start - have.start, rows.len())?.contiguous()?),
            (None, Some(held)) => held.rows(rows),
            (None, None) => bail!("a pass reads what is held or computed in it"),
        }
    }
}

/// Of rows that are `have`, the rows `rows`.
fn cut((have, map): (Range<usize>, Tensor), rows: &Range<usize>) -> Result<(Range<usize>, Tensor)> {
    Ok((rows.clone(), map.narrow(1, rows.start - have.start, rows.len())?.contiguous()?))
}
