//! CUDA's libraries, loaded when a GPU is asked for: a program that links them would not start on machines without.
//!
//! candle links them by name. The functions here have those names, so the linker looks no further; each is a jump to
//! wherever [`load`] found the real one. `pochade` built with lld, Rust's linker on x86-64 Linux, needs none of them
//! to start.

use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use anyhow::{Result, anyhow};
use libloading::Library;

/// A library: the names of it that will do, newest first, whose it is, and where to put the addresses of its functions.
struct Source {
    names: &'static [&'static str],
    owner: &'static str,
    functions: &'static [(&'static str, &'static AtomicPtr<c_void>)],
}

/// Defines a jump for each function; until its library is loaded it leads to `$before`.
macro_rules! jumps {
    ($(($list:ident, $before:ident, $($function:ident)*))*) => {
        $($(
            #[allow(non_snake_case, reason = "named like the function")]
            mod $function {
                use super::*;

                pub static TARGET: AtomicPtr<c_void> = AtomicPtr::new($before as *mut c_void);

                // SAFETY: takes the name of a function that nothing else defines, and leaves registers and stack as
                // the caller of that function, to whose contract it is bound, has set them.
                #[unsafe(no_mangle)]
                #[unsafe(naked)]
                unsafe extern "C" fn $function() {
                    #[cfg(target_arch = "x86_64")]
                    std::arch::naked_asm!("jmp qword ptr [rip + {target}]", target = sym TARGET);
                    #[cfg(target_arch = "aarch64")]
                    std::arch::naked_asm!(
                        "adrp x16, {target}",
                        "ldr x16, [x16, :lo12:{target}]",
                        "br x16",
                        target = sym TARGET
                    );
                }
            }
        )*
        static $list: &[(&str, &AtomicPtr<c_void>)] =
            &[$((stringify!($function), &$function::TARGET)),*];)*
    };
}

/// Stands for functions that nobody may call before [`load`]; a panic can't leave it, so it ends the program.
extern "C" fn not_loaded() {
    panic!("a CUDA function was called before CUDA's libraries were loaded");
}

/// Stands for functions that nothing calls.
extern "C" fn not_linked() {
    panic!("candle's products of quantized weights are not part of this program");
}

jumps! {
    (DRIVER, not_loaded,
        cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent cuDeviceGet cuDeviceGetAttribute
        cuDeviceGetDefaultMemPool cuDeviceGetName cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain
        cuEventCreate cuEventDestroy_v2 cuEventRecord cuGetErrorName cuGetErrorString cuInit cuLaunchKernel
        cuMemAllocAsync cuMemAlloc_v2 cuMemFreeAsync cuMemFree_v2 cuMemGetInfo_v2 cuMemPoolGetAttribute
        cuMemPoolSetAttribute cuMemcpyDtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2
        cuMemcpyPeerAsync cuMemsetD8Async cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleUnload
        cuStreamDestroy_v2 cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent
    )
    (CUBLAS, not_loaded,
        cublasCreate_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasGemmStridedBatchedEx
        cublasSetStream_v2
    )
    (CURAND, not_loaded,
        curandCreateGenerator curandDestroyGenerator curandGenerateNormal curandGenerateNormalDouble
        curandGenerateUniform curandGenerateUniformDouble curandSetPseudoRandomGeneratorSeed curandSetStream
    )
    (NVRTC, not_loaded,
        nvrtcCompileProgram nvrtcCreateProgram nvrtcDestroyProgram nvrtcGetPTX nvrtcGetPTXSize
        nvrtcGetProgramLog nvrtcGetProgramLogSize
    )
    // candle's own products of quantized weights, which are dequantized here before they are loaded. To link them would
    // bring the CUDA runtime, which wants to be there from the start, and 50 MB of code.
    (_QUANTIZED, not_linked,
        launch_mmq_gguf_q2_k launch_mmq_gguf_q3_k launch_mmq_gguf_q4_0 launch_mmq_gguf_q4_1
        launch_mmq_gguf_q4_k launch_mmq_gguf_q5_0 launch_mmq_gguf_q5_1 launch_mmq_gguf_q5_k
        launch_mmq_gguf_q6_k launch_mmq_gguf_q8_0 launch_mmq_quantize_q8_1_D2S6
        launch_mmq_quantize_q8_1_D4 launch_mmq_quantize_q8_1_DS4 launch_mmvq_gguf_q2_k_bf16_plain
        launch_mmvq_gguf_q2_k_f16_plain launch_mmvq_gguf_q2_k_f32_plain launch_mmvq_gguf_q3_k_bf16_plain
        launch_mmvq_gguf_q3_k_f16_plain launch_mmvq_gguf_q3_k_f32_plain launch_mmvq_gguf_q4_0_bf16_plain
        launch_mmvq_gguf_q4_0_f16_plain launch_mmvq_gguf_q4_0_f32_plain launch_mmvq_gguf_q4_1_bf16_plain
        launch_mmvq_gguf_q4_1_f16_plain launch_mmvq_gguf_q4_1_f32_plain launch_mmvq_gguf_q4_k_bf16_plain
        launch_mmvq_gguf_q4_k_f16_plain launch_mmvq_gguf_q4_k_f32_plain launch_mmvq_gguf_q5_0_bf16_plain
        launch_mmvq_gguf_q5_0_f16_plain launch_mmvq_gguf_q5_0_f32_plain launch_mmvq_gguf_q5_1_bf16_plain
        launch_mmvq_gguf_q5_1_f16_plain launch_mmvq_gguf_q5_1_f32_plain launch_mmvq_gguf_q5_k_bf16_plain
        launch_mmvq_gguf_q5_k_f16_plain launch_mmvq_gguf_q5_k_f32_plain launch_mmvq_gguf_q6_k_bf16_plain
        launch_mmvq_gguf_q6_k_f16_plain launch_mmvq_gguf_q6_k_f32_plain launch_mmvq_gguf_q8_0_bf16_plain
        launch_mmvq_gguf_q8_0_f16_plain launch_mmvq_gguf_q8_0_f32_plain
        launch_mmvq_gguf_quantize_q8_1_bf16 launch_mmvq_gguf_quantize_q8_1_f16
        launch_mmvq_gguf_quantize_q8_1_f32 moe_gemm_gguf moe_gemm_gguf_prefill moe_gemm_wmma
    )
}

#[cfg(not(windows))]
const NAMES: [&[&str]; 4] = [
    &["libcuda.so.1"],
    &["libcublas.so.13", "libcublas.so.12", "libcublas.so"],
    &["libcurand.so.10", "libcurand.so"],
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
];

#[cfg(windows)]
const NAMES: [&[&str]; 4] = [
    &["nvcuda.dll"],
    &["cublas64_13.dll", "cublas64_12.dll"],
    &["curand64_10.dll"],
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"],
];

const TOOLKIT: &str = "the CUDA toolkit";

static SOURCES: &[Source] = &[
    Source { names: NAMES[0], owner: "NVIDIA's driver", functions: DRIVER },
    Source { names: NAMES[1], owner: TOOLKIT, functions: CUBLAS },
    Source { names: NAMES[2], owner: TOOLKIT, functions: CURAND },
    Source { names: NAMES[3], owner: TOOLKIT, functions: NVRTC },
];

/// Loads the driver and CUDA's libraries, once.
///
/// # Errors
/// Names the library or function that is missing.
pub fn load() -> Result<()> {
    // Their functions stay in use until the end.
    static LOADED: OnceLock<Result<Vec<Library>, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| SOURCES.iter().map(Source::load).collect());
    loaded.as_ref().map(|_| ()).map_err(|missing| anyhow!(missing.clone()))
}

impl Source {
    fn load(&self) -> Result<Library, String> {
        let library = self.open()?;
        for (name, target) in self.functions {
            // SAFETY: the address is only ever jumped to, with the arguments of the function of this name.
            let address = unsafe { library.get::<*mut c_void>(name.as_bytes()) };
            let address =
                address.map_err(|_| format!("{} has no function {name}: it is too old", self.owner))?;
            target.store(*address, Ordering::Release);
        }
        Ok(library)
    }

    fn open(&self) -> Result<Library, String> {
        // SAFETY: NVIDIA's libraries have initialisers that ask nothing of who loads them.
        let found = self.names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let Self { names, owner, .. } = self;
        found.ok_or_else(|| {
            format!(
                "{} was not found: {owner} is not installed, or not where libraries are looked for",
                names[0]
            )
        })
    }
}
