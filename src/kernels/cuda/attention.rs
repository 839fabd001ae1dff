//! Attention over heads that lie side by side in the channels.

use std::f32::consts::LOG2_E;

use anyhow::{Result, ensure};
use candle_core::{CudaDevice, DType, Tensor};

use super::launch::{Arg, Grid, Module, address, capability, device, launch, unwritten};
use super::product::Gemm;

/// Bytes of scores that are in memory at once elsewhere: about what a large GPU's cache holds.
const SCORES: usize = 32 << 20;

/// `softmax(q k^T / sqrt(d)) v` for each head: `query` `[batch, rows, heads * d]`, `key` and `value`
/// `[batch, context rows, heads * d]`, each possibly a slice of wider rows.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    let device = device(query)?;
    let (batch, queries, channels) = query.dims3()?;
    let keys = key.dim(1)?;
    ensure!(
        key.dims() == [batch, keys, channels] && value.dims() == key.dims() && channels.is_multiple_of(heads),
        "attention of {:?} to {:?} and {:?}",
        query.shape(),
        key.shape(),
        value.shape()
    );
    let [query, key, value] = [query, key, value].map(rows);
    let (query, key, value) = (query?, key?, value?);
    let task = Task { batch, queries, keys, heads, size: channels / heads };
    // SAFETY: the computation writes all of the output; sizes were checked, and the strides are the tensors'.
    unsafe {
        let output = unwritten(&device, query.dtype(), (batch, queries, channels))?;
        match task.flash_module(&device, [&query, &key, &value])? {
            Some(module) => task.flash(&device, module, &query, &key, &value, &output)?,
            None => task.blocked(&device, &query, &key, &value, &output)?,
        }
        Ok(output)
    }
}

/// The tensor itself where its channels lie side by side, else a copy.
fn rows(tensor: &Tensor) -> Result<Tensor> {
    match tensor.stride() {
        [_, _, 1] => Ok(tensor.clone()),
        _ => Ok(tensor.contiguous()?),
    }
}

struct Task {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    size: usize,
}

impl Task {
    /// The kernel to take that keeps all scores in registers, if there is one: it reads 16 bytes at once.
    fn flash_module(&self, device: &CudaDevice, operands: [&Tensor; 3]) -> Result<Option<Module>> {
        let mut aligned = self.size.is_multiple_of(8) && operands[0].dtype() == DType::F16;
        for operand in operands {
            aligned &= address(operand)?.is_multiple_of(16);
            aligned &= operand.stride()[..2].iter().all(|stride| stride.is_multiple_of(8));
        }
        let most = Module::FLASH.into_iter().find(|most| self.size <= *most as usize);
        Ok(most
            .filter(|_| aligned && capability(device).is_ok_and(|capability| capability >= 80))
            .map(Module::Flash))
    }

    unsafe fn flash(
        &self,
        device: &CudaDevice,
        module: Module,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        output: &Tensor,
    ) -> Result<()> {
        let strides = [query, key, value].map(|operand| [operand.stride()[0], operand.stride()[1]]);
        let mut flat = [0; 6];
        for (to, stride) in flat.iter_mut().zip(strides.as_flattened()) {
            *to = *stride as u64;
        }
        let args = [
            Arg::At(address(query)?),
            Arg::At(address(key)?),
            Arg::At(address(value)?),
            Arg::At(address(output)?),
            self.queries.into(),
            self.keys.into(),
            self.size.into(),
            Arg::F32(LOG2_E / (self.size as f32).sqrt()),
            Arg::Strides(flat),
        ];
        let grid = Grid {
            blocks: (self.queries.div_ceil(64), self.heads, self.batch),
            threads: (128, 1),
            shared: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { launch(device, module, "flash", &grid, &args) }
    }

    /// Some queries of all heads at a time: scores by cuBLAS, softmax in place, values by cuBLAS.
    unsafe fn blocked(
        &self,
        device: &CudaDevice,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        output: &Tensor,
    ) -> Result<()> {
        let Self { batch, queries, keys, heads, size } = *self;
        let (dtype, bytes) = (query.dtype(), query.dtype().size_in_bytes());
        let pitch = keys.next_multiple_of(8);
        let at_once = (SCORES / (heads * pitch * bytes)).clamp(1, queries);
        // SAFETY: only scores that were computed are read.
        let scores = unsafe { unwritten(device, dtype, (heads, at_once, pitch)) }?;
        let softmax = if dtype == DType::F16 { "softmax_f16" } else { "softmax_f32" };
        let at = |tensor: &Tensor, item: usize, row: usize| -> Result<u64> {
            let offset = item * tensor.stride()[0] + row * tensor.stride()[1];
            Ok(address(tensor)? + (offset * bytes) as u64)
        };
        for item in 0..batch {
            for first in (0..queries).step_by(at_once) {
                let rows = at_once.min(queries - first);
                let compare = Gemm {
                    rows,
                    columns: keys,
                    depth: size,
                    transposed: true,
                    pitches: [query.stride()[1], key.stride()[1], pitch],
                    strides: [size, size, rows * pitch],
                    count: heads,
                    alpha: 1.0 / (size as f32).sqrt(),
                    beta: 0.0,
                };
                let collect = Gemm {
                    rows,
                    columns: size,
                    depth: keys,
                    transposed: false,
                    pitches: [pitch, value.stride()[1], heads * size],
                    strides: [rows * pitch, size, size],
                    count: heads,
                    alpha: 1.0,
                    beta: 0.0,
                };
                let all = address(&scores)?;
                let args = [Arg::At(all), (heads * rows).into(), keys.into(), pitch.into(), Arg::F32(1.0)];
                // SAFETY: the caller's promise; the scores are as large as a block of them.
                unsafe {
                    compare.run(device, dtype, at(query, item, first)?, at(key, item, 0)?, all)?;
                    launch(device, Module::Maps, softmax, &Grid::of_warps(heads * rows), &args)?;
                    collect.run(device, dtype, all, at(value, item, 0)?, at(output, item, first)?)?;
                }
            }
        }
        Ok(())
    }
}
