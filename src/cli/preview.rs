//! Where previews go while a picture is being made: the terminal, a file replaced at each step, a folder of all steps.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::RgbImage;
use image::imageops::{self, FilterType};

use super::exit::{Exit, Failure, OrExit};
use super::output;
use super::show;
use crate::pipeline::Step;
use crate::{files, png};

/// What `--preview`, `--preview-file` and `--steps-dir` ask for.
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
    ///
    /// # Errors
    /// Names the path and what is wrong with it.
    pub fn check(&self) -> Result<(), Failure> {
        if let Some(folder) = &self.steps {
            let made = std::fs::create_dir_all(folder);
            made.with_context(|| format!("cannot make the folder {}", folder.display()))
                .or_exit(Exit::Usage)?;
            output::check_paths(&[folder.join("001.png")])?;
        }
        self.file.as_ref().map_or(Ok(()), |file| output::check_paths(std::slice::from_ref(file)))
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
            save(&large, file)?;
        }
        if let Some(folder) = &self.steps {
            save(&large, &folder.join(format!("{index:03}.png")))?;
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

fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    files::save(&png::encode(picture, &[])?, path, true)?;
    Ok(())
}
