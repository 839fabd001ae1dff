//! `pochade verify`: draws the pictures of a list again and tells how far they are from the stored ones.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::RgbImage;
use serde::Serialize;

use super::batch::args::VerifyArgs;
use super::batch::place::{self, Place};
use super::batch::plan::{self, Planned, Planner};
use super::batch::{self, Shard, Source};
use super::by_product;
use super::exit::{Exit, Failure, OrExit};
use super::memory_guard::Largest;
use super::printer::{self, Printer};
use super::progress::Progress;
use super::report::shown;
use super::session::{Session, ends_every_run};
use super::signals::Signals;
use crate::compare::{compare, side_by_side};
use crate::files;
use crate::pipeline::{DrawError, Pipeline, Residency};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Same,
    Close,
    Differs,
    OtherSize,
    Missing,
    Failed,
    Updated,
}

impl Verdict {
    fn passes(self) -> bool {
        matches!(self, Self::Same | Self::Close | Self::Updated)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Close => "close",
            Self::Differs => "DIFFERS",
            Self::OtherSize => "OTHER SIZE",
            Self::Missing => "MISSING",
            Self::Failed => "FAILED",
            Self::Updated => "updated",
        }
    }
}

/// One row of the table, and one line of `--json`.
#[derive(Debug, Serialize)]
struct Row {
    item: String,
    path: String,
    /// In dB; null where there is nothing to compare or no difference.
    psnr: Option<f64>,
    largest_difference: Option<u8>,
    verdict: Verdict,
    /// The picture of the difference.
    diff: Option<String>,
    error: Option<String>,
}

impl Row {
    fn new(item: &Planned, verdict: Verdict) -> Self {
        let name = item.path.file_stem().unwrap_or_default().to_string_lossy();
        Self {
            item: item.id.clone().unwrap_or_else(|| name.into_owned()),
            path: shown(&item.path),
            psnr: None,
            largest_difference: None,
            verdict,
            diff: None,
            error: None,
        }
    }

    fn text(&self, width: usize) -> String {
        let psnr = match (self.verdict, self.psnr) {
            (Verdict::Same, _) => "inf".to_owned(),
            (_, Some(psnr)) => format!("{psnr:.1}"),
            (_, None) => "-".to_owned(),
        };
        let largest = self.largest_difference.map_or_else(|| "-".to_owned(), |level| level.to_string());
        let detail =
            self.error.as_ref().or(self.diff.as_ref()).map_or_else(String::new, |text| format!("  {text}"));
        format!("{:width$}  {psnr:>8}  {largest:>7}  {}{detail}", self.item, self.verdict.text())
    }
}

/// Compares, or stores with `--update`.
///
/// # Errors
/// What ends the run before the first picture; one that falls short is a row of the table instead.
pub fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let printer = args.list.talk.printer(args.list.json);
    let place =
        Place::new(&args.against, &args.list.output, false).context("--output").or_exit(Exit::Usage)?;
    let mut source = Source::open(&args.list.list)?.expanding(args.list.expand, &args.list.list);
    let session = Session::open(&args.list.compute, None, &printer)?;
    session.announce(&printer, None);
    let mut pipeline = session.pipeline(Residency::Kept);
    let seed = args.list.picture.seed();
    let planner = Planner::new(&session, &args.list, seed.unwrap_or_default(), place);
    let name = source.name.clone();
    let mut largest = Largest::new(&session);
    let mut items = Vec::new();
    let plan = plan::plan(&name, source.list()?, &planner, Shard::WHOLE, |item| {
        items.push(item.clone());
        pipeline.check(&item.request).map_err(|error| format!("{error:#}"))?;
        largest.add(&item.request, Some(item.line));
        Ok(())
    })?;
    if let (Some(line), None) = (plan.unseeded, seed) {
        return Err(Failure::usage(format!("{name}: line {line}: it has no seed, so no picture to expect"))
            .hint("give the line a seed, or pass --seed N"));
    }
    largest.check(&mut pipeline, batch::series(plan.items), &args.list.compute, printer)?;
    if args.update {
        for folder in &plan.folders {
            place::check_folder(folder, true).or_exit(Exit::Usage)?;
        }
    } else if !args.against.is_dir() {
        return Err(Failure::usage(format!("--against {}: it is not a folder", args.against.display()))
            .hint("store the pictures first, with --update"));
    }
    check_differences(args, &items)?;
    let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
    Verify { args, printer, signals: &signals, session: &session, pipeline }.items(&items)
}

struct Verify<'a> {
    args: &'a VerifyArgs,
    printer: Printer,
    signals: &'a Signals,
    session: &'a Session,
    pipeline: Pipeline<'a>,
}

impl Verify<'_> {
    fn items(mut self, items: &[Planned]) -> Result<Exit, Failure> {
        let mut rows = Vec::new();
        for item in items {
            let row = match self.row(item) {
                Ok(row) => row,
                Err(DrawError::Interrupted) => {
                    return Ok(self.signals.received().unwrap_or(Exit::Interrupted));
                }
                Err(error @ DrawError::UnusableModel(_)) => {
                    return Err(error.into_cause()).or_exit(Exit::Model);
                }
                Err(DrawError::Failed(error)) if self.args.update && Self::has_no_place(&error, item) => {
                    return Err(error.context(format!("line {}: no further picture is drawn", item.line)))
                        .or_exit(Exit::PictureFailed);
                }
                Err(DrawError::Failed(error)) => {
                    Row { error: Some(format!("{error:#}")), ..Row::new(item, Verdict::Failed) }
                }
            };
            if self.args.list.json {
                let json = serde_json::to_string(&row).or_exit(Exit::PictureFailed)?;
                printer::stdout_text(&json).or_exit(Exit::PictureFailed)?;
            }
            rows.push(row);
        }
        let failed = rows.iter().filter(|row| !row.verdict.passes()).count();
        if !self.args.list.json {
            let width = rows.iter().map(|row| row.item.chars().count()).max().unwrap_or(0).max(4);
            let head = format!("{:width$}  {:>8}  {:>7}  verdict", "item", "PSNR/dB", "largest");
            let lines: Vec<String> =
                std::iter::once(head).chain(rows.iter().map(|row| row.text(width))).collect();
            printer::stdout_text(&lines.join("\n")).or_exit(Exit::PictureFailed)?;
        }
        if failed == 0 {
            return Ok(Exit::Done);
        }
        let (all, least) = (rows.len(), self.args.min_psnr);
        Err(Failure::new(
            Exit::PictureFailed,
            format!(
                "{failed} of {all} pictures fall short of the stored ones (at least {least} dB is asked for)"
            ),
        )
        .hint("when the change is meant, store the new pictures with --update"))
    }

    /// Whether the pictures after the one that failed so could not be stored either.
    fn has_no_place(error: &anyhow::Error, item: &Planned) -> bool {
        ends_every_run(error) || !files::folder_of(&item.path).is_dir()
    }

    fn row(&mut self, item: &Planned) -> Result<Row, DrawError> {
        let expected = match self.args.update {
            true => None,
            false if !item.path.exists() => return Ok(Row::new(item, Verdict::Missing)),
            false => Some(self.session.pictures.rgb(&item.path)?),
        };
        let mut progress = Progress::new(self.signals, self.printer, format!("{} ", item.path.display()));
        let drawn = self.session.draw(&mut self.pipeline, &item.request, &mut progress)?;
        self.signals.exit_at_once(false);
        let Some(expected) = expected else {
            files::save(&drawn.png()?, &item.path, true)?;
            return Ok(Row::new(item, Verdict::Updated));
        };
        let mut row = Row::new(item, Verdict::OtherSize);
        if let Some(difference) = compare(&expected, &drawn.rgb) {
            row.psnr = difference.psnr.is_finite().then_some(difference.psnr);
            row.largest_difference = Some(difference.largest);
            row.verdict = match difference.psnr {
                f64::INFINITY => Verdict::Same,
                psnr if psnr >= self.args.min_psnr => Verdict::Close,
                _ => Verdict::Differs,
            };
        }
        if !row.verdict.passes() {
            row.diff = Some(shown(&self.write_difference(item, &expected, &drawn.rgb)?));
        }
        Ok(row)
    }

    /// Under the item's own name, so that it is found and a second run replaces it.
    fn write_difference(&self, item: &Planned, expected: &RgbImage, got: &RgbImage) -> Result<PathBuf> {
        let path = difference_path(self.args, item);
        place::check_folder(files::folder_of(&path), true)?;
        by_product::check(&path, false, &[]).map_err(|failure| failure.error)?;
        by_product::save(&side_by_side(expected, got), &path)
    }
}

/// Where the difference of an item goes.
fn difference_path(args: &VerifyArgs, item: &Planned) -> PathBuf {
    args.diff_dir.join(item.path.strip_prefix(&args.against).unwrap_or(&item.path))
}

/// Makes sure that no difference would replace a stored picture.
///
/// # Errors
/// Names the picture.
fn check_differences(args: &VerifyArgs, items: &[Planned]) -> Result<(), Failure> {
    let whole = |path: &Path| path.canonicalize().ok();
    let stored: HashSet<PathBuf> = items.iter().filter_map(|item| whole(&item.path)).collect();
    let lost = items
        .iter()
        .map(|item| difference_path(args, item))
        .find(|path| whole(path).is_some_and(|path| stored.contains(&path)));
    match lost {
        None => Ok(()),
        Some(path) => Err(Failure::usage(format!(
            "--diff-dir {}: differences would replace the stored picture '{}'",
            args.diff_dir.display(),
            path.display()
        ))
        .hint("choose a folder of its own for the differences")),
    }
}
