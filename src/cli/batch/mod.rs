//! `pochade batch`: a list of pictures, checked whole, then drawn one by one, so that a failure loses only itself.

pub mod args;
pub mod existing;
pub mod place;
pub mod plan;
pub mod results;
mod resume;
mod run;
mod shard;
mod source;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{BufWriter, Write};

use anyhow::Context;

use super::exit::{Exit, Failure, OrExit};
use super::memory_guard::Largest;
use super::printer;
use super::report::shown;
use super::session::{Provenance, Session};
use super::within::Within;
use crate::pipeline::footprint::Series;
use crate::pipeline::{Pipeline, Residency};
use crate::{files, request};
use args::BatchArgs;
use existing::Existing;
use place::Place;
use plan::{Planned, Planner};
use results::Results;
use run::Run;
pub use shard::Shard;

pub use source::Source;

/// Draws every picture of the list that is this process's and not there yet.
///
/// # Errors
/// What ends the run before the first picture; a picture that fails is reported and counted instead.
pub fn run(args: &BatchArgs) -> Result<Exit, Failure> {
    let printer = args.list.talk.printer(args.list.json);
    let shard = args.shard.unwrap_or(Shard::WHOLE);
    let place = Place::new(&args.out_dir, &args.list.output, args.allow_absolute);
    let place = place.context("--output").or_exit(Exit::Usage)?;
    let mut source = Source::open(&args.list.list)?.expanding(args.list.expand, &args.list.list);
    let session = Session::open(&args.list.compute, None, &printer)?;
    session.announce(&printer, None);
    let mut pipeline = session.pipeline(Residency::Kept);
    let drawn = match args.list.picture.seed() {
        Some(_) => None,
        // Half of the range, so that no list's last seed leaves 32 bits.
        None => Some(request::drawn_seed().or_exit(Exit::PictureFailed)? >> 1),
    };
    let base_seed = args.list.picture.seed().or(drawn).unwrap_or_default();
    let within = args.within.map(|budget| {
        let (session, compute, told) = (&session, &args.list.compute, RefCell::default());
        Within { session, compute, printer, budget, loads: false, told }
    });
    let planner = Planner { within, ..Planner::new(&session, &args.list, base_seed, place) };

    let mut largest = Largest::new(&session);
    let mut kept = 0u64;
    let mut to_draw = Vec::new();
    let plan = {
        let name = source.name.clone();
        plan::plan(&name, source.list()?, &planner, shard, |planned| {
            let draw = look(args, &mut pipeline, &session.provenance, planned)?;
            to_draw.push(draw);
            kept += u64::from(!draw);
            if draw {
                largest.add(&planned.request, Some(planned.line));
            }
            Ok(())
        })?
    };
    let drawn = drawn.filter(|_| plan.unseeded.is_some());
    if let (Some(line), Some(_)) = (plan.unseeded, drawn)
        && (args.shard.is_some() || args.skip_existing)
    {
        let flag = if args.shard.is_some() { "--shard" } else { "--skip-existing" };
        return Err(Failure::usage(format!(
            "{}: line {line}: it has no seed, and {flag} needs one that stays",
            source.name
        ))
        .hint("pass --seed N, the same in every run: the item at index k, counting from 0, has seed N + k"));
    }
    let own = plan.own.len() as u64;
    printer.status(&format!(
        "{} items{}: {} to draw, {kept} there already",
        plan.items,
        if shard == Shard::WHOLE { String::new() } else { format!(", {own} of them in part {shard}") },
        own - kept
    ));
    if let Some(seed) = drawn {
        printer.note(&format!("seeds begin with {seed} (--seed {seed} draws the same pictures)"));
    }
    for folder in &plan.folders {
        place::check_folder(folder, !args.dry_run).or_exit(Exit::Usage)?;
    }
    if args.dry_run {
        return dry_run(args, &mut source, &planner, shard, &to_draw);
    }
    largest.check(&mut pipeline, series(own - kept), &args.list.compute, printer)?;
    for folder in &plan.folders {
        match files::sweep(folder) {
            0 => {}
            swept => printer
                .detail(&format!("{swept} abandoned temporary files removed from {}", folder.display())),
        }
    }
    let results = args.results.as_deref().map(Results::open).transpose().or_exit(Exit::Usage)?;
    let words: Vec<OsString> = std::env::args_os().collect();
    let resume = resume::command(&words, args.skip_existing, drawn);
    Run { args, printer, session: &session, pipeline, planner: &planner, plan: &plan, shard, results, resume }
        .items(&mut source)
}

/// What a list of so many items keeps in memory.
pub fn series(items: u64) -> Series {
    if items > 1 { Series::Prompts } else { Series::SamePrompt }
}

/// Whether an item has to be drawn.
fn look(
    args: &BatchArgs,
    pipeline: &mut Pipeline<'_>,
    provenance: &Provenance,
    planned: &Planned,
) -> Result<bool, String> {
    let files = pipeline.check(&planned.request).map_err(|error| format!("{error:#}"))?;
    let shown = planned.path.display();
    match existing::look(&planned.path, &planned.request, &files, provenance) {
        Existing::Nothing => Ok(true),
        Existing::NoFile => Err(format!("{shown} is not a regular file")),
        Existing::Same if args.skip_existing => Ok(false),
        Existing::Same | Existing::Other(_) if args.force => Ok(true),
        Existing::Other(how) if args.skip_existing => Err(format!("{shown} {how} (--force draws it again)")),
        Existing::Same | Existing::Other(_) => {
            Err(format!("{shown} exists (--skip-existing keeps what is finished, --force overwrites)"))
        }
    }
}

/// Prints what would be drawn.
fn dry_run(
    args: &BatchArgs,
    source: &mut Source,
    planner: &Planner<'_>,
    shard: Shard,
    to_draw: &[bool],
) -> Result<Exit, Failure> {
    let mut stdout = BufWriter::new(std::io::stdout().lock());
    let mut to_draw = to_draw.iter();
    for (index, item) in (0..).zip(source.list()?) {
        let Some(item) = item.ok().filter(|_| shard.has(index)) else { continue };
        if to_draw.next() != Some(&true) {
            continue;
        }
        let planned = planner.item(index, item).map_err(Failure::usage)?;
        let written = if args.list.json {
            let json = serde_json::json!({
                "index": index + 1,
                "line": planned.line,
                "id": planned.id,
                "path": shown(&planned.path),
                "request": planned.request,
            });
            writeln!(stdout, "{}", printer::plain(&json.to_string()))
        } else {
            stdout.write_all(&printer::path_line(&planned.path))
        };
        match written {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            written => written.context("cannot write to stdout").or_exit(Exit::PictureFailed)?,
        }
    }
    match stdout.flush() {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        flushed => {
            flushed.context("cannot write to stdout").or_exit(Exit::PictureFailed).map(|()| Exit::Done)
        }
    }
}
