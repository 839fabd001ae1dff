//! The model, device and settings that all items of a list share.

use candle_core::Device;

use super::args::ListArgs;
use super::place::Place;
use super::plan::Planner;
use crate::checkpoint::Checkpoint;
use crate::cli::exit::{Exit, Failure, OrExit};
use crate::cli::maker::Maker;
use crate::cli::model::Choice;
use crate::cli::printer::Printer;
use crate::cli::slug::slug;
use crate::cli::{backend, generate};
use crate::memory::tiling::Tile;
use crate::pipeline::{LoadOptions, Pipeline};
use crate::request::{Draft, Precision};

/// A model that is opened; its networks are loaded by the pipeline.
pub struct Session {
    pub checkpoint: Checkpoint,
    device: Device,
    precision: Precision,
    tile: Tile,
}

impl Session {
    /// # Errors
    /// When the model, the device or the precision can't be used.
    pub fn open(args: &ListArgs, printer: Printer) -> Result<Self, Failure> {
        let compute = &args.compute;
        let device = backend::device(compute.device)?;
        let asked = compute.precision.and_then(|choice| choice.asked());
        let precision = backend::precision(asked, &device)?;
        backend::start_threads(compute.threads)?;
        let choice = Choice::new(compute.model.as_deref(), None);
        let mut checkpoint = choice.open()?;
        compute.parts.apply(&mut checkpoint)?;
        generate::say_which_model(&printer, &choice, &checkpoint, None);
        let tile = compute.tile.map_or_else(Tile::default, Tile::from);
        Ok(Self { checkpoint, device, precision, tile })
    }

    pub fn planner<'a>(&self, args: &ListArgs, base_seed: u64, place: Place<'a>) -> Planner<'a> {
        Planner {
            defaults: self.checkpoint.defaults(),
            flags: Draft { seed: None, ..args.picture.draft() },
            base_seed,
            place,
            model: slug(self.checkpoint.name()),
        }
    }

    /// # Errors
    /// When the model's configs can't be used.
    pub fn pipeline(&self) -> Result<Pipeline<'_>, Failure> {
        let options = LoadOptions { device: self.device.clone(), precision: self.precision, single: false };
        let pipeline = Pipeline::load(&self.checkpoint, &options).or_exit(Exit::Model)?;
        Ok(pipeline.with_tile(self.tile))
    }

    /// What pictures of `pipeline` say about their making.
    pub fn maker(&self, pipeline: &Pipeline<'_>) -> Maker {
        Maker {
            model: self.checkpoint.name().to_owned(),
            components: generate::components(&self.checkpoint),
            precision: self.precision,
            kernel: pipeline.kernel(),
            device: backend::name(&self.device),
        }
    }
}
