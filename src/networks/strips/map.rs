//! A feature map in half precision, written and read by rows; when one is used is said in the module above.

use std::ops::Range;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::kernels::ChannelMoments;
use crate::layers::measure;

/// Values are stored as this fraction: some autoencoders have some of more than f16's largest, 65504.
const SCALE: f32 = 1.0 / 16.0;

/// A feature map `[1, height, width, channels]` kept in half precision; its rows are of `dtype`, on `device`.
pub struct Map {
    height: usize,
    width: usize,
    channels: usize,
    values: Vec<f16>,
    device: Device,
    dtype: DType,
    /// Of the rows written.
    pub moments: ChannelMoments,
}

impl Map {
    /// A map of zeros.
    pub fn new(height: usize, width: usize, channels: usize, device: &Device, dtype: DType) -> Self {
        Self {
            height,
            width,
            channels,
            values: vec![f16::ZERO; height * width * channels],
            device: device.clone(),
            dtype,
            moments: ChannelMoments::new(channels),
        }
    }

    /// # Errors
    /// When `map` is not one map.
    pub fn store(map: &Tensor) -> Result<Self> {
        let (batch, height, width, channels) = map.dims4()?;
        ensure!(batch == 1, "strips are of one map, not of {batch}");
        let mut stored = Self::new(height, width, channels, map.device(), map.dtype());
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
