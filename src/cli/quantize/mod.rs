//! `pochade quantize`: a model as a native file of eight or four bits, how near that comes to the floats, and what each layer costs.

mod calibrator;
mod chosen;
mod report;

use anyhow::Result;

use calibrator::Calibrator;
use chosen::Choice;
use report::{Layers, Measured, Written};

use super::exit::{Exit, Failure, OrExit};
use super::memory_guard::Guard;
use super::model_args::{QuantizeArgs, REPORT_PIXELS};
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
use crate::sensitivity::{self, Recording, Settings};

/// Prompts of a report that names none: a thing and a scene.
const PROMPTS: [&str; 2] = ["a red apple on a yellow background", "a photo of a fox in the snow"];

/// Writes the file, then measures if a report is asked for: a long measurement that is cut off costs nothing but
/// itself. What the choice of bits needs is measured before.
///
/// # Errors
/// When a destination exists and may not be replaced, a pattern matches nothing, no bits reach the goal, or the source
/// is no usable model.
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
    let args = &keeping_outliers(args, &checkpoint, printer)?;
    let policy = Policy::new(args.bits.clone()).and_keeping(&args.keep);
    policy.check(checkpoint.tensors().parameters()).or_exit(Exit::Usage)?;
    let settings = settings(args, &checkpoint.defaults());
    if args.measures() {
        sensitivity::check(&checkpoint).or_exit(Exit::Model)?;
        check_memory(&checkpoint, &settings, args.ignore_memory, printer)?;
    }
    let record = |settings| {
        watched("drawing in f32, picture", printer, |on_picture| {
            Recording::new(&checkpoint, settings, on_picture)
        })
    };
    let (recording, choice) = if args.has_goal() {
        let recording = record(settings.clone())?;
        let choice = chosen::choose(args, &checkpoint, &recording, &signals, printer)?;
        (Some(recording), choice)
    } else {
        (None, None)
    };
    let policy = choice.as_ref().map_or(policy, |choice| choice.policy.clone());
    let balance = checkpoint.tensors().balance(&policy).or_exit(Exit::Model)?;
    let rounded = match (choice.as_ref().and_then(|choice| choice.learned.clone()), args.method.learning()) {
        (Some(learned), _) => checkpoint.merged(learned),
        (None, Some(learning)) => {
            let calibrator = Calibrator::new(learning, args, &checkpoint, printer)?;
            let [learned] = calibrator.learn(&checkpoint, [&policy])?;
            checkpoint.merged(learned)
        }
        (None, None) => checkpoint.clone(),
    };
    let form = Form::Native(Storage::Balanced(&policy, &balance));
    let written = destination::write(&rounded, &args.destination, form, &signals)?;
    if written != Exit::Done {
        return Ok(written);
    }
    if args.method.learning().is_some() {
        Calibrator::forget(&args.destination)?;
    }
    let expected = choice.as_ref().map(|choice| choice.expected_sqnr);
    let written = Written::new(&args.destination).or_exit(Exit::PictureFailed)?.expecting(expected);
    printer.status(&written.to_string());
    if args.measures() {
        let recording = recording.map_or_else(|| record(settings), Ok)?;
        return measure(args, &checkpoint, &policy, choice.as_ref(), &recording, written, printer);
    }
    print(args, &written, None)
}

/// The same arguments with the layers among those to keep whose outliers no factors undo.
fn keeping_outliers(
    args: &QuantizeArgs,
    checkpoint: &Checkpoint,
    printer: Printer,
) -> Result<QuantizeArgs, Failure> {
    let balance = checkpoint.tensors().balance(&Policy::default()).or_exit(Exit::Model)?;
    let found: Vec<String> = balance.kept().map(str::to_owned).collect();
    if !found.is_empty() {
        printer.status(&format!(
            "{} layers stay in 16 bits for their outliers, e.g. {}",
            found.len(),
            found[0]
        ));
    }
    Ok(QuantizeArgs { keep: [args.keep.clone(), found].concat(), ..args.clone() })
}

/// Says how near the file comes to `checkpoint`, and what its layers cost if that is asked for.
fn measure(
    args: &QuantizeArgs,
    checkpoint: &Checkpoint,
    policy: &Policy,
    choice: Option<&Choice>,
    recording: &Recording,
    written: Written<'_>,
    printer: Printer,
) -> Result<Exit, Failure> {
    let fidelity = watched("drawing in int8, picture", printer, |on_picture| {
        recording.compare(&Checkpoint::open(&args.destination)?, on_picture)
    })?;
    printer.status(&fidelity.to_string());
    let Some(path) = &args.report else { return print(args, &written.measured(&fidelity), None) };
    let layers = match choice {
        Some(choice) => Layers::Chosen(choice.into()),
        None => Layers::AsWritten(watched("measuring layer", printer, |on_layer| {
            sensitivity::study(checkpoint, policy, recording, on_layer)
        })?),
    };
    let measured = Measured { layers, fidelity: &fidelity };
    let json = serde_json::to_string_pretty(&measured).or_exit(Exit::PictureFailed)?;
    files::save((json + "\n").as_bytes(), path, true).or_exit(Exit::PictureFailed)?;
    print(args, &written.measured(&fidelity), Some(&measured.layers))
}

/// What goes to stdout.
fn print(args: &QuantizeArgs, written: &Written<'_>, layers: Option<&Layers<'_>>) -> Result<Exit, Failure> {
    if args.json {
        let json = serde_json::to_string(written).or_exit(Exit::PictureFailed)?;
        printer::stdout_text(&json).or_exit(Exit::PictureFailed)?;
    } else if let Some(layers) = layers {
        printer::stdout_text(&layers.table()).or_exit(Exit::PictureFailed)?;
    }
    Ok(Exit::Done)
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
fn check_memory(
    checkpoint: &Checkpoint,
    settings: &Settings,
    ignore: bool,
    printer: Printer,
) -> Result<(), Failure> {
    let Settings { width, height, .. } = *settings;
    let defaults = Defaults { width, height, ..checkpoint.defaults() };
    let model = Model::open(checkpoint.clone(), &Numerics::on_cpu(Precision::F32)).or_exit(Exit::Model)?;
    let guard = Guard { model: &model, pictures: PictureBytes::default(), ignore, streams: false, printer };
    let checked = guard.check(&Request::new("", 0, &defaults), Series::Prompts, None);
    checked.map(drop).map_err(|failure| {
        failure.hint(
            "pass a smaller --report-size, or leave out what measures; --ignore-memory tries all the same",
        )
    })
}
