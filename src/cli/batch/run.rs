//! Drawing the items of a plan: prompts encoded ahead in windows, each picture written whole, each end recorded.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::args::BatchArgs;
use super::existing::{self, Existing};
use super::plan::{Plan, Planned, Planner};
use super::results::{Outcome, Results, Status};
use super::shard::Shard;
use super::source::Source;
use crate::cli::exit::{Exit, Failure, OrExit};
use crate::cli::printer::{self, Printer};
use crate::cli::progress::{Progress, human};
use crate::cli::report::shown;
use crate::cli::session::{Session, ends_every_run, exit_code};
use crate::cli::signals::Signals;
use crate::files;
use crate::pipeline::{DrawError, Pipeline};
use crate::request::Passes;

/// Prompts encoded at a time: the text encoder's loading is shared by so many, and so many embeddings (a quarter
/// of a megabyte each for SD 1.5) are in memory.
const WINDOW: usize = 32;

pub struct Run<'a> {
    pub args: &'a BatchArgs,
    pub printer: Printer,
    pub session: &'a Session,
    pub pipeline: Pipeline<'a>,
    pub planner: &'a Planner<'a>,
    pub plan: &'a Plan,
    pub shard: Shard,
    pub results: Option<Results>,
    /// The command that goes on where this run ends.
    pub resume: String,
}

#[derive(Default)]
struct Tally {
    drawn: u64,
    kept: u64,
    failed: u64,
}

/// Why no further item is drawn.
enum End {
    Signal(Exit),
    /// Every further item would fail like the one reported.
    Failed(Exit),
}

impl Run<'_> {
    /// Draws the items of the shard in the list's order.
    ///
    /// # Errors
    /// When the list can't be read again or has changed, or signals can't be caught.
    pub fn items(mut self, source: &mut Source) -> Result<Exit, Failure> {
        let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
        signals.exit_at_once(false);
        let mut tally = Tally::default();
        let mut window = Vec::new();
        let mut own = self.plan.own.iter();
        let mut ended = None;
        let name = source.name.clone();
        for (index, item) in (0..self.plan.items).zip(source.list()?) {
            if !self.shard.has(index) {
                continue;
            }
            let item = item.ok().filter(|item| own.next() == Some(&item.fingerprint));
            let planned = item.and_then(|item| self.planner.item(index, item).ok());
            let Some(planned) = planned else { return Err(changed(&name)) };
            window.push(planned);
            if window.len() == WINDOW {
                ended = self.window(&window, &signals, &mut tally);
                window.clear();
                if ended.is_some() {
                    break;
                }
            }
        }
        if ended.is_none() {
            ended = self.window(&window, &signals, &mut tally);
            if ended.is_none() && own.next().is_some() {
                return Err(changed(&name));
            }
        }
        Ok(self.end(ended, &tally))
    }

    fn end(&self, ended: Option<End>, tally: &Tally) -> Exit {
        let Tally { drawn, kept, failed } = tally;
        let left = self.plan.own.len() as u64 - drawn - kept - failed;
        let left_out = if left > 0 { format!(", {left} not begun or not finished") } else { String::new() };
        self.printer.status(&format!("{drawn} drawn, {kept} kept, {failed} failed{left_out}"));
        if left > 0 || *failed > 0 {
            let stdin =
                if self.args.list.list.as_os_str() == "-" { " (with the same list on stdin)" } else { "" };
            let word = if left > 0 { "resume" } else { "try again" };
            self.printer.status(&format!("{word} with{stdin}: {}", self.resume));
        }
        match ended {
            Some(End::Signal(exit) | End::Failed(exit)) => exit,
            None if *failed > 0 => Exit::PictureFailed,
            None => Exit::Done,
        }
    }

    fn window(&mut self, window: &[Planned], signals: &Signals, tally: &mut Tally) -> Option<End> {
        let mut to_draw = Vec::new();
        for item in window {
            if let Some(signal) = signals.received() {
                return Some(End::Signal(signal));
            }
            let kept = self.args.skip_existing
                && self.pipeline.check(&item.request).is_ok_and(|files| {
                    existing::look(&item.path, &item.request, &files, &self.session.provenance)
                        == Existing::Same
                });
            if kept {
                tally.kept += 1;
                if let Err(end) = self.record(item, Status::Kept, Duration::ZERO, Ok(None)) {
                    return Some(end);
                }
            } else {
                to_draw.push(item);
            }
        }
        if to_draw.len() > 1 {
            let requests: Vec<_> = to_draw.iter().map(|item| &item.request).collect();
            let mut progress = Progress::new(signals, self.printer, String::new()).patient();
            let encoded = self.pipeline.encode_ahead(&requests, &mut progress);
            progress.finish();
            if let Err(error) = encoded {
                let exit = exit_code(&error);
                printer::failure(&Failure { exit, error: error.into_cause(), hint: None });
                return Some(End::Failed(exit));
            }
        }
        to_draw.into_iter().find_map(|item| self.item(item, signals, tally))
    }

    fn item(&mut self, item: &Planned, signals: &Signals, tally: &mut Tally) -> Option<End> {
        if let Some(signal) = signals.received() {
            return Some(End::Signal(signal));
        }
        let started = Instant::now();
        let drawn = self.draw(item, signals);
        let took = started.elapsed();
        let status = match &drawn {
            Ok((status, _)) => *status,
            Err(DrawError::Interrupted) => {
                return Some(End::Signal(signals.received().unwrap_or(Exit::Interrupted)));
            }
            Err(_) => Status::Failed,
        };
        *match status {
            Status::Drawn => &mut tally.drawn,
            Status::Kept => &mut tally.kept,
            Status::Failed => &mut tally.failed,
        } += 1;
        let made = drawn.as_ref().map(|(_, passes)| Some(*passes)).map_err(ToString::to_string);
        if let Err(end) = self.record(item, status, took, made) {
            return Some(end);
        }
        let Err(error) = drawn else {
            let number = format!("{}/{}", item.index + 1, self.plan.items);
            self.printer.detail(&format!("{number} {} in {}", item.path.display(), human(took)));
            return None;
        };
        let exit = exit_code(&error);
        let error = error.into_cause();
        // Where the folder of all pictures is gone, none of them has a place.
        let hopeless = exit == Exit::Model || ends_every_run(&error) || !self.args.out_dir.is_dir();
        let error = error.context(format!("item {} (line {})", item.index + 1, item.line));
        printer::failure(&Failure { exit, error, hint: None });
        (hopeless || self.args.fail_fast).then_some(End::Failed(exit))
    }

    /// Draws and writes one picture, unless another process was faster with the same one.
    fn draw(&mut self, item: &Planned, signals: &Signals) -> Result<(Status, Passes), DrawError> {
        let prefix = format!("{}/{} ", item.index + 1, self.plan.items);
        let mut progress = Progress::new(signals, self.printer, prefix).patient();
        let drawn = self.session.draw(&mut self.pipeline, &item.request, &mut progress)?;
        if signals.received().is_some() {
            return Err(DrawError::Interrupted);
        }
        let bytes = drawn.png()?;
        if self.args.force {
            files::save(&bytes, &item.path, true)?;
            return Ok((Status::Drawn, drawn.passes));
        }
        if files::save_new(&bytes, &item.path)? {
            return Ok((Status::Drawn, drawn.passes));
        }
        let provenance = &self.session.provenance;
        match existing::look(&item.path, &item.request, &drawn.record.files, provenance) {
            Existing::Same => Ok((Status::Kept, drawn.passes)),
            _ => Err(DrawError::Failed(anyhow!(
                "can't write {}: another file has come there meanwhile",
                item.path.display()
            ))),
        }
    }

    /// Tells how an item ended, on stdout and in the results.
    fn record(
        &mut self,
        item: &Planned,
        status: Status,
        took: Duration,
        made: Result<Option<Passes>, String>,
    ) -> Result<(), End> {
        let (unet, error) = match made {
            Ok(passes) => (passes, None),
            Err(message) => (None, Some(message)),
        };
        let outcome = Outcome {
            index: item.index + 1,
            line: item.line,
            id: item.id.as_deref(),
            status,
            path: shown(&item.path),
            seed: item.request.seed,
            seconds: took.as_secs_f64(),
            unet,
            error,
        };
        let told = outcome.json().and_then(|json| {
            if let Some(results) = &mut self.results {
                results.append(&json)?;
            }
            match status {
                _ if self.args.list.json => printer::stdout_text(&json),
                Status::Drawn => printer::stdout_path(&item.path),
                Status::Kept | Status::Failed => Ok(()),
            }
        });
        told.context("no further item is drawn").map_err(|error| {
            printer::failure(&Failure { exit: Exit::PictureFailed, error, hint: None });
            End::Failed(Exit::PictureFailed)
        })
    }
}

fn changed(list: &str) -> Failure {
    Failure::usage(format!("the list {list} has changed while it was drawn"))
}
