//! `pochade generate`: from flags to pictures on disk, one at a time, so that a failure loses only itself.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::GenerateArgs;
use super::exit::{Exit, Failure, OrExit};
use super::memory_guard::Largest;
use super::output::{self, Target};
use super::preview::Preview;
use super::printer::{self, Printer};
use super::progress::Progress;
use super::report::{Report, Seconds, shown};
use super::session::{Drawn, Provenance, Session, ends_every_run};
use super::signals::Signals;
use super::within::Within;
use super::{fast, named_files, prompt, show};
use crate::pipeline::footprint::Series;
use crate::pipeline::{DrawError, Pipeline, Residency};
use crate::request::{Draft, Embedded, Request, UsedFile};
use crate::{files, memory, png};

/// Draws every picture asked for.
///
/// # Errors
/// What ends the run before the first picture; a picture that fails is reported and counted instead.
pub fn run(args: &GenerateArgs) -> Result<Exit, Failure> {
    let printer = args.talk.printer(args.json);
    let target = Target::parse(args.output.as_deref()).or_exit(Exit::Usage)?;
    target.check_stdout(args.json, args.count)?;
    if args.show && !io::stdout().is_terminal() {
        return Err(Failure::usage("--show draws in a terminal, but stdout is not a terminal"));
    }
    let preview = preview(args)?;
    let embedded = args.from.as_deref().map(read_embedded).transpose()?;
    let (flags, below) = drafts(args, embedded.as_ref(), &printer)?;
    let draft = fast::with_lora(flags.clone().over(below.clone()))?;
    let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
    let session = Session::open(&args.compute, embedded.as_ref(), &printer)?;
    let size_of = |path: &Path| session.pictures.size(path);
    let request = draft.resolve(&session.defaults(), size_of).or_exit(Exit::Usage)?;
    check_last_seed(&request, args.count)?;
    let paths = target.paths(&request, args.count, session.name());
    output::check_paths(&paths)?;
    preview.check(args.force, &protected(args, &request, &paths))?;
    session.announce(&printer, embedded.as_ref());
    let request = match args.within {
        None => request,
        Some(budget) => {
            let flags = Draft { seed: Some(request.seed), ..flags };
            let loads = args.count == 1;
            let (session, compute, told) = (&session, &args.compute, RefCell::default());
            let within = Within { session, compute, printer, budget, loads, told };
            within.choose(&flags, &below)?
        }
    };

    let started = Instant::now();
    let (residency, series) = match args.count {
        1 => (Residency::OneByOne, Series::One),
        _ => (Residency::Kept, Series::SamePrompt),
    };
    let mut pipeline = session.pipeline(residency);
    let files = pipeline.check(&request).or_exit(Exit::Usage)?;
    if let Some(Embedded::Record(record)) = &embedded {
        say_which_files_differ(&printer, &record.files, &files);
    }
    let mut largest = Largest::new(&session);
    largest.add(&request, None);
    largest.check(&mut pipeline, series, &args.compute, printer)?;
    signals.exit_at_once(false);
    let Provenance { precision, kernel, device, .. } = &session.provenance;
    printer.detail(&format!(
        "{precision} on {device}, kernel {kernel}, {} threads",
        rayon::current_num_threads()
    ));
    let run = Run {
        args,
        preview: Preview { factor: session.model.factor() as u32, ..preview },
        printer,
        signals: &signals,
        session: &session,
        load: session.opening + started.elapsed(),
    };
    Ok(run.pictures(&mut pipeline, &request, &paths))
}

/// Everything the pictures of a run share.
struct Run<'a> {
    args: &'a GenerateArgs,
    preview: Preview,
    printer: Printer,
    signals: &'a Signals,
    session: &'a Session,
    /// What was loaded once for all of them took.
    load: Duration,
}

impl Run<'_> {
    fn pictures(&self, pipeline: &mut Pipeline<'_>, first: &Request, paths: &[PathBuf]) -> Exit {
        let count = self.args.count;
        let mut written = HashSet::new();
        let mut exit = Exit::Done;
        for k in 0..count {
            let request = Request { seed: first.seed + u64::from(k), ..first.clone() };
            let path = paths.get(k as usize).map(PathBuf::as_path);
            let seed = request.seed;
            let made = self.picture(pipeline, k, request, path, &mut written);
            let signal = self.signals.received();
            match made {
                Ok(()) => {}
                Err(DrawError::Interrupted) if signal.is_some() => {}
                Err(error @ DrawError::UnusableModel(_)) => {
                    printer::failure(&Failure { exit: Exit::Model, error: error.into_cause(), hint: None });
                    return Exit::Model;
                }
                Err(error) => {
                    let error = error.into_cause();
                    let folder_is_gone = path.is_some_and(|path| !files::folder_of(path).is_dir());
                    let hopeless = ends_every_run(&error) || folder_is_gone;
                    let error = error.context(format!("picture {} of {count} (seed {seed})", k + 1));
                    printer::failure(&Failure { exit: Exit::PictureFailed, error, hint: None });
                    exit = Exit::PictureFailed;
                    if hopeless {
                        let left = count - k - 1;
                        if left > 0 {
                            self.printer.status(&format!(
                                "{left} further pictures are not drawn: they would have no place"
                            ));
                        }
                        return exit;
                    }
                }
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
        pipeline: &mut Pipeline<'_>,
        k: u32,
        request: Request,
        path: Option<&Path>,
        written: &mut HashSet<PathBuf>,
    ) -> Result<(), DrawError> {
        let count = self.args.count;
        let prefix = if count > 1 { format!("{}/{count} ", k + 1) } else { String::new() };
        let mut preview = self.preview.clone();
        if count > 1
            && let Some(folder) = &mut preview.steps
        {
            folder.push(request.seed.to_string());
            preview.check(self.args.force, &[]).map_err(|failure| failure.error)?;
        }
        let mut progress = Progress::new(self.signals, self.printer, prefix).with_preview(preview);
        let started = Instant::now();
        let drawn = self.session.draw(pipeline, &request, &mut progress)?;
        let bytes = drawn.png()?;
        self.signals.exit_at_once(false);
        let path = match path {
            Some(path) => {
                // Two pictures of one run may share a name; the second never replaces the first.
                let overwrite = self.args.force && !written.contains(path);
                files::save(&bytes, path, overwrite)?
            }
            None => PathBuf::from("-"),
        };
        let Drawn { rgb, timings, passes, record } = drawn;
        let load = timings.load + if k == 0 { self.load } else { Duration::ZERO };
        let report = Report {
            path: shown(&path),
            request: &request,
            model: &record.model,
            precision: record.precision,
            kernel: &record.kernel,
            device: &record.device,
            seconds: Seconds::new(load, &timings, started.elapsed()),
            unet: passes,
            peak_rss_bytes: memory::peak_resident(),
            version: env!("CARGO_PKG_VERSION"),
        };
        self.printer.status(&report.summary());
        self.printer.detail(&report.details());
        if path == Path::new("-") {
            printer::stdout(&bytes)?;
        } else if self.args.json {
            printer::stdout_text(&report.json()?)?;
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
        return Err(Failure::usage("--preview draws in a terminal, but stderr is not a terminal")
            .hint("write it to a file, e.g. `--preview=now.png`"));
    }
    let preview =
        Preview { terminal, file: args.preview.clone().flatten(), steps: args.steps_dir.clone(), factor: 1 };
    Ok(preview)
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

/// What the flags say, and what the picture given with `--from` does.
fn drafts(
    args: &GenerateArgs,
    embedded: Option<&Embedded>,
    printer: &Printer,
) -> Result<(Draft, Draft), Failure> {
    let below = embedded.map(|embedded| embedded.draft().clone()).unwrap_or_default();
    let prompt = prompt::read(&args.prompt, below.prompt.is_some())?;
    let flags = Draft { prompt, ..args.picture.draft() };
    let below = named_files::find(fast::without_lora(below), &flags, printer)?;
    Ok((flags, below))
}

/// The files that a run reads and is to write, which no preview may replace.
fn protected<'a>(
    args: &'a GenerateArgs,
    request: &'a Request,
    paths: &'a [PathBuf],
) -> Vec<(&'static str, &'a Path)> {
    let init = request.init.as_ref();
    let inputs = [
        ("the picture to start from", init.map(|init| init.picture.as_path())),
        ("the mask", init.and_then(|init| init.mask.as_deref())),
        ("the picture given with --from", args.from.as_deref()),
        ("the model", args.compute.model.as_deref()),
    ];
    let inputs = inputs.into_iter().filter_map(|(name, path)| Some((name, path?)));
    let loras = request.lora.iter().map(|lora| ("a LoRA of this run", lora.path.as_path()));
    let embeddings = request.embedding.iter().map(|path| ("an embedding of this run", path.as_path()));
    let outputs = paths.iter().map(|path| ("the picture to be made", path.as_path()));
    inputs.chain(loras).chain(embeddings).chain(outputs).collect()
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
