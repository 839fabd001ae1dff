//! The opened model and what else all pictures of a run share: for generate, batch and verify alike.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use image::RgbImage;

use super::args::ComputeArgs;
use super::backend;
use super::exit::{Exit, Failure, OrExit};
use super::model::{Choice, Rule};
use super::printer::Printer;
use super::progress::Progress;
use super::speeds::{Machine, Speeds};
use crate::checkpoint::Checkpoint;
use crate::files::Fingerprint;
use crate::memory;
use crate::picture_in::Pictures;
use crate::pipeline::tiling::Tile;
use crate::pipeline::{DrawError, Model, Numerics, Picture, Pipeline, Residency, Timings};
use crate::png;
use crate::request::{Defaults, Embedded, Passes, Precision, Record, Request, UsedFile};

/// A model that is opened; its networks are loaded by its pipelines.
pub struct Session {
    pub model: Model,
    pub provenance: Provenance,
    /// Those that requests start from.
    pub pictures: Arc<Pictures>,
    /// What opening the model took.
    pub opening: Duration,
    /// What earlier runs took.
    pub speeds: Speeds,
    choice: Choice,
}

impl Session {
    /// Opens what the flags ask for; where they are silent, what the picture given with `--from` was made with.
    ///
    /// # Errors
    /// When the model, the device or the precision can't be used.
    pub fn open(
        compute: &ComputeArgs,
        embedded: Option<&Embedded>,
        printer: &Printer,
    ) -> Result<Self, Failure> {
        let device = backend::device(compute.device)?;
        let precision = precision(compute, embedded, &device, printer)?;
        backend::start_threads(compute.threads, printer)?;
        if let Some(bytes) = compute.memory {
            if !device.is_cpu() {
                return Err(Failure::new(
                    Exit::Usage,
                    "--memory is for the cpu; on a gpu the whole model is loaded",
                ));
            }
            memory::limit(bytes);
        }
        let choice = Choice::new(compute.model.as_deref(), embedded.and_then(Embedded::model));
        let started = Instant::now();
        let mut checkpoint = choice.open()?;
        compute.parts.apply(&mut checkpoint)?;
        let model = Model::open(checkpoint, &Numerics::new(device.clone(), precision));
        let model = model.or_exit(Exit::Model)?.with_tile(tile(compute, embedded));
        let provenance = Provenance {
            model: model.checkpoint().name().to_owned(),
            components: components(model.checkpoint()),
            precision,
            kernel: model.kernel(),
            device: backend::name(&device),
        };
        // Maps of strings and numbers can't fail to be written.
        let configs = serde_json::to_vec(model.checkpoint().configs()).unwrap_or_default();
        let machine = Machine {
            model: provenance.model.clone(),
            configs: Fingerprint::of_bytes(&configs).whole,
            components: provenance.components.clone(),
            precision: precision.to_string(),
            kernel: provenance.kernel.clone(),
            device: provenance.device.to_owned(),
            threads: rayon::current_num_threads(),
            memory: compute.memory,
        };
        let pictures =
            if compute.ignore_memory { Pictures::default() } else { Pictures::within(memory::available) };
        let (pictures, opening) = (Arc::new(pictures), started.elapsed());
        Ok(Self { model, provenance, pictures, opening, speeds: Speeds::new(machine), choice })
    }

    pub fn defaults(&self) -> Defaults {
        self.model.checkpoint().defaults()
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        self.model.checkpoint().name()
    }

    pub fn pipeline(&self, residency: Residency) -> Pipeline<'_> {
        Pipeline::new(&self.model, residency).with_pictures(self.pictures.clone())
    }

    /// Names the model where the user might expect another one, and how `embedded` was made otherwise.
    pub fn announce(&self, printer: &Printer, embedded: Option<&Embedded>) {
        let Self { choice, provenance, .. } = self;
        let name = self.name();
        match choice.rule {
            Rule::Default => printer
                .note("using the small built-in model; `pochade models pull sd15` fetches Stable Diffusion 1.5, `-m PATH` opens another"),
            Rule::Pulled => printer
                .note(&format!("using {name}, which has been pulled; `-m pocket` is the small built-in model")),
            _ => {}
        }
        printer.detail(&format!("model {name}: {}, {}", choice.source, choice.rule));
        note_packed(&self.model, printer);
        if let Some(path) = self.model.prepacked_path().filter(|_| self.model.is_prepacked()) {
            printer.detail(&format!("weights are packed already: {}", path.display()));
        }
        if let Some(made_with) = embedded.and_then(Embedded::model).filter(|&made_with| made_with != name) {
            printer.note(&format!("the picture was made with model '{made_with}', this run uses '{name}'"));
        }
        match embedded {
            Some(Embedded::Record(record)) => {
                note_components(printer, &record.components, &provenance.components);
            }
            Some(Embedded::Parameters(parameters)) if !parameters.unknown.is_empty() => printer.note(
                &format!("the picture's other settings are not used: {}", parameters.unknown.join(", ")),
            ),
            _ => {}
        }
    }

    /// Keeps how fast a picture was drawn.
    pub fn note(&self, request: &Request, drawn: &Picture) {
        let timings = drawn.timings;
        let opening = if timings.load > Duration::ZERO { self.opening } else { Duration::ZERO };
        self.speeds.note(request, &Timings { load: timings.load + opening, ..timings }, drawn.pace);
    }

    /// Draws one picture.
    ///
    /// # Errors
    /// As [`Pipeline::generate`].
    pub fn draw(
        &self,
        pipeline: &mut Pipeline<'_>,
        request: &Request,
        progress: &mut Progress<'_>,
    ) -> Result<Drawn, DrawError> {
        let drawn = pipeline.generate(request, progress);
        progress.finish();
        let drawn = drawn?;
        self.note(request, &drawn);
        let Picture { rgb, timings, passes, files, tiled, .. } = drawn;
        let unet = request.saves_work().then_some(passes);
        let record = Record { unet, ..self.provenance.record(request, files, tiled) };
        Ok(Drawn { rgb, timings, passes, record })
    }
}

/// A finished picture and how it was made.
pub struct Drawn {
    pub rgb: RgbImage,
    pub timings: Timings,
    /// What the UNet computed.
    pub passes: Passes,
    pub record: Record<Request>,
}

impl Drawn {
    /// The bytes of a PNG that says how it was made.
    ///
    /// # Errors
    /// None in practice: both are in memory.
    pub fn png(&self) -> Result<Vec<u8>> {
        png::encode(&self.rgb, &self.record.text_chunks()?)
    }
}

/// What the pictures of a run are made by. Kernel and device are part of the record but not of a comparison: a
/// run that is resumed on another machine keeps what the first one finished.
pub struct Provenance {
    pub model: String,
    /// Those that are not the model's own.
    pub components: BTreeMap<String, String>,
    pub precision: Precision,
    pub kernel: String,
    pub device: &'static str,
}

impl Provenance {
    /// `files` are those beside the model that the picture was made with.
    pub fn record(&self, request: &Request, files: Vec<UsedFile>, tiled: bool) -> Record<Request> {
        Record {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.model.clone(),
            components: self.components.clone(),
            precision: self.precision,
            kernel: self.kernel.clone(),
            device: self.device.to_owned(),
            files,
            tiled,
            unet: None,
            request: request.without_folders(),
        }
    }
}

/// Whether every further picture would fail like the one that failed so, after all the work of drawing it: a disk
/// that is full or can't be written.
pub fn ends_every_run(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|error| {
        matches!(
            error.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
        )
    })
}

/// Says why weights that are packed already are of no use, if there are such.
pub fn note_packed(model: &Model, printer: &Printer) {
    if let Some(notice) = model.notice() {
        printer.note(&format!("{notice}; `pochade prepack` makes it anew"));
    }
}

/// The exit code of a picture that was not made; that of a signal is known to who caught it.
pub fn exit_code(error: &DrawError) -> Exit {
    match error {
        DrawError::Interrupted => Exit::Interrupted,
        DrawError::UnusableModel(_) => Exit::Model,
        DrawError::Failed(_) => Exit::PictureFailed,
    }
}

/// The components that are not the model's own, as a picture's record names them.
fn components(checkpoint: &Checkpoint) -> BTreeMap<String, String> {
    checkpoint.replaced().iter().map(|(part, file)| (part.name().to_owned(), file.clone())).collect()
}

/// The flag, else on where the picture was decoded so.
fn tile(compute: &ComputeArgs, embedded: Option<&Embedded>) -> Tile {
    match (compute.tile, embedded) {
        (Some(choice), _) => choice.into(),
        (None, Some(Embedded::Record(record))) if record.tiled => Tile::On,
        (None, _) => Tile::Auto,
    }
}

/// The flag, else the picture's precision if this device has it, else the device's own.
fn precision(
    compute: &ComputeArgs,
    embedded: Option<&Embedded>,
    device: &candle_core::Device,
    printer: &Printer,
) -> Result<Precision, Failure> {
    if let Some(choice) = compute.precision {
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

/// Says where the components of other files differ from those a picture was made with.
fn note_components(printer: &Printer, then: &BTreeMap<String, String>, this: &BTreeMap<String, String>) {
    for (part, file) in then.iter().filter(|(part, file)| this.get(*part) != Some(file)) {
        printer.note(&format!("the picture was made with --{part} '{file}', which this run does not use"));
    }
    for part in this.keys().filter(|part| !then.contains_key(*part)) {
        printer.note(&format!("the picture was made without --{part}"));
    }
}
