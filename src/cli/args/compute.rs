//! Flags that name the model and where it computes, shared by the commands that draw.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use super::bytes::parse_bytes;
use crate::cli::model_args::PartArgs;
use crate::pipeline::tiling::Tile;
use crate::request::Precision;

/// The model and where it computes.
#[derive(Debug, Args)]
pub struct ComputeArgs {
    /// A diffusers folder, an LDM, GGUF or pochade file, a pulled model's id or alias, or `pocket` (built in)
    ///
    /// Without it: $POCHADE_MODEL, else `sd15` if it has been pulled, else `pocket`. See `pochade models`.
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    pub model: Option<PathBuf>,

    #[command(flatten)]
    pub parts: PartArgs,

    /// Where to compute; auto is the GPU this build supports, else the CPU
    ///
    /// On the CPU, $POCHADE_KERNEL names the instruction set, one of those that `pochade doctor` lists; else the
    /// fastest computes.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = DeviceChoice::Auto, help_heading = "Model")]
    pub device: DeviceChoice,

    /// Numbers to compute in; auto is int8 on the CPU, f16 on a GPU [default: auto, or as in --from]
    ///
    /// On a CPU, f16 is 16-bit integers with scales in common, which are multiplied twice as fast as f32 on x86-64.
    #[arg(long, value_name = "NAME", value_enum, help_heading = "Model")]
    pub precision: Option<PrecisionChoice>,

    /// Decode large pictures in parts, slower and in less memory [default: auto, when memory is short]
    ///
    /// There are no seams, but a few pixels may differ by one level. A picture that says it was decoded so is
    /// repeated so by --from.
    #[arg(hide_short_help = true, long, value_name = "WHEN", value_enum, help_heading = "Model")]
    pub tile: Option<TileChoice>,

    /// CPU threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Model")]
    pub threads: Option<u16>,

    /// Take no more memory than this, e.g. 600MB or 1.5GB [default: what the machine has]
    ///
    /// If the model is too large for it, its weights stay in their file and are read layer by layer at each step: slower,
    /// and the same picture to the last byte. A native int8 file is the fastest to read.
    #[arg(hide_short_help = true, long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "ignore_memory", help_heading = "Model")]
    pub memory: Option<u64>,

    /// Draw even where the estimated memory exceeds what is available
    #[arg(hide_short_help = true, long, help_heading = "Model")]
    pub ignore_memory: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TileChoice {
    Auto,
    On,
    Off,
}

impl From<TileChoice> for Tile {
    fn from(choice: TileChoice) -> Self {
        match choice {
            TileChoice::Auto => Self::Auto,
            TileChoice::On => Self::On,
            TileChoice::Off => Self::Off,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
    Metal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionChoice {
    Auto,
    F32,
    F16,
    Int8,
}

impl PrecisionChoice {
    /// The precision asked for, if one is.
    pub fn asked(self) -> Option<Precision> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(Precision::F32),
            Self::F16 => Some(Precision::F16),
            Self::Int8 => Some(Precision::Int8),
        }
    }
}
