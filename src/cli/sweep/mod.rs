//! `pochade sweep`: every picture of a list with every combination of some settings, side by side and with figures.

pub mod args;
mod figures;
mod sheet;
mod vary;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use image::RgbImage;
use serde_json::Value;

use super::batch::existing::{self, Existing};
use super::batch::place::{self, Place};
use super::batch::plan::{self, Planned, Planner};
use super::batch::results::{Outcome, Results, Status};
use super::batch::{self, Shard, Source};
use super::by_product;
use super::exit::{Exit, Failure, OrExit};
use super::memory_guard::Largest;
use super::printer::{self, Printer};
use super::progress::Progress;
use super::report::shown;
use super::session::{Session, ends_every_run, exit_code};
use super::signals::Signals;
use crate::compare::compare;
use crate::files;
use crate::pipeline::{DrawError, Pipeline, Residency};
use crate::request::Passes;
use crate::request::list::{Fault, Item};
use args::SweepArgs;
use figures::{Figures, Summary, Sweep, settings};
use sheet::{Block, Cell, Layout, Row};
use vary::{Combination, Variation};

/// The largest sheet, in pixels: as many as this program reads.
const MAX_SHEET: u64 = 1 << 26;

/// The longest file of figures that is read again.
const MAX_FIGURES: u64 = 256 << 20;

/// Draws what is not there yet, then the sheet and the figures of all.
///
/// # Errors
/// What ends the run before the first picture; a picture that fails is a gap in the sheet instead.
pub fn run(args: &SweepArgs) -> Result<Exit, Failure> {
    let printer = args.list.talk.printer(args.list.json);
    vary::check(&args.vary).map_err(Failure::usage)?;
    let combinations = Combination::all(&args.vary);
    let place =
        Place::new(&args.out_dir, &args.list.output, false).context("--output").or_exit(Exit::Usage)?;
    let path = &args.list.list;
    let mut source = Source::open(path)?.expanding(args.list.expand, path);
    let session = Session::open(&args.list.compute, None, &printer)?;
    session.announce(&printer, None);
    let mut pipeline = session.pipeline(Residency::Kept);
    let planner = Planner::new(&session, &args.list, 0, place);
    let base_seed = args.list.picture.seed().unwrap_or_default();

    let mut largest = Largest::new(&session);
    let mut cells = Vec::new();
    let name = source.name.clone();
    let items = varied(source.list()?, &args.vary, &combinations, base_seed);
    let plan = plan::plan(&name, items, &planner, Shard::WHOLE, |planned| {
        let files = pipeline.check(&planned.request).map_err(|error| format!("{error:#}"))?;
        let found = existing::look(&planned.path, &planned.request, &files, &session.provenance);
        let shown = planned.path.display();
        let is_there = match found {
            Existing::Same => true,
            Existing::Nothing => false,
            Existing::Other(_) if args.force => false,
            Existing::Other(how) => return Err(format!("{shown} {how} (--force draws it again)")),
            Existing::NoFile => return Err(format!("{shown} is not a regular file")),
        };
        if !is_there {
            largest.add(&planned.request, Some(planned.line));
        }
        cells.push((planned.clone(), is_there));
        Ok(())
    })?;
    let layout = layout(args, &combinations, cells.len());
    check_size(layout).or_exit(Exit::Usage)?;
    let [sheet, figures, results] =
        ["sheet.png", "sweep.json", "figures.jsonl"].map(|name| args.out_dir.join(name));
    for folder in plan.folders.iter().chain([&args.out_dir]) {
        place::check_folder(folder, true).or_exit(Exit::Usage)?;
    }
    let drawn = cells.iter().map(|(planned, _)| ("a picture of the sweep", planned.path.as_path()));
    by_product::check(&sheet, args.force, &drawn.collect::<Vec<_>>())?;
    check_ours(&figures, args.force).or_exit(Exit::Usage)?;
    largest.check(&mut pipeline, batch::series(plan.items), &args.list.compute, printer)?;
    let known = known(&results).or_exit(Exit::Usage)?;
    let there = cells.iter().filter(|(_, is_there)| *is_there).count();
    printer.status(&format!(
        "{} pictures ({} combinations): {} to draw, {there} there already",
        cells.len(),
        combinations.len(),
        cells.len() - there
    ));

    let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
    signals.exit_at_once(false);
    let log = Log { path: results, results: None };
    let mut drawing = Drawing { args, printer, signals: &signals, session: &session, pipeline, log, known };
    let mut made = Vec::new();
    for (number, (planned, is_there)) in cells.iter().enumerate() {
        if let Some(signal) = signals.received() {
            return Ok(interrupted(printer, number, cells.len(), signal));
        }
        let combination = &combinations[number % combinations.len()];
        match drawing.cell(planned, *is_there, number, cells.len()) {
            Ok(cell) => made.push(cell),
            Err(DrawError::Interrupted) => {
                let signal = signals.received().unwrap_or(Exit::Interrupted);
                return Ok(interrupted(printer, number, cells.len(), signal));
            }
            Err(error) => {
                let exit = exit_code(&error);
                let error = error.into_cause();
                let hopeless = exit == Exit::Model || ends_every_run(&error);
                let message = format!("{error:#}");
                let settings = Value::Object(settings(combination, &args.vary));
                let error = error.context(format!("line {} with {settings}", planned.line));
                printer::failure(&Failure { exit, error, hint: None });
                if hopeless {
                    return Ok(exit);
                }
                made.push(Made { error: Some(message), ..Made::default() });
            }
        }
    }

    if made.iter().all(|made| made.picture.is_none()) {
        return Ok(Exit::PictureFailed);
    }
    let (blocks, pictures) = assemble(args, &combinations, &cells, made);
    let columns: Vec<String> = args.vary.first().map(labels).unwrap_or_default();
    by_product::save(&sheet::draw(layout, &columns, &blocks), &sheet).or_exit(Exit::PictureFailed)?;
    let summaries = combinations.iter().enumerate().map(|(at, combination)| {
        let own: Vec<_> = pictures.iter().skip(at).step_by(combinations.len()).collect();
        Summary::new(settings(combination, &args.vary), &own)
    });
    let failed = pictures.iter().filter(|figures| figures.error.is_some()).count();
    let sweep = Sweep {
        sweep: env!("CARGO_PKG_VERSION"),
        model: session.name().to_owned(),
        combinations: summaries.collect(),
        pictures,
    };
    let json = sweep.json().or_exit(Exit::PictureFailed)?;
    files::save(json.as_bytes(), &figures, true).or_exit(Exit::PictureFailed)?;
    let text = if args.list.json { json } else { sweep.table() };
    printer::stdout_text(&text).or_exit(Exit::PictureFailed)?;
    printer.status(&format!("{} and {} show them all", sheet.display(), figures.display()));
    Ok(if failed > 0 { Exit::PictureFailed } else { Exit::Done })
}

/// Every item with every combination, whose settings win; all of one item's have one seed.
fn varied<'a>(
    list: impl Iterator<Item = Result<Item, Fault>> + 'a,
    variations: &'a [Variation],
    combinations: &'a [Combination],
    base_seed: u64,
) -> impl Iterator<Item = Result<Item, Fault>> + 'a {
    list.zip(0u64..).flat_map(move |(item, index)| -> Box<dyn Iterator<Item = Result<Item, Fault>>> {
        let mut item = match item {
            Ok(item) => item,
            Err(fault) => return Box::new(std::iter::once(Err(fault))),
        };
        item.draft.seed.get_or_insert(base_seed.saturating_add(index));
        Box::new(combinations.iter().map(move |combination| {
            let mut item = item.clone();
            // Every value has been read when it was typed.
            if let Ok(draft) = combination.draft(variations) {
                item.draft = draft.over(item.draft);
            }
            Ok(item)
        }))
    })
}

/// One picture as it goes onto the sheet.
#[derive(Default)]
struct Made {
    picture: Option<RgbImage>,
    seconds: Option<f64>,
    unet: Option<Passes>,
    error: Option<String>,
}

/// What an earlier run measured of a picture.
#[derive(Clone, Copy, Default)]
struct Measured {
    seconds: Option<f64>,
    unet: Option<Passes>,
}

/// The figures of finished pictures, kept for a run that goes on; made with the first of them.
struct Log {
    path: PathBuf,
    results: Option<Results>,
}

impl Log {
    fn append(&mut self, outcome: &Outcome<'_>) -> Result<()> {
        let results = match &mut self.results {
            Some(results) => results,
            None => self.results.insert(Results::open(&self.path)?),
        };
        results.append(&outcome.json()?)
    }
}

struct Drawing<'a> {
    args: &'a SweepArgs,
    printer: Printer,
    signals: &'a Signals,
    session: &'a Session,
    pipeline: Pipeline<'a>,
    log: Log,
    /// What earlier runs measured, by path.
    known: HashMap<String, Measured>,
}

impl Drawing<'_> {
    fn cell(
        &mut self,
        planned: &Planned,
        is_there: bool,
        number: usize,
        total: usize,
    ) -> Result<Made, DrawError> {
        let path = shown(&planned.path);
        if is_there {
            let picture = self.session.pictures.rgb(&planned.path)?;
            let Measured { seconds, unet } = self.known.get(&path).copied().unwrap_or_default();
            return Ok(Made { picture: Some(picture), seconds, unet, error: None });
        }
        let prefix = format!("{}/{total} ", number + 1);
        let mut progress = Progress::new(self.signals, self.printer, prefix).patient();
        let drawn = self.session.draw(&mut self.pipeline, &planned.request, &mut progress)?;
        if self.signals.received().is_some() {
            return Err(DrawError::Interrupted);
        }
        let timings = drawn.timings;
        let seconds = (timings.encode + timings.denoise + timings.decode).as_secs_f64();
        let bytes = drawn.png()?;
        if self.args.force {
            files::save(&bytes, &planned.path, true)?;
        } else if !files::save_new(&bytes, &planned.path)? {
            let path = planned.path.display();
            return Err(DrawError::Failed(anyhow!(
                "can't write {path}: another file has come there meanwhile"
            )));
        }
        let outcome = Outcome {
            index: number as u64 + 1,
            line: planned.line,
            id: planned.id.as_deref(),
            status: Status::Drawn,
            path,
            seed: planned.request.seed,
            seconds,
            unet: Some(drawn.passes),
            error: None,
        };
        self.log.append(&outcome)?;
        Ok(Made { picture: Some(drawn.rgb), seconds: Some(seconds), unet: Some(drawn.passes), error: None })
    }
}

fn interrupted(printer: Printer, done: usize, total: usize, signal: Exit) -> Exit {
    printer.status(&format!("interrupted: {done} of {total} pictures are there; the same command goes on"));
    signal
}

/// What earlier runs wrote of their pictures.
fn known(path: &Path) -> Result<HashMap<String, Measured>> {
    if !path.exists() {
        return Ok(HashMap::new());
    }
    let text = files::text(path, MAX_FIGURES)?;
    let values = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(values
        .filter_map(|value| {
            let unet = serde_json::from_value(value["unet"].clone()).ok();
            let measured = Measured { seconds: value["seconds"].as_f64(), unet };
            Some((value["path"].as_str()?.to_owned(), measured))
        })
        .collect())
}

/// Refuses to replace a file that is no sweep's.
fn check_ours(path: &Path, force: bool) -> Result<()> {
    let is_ours = || files::start(path, 9).is_ok_and(|start| start == b"{\"sweep\":");
    ensure!(
        force || path.symlink_metadata().is_err() || is_ours(),
        "'{}' exists, and holds no sweep's figures (--force overwrites)",
        path.display()
    );
    Ok(())
}

/// `steps=10` and so on.
fn labels(variation: &Variation) -> Vec<String> {
    variation.values.iter().map(|value| format!("{}={value}", variation.name)).collect()
}

/// All but the first variation's values.
fn row_label(combination: &Combination, variations: &[Variation]) -> String {
    let values = combination.values(variations).skip(1);
    values.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn layout(args: &SweepArgs, combinations: &[Combination], cells: usize) -> Layout {
    let columns = args.vary.first().map_or(1, |variation| variation.values.len());
    let label =
        combinations.iter().map(|combination| sheet::label_width(&row_label(combination, &args.vary)));
    Layout {
        cell: args.cell,
        columns: columns as u32,
        blocks: (cells / combinations.len()) as u32,
        rows: (combinations.len() / columns) as u32,
        label: label.max().unwrap_or(0),
    }
}

fn check_size(layout: Layout) -> Result<()> {
    let (width, height) = layout.size();
    ensure!(
        width.saturating_mul(height) <= MAX_SHEET,
        "a sheet of {width}x{height} pixels is too large: take fewer pictures or values, or a smaller --cell"
    );
    Ok(())
}

/// The sheet's blocks, one for each item, and the figures of every picture.
fn assemble(
    args: &SweepArgs,
    combinations: &[Combination],
    cells: &[(Planned, bool)],
    made: Vec<Made>,
) -> (Vec<Block>, Vec<Figures>) {
    let columns = args.vary.first().map_or(1, |variation| variation.values.len());
    let mut blocks = Vec::new();
    let mut figures = Vec::new();
    let mut made = made.into_iter();
    for item in cells.chunks(combinations.len()) {
        let own: Vec<Made> = made.by_ref().take(item.len()).collect();
        let first = own.first().and_then(|made| made.picture.clone());
        let first_macs = own.first().and_then(|made| made.unet).map(|passes| passes.macs);
        let mut places = Vec::new();
        for (((planned, _), combination), made) in item.iter().zip(combinations).zip(own) {
            let psnr = first.as_ref().zip(made.picture.as_ref()).and_then(|(a, b)| compare(a, b));
            let same = psnr.is_some_and(|difference| difference.psnr.is_infinite());
            let psnr = psnr.map(|difference| difference.psnr).filter(|psnr| psnr.is_finite());
            let own = Figures {
                prompt: planned.request.prompt.clone(),
                seed: planned.request.seed,
                settings: settings(combination, &args.vary),
                path: shown(&planned.path),
                psnr,
                same,
                seconds: made.seconds,
                unet: made.unet,
                error: made.error,
            };
            places
                .push(Cell { picture: made.picture, caption: caption(&own, first_macs, places.is_empty()) });
            figures.push(own);
        }
        let mut rows = Vec::new();
        let mut places = places.into_iter();
        for combination in combinations.iter().step_by(columns) {
            let cells = places.by_ref().take(columns).collect();
            rows.push(Row { label: row_label(combination, &args.vary), cells });
        }
        let heading = item.first().map_or_else(String::new, |(planned, _)| {
            format!("{} (seed {})", planned.request.prompt, planned.request.seed)
        });
        blocks.push(Block { heading, rows });
    }
    (blocks, figures)
}

/// What stands under a picture: how near it is to the first, and what it cost.
fn caption(figures: &Figures, first_macs: Option<u64>, is_first: bool) -> [String; 2] {
    if figures.error.is_some() {
        return ["failed".to_owned(), String::new()];
    }
    let near = match figures.psnr {
        _ if is_first => "the first".to_owned(),
        Some(psnr) => format!("{psnr:.1} dB"),
        None if figures.same => "the same".to_owned(),
        None => "other size".to_owned(),
    };
    let work = figures.unet.zip(first_macs).map(|(passes, first)| passes.macs as f64 / first.max(1) as f64);
    let work = work.map_or_else(String::new, |work| format!("x{work:.2} "));
    let seconds = figures.seconds.map_or_else(String::new, |seconds| format!("{seconds:.2} s"));
    [near, work + &seconds]
}
