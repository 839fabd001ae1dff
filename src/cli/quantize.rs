//! `pochade quantize`: a model as a native file of eight or four bits, how near that comes to the floats, and what each layer costs.

use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;

use super::calibrator::Calibrator;
use super::exit::{Exit, Failure, OrExit};
use super::memory_guard::Guard;
use super::model_args::{Method, QuantizeArgs, REPORT_PIXELS};
use super::printer::{Printer, Verbosity};
use super::signals::Signals;
use super::watched::watched;
use super::{backend, destination, printer};
use crate::checkpoint::{Checkpoint, Form, Storage};
use crate::files;
use crate::picture_in::PictureBytes;
use crate::pipeline::footprint::Series;
use crate::pipeline::{Model, Numerics};
use crate::quantize::Policy;
use crate::request::{Defaults, Precision, Request};
use crate::sensitivity::{self, Fidelity, LayerReport, Recording, Report, Settings};

/// Prompts of a report that names none: a thing and a scene.
const PROMPTS: [&str; 2] = ["a red apple on a yellow background", "a photo of a fox in the snow"];

/// Writes the int8 file, then measures if a report is asked for: a long measurement that is cut off costs nothing
/// but itself.
///
/// # Errors
/// When a destination exists and may not be replaced, a pattern matches nothing, or the source is no usable model.
pub fn run(args: &QuantizeArgs) -> Result<Exit, Failure> {
    let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
    args.check()?;
    for path in std::iter::once(&args.destination).chain(&args.report) {
        destination::check_file(path, args.force)?;
    }
    let printer = Printer::new(Verbosity::Normal, true);
    backend::start_threads(args.threads, &printer)?;
    let mut checkpoint = Checkpoint::open(&args.source).or_exit(Exit::Model)?;
    args.parts.apply(&mut checkpoint)?;
    let mut checkpoint = args.merge.apply(&checkpoint, printer)?;
    if let Some(name) = &args.name {
        checkpoint.describe(name.clone(), checkpoint.defaults());
    }
    let policy = Policy::new(args.bits.clone()).and_keeping(&args.keep);
    policy.check(checkpoint.tensors().parameters()).or_exit(Exit::Usage)?;
    let settings = settings(args, &checkpoint.defaults());
    let measured = args.compare || args.report.is_some();
    if measured {
        sensitivity::check(&checkpoint).or_exit(Exit::Model)?;
        check_memory(&checkpoint, &settings, printer)?;
    }
    let source = checkpoint.clone();
    let balance = checkpoint.tensors().balance(&policy).or_exit(Exit::Model)?;
    if args.method == Method::Gptq {
        checkpoint = Calibrator::new(args, &source, printer)?.learn(&source, &policy, &balance)?;
    }
    let form = Form::Native(Storage::Balanced(&policy, &balance));
    let written = destination::write(&checkpoint, &args.destination, form, &signals)?;
    if written != Exit::Done {
        return Ok(written);
    }
    let size = args.destination.metadata().map_or(0, |file| file.len());
    printer.status(&format!("{}: {:.1} MB", args.destination.display(), size as f64 / 1e6));
    if measured {
        measure(&source, &policy, settings, args, printer)?;
    }
    Ok(Exit::Done)
}

/// What a report's file holds.
#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    report: Report,
    fidelity: Fidelity,
}

fn measure(
    checkpoint: &Checkpoint,
    policy: &Policy,
    settings: Settings,
    args: &QuantizeArgs,
    printer: Printer,
) -> Result<(), Failure> {
    let recording = watched("drawing in f32, picture", printer, |on_picture| {
        Recording::new(checkpoint, settings, on_picture)
    })?;
    let fidelity = watched("drawing in int8, picture", printer, |on_picture| {
        recording.compare(&Checkpoint::open(&args.destination)?, on_picture)
    })?;
    printer.status(&fidelity.to_string());
    let Some(path) = &args.report else { return Ok(()) };
    let report = watched("measuring layer", printer, |on_layer| {
        sensitivity::study(checkpoint, policy, &recording, on_layer)
    })?;
    let table = table(&report);
    let json = serde_json::to_string_pretty(&Measured { report, fidelity }).or_exit(Exit::PictureFailed)?;
    files::save((json + "\n").as_bytes(), path, true).or_exit(Exit::PictureFailed)?;
    printer::stdout_text(&table).or_exit(Exit::PictureFailed)
}

/// What the model is measured with.
fn settings(args: &QuantizeArgs, defaults: &Defaults) -> Settings {
    let prompts = if args.report_prompt.is_empty() {
        PROMPTS.map(str::to_owned).to_vec()
    } else {
        args.report_prompt.clone()
    };
    Settings {
        prompts,
        steps: usize::from(args.report_steps),
        width: args.report_size.unwrap_or(defaults.width.min(REPORT_PIXELS)),
        height: args.report_size.unwrap_or(defaults.height.min(REPORT_PIXELS)),
        seed: 0,
    }
}

/// Measuring takes what drawing several prompts in f32 does.
fn check_memory(checkpoint: &Checkpoint, settings: &Settings, printer: Printer) -> Result<(), Failure> {
    let Settings { width, height, .. } = *settings;
    let defaults = Defaults { width, height, ..checkpoint.defaults() };
    let model = Model::open(checkpoint.clone(), &Numerics::on_cpu(Precision::F32)).or_exit(Exit::Model)?;
    let guard =
        Guard { model: &model, pictures: PictureBytes::default(), ignore: false, streams: false, printer };
    let checked = guard.check(&Request::new("", 0, &defaults), Series::Prompts, None);
    checked
        .map(drop)
        .map_err(|failure| failure.hint("leave --report and --compare out, or pass a smaller --report-size"))
}

/// One line per layer, the worst first, and the sums of all.
fn table(report: &Report) -> String {
    let name = |layer: &LayerReport| layer.layer.chars().count();
    let width = report.layers.iter().map(name).max().unwrap_or(0);
    // Writing to a String can't fail.
    let mut text = String::new();
    let _ =
        writeln!(text, "{:width$}  {:>8}  {:>11}  {:>8}", "SQNR in dB", "weights", "activations", "output");
    for layer in &report.layers {
        let _ = writeln!(
            text,
            "{:width$}  {:>8}  {:>11}  {:>8}",
            layer.layer,
            decibel(layer.weight_sqnr),
            decibel(layer.activation_sqnr),
            decibel(layer.output_sqnr),
        );
    }
    let all = decibel(report.output_sqnr);
    text + &format!("{:width$}  {:>8}  {:>11}  {all:>8}", "all of them together", "", "")
}

fn decibel(sqnr: Option<f64>) -> String {
    sqnr.map_or_else(|| "exact".to_owned(), |sqnr| format!("{sqnr:.1}"))
}
