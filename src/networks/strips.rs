//! Running an autoencoder's large maps strip by strip in bounded memory; the networks themselves say which layers follow each other.
//!
//! What distinguishes it from decoding tiles that overlap and are blended: group norms take their statistics from
//! the whole map, and each convolution sees its true neighbours. There are no seams; the result differs from that
//! of whole maps by the rounding of what is stored between two layers to half precision.

use std::ops::Range;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::kernels::ChannelMoments;
use crate::layers::{Conv2d, Fused, measure};

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

/// Values are stored as this fraction: some autoencoders have some of more than f16's largest, 65504.
const SCALE: f32 = 1.0 / 16.0;

/// A feature map `[1, height, width, channels]` kept in half precision, and what it was stored from in `dtype`.
pub struct Map {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    values: Vec<f16>,
    device: Device,
    dtype: DType,
    /// Of the rows written.
    pub moments: ChannelMoments,
}

impl Map {
    /// A map of zeros whose rows come and go like those of `like`.
    pub fn new(height: usize, width: usize, channels: usize, like: &Tensor) -> Self {
        Self {
            height,
            width,
            channels,
            values: vec![f16::ZERO; height * width * channels],
            device: like.device().clone(),
            dtype: like.dtype(),
            moments: ChannelMoments::new(channels),
        }
    }

    /// # Errors
    /// When `map` is not one map.
    pub fn store(map: &Tensor) -> Result<Self> {
        let (batch, height, width, channels) = map.dims4()?;
        ensure!(batch == 1, "strips are of one map, not of {batch}");
        let mut stored = Self::new(height, width, channels, map);
        stored.write(0, map)?;
        Ok(stored)
    }

    /// `[1, rows, width, channels]`.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let row = self.width * self.channels;
        let stored = &self.values[rows.start * row..rows.end * row];
        let mut values = vec![0.0; stored.len()];
        values.par_chunks_mut(PART).zip(stored.par_chunks(PART)).for_each(|(to, from)| {
            from.convert_to_f32_slice(to);
            to.iter_mut().for_each(|value| *value /= SCALE);
        });
        let shape = (1, rows.len(), self.width, self.channels);
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(&self.device)?.to_dtype(self.dtype)?)
    }

    pub fn whole(&self) -> Result<Tensor> {
        self.rows(0..self.height)
    }

    /// Before a map is written once more.
    pub fn forget_moments(&mut self) {
        self.moments = ChannelMoments::new(self.channels);
    }

    /// Replaces the rows from `first` on; they count for the moments.
    pub fn write(&mut self, first: usize, rows: &Tensor) -> Result<()> {
        let rows = rows.contiguous()?;
        measure(&rows, &mut self.moments)?;
        let at = first * self.width * self.channels;
        let host = (rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)? * f64::from(SCALE))?;
        let host = host.flatten_all()?.to_vec1::<f32>()?;
        let stored = &mut self.values[at..at + host.len()];
        let parts = stored.par_chunks_mut(PART).zip(host.par_chunks(PART));
        parts.for_each(|(to, from)| to.convert_from_f32_slice(from));
        Ok(())
    }
}

/// Values one thread converts at once.
const PART: usize = 1 << 14;

/// Rows of a map that is stored, or computed from a stored one whenever they are read.
pub enum Source<'a> {
    Stored(Map),
    /// Enlarged to twice the size by nearest neighbours, then convolved.
    Enlarged(&'a Conv2d, Map),
    /// Convolved with stride 2 and a row of zeros below.
    Halved(&'a Conv2d, Map),
}

impl Source<'_> {
    pub fn height(&self) -> usize {
        match self {
            Self::Stored(map) => map.height,
            Self::Enlarged(_, map) => 2 * map.height,
            Self::Halved(_, map) => map.height / 2,
        }
    }

    pub fn width(&self) -> usize {
        match self {
            Self::Stored(map) => map.width,
            Self::Enlarged(_, map) => 2 * map.width,
            Self::Halved(_, map) => map.width / 2,
        }
    }

    /// `[1, rows, width, channels]`.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        match self {
            Self::Stored(map) => map.rows(rows),
            Self::Enlarged(conv, map) => enlarged_rows(conv, rows, map.height, |from| map.rows(from)),
            Self::Halved(conv, map) => {
                conv.forward(&map.rows(2 * rows.start..(2 * rows.end + 1).min(map.height))?)
            }
        }
    }

    /// The moments of all rows.
    pub fn moments(&self, channels: usize, strips: Strips) -> Result<ChannelMoments> {
        if let Self::Stored(map) = self {
            return Ok(map.moments.clone());
        }
        let mut moments = ChannelMoments::new(channels);
        for strip in strips.of(self.height(), self.width() * channels) {
            measure(&self.rows(strip)?.contiguous()?, &mut moments)?;
        }
        Ok(moments)
    }
}

/// Rows of a 3x3 convolution of a map enlarged to twice its size, from those `read` gives of its `height` rows.
pub fn enlarged_rows(
    conv: &Conv2d,
    rows: Range<usize>,
    height: usize,
    read: impl Fn(Range<usize>) -> Result<Tensor>,
) -> Result<Tensor> {
    let from = (rows.start / 2).saturating_sub(1)..(rows.end.div_ceil(2) + 1).min(height);
    let input = read(from.clone())?.contiguous()?;
    let enlarge_to = Some((2 * from.len(), 2 * input.dim(2)?));
    let output = conv.forward_fused(&input, Fused { enlarge_to, ..Fused::default() })?;
    Ok(output.narrow(1, rows.start - 2 * from.start, rows.len())?)
}

/// `rows` and `margin` more above and below, where the map of `height` rows has them.
pub fn widened(rows: &Range<usize>, margin: usize, height: usize) -> Range<usize> {
    rows.start.saturating_sub(margin)..(rows.end + margin).min(height)
}

/// Of `output`, whose rows are `wide`, the rows `rows`.
pub fn without_margin(output: &Tensor, wide: &Range<usize>, rows: &Range<usize>) -> Result<Tensor> {
    Ok(output.narrow(1, rows.start - wide.start, rows.len())?.contiguous()?)
}
