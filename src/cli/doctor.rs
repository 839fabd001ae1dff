//! `pochade doctor`: what this machine and this build offer; nothing is changed and no model is loaded.

use std::path::Path;

use serde::Serialize;

use super::args::DoctorArgs;
use super::exit::{Exit, Failure, OrExit};
use super::model::Choice;
use super::report::shown;
use super::table::table;
use super::{backend, models, printer};
use crate::hub::environment;
use crate::kernels::{self, Isa};
use crate::machine::{self, Memory};
use crate::request;

/// The findings, as `--json` prints them.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    /// Of the processor, as far as they matter here.
    cpu_features: Vec<&'static str>,
    architecture: &'static str,
    /// Of each kind: a phone has fast and slow ones.
    cores: Vec<Cores>,
    /// What computes on the CPU.
    kernel: Option<&'static str>,
    /// What computes or could, slowest first.
    kernels: Vec<&'static str>,
    /// What the environment asks for.
    kernel_asked: Option<String>,
    /// Why there is none.
    kernel_error: Option<String>,
    threads: usize,
    memory_total_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    devices: &'static [&'static str],
    /// Its name and memory, or why it can't be used; null where no GPU is built for.
    gpu: Option<String>,
    precision: request::Precision,
    cache_folder: Option<String>,
    /// The folder of the int8 files made from pulled models.
    native_folder: Option<String>,
    pulled_models: usize,
    pulled_bytes: u64,
    /// What forbids connections, if something does.
    offline: Option<&'static str>,
    default_model: String,
    default_model_rule: String,
    default_model_found: bool,
}

/// Cores of one kind.
#[derive(Debug, Serialize, PartialEq)]
struct Cores {
    /// As the system tells it, or "unknown".
    name: String,
    count: usize,
}

impl Cores {
    /// Those of this machine.
    fn all() -> Vec<Self> {
        Self::of(machine::cores().iter().map(String::as_str))
    }

    /// Those of these names, in the order in which they first appear.
    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Self> {
        let mut kinds: Vec<Self> = Vec::new();
        for name in names.map(str::trim) {
            let name = if name.is_empty() { "unknown" } else { name };
            match kinds.iter_mut().find(|kind| kind.name == name) {
                Some(kind) => kind.count += 1,
                None => kinds.push(Self { name: name.to_owned(), count: 1 }),
            }
        }
        kinds
    }
}

/// Prints the findings.
///
/// # Errors
/// When stdout can't be written.
pub fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    let findings = Findings::new()?;
    let text = if args.json {
        serde_json::to_string(&findings).or_exit(Exit::PictureFailed)?
    } else {
        table(&findings.rows())
    };
    printer::stdout_text(&text).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}

impl Findings {
    fn new() -> Result<Self, Failure> {
        let memory = machine::memory();
        let choice = Choice::new(None, None);
        let chosen = Isa::chosen();
        let pulled = models::pulled().unwrap_or_default();
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            cpu_features: cpu_features(),
            architecture: std::env::consts::ARCH,
            cores: Cores::all(),
            kernel: chosen.as_ref().ok().map(|isa| isa.name()),
            kernels: Isa::available().iter().map(|isa| isa.name()).collect(),
            kernel_asked: Isa::asked(),
            kernel_error: chosen.err().map(|error| error.to_string()),
            threads: backend::processors(),
            memory_total_bytes: memory.map(|Memory { total, .. }| total),
            memory_available_bytes: memory.map(|Memory { available, .. }| available),
            devices: backend::BUILT,
            gpu: backend::gpu(),
            precision: backend::precision(None, &candle_core::Device::Cpu)?,
            cache_folder: environment::cache_folder().as_deref().map(shown),
            native_folder: environment::native_folder().as_deref().map(shown),
            pulled_models: pulled.len(),
            pulled_bytes: pulled.iter().map(models::size).sum(),
            offline: environment::offline(),
            default_model: choice.source.to_string(),
            default_model_rule: choice.rule.to_string(),
            default_model_found: choice.is_there(),
        })
    }

    fn chosen_kernel(&self) -> String {
        let asked = self.kernel_asked.as_ref().map(|name| format!("{}={name}", kernels::VARIABLE));
        match (self.kernel, asked) {
            (Some(name), None) => format!("{name}, the fastest"),
            (Some(name), Some(asked)) => format!("{name}, held by {asked}"),
            (None, asked) => {
                let error = self.kernel_error.as_deref().unwrap_or_default();
                format!("none, {}: {error}", asked.unwrap_or_default())
            }
        }
    }

    fn all_kernels(&self) -> String {
        let mark = |name: &&'static str| {
            if Some(*name) == self.kernel { format!("[{name}]") } else { (*name).to_owned() }
        };
        self.kernels.iter().map(mark).collect::<Vec<_>>().join(" ")
    }

    fn all_cores(&self) -> String {
        let kinds = self.cores.iter().map(|Cores { name, count }| format!("{count} x {name}"));
        let kinds: Vec<_> = kinds.collect();
        if kinds.is_empty() { "unknown".to_owned() } else { kinds.join(", ") }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
        let memory = match (self.memory_total_bytes, self.memory_available_bytes) {
            (Some(total), Some(available)) => format!("{}, {} available", gib(total), gib(available)),
            _ => "unknown".to_owned(),
        };
        let folder = |path: &Option<String>| match path {
            None => "unknown: set HOME".to_owned(),
            Some(path) if Path::new(path).is_dir() => path.clone(),
            Some(path) => format!("{path}, not there yet"),
        };
        let features = if self.cpu_features.is_empty() {
            "none that matter here".to_owned()
        } else {
            self.cpu_features.join(" ")
        };
        let found = if self.default_model_found { "" } else { ", not found" };
        let mut rows = vec![
            ("pochade", self.version.to_owned()),
            ("cpu", format!("{}: {features}", self.architecture)),
            ("cores", self.all_cores()),
            ("kernel", self.chosen_kernel()),
            ("kernels", self.all_kernels()),
            ("threads", self.threads.to_string()),
            ("memory", memory),
            ("devices built", self.devices.join(" ")),
            ("precision", format!("{} on the cpu", self.precision)),
            ("cache folder", folder(&self.cache_folder)),
            ("int8 folder", folder(&self.native_folder)),
            ("pulled models", format!("{}, {}", self.pulled_models, models::bytes(self.pulled_bytes))),
            ("connections", self.offline.map_or("allowed".to_owned(), |what| format!("forbidden by {what}"))),
            ("default model", format!("{}, {}{found}", self.default_model, self.default_model_rule)),
        ];
        if let Some(gpu) = &self.gpu {
            let after = rows.iter().position(|(name, _)| *name == "precision").unwrap_or(rows.len());
            rows.insert(after, ("gpu", gpu.clone()));
        }
        rows
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    [
        ("sse4.1", is_x86_feature_detected!("sse4.1")),
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected;
    [
        ("neon", is_aarch64_feature_detected!("neon")),
        ("fp16", is_aarch64_feature_detected!("fp16")),
        ("dotprod", is_aarch64_feature_detected!("dotprod")),
        ("i8mm", is_aarch64_feature_detected!("i8mm")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_counted_by_kind() {
        let names = ["Cortex-X3", "Cortex-A510", "", "Cortex-A510 ", "Cortex-X3"];
        let kinds = [("Cortex-X3", 2), ("Cortex-A510", 2), ("unknown", 1)];
        let kinds = kinds.map(|(name, count)| Cores { name: name.to_owned(), count });
        assert_eq!(Cores::of(names.into_iter()), kinds);
    }

    #[test]
    fn this_machine_has_cores() {
        let cores: usize = Cores::all().iter().map(|kind| kind.count).sum();
        assert!(cores > 0);
    }
}
