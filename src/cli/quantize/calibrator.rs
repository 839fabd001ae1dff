//! What `quantize --method` learns from: the prompts' list, what an interrupted run left, how much memory there is.

use std::path::{Path, PathBuf};

use super::super::batch::Source;
use super::super::exit::{Exit, Failure, OrExit};
use super::super::memory_guard::Guard;
use super::super::model_args::{QuantizeArgs, REPORT_PIXELS};
use super::super::printer::Printer;
use super::super::watched::watched;
use crate::calibration::{self, Kept, Learned, Lesson, Runs, Unkept};
use crate::checkpoint::Checkpoint;
use crate::memory;
use crate::picture_in::{self, PictureBytes};
use crate::pipeline::footprint::Series;
use crate::pipeline::{Model, Numerics};
use crate::quantize::{Learning, Policy};
use crate::request::list::Fault;
use crate::request::{Defaults, Draft, Precision, Request};

/// Of the first built-in prompt, or the first line without one; each further one has the next. Far from those that
/// reports begin with, so that nothing is measured with what it was learned from.
const FIRST_SEED: u64 = 1000;

/// Of each picture.
const TIMESTEPS: u16 = 8;

/// Bytes of statistics at a time, where memory has room: with as many, full-size Stable Diffusion 1.5 runs twice.
const STATISTICS: u64 = 8 << 30;

/// All that learning takes, checked.
pub struct Calibrator {
    learning: Learning,
    /// Where it is kept until the file is written.
    folder: PathBuf,
    requests: Vec<Request>,
    timesteps: usize,
    statistics: u64,
    printer: Printer,
}

impl Calibrator {
    /// # Errors
    /// Names the line of the list that is wrong, or says that memory is short.
    pub fn new(
        learning: Learning,
        args: &QuantizeArgs,
        checkpoint: &Checkpoint,
        printer: Printer,
    ) -> Result<Self, Failure> {
        let own = checkpoint.defaults();
        let side = |own: usize| args.calibrate_size.unwrap_or(own.min(REPORT_PIXELS));
        let defaults = Defaults { width: side(own.width), height: side(own.height), ..own };
        let requests = match &args.calibrate {
            Some(path) => read(Source::open(path)?, &defaults)?,
            None => {
                let seeds = FIRST_SEED..;
                seeds
                    .zip(calibration::PROMPTS)
                    .map(|(seed, prompt)| Request::new(prompt, seed, &defaults))
                    .collect()
            }
        };
        let statistics = check_memory(checkpoint, &requests, args.ignore_memory, printer)?;
        Ok(Self {
            learning,
            folder: folder(&args.destination),
            requests,
            timesteps: usize::from(args.calibrate_steps.unwrap_or(TIMESTEPS)),
            statistics,
            printer,
        })
    }

    /// The model with rounding learned for each of the policies, which differ in bits only.
    ///
    /// # Errors
    /// When the model is unusable or int8 already.
    pub fn learn<const N: usize>(
        &self,
        checkpoint: &Checkpoint,
        policies: [&Policy; N],
    ) -> Result<[Learned; N], Failure> {
        calibration::check(checkpoint).or_exit(Exit::Model)?;
        let Some(first) = policies.first() else { return Ok(policies.map(|_| Learned::default())) };
        let balance = checkpoint.tensors().balance(first).or_exit(Exit::Model)?;
        let (requests, timesteps) = (&self.requests, self.timesteps);
        let which = calibration::identity(checkpoint, self.learning, &policies, requests, timesteps);
        let which = which.or_exit(Exit::Model)?;
        let (kept, goes_on) = Kept::open(&self.folder, &which).or_exit(Exit::PictureFailed)?;
        if goes_on {
            let from = self.folder.display();
            self.printer.status(&format!("going on where an earlier run left off, by what is in {from}"));
        }
        let runs = watched("drawing in int8, picture", self.printer, |on_picture| {
            Runs::draw(checkpoint, requests, timesteps, &kept, on_picture)
        });
        let runs = runs.map_err(of_disk)?;
        let lesson =
            Lesson { learning: self.learning, runs: &runs, memory: self.statistics as usize, kept: &kept };
        let learned = watched("learning, part", self.printer, |on_progress| {
            calibration::learn_each(checkpoint, policies, &balance, &lesson, on_progress)
        });
        learned.map_err(of_disk)
    }

    /// Forgets what was kept, once the file has been written.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn forget(destination: &Path) -> Result<(), Failure> {
        Kept::in_folder(&folder(destination)).finish().or_exit(Exit::PictureFailed)
    }
}

/// Where the calibration of the file at `destination` is kept until that is written.
fn folder(destination: &Path) -> PathBuf {
    let mut name = destination.as_os_str().to_owned();
    name.push(".learning");
    name.into()
}

/// `failure`, which is not the model's fault if the calibration couldn't be kept.
fn of_disk(failure: Failure) -> Failure {
    if failure.error.is::<Unkept>() { Failure { exit: Exit::PictureFailed, ..failure } } else { failure }
}

/// The requests of a list that are about the model alone.
fn read(mut source: Source, defaults: &Defaults) -> Result<Vec<Request>, Failure> {
    let name = source.name.clone();
    let mut requests = Vec::new();
    for item in source.list()? {
        let wrong = |line: u64, message: &str| Failure::usage(format!("{name}, line {line}: {message}"));
        let item = match item {
            Ok(item) => item,
            Err(Fault::Line(error)) => return Err(wrong(error.line, &error.message)),
            Err(Fault::Read(error)) => {
                return Err(Failure::usage(format!("cannot read the list {name}: {error}")));
            }
        };
        let draft =
            Draft { seed: item.draft.seed.or(Some(FIRST_SEED + requests.len() as u64)), ..item.draft };
        let adapted = draft.lora.as_ref().is_some_and(|loras| !loras.is_empty()) || draft.fast.is_some();
        if adapted || draft.init.is_some() || draft.hires.is_some() {
            return Err(wrong(
                item.line,
                "rounding is learned without LoRAs, their recipes, init pictures and second passes",
            ));
        }
        let request = draft.resolve(defaults, picture_in::size_of);
        requests.push(request.map_err(|error| wrong(item.line, &format!("{error:#}")))?);
    }
    if requests.is_empty() {
        return Err(Failure::usage(format!("the list {name} has no prompts")));
    }
    Ok(requests)
}

/// How many bytes statistics may take beside the network in f32.
fn check_memory(
    checkpoint: &Checkpoint,
    requests: &[Request],
    ignore: bool,
    printer: Printer,
) -> Result<u64, Failure> {
    let model = Model::open(checkpoint.clone(), &Numerics::on_cpu(Precision::F32)).or_exit(Exit::Model)?;
    let Some(largest) = requests.iter().max_by_key(|request| request.width * request.height) else {
        return Ok(0);
    };
    let guard = Guard { model: &model, pictures: PictureBytes::default(), ignore, streams: false, printer };
    let checked = guard.check(largest, Series::Prompts, None);
    checked.map_err(|failure| {
        failure.hint(
            "pass a smaller --calibrate-size, or `--method nearest`; --ignore-memory tries all the same",
        )
    })?;
    let (Some(footprint), Some(available)) = (model.footprint(), memory::available()) else {
        return Ok(STATISTICS);
    };
    let left = available.saturating_sub(footprint.peak(largest, Series::Prompts));
    Ok((left / 2).min(STATISTICS))
}
