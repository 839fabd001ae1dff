//! Where previews go while a picture is being made: the terminal, a file replaced at each step, a folder of all steps.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::RgbImage;
use image::imageops::{self, FilterType};

use super::exit::{Exit, Failure, OrExit};
use super::{by_product, show};
use crate::pipeline::Step;
use crate::request::MAX_STEPS;

/// What `--preview` and `--steps-dir` ask for.
#[derive(Debug, Clone, Default)]
pub struct Preview {
    pub terminal: bool,
    pub file: Option<PathBuf>,
    pub steps: Option<PathBuf>,
    /// Pixels for each latent.
    pub factor: u32,
}

impl Preview {
    pub fn is_wanted(&self) -> bool {
        self.terminal || self.file.is_some() || self.steps.is_some()
    }

    /// Makes the folder of steps, and makes sure that the files can be written, before anything expensive happens.
    /// `protected` are files that no preview may replace.
    ///
    /// # Errors
    /// Names the path and what is wrong with it.
    pub fn check(&self, force: bool, protected: &[(&str, &Path)]) -> Result<(), Failure> {
        if let Some(folder) = &self.steps {
            let made = std::fs::create_dir_all(folder);
            made.with_context(|| format!("can't make the folder {}", folder.display()))
                .or_exit(Exit::Usage)?;
            let first = step_path(folder, 1);
            by_product::check(&first, force, protected)?;
            let taken = (2..=2 * MAX_STEPS).map(|index| step_path(folder, index));
            for path in taken.take_while(|path| path.symlink_metadata().is_ok()) {
                by_product::check(&path, force, protected)?;
            }
        }
        self.file.as_ref().map_or(Ok(()), |file| by_product::check(file, force, protected))
    }

    /// Shows and writes one step, number `index` of the picture from 1.
    ///
    /// # Errors
    /// Names the file that can't be written.
    pub fn step(&self, step: &Step<'_>, index: usize) -> Result<()> {
        let Some(projection) = step.projection else { return Ok(()) };
        let small = projection.project(step.denoised)?;
        let large = enlarged(&small, self.factor);
        if let Some(file) = &self.file {
            by_product::save(&large, file)?;
        }
        if let Some(folder) = &self.steps {
            by_product::save(&large, &step_path(folder, index))?;
        }
        if self.terminal {
            show::redraw(large, index > 1)?;
        }
        Ok(())
    }
}

fn enlarged(picture: &RgbImage, factor: u32) -> RgbImage {
    imageops::resize(picture, picture.width() * factor, picture.height() * factor, FilterType::Triangle)
}

fn step_path(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("{index:03}.png"))
}
