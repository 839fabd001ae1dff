//! `pochade bench`: which model is measured how, and the report as tables or JSON; measuring is the library's.

use std::time::Instant;

use candle_core::Device;

use super::args::{BenchArgs, Geometry};
use super::exit::{Exit, Failure, OrExit};
use super::memory_guard::{Fit, Guard};
use super::model::Choice;
use super::printer::{Printer, Verbosity};
use super::session::{exit_code, note_packed};
use super::{backend, printer};
use crate::bench::{self, Operation, Options, Part, Report};
use crate::checkpoint::Checkpoint;
use crate::memory;
use crate::picture_in::PictureBytes;
use crate::pipeline::footprint::Series;
use crate::pipeline::{Model, Numerics};

/// Measures and prints.
///
/// # Errors
/// When the model is unusable, the options are out of range or a picture fails.
pub fn run(args: &BenchArgs) -> Result<Exit, Failure> {
    let precision = backend::precision(args.precision.asked(), &Device::Cpu)?;
    let printer = Printer::new(Verbosity::Normal, false);
    backend::start_threads(args.threads, &printer)?;
    let start = Instant::now();
    let mut checkpoint = open(args)?;
    args.parts.apply(&mut checkpoint)?;
    let opening = start.elapsed();
    let defaults = checkpoint.defaults();
    let (width, height) = args.size.unwrap_or((defaults.width, defaults.height));
    let (steps, repeats) = (usize::from(args.steps), usize::from(args.repeats));
    let options = Options { precision, width, height, steps, repeats, opening, streamed: false };
    options.validate().or_exit(Exit::Usage)?;
    if let Some(bytes) = args.memory {
        memory::limit(bytes);
    }
    let streamed = check_memory(&checkpoint, &options, args.ignore_memory, printer)? == Fit::Streamed;
    let options = Options { streamed, ..options };

    let report = bench::run(checkpoint, &options, &mut |what| printer.status(what));
    let report = report.map_err(|error| {
        let exit = error.downcast_ref().map_or(Exit::PictureFailed, exit_code);
        Failure { exit, error, hint: None }
    })?;
    let text = if args.json { report.json().to_string() } else { tables(&report) };
    printer::stdout_text(&text).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}

fn check_memory(
    checkpoint: &Checkpoint,
    options: &Options,
    ignore: bool,
    printer: Printer,
) -> Result<Fit, Failure> {
    let model = Model::open(checkpoint.clone(), &Numerics::on_cpu(options.precision)).or_exit(Exit::Model)?;
    note_packed(&model, &printer);
    let series = if options.repeats == 1 { Series::One } else { Series::Prompts };
    let guard = Guard { model: &model, pictures: PictureBytes::default(), ignore, streams: true, printer };
    guard.check(&options.request(0), series, None)
}

fn open(args: &BenchArgs) -> Result<Checkpoint, Failure> {
    match (&args.model, args.synthetic) {
        (Some(path), _) => Choice::new(Some(path), None).open(),
        (None, None | Some(Geometry::Sd15)) => Ok(Checkpoint::synthetic_sd15()),
    }
}

fn tables(report: &Report) -> String {
    let Report { model, precision, width, height, threads, .. } = report;
    let plural = if *threads == 1 { "" } else { "s" };
    let kernels = report.kernels.join(", ");
    let rounds: Vec<_> = report.f32_gmacs_rounds.iter().map(|rate| format!("{rate:.1}")).collect();
    let gigabytes = |bytes| format!("{:.2} GB", bytes as f64 / 1e9);
    let facts = [
        format!("{model}, {precision}, {width}x{height}, {threads} thread{plural}, {kernels}"),
        format!(
            "f32 product of 1024: {:.1} GMAC/s ({} before and after each picture), by our kernels {:.1}",
            report.f32_gmacs,
            rounds.join(", "),
            report.kernel_f32_gmacs
        ),
        format!("peak memory: {}", report.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), gigabytes)),
    ];
    let load = match report.inventing_seconds {
        0.0 => "load".to_owned(),
        seconds => format!("load, without {seconds:.1} s for making up weights"),
    };
    let mut parts = vec![
        ["", "seconds", "GMAC", "GMAC/s", "cost"].map(str::to_owned).to_vec(),
        vec![load, format!("{:.4}", report.load_seconds)],
    ];
    let named = [
        ("text encoder", &report.text_encoder),
        ("UNet step", &report.unet_step),
        ("VAE decode", &report.vae_decode),
    ];
    for (name, part) in named {
        parts.push(vec![
            name.to_owned(),
            format!("{:.4}", part.seconds),
            format!("{:.2}", part.gmac),
            format!("{:.1}", part.gmacs()),
            format!("{:.3}", part.cost),
        ]);
    }
    [
        facts.join("\n"),
        aligned(&parts),
        aligned(&operations("UNet step", &report.unet_step)),
        aligned(&operations("VAE decode", &report.vae_decode)),
    ]
    .join("\n\n")
}

/// One row for each kind of operation there is, under the names of the columns, and their sum.
fn operations(name: &str, part: &Part) -> Vec<Vec<String>> {
    let mut rows = vec![[name, "seconds", "share", "GMAC", "GMAC/s", "at best"].map(str::to_owned).to_vec()];
    let all = Operation {
        kind: "all",
        seconds: part.seconds,
        share: 1.0,
        gmac: part.gmac,
        gmacs: Some(part.gmacs()),
        best_gmacs: None,
    };
    let found = part.operations.iter().filter(|operation| operation.seconds > 0.0);
    for operation in found.chain([&all]) {
        let mut row = vec![
            operation.kind.to_owned(),
            format!("{:.4}", operation.seconds),
            format!("{:.1} %", 100.0 * operation.share),
        ];
        if let Some(gmacs) = operation.gmacs {
            row.extend([format!("{:.2}", operation.gmac), format!("{gmacs:.1}")]);
            row.extend(operation.best_gmacs.map(|best| format!("{best:.0}")));
        }
        rows.push(row);
    }
    rows
}

/// Columns as wide as their widest cell: the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| match column {
            0 => format!("{cell:<0$}", width(0)),
            _ => format!("  {cell:>0$}", width(column).max(7)),
        });
        cells.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let rows = [row(&["", "seconds", "a"]), row(&["one", "1.5"]), row(&["three", "10.5", "12345678"])];
        assert_eq!(aligned(&rows), "       seconds         a\none        1.5\nthree     10.5  12345678");
    }
}
