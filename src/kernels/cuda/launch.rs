//! Launching our own kernels: their code, compiled for the device at hand, and the addresses of tensors.

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Shape, Storage, Tensor};
use half::f16;

/// Blocks and threads of a launch, and bytes of shared memory for each block.
pub struct Grid {
    pub blocks: (usize, usize, usize),
    pub threads: (usize, usize),
    pub shared: usize,
}

impl Grid {
    /// One thread for each of `total` pieces.
    pub fn over(total: usize) -> Self {
        Self { blocks: (total.div_ceil(256), 1, 1), threads: (256, 1), shared: 0 }
    }

    /// One warp for each of `rows` rows.
    pub fn of_warps(rows: usize) -> Self {
        Self { blocks: (rows.div_ceil(4), 1, 1), threads: (32, 4), shared: 0 }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub enum Arg {
    /// An address, or 0.
    At(u64),
    U32(u32),
    F32(f32),
    Window([u32; 10]),
    Strides([u64; 6]),
}

impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::U32(value as u32)
    }
}

/// Kernels that are compiled together, by the first who calls one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    Maps,
    /// Attention for heads of up to so many values.
    Flash(u32),
}

impl Module {
    /// Sizes of heads that attention is compiled for.
    pub const FLASH: [u32; 4] = [40, 64, 80, 160];

    fn name(self) -> String {
        match self {
            Self::Maps => "pochade_maps".to_owned(),
            Self::Flash(most) => format!("pochade_flash_{most}"),
        }
    }

    /// The module's code for a device of this compute capability, e.g. 90.
    fn code(self, capability: i32) -> Result<&'static str> {
        static MAPS: OnceLock<Result<String, String>> = OnceLock::new();
        static FLASH: [OnceLock<Result<String, String>>; 4] = [const { OnceLock::new() }; 4];
        let (code, source, most) = match self {
            Self::Maps => (&MAPS, concat!(include_str!("values.cu"), include_str!("maps.cu")), 0),
            Self::Flash(most) => {
                let index = Self::FLASH.iter().position(|size| *size == most);
                let index =
                    index.with_context(|| format!("attention is not compiled for heads of {most}"))?;
                (&FLASH[index], concat!(include_str!("values.cu"), include_str!("flash.cu")), most)
            }
        };
        let code = code.get_or_init(|| {
            let options = vec![
                format!("--gpu-architecture=compute_{capability}"),
                "--std=c++17".to_owned(),
                format!("-DMOST={most}"),
            ];
            let options = CompileOptions { options, ..CompileOptions::default() };
            let code = compile_ptx_with_opts(source, options).map_err(|error| format!("{error:?}"))?;
            Ok(code.to_src())
        });
        code.as_deref().map_err(|error| anyhow!("the GPU's kernels can't be compiled: {error}"))
    }
}

/// E.g. 90 for compute capability 9.0.
pub fn capability(device: &CudaDevice) -> Result<i32> {
    let (major, minor) = device.cuda_stream().context().compute_capability()?;
    Ok(10 * major + minor)
}

/// Runs the kernel called `name` on the device's one stream.
///
/// # Safety
/// The arguments are those the kernel declares; the memory it reads and writes lies within tensors that live.
pub unsafe fn launch(
    device: &CudaDevice,
    module: Module,
    name: &str,
    grid: &Grid,
    args: &[Arg],
) -> Result<()> {
    let limit = |blocks: usize| u16::try_from(blocks).is_ok();
    ensure!(
        limit(grid.blocks.1) && limit(grid.blocks.2) && u32::try_from(grid.blocks.0).is_ok(),
        "{name}: {:?} blocks are too many",
        grid.blocks
    );
    let function = device.get_or_load_custom_func(name, &module.name(), module.code(capability(device)?)?)?;
    let mut builder = function.builder();
    for arg in args {
        match arg {
            Arg::At(value) => builder.arg(value),
            Arg::U32(value) => builder.arg(value),
            Arg::F32(value) => builder.arg(value),
            Arg::Window(value) => builder.arg(value),
            Arg::Strides(value) => builder.arg(value),
        };
    }
    let (x, y, z) = grid.blocks;
    let config = LaunchConfig {
        grid_dim: (x as u32, y as u32, z as u32),
        block_dim: (grid.threads.0 as u32, grid.threads.1 as u32, 1),
        shared_mem_bytes: grid.shared as u32,
    };
    // SAFETY: the caller's promise.
    unsafe { builder.launch(config) }?;
    Ok(())
}

/// The device a tensor is on.
pub fn device(tensor: &Tensor) -> Result<CudaDevice> {
    Ok(tensor.device().as_cuda_device()?.clone())
}

/// Where a tensor's first value lies on the device. The memory outlives all work that is queued while the tensor
/// lives: there is one stream, and freeing queues up behind.
pub fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("a tensor on {:?}", tensor.device()) };
    let stream = storage.device.cuda_stream();
    let start = match tensor.dtype() {
        DType::F16 => storage.as_cuda_slice::<f16>()?.device_ptr(&stream).0,
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        other => bail!("the GPU's kernels take f16 and f32, not {other:?}"),
    };
    Ok(start + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

/// The same, 0 for an absent one.
pub fn optional(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), address)
}

/// A tensor for a kernel to write.
///
/// # Safety
/// Every value is written before it is read.
pub unsafe fn unwritten(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    // SAFETY: the caller's promise.
    let storage = unsafe { device.alloc_uninit(&shape, dtype) }?;
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

/// How many values a kernel takes at once of rows of `channels`, and the end of its name.
pub fn pack(dtype: DType, channels: usize) -> Result<(usize, &'static str)> {
    Ok(match dtype {
        DType::F16 if channels.is_multiple_of(8) => (8, "f16_8"),
        DType::F16 => (1, "f16_1"),
        DType::F32 if channels.is_multiple_of(4) => (4, "f32_4"),
        DType::F32 => (1, "f32_1"),
        other => bail!("the GPU's kernels take f16 and f32, not {other:?}"),
    })
}
