//! Which device computes, in which precision and on how many threads: what was asked for and what there is.

use std::error::Error as _;
use std::num::NonZero;
use std::thread::available_parallelism;

use anyhow::Context;
use candle_core::Device;

use super::args::DeviceChoice;
use super::exit::{Exit, Failure, OrExit};
use super::printer::Printer;
use crate::kernels::{self, Isa};
use crate::request::Precision;

/// The back ends compiled in.
pub const BUILT: &[&str] = &[
    "cpu",
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "metal")]
    "metal",
];

/// Finds the device; `auto` takes a GPU when this build supports one and the machine has it.
///
/// # Errors
/// Says how to build what is missing, or that there is no such device.
pub fn device(choice: DeviceChoice) -> Result<Device, Failure> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => {
            let gpu = if cfg!(feature = "cuda") {
                cuda().ok()
            } else if cfg!(feature = "metal") {
                metal().ok()
            } else {
                None
            };
            Ok(gpu.unwrap_or(Device::Cpu))
        }
        DeviceChoice::Cuda if cfg!(feature = "cuda") => cuda().map_err(|error| absent("cuda", &error)),
        DeviceChoice::Metal if cfg!(feature = "metal") => metal().map_err(|error| absent("metal", &error)),
        DeviceChoice::Cuda => Err(not_built("cuda")),
        DeviceChoice::Metal => Err(not_built("metal")),
    }
}

/// The GPU that `auto` takes and its memory, or why there is none; nothing where this build has no CUDA.
#[cfg(feature = "cuda")]
pub fn gpu() -> Option<String> {
    use crate::kernels::cuda::{describe, open};
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    Some(match open().and_then(|device| describe(&device)) {
        Ok((name, memory)) => {
            format!("{name}, {:.1} GiB, {:.1} GiB available", gib(memory.total), gib(memory.available))
        }
        Err(error) => format!("none: {error:#}"),
    })
}

#[cfg(not(feature = "cuda"))]
pub fn gpu() -> Option<String> {
    None
}

/// The precision to compute in; `None` lets the device decide.
///
/// # Errors
/// Says which precision the device has instead.
pub fn precision(asked: Option<Precision>, device: &Device) -> Result<Precision, Failure> {
    match (asked, device.is_cpu()) {
        (None | Some(Precision::Int8), true) => Ok(Precision::Int8),
        (Some(Precision::F32), true) => Ok(Precision::F32),
        (None | Some(Precision::F16), false) => Ok(Precision::F16),
        (Some(Precision::F32), false) => Ok(Precision::F32),
        (Some(Precision::F16), true) => match kernel()? {
            kernel if kernel.multiplies_words_fast() => Ok(Precision::F16),
            kernel => {
                let name = kernel.short_name();
                Err(Failure::usage(format!(
                    "precision f16 is no faster than f32 with kernel '{name}', so there is none"
                ))
                .hint("use `--precision int8` or `--precision f32`"))
            }
        },
        (Some(Precision::Int8), false) => {
            Err(Failure::usage("precision int8 is not available on a GPU").hint("use `--precision f16`"))
        }
    }
}

/// The instruction set that kernels use on the CPU.
///
/// # Errors
/// When the environment asks for one that this machine lacks.
pub fn kernel() -> Result<Isa, Failure> {
    Isa::chosen().context(kernels::VARIABLE).or_exit(Exit::Usage)
}

/// Processors of this machine that the process may use.
pub fn processors() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}

/// Starts the threads that compute: as many as asked for, but no more than there are processors to run them; one
/// for each without a wish.
///
/// # Errors
/// When the system starts no further threads.
pub fn start_threads(asked: Option<u16>, printer: &Printer) -> Result<(), Failure> {
    let processors = processors();
    let threads = asked.map_or(processors, usize::from).min(processors);
    if let Some(asked) = asked.filter(|&asked| usize::from(asked) > processors) {
        printer.note(&format!(
            "--threads {asked}: more than the {processors} processors of this machine only slow each other down, \
             so {processors} are used"
        ));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    // A second call finds the first one's threads, which is as good.
    match pool.build_global() {
        Err(error) if error.source().is_some() => Err(error)
            .with_context(|| format!("can't start {threads} threads"))
            .or_exit(Exit::PictureFailed)
            .map_err(|failure| failure.hint("the system limits how many this user or container may have")),
        _ => Ok(()),
    }
}

pub fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> anyhow::Result<Device> {
    crate::kernels::cuda::open()
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> anyhow::Result<Device> {
    anyhow::bail!("not built")
}

fn metal() -> anyhow::Result<Device> {
    Ok(Device::new_metal(0)?)
}

fn not_built(feature: &str) -> Failure {
    Failure::usage(format!("--device {feature}: this build has no {feature} support"))
        .hint(format!("build it with `cargo install --path . --features {feature}`"))
}

fn absent(name: &str, error: &anyhow::Error) -> Failure {
    Failure::usage(format!("--device {name}: no such device can be used: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_computes_in_int8_or_f32() {
        let precision = |asked| precision(asked, &Device::Cpu);
        assert_eq!(precision(None).unwrap(), Precision::Int8);
        assert_eq!(precision(Some(Precision::F32)).unwrap(), Precision::F32);
        match precision(Some(Precision::F16)) {
            Ok(found) => assert!(found == Precision::F16 && kernel().unwrap().multiplies_words_fast()),
            Err(failure) => {
                assert!(failure.error.to_string().contains("f16"));
                assert!(failure.hint.unwrap().contains("int8"));
            }
        }
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn what_is_not_built_says_how_to_build_it() {
        assert!(device(DeviceChoice::Auto).unwrap().is_cpu());
        for (choice, feature) in [(DeviceChoice::Cuda, "cuda"), (DeviceChoice::Metal, "metal")] {
            let failure = device(choice).unwrap_err();
            assert!(failure.hint.unwrap().contains(&format!("--features {feature}")));
        }
        assert_eq!(BUILT, ["cpu"]);
    }
}
