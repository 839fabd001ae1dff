//! NVIDIA GPUs: what the layers compute there, on candle's tensors; cuBLAS multiplies, our kernels do the rest.

mod attention;
mod launch;
mod libraries;
mod norm;
mod product;

use anyhow::{Context, Result};
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{CudaDevice, Device};

pub use attention::attention;
pub use norm::{Affine, group_norm, layer_norm, takes_groups};
pub use product::{Addends, conv2d, geglu, linear};

/// The first GPU, with CUDA's libraries loaded.
///
/// # Errors
/// Names the library that is missing, or says why there is no such GPU.
pub fn open() -> Result<Device> {
    libraries::load()?;
    let device = Device::new_cuda(0).context("no GPU can be used")?;
    let gpu = device.as_cuda_device()?;
    // SAFETY: events keep several streams apart; all work goes to one.
    unsafe { gpu.disable_event_tracking() };
    keep_memory(gpu)?;
    Ok(device)
}

/// A GPU's memory in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub total: u64,
    /// Of no program, or of this one and unused.
    pub available: u64,
}

/// The name of a GPU and its memory.
///
/// # Errors
/// When the driver doesn't tell.
pub fn describe(device: &Device) -> Result<(String, Memory)> {
    let gpu = device.as_cuda_device()?;
    let stream = gpu.cuda_stream();
    let context = stream.context();
    let (free, total) = context.mem_get_info()?;
    let reserved = pool_attribute(gpu, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = pool_attribute(gpu, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    let available = free as u64 + reserved.saturating_sub(used);
    Ok((context.name()?, Memory { total: total as u64, available }))
}

/// Has the driver keep what is freed for what is allocated next; by default each synchronization returns it.
fn keep_memory(gpu: &CudaDevice) -> Result<()> {
    let mut everything = u64::MAX;
    // SAFETY: the device is open, and the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(gpu.cuda_stream().context().cu_device())?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut everything).cast())?;
    }
    Ok(())
}

fn pool_attribute(gpu: &CudaDevice, attribute: sys::CUmemPool_attribute) -> Result<u64> {
    let mut value = 0u64;
    // SAFETY: the device is open, and these attributes are 64-bit numbers.
    unsafe {
        let pool = result::device::get_default_mem_pool(gpu.cuda_stream().context().cu_device())?;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast())?;
    }
    Ok(value)
}
