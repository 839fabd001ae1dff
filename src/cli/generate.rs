//! `pochade generate`: from flags to pictures on disk, one at a time, so that a failure loses only itself.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::{GenerateArgs, PrecisionChoice};
use super::exit::{Exit, Failure, OrExit};
use super::maker::Maker;
use super::model::{Choice, Rule};
use super::output::{self, Target};
use super::preview::Preview;
use super::printer::{self, Printer};
use super::progress::Progress;
use super::report::{Report, Seconds, shown};
use super::room::Largest;
use super::signals::Signals;
use super::{backend, prompt, show};
use crate::checkpoint::Checkpoint;
use crate::memory::footprint::Series;
use crate::memory::tiling::Tile;
use crate::pipeline::{Interrupted, LoadOptions, Picture, Pipeline, Unusable};
use crate::request::{Draft, Embedded, Precision, Request, UsedFile};
use crate::{memory, png};

/// Draws every picture asked for.
///
/// # Errors
/// What ends the run before the first picture; a picture that fails is reported and counted instead.
pub fn run(args: &GenerateArgs) -> Result<Exit, Failure> {
    let printer = args.talk.printer(args.json);
    let target = Target::parse(args.output.as_deref()).or_exit(Exit::Usage)?;
    target.check_stdout(args.json, args.count)?;
    if args.show && !io::stdout().is_terminal() {
        return Err(Failure::usage("--show draws in a terminal, and stdout is none"));
    }
    let preview = preview(args)?;
    let embedded = args.from.as_deref().map(read_embedded).transpose()?;
    let draft = draft(args, embedded.as_ref())?;
    let device = backend::device(args.compute.device)?;
    let precision = precision(args.compute.precision, embedded.as_ref(), &device, &printer)?;
    backend::start_threads(args.compute.threads)?;

    let choice = Choice::new(args.compute.model.as_deref(), embedded.as_ref().and_then(Embedded::model));
    let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
    let mut checkpoint = choice.open()?;
    args.compute.parts.apply(&mut checkpoint)?;
    let request = draft.resolve(&checkpoint.defaults()).or_exit(Exit::Usage)?;
    check_last_seed(&request, args.count)?;
    let paths = target.paths(&request, args.count, checkpoint.name());
    output::check_paths(&paths)?;
    say_which_model(&printer, &choice, &checkpoint, embedded.as_ref());

    let loading = Progress::new(&signals, printer, String::new());
    loading.spin("loading the model");
    let started = Instant::now();
    let options = LoadOptions { device: device.clone(), precision, single: args.count == 1 };
    let pipeline = Pipeline::load(&checkpoint, &options);
    loading.finish();
    let pipeline = pipeline.or_exit(Exit::Model)?.with_tile(tile(args, embedded.as_ref()));
    let files = pipeline.check(&request).or_exit(Exit::Usage)?;
    if let Some(Embedded::Record(record)) = &embedded {
        say_which_files_differ(&printer, &record.files, &files);
    }
    let mut largest = Largest::default();
    largest.add(pipeline.footprint().as_ref(), &request, None);
    let series = if args.count == 1 { Series::One } else { Series::SamePrompt };
    largest.check(&pipeline, series, &args.compute, printer)?;
    signals.exit_at_once(false);
    let preview = Preview { factor: pipeline.factor() as u32, ..preview };
    let run = Run {
        args,
        preview,
        printer,
        signals: &signals,
        pipeline: &pipeline,
        load: started.elapsed(),
        maker: Maker {
            model: checkpoint.name().to_owned(),
            components: components(&checkpoint),
            precision,
            kernel: pipeline.kernel(),
            device: backend::name(&device),
        },
    };
    let Maker { kernel, device, .. } = &run.maker;
    printer.detail(&format!(
        "{precision} on {device}, kernel {kernel}, {} threads",
        rayon::current_num_threads()
    ));
    Ok(run.pictures(&request, &paths))
}

/// Everything the pictures of a run share.
struct Run<'a> {
    args: &'a GenerateArgs,
    preview: Preview,
    printer: Printer,
    signals: &'a Signals,
    pipeline: &'a Pipeline<'a>,
    load: Duration,
    maker: Maker,
}

impl Run<'_> {
    fn pictures(&self, first: &Request, paths: &[PathBuf]) -> Exit {
        let count = self.args.count;
        let mut written = HashSet::new();
        let mut exit = Exit::Done;
        for k in 0..count {
            let request = Request { seed: first.seed + u64::from(k), ..first.clone() };
            let path = paths.get(k as usize).map(PathBuf::as_path);
            let seed = request.seed;
            let made = self.picture(k, request, path, &mut written);
            let signal = self.signals.received();
            if let Err(error) = made
                && !(signal.is_some() && error.is::<Interrupted>())
            {
                if error.is::<Unusable>() {
                    printer::failure(&Failure { exit: Exit::Model, error, hint: None });
                    return Exit::Model;
                }
                let error = error.context(format!("picture {} of {count} (seed {seed})", k + 1));
                printer::failure(&Failure { exit: Exit::PictureFailed, error, hint: None });
                exit = Exit::PictureFailed;
            }
            if let Some(signal) = signal {
                let done = written.len();
                self.printer.status(&format!("interrupted: {done} of {count} pictures written"));
                return signal;
            }
        }
        exit
    }

    fn picture(
        &self,
        k: u32,
        request: Request,
        path: Option<&Path>,
        written: &mut HashSet<PathBuf>,
    ) -> Result<()> {
        let count = self.args.count;
        let prefix = if count > 1 { format!("{}/{count} ", k + 1) } else { String::new() };
        let mut preview = self.preview.clone();
        if count > 1
            && let Some(folder) = &mut preview.steps
        {
            folder.push(request.seed.to_string());
            preview.check().map_err(|failure| failure.error)?;
        }
        let mut progress = Progress::new(self.signals, self.printer, prefix).with_preview(preview);
        let started = Instant::now();
        let picture = self.pipeline.generate(&request, &mut progress);
        progress.finish();
        let Picture { rgb, timings, files, tiled, .. } = picture?;

        let record = self.maker.record(request, files, tiled);
        let bytes = png::encode(&rgb, &record.text_chunks()?)?;
        self.signals.exit_at_once(false);
        let path = match path {
            Some(path) => {
                // Two pictures of one run may share a name; the second never replaces the first.
                let overwrite = self.args.force && !written.contains(path);
                png::save(&bytes, path, overwrite)?
            }
            None => PathBuf::from("-"),
        };
        let load = timings.load + if k == 0 { self.load } else { Duration::ZERO };
        let report = Report {
            path: shown(&path),
            request: &record.request,
            model: &self.maker.model,
            precision: self.maker.precision,
            kernel: &self.maker.kernel,
            device: self.maker.device,
            seconds: Seconds::new(load, &timings, started.elapsed()),
            peak_rss_bytes: memory::peak_resident(),
            version: env!("CARGO_PKG_VERSION"),
        };
        self.printer.status(&report.summary());
        self.printer.detail(&report.details());
        if path == Path::new("-") {
            printer::stdout(&bytes)?;
        } else if self.args.json {
            printer::stdout_line(&report.json()?)?;
        } else {
            printer::stdout_path(&path)?;
        }
        written.insert(path);
        if self.args.show {
            // The picture is on disk already: a terminal that can't draw it is worth a note, no more.
            if let Err(error) = show::show(rgb) {
                self.printer.note(&format!("this terminal can't draw the picture: {error}"));
            }
        }
        Ok(())
    }
}

fn preview(args: &GenerateArgs) -> Result<Preview, Failure> {
    let terminal = matches!(args.preview, Some(None));
    if terminal && !io::stderr().is_terminal() {
        return Err(Failure::usage("--preview draws in a terminal, and stderr is none")
            .hint("write it to a file, e.g. `--preview=now.png`"));
    }
    let preview =
        Preview { terminal, file: args.preview.clone().flatten(), steps: args.steps_dir.clone(), factor: 1 };
    preview.check()?;
    Ok(preview)
}

/// The components that are not the model's own, as a picture's record names them.
pub fn components(checkpoint: &Checkpoint) -> BTreeMap<String, String> {
    checkpoint.replaced().iter().map(|(part, file)| (part.name().to_owned(), file.clone())).collect()
}

fn read_embedded(path: &Path) -> Result<Embedded, Failure> {
    let read = || -> Result<Option<Embedded>> {
        let header = png::read_header(path)?;
        Embedded::find(header.chunks()).with_context(|| path.display().to_string())
    };
    read().or_exit(Exit::Usage)?.ok_or_else(|| {
        Failure::usage(format!("{} carries no generation parameters", path.display()))
            .hint("editors and image hosts often strip them; use the file as it was generated")
    })
}

/// Flags over the picture given with `--from`.
fn draft(args: &GenerateArgs, embedded: Option<&Embedded>) -> Result<Draft, Failure> {
    let below = embedded.map(|embedded| embedded.draft().clone()).unwrap_or_default();
    let prompt = prompt::read(&args.prompt, below.prompt.is_some())?;
    Ok(Draft { prompt, ..args.picture.draft() }.over(below))
}

/// The flag, else on where the picture was decoded so.
fn tile(args: &GenerateArgs, embedded: Option<&Embedded>) -> Tile {
    match (args.compute.tile, embedded) {
        (Some(choice), _) => choice.into(),
        (None, Some(Embedded::Record(record))) if record.tiled => Tile::On,
        (None, _) => Tile::Auto,
    }
}

/// The flag, else the picture's precision if this device has it, else the device's own.
fn precision(
    flag: Option<PrecisionChoice>,
    embedded: Option<&Embedded>,
    device: &candle_core::Device,
    printer: &Printer,
) -> Result<Precision, Failure> {
    if let Some(choice) = flag {
        return backend::precision(choice.asked(), device);
    }
    let embedded = embedded.and_then(Embedded::precision);
    if let Ok(precision) = backend::precision(embedded, device) {
        return Ok(precision);
    }
    let precision = backend::precision(None, device)?;
    if let Some(embedded) = embedded {
        printer.note(&format!("the picture was made in {embedded}, this run computes in {precision}"));
    }
    Ok(precision)
}

/// A picture comes out the same only from the same files.
fn say_which_files_differ(printer: &Printer, recorded: &[UsedFile], found: &[UsedFile]) {
    for file in found {
        let same = |recorded: &&UsedFile| recorded.kind == file.kind && recorded.name == file.name;
        let mut recorded = recorded.iter().filter(same).peekable();
        if recorded.peek().is_some() && !recorded.any(|recorded| recorded.sha256 == file.sha256) {
            let UsedFile { name, sha256, .. } = file;
            printer.note(&format!("'{name}' ({sha256}) is not the file the picture was made with"));
        }
    }
}

fn check_last_seed(request: &Request, count: u32) -> Result<(), Failure> {
    match request.seed.checked_add(u64::from(count - 1)) {
        Some(_) => Ok(()),
        None => Err(Failure::usage(format!(
            "seed {} leaves no room for {count} pictures: the last seed would exceed {}",
            request.seed,
            u64::MAX
        ))),
    }
}

/// Names the model where the user might expect another one.
pub fn say_which_model(
    printer: &Printer,
    choice: &Choice,
    checkpoint: &Checkpoint,
    embedded: Option<&Embedded>,
) {
    let name = checkpoint.name();
    match choice.rule {
        Rule::Default => printer
            .note("using the small built-in model; `pochade models pull sd15` fetches Stable Diffusion 1.5, `-m PATH` opens another"),
        Rule::Pulled => printer
            .note(&format!("using {name}, which has been pulled; `-m pocket` is the small built-in model")),
        _ => {}
    }
    printer.detail(&format!("model {name}: {}, {}", choice.source, choice.rule));
    if let Some(embedded) = embedded {
        if let Some(made_with) = embedded.model().filter(|&made_with| made_with != name) {
            printer.note(&format!("the picture was made with model '{made_with}', this run uses '{name}'"));
        }
        if let Embedded::Record(record) = embedded {
            note_components(printer, &record.components, &components(checkpoint));
        }
        if let Embedded::Parameters(parameters) = embedded
            && !parameters.unknown.is_empty()
        {
            printer.note(&format!(
                "the picture's other settings are not used: {}",
                parameters.unknown.join(", ")
            ));
        }
    }
}

/// Says where the components of other files differ from those a picture was made with.
fn note_components(printer: &Printer, then: &BTreeMap<String, String>, this: &BTreeMap<String, String>) {
    for (part, file) in then.iter().filter(|(part, file)| this.get(*part) != Some(file)) {
        printer.note(&format!("the picture was made with --{part} '{file}', which this run does not use"));
    }
    for part in this.keys().filter(|part| !then.contains_key(*part)) {
        printer.note(&format!("the picture was made without --{part}"));
    }
}
