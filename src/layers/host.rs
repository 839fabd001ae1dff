//! The bridge between candle tensors and kernels: f32 slices out of CPU tensors.

use anyhow::{Context, Result, bail};
use candle_core::{CpuStorage, Storage, Tensor};

/// Lends the values of a dense f32 tensor on the CPU.
pub fn with_values<R>(tensor: &Tensor, use_values: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) =
        layout.contiguous_offsets().with_context(|| format!("tensor {:?} is not dense", tensor.shape()))?;
    use_values(&cpu_f32(&storage)?[start..end])
}

/// Rows of floats inside `[batch, rows, channels]`: row `r` of item `b` begins at `(b * rows + r) * stride`.
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// Lends the rows of a tensor that may be a slice of wider rows.
pub fn with_rows<R>(tensor: &Tensor, use_rows: impl FnOnce(Rows<'_>) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (batch, rows, _) = tensor.dims3()?;
    match *layout.stride() {
        [item, stride, 1] if batch == 1 || item == rows * stride => {
            use_rows(Rows { data: &cpu_f32(&storage)?[layout.start_offset()..], stride })
        }
        _ => bail!("tensor {:?} has no evenly spaced rows", tensor.shape()),
    }
}

fn cpu_f32(storage: &Storage) -> Result<&[f32]> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values),
        _ => bail!("kernels take f32 tensors on the cpu"),
    }
}

/// Lends the values of an optional tensor.
pub fn with_optional<R>(
    tensor: Option<&Tensor>,
    use_values: impl FnOnce(Option<&[f32]>) -> Result<R>,
) -> Result<R> {
    match tensor {
        Some(tensor) => with_values(tensor, |values| use_values(Some(values))),
        None => use_values(None),
    }
}
