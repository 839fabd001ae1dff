//! Whether a run's largest picture fits into memory, said before weights are loaded; estimates are `memory`'s.

use super::args::ComputeArgs;
use super::exit::{Exit, Failure};
use super::printer::Printer;
use super::session::Session;
use crate::memory;
use crate::picture_in::PictureBytes;
use crate::pipeline::footprint::{Footprint, Series};
use crate::pipeline::tiling::Tile;
use crate::pipeline::{Model, Pipeline, Residency};
use crate::request::{Precision, Request};

/// A peak above this share of what is available is worth a warning.
const CLOSE: f64 = 0.9;

/// The picture of a run that takes the most.
pub struct Largest<'a> {
    session: &'a Session,
    footprint: Option<Footprint>,
    peak: u64,
    picture: Option<(Request, Option<u64>)>,
}

impl<'a> Largest<'a> {
    /// Of no picture yet.
    pub fn new(session: &'a Session) -> Self {
        Self { session, footprint: session.model.footprint(), peak: 0, picture: None }
    }

    /// Counts `request`, which is on `line` of a list; the pictures it starts from have been read.
    pub fn add(&mut self, request: &Request, line: Option<u64>) {
        let Some(mut footprint) = self.footprint.take() else { return };
        if request.init.is_some() {
            footprint = footprint.with_pictures(self.session.pictures.bytes());
        }
        let peak = footprint.peak(request, Series::One);
        if self.picture.is_none() || peak > self.peak {
            (self.peak, self.picture) = (peak, Some((request.clone(), line)));
        }
        self.footprint = Some(footprint);
    }

    /// As [`Guard::check`]; has `pipeline` stream what else would not fit.
    ///
    /// # Errors
    /// When it can't fit, unless the flags say to try.
    pub fn check(
        &self,
        pipeline: &mut Pipeline<'_>,
        series: Series,
        args: &ComputeArgs,
        printer: Printer,
    ) -> Result<(), Failure> {
        let Some((request, line)) = &self.picture else { return Ok(()) };
        let Session { model, pictures, .. } = self.session;
        let guard =
            Guard { model, pictures: pictures.bytes(), ignore: args.ignore_memory, streams: true, printer };
        if guard.check(request, series, *line)? == Fit::Streamed {
            pipeline.set_residency(Residency::Streamed);
        }
        Ok(())
    }
}

/// How a run's largest picture fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Loaded,
    /// If text encoder and UNet are read layer by layer.
    Streamed,
}

/// What a run computes with, and what becomes of a picture that is too large for it.
pub struct Guard<'a> {
    pub model: &'a Model,
    pub pictures: PictureBytes,
    /// Whether to try all the same.
    pub ignore: bool,
    /// Whether weights can stay in their file.
    pub streams: bool,
    pub printer: Printer,
}

impl Guard<'_> {
    /// Compares what `request`, which is on `line` of a list, needs with what the machine has; on a GPU nothing is
    /// known.
    ///
    /// # Errors
    /// When it can't fit, unless it is to be tried.
    pub fn check(&self, request: &Request, series: Series, line: Option<u64>) -> Result<Fit, Failure> {
        let Self { model, pictures, ignore, streams, printer } = *self;
        let in_precision = |precision| Some(model.footprint_in(precision)?.with_pictures(pictures));
        let (Some(footprint), Some(available)) = (in_precision(model.precision()), memory::allowed()) else {
            return Ok(Fit::Loaded);
        };
        let int8 = match model.precision() {
            Precision::F32 | Precision::F16 => in_precision(Precision::Int8),
            Precision::Int8 => None,
        };
        let place = line.map_or_else(String::new, |line| format!("line {line}: "));
        match judge(&footprint, int8.as_ref(), request, series, streams, available) {
            Verdict::Fits => Ok(Fit::Loaded),
            Verdict::Close(message) => {
                printer.note(&format!("{place}{message}"));
                Ok(Fit::Loaded)
            }
            Verdict::FitsStreamed(message) => {
                let time = match (model.is_prepacked(), model.prepacked_path()) {
                    (true, _) => "",
                    (false, Some(_)) => " and more time (`pochade prepack` saves that)",
                    (false, None) => " and more time",
                };
                printer.note(&format!("{place}{message}{time}"));
                Ok(Fit::Streamed)
            }
            Verdict::TooLarge(message, _) if ignore => {
                printer.note(&format!("{place}{message}: trying all the same"));
                Ok(Fit::Loaded)
            }
            Verdict::TooLarge(message, hint) => {
                Err(Failure::new(Exit::PictureFailed, format!("{place}{message}")).hint(hint))
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Fits,
    Close(String),
    FitsStreamed(String),
    /// And what would fit.
    TooLarge(String, String),
}

fn judge(
    footprint: &Footprint,
    int8: Option<&Footprint>,
    request: &Request,
    series: Series,
    streams: bool,
    available: u64,
) -> Verdict {
    let peak = footprint.peak(request, series);
    let comfortable = (available as f64 * CLOSE) as u64;
    if peak <= comfortable {
        return Verdict::Fits;
    }
    let Request { width, height, .. } = request;
    let needs = format!("a picture of {width}x{height} takes about {} of memory", readable(peak));
    if peak <= available {
        return Verdict::Close(format!("{needs}, nearly all of the {} available", readable(available)));
    }
    let (mut needs, mut footprint, mut int8) = (needs, footprint.clone(), int8.cloned());
    if streams {
        (footprint, int8) = (footprint.streamed(), int8.map(Footprint::streamed));
        let least = footprint.peak(request, series);
        if least <= available {
            let (least, available) = (readable(least), readable(available));
            return Verdict::FitsStreamed(format!(
                "{needs}, and {available} are available: its weights stay in their file and are read at each step, which \
                 takes {least}"
            ));
        }
        needs = format!("{needs}, {} with its weights left in their file", readable(least));
    }
    let mut ways = Vec::new();
    if let Some((width, height)) = footprint.fitting_size(request, series, comfortable) {
        ways.push(format!("--size {width}x{height}"));
    }
    if footprint.tile() == Tile::Off
        && footprint.clone().with_tile(Tile::On).peak(request, series) <= available
    {
        ways.push("--tile on".to_owned());
    }
    if let Some(int8) = int8 {
        if int8.peak(request, series) <= available {
            ways.push("--precision int8".to_owned());
        } else if let (true, Some((width, height))) =
            (ways.is_empty(), int8.fitting_size(request, series, comfortable))
        {
            ways.push(format!("--precision int8 --size {width}x{height}"));
        }
    }
    let last = if memory::is_limited() {
        ways.push(format!("--memory {}MB", footprint.peak(request, series).div_ceil(1_000_000)));
        ""
    } else {
        "; --ignore-memory tries all the same"
    };
    let hint = match ways.is_empty() {
        true => format!("no size of this model fits{last}"),
        false => format!("{} would fit{last}", ways.join(" or ")),
    };
    Verdict::TooLarge(format!("{needs}, and {} are available", readable(available)), hint)
}

fn readable(bytes: u64) -> String {
    if bytes < 1_000_000_000 {
        return format!("{} MB", bytes.div_ceil(1_000_000));
    }
    format!("{:.2} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::pipeline::Numerics;
    use crate::request::Draft;

    #[test]
    fn what_can_not_fit_is_refused_with_what_would() {
        let checkpoint = Checkpoint::built_in().unwrap();
        let defaults = checkpoint.defaults();
        let numerics = Numerics::new(candle_core::Device::Cpu, Precision::F32);
        let model = Model::open(checkpoint, &numerics).unwrap();
        let (f32, int8) = (model.footprint().unwrap(), model.footprint_in(Precision::Int8).unwrap());
        let draft = Draft {
            prompt: Some("x".into()),
            width: Some(256),
            height: Some(128),
            seed: Some(1),
            ..Draft::default()
        };
        let request = draft.resolve(&defaults, crate::picture_in::size_of).unwrap();
        let judge = |available| judge(&f32, Some(&int8), &request, Series::One, false, available);
        let peak = f32.peak(&request, Series::One);
        assert_eq!(judge(2 * peak), Verdict::Fits);
        let Verdict::Close(message) = judge(peak) else { panic!("{:?}", judge(peak)) };
        assert!(
            message.starts_with(&format!("a picture of 256x128 takes about {} of memory", readable(peak))),
            "{message}"
        );
        let Verdict::TooLarge(message, _) = judge(peak - 1) else { panic!("{:?}", judge(peak - 1)) };
        assert!(message.contains(&format!(", and {} are available", readable(peak - 1))), "{message}");
        // What a larger model's larger picture takes follows from size and precision.
        let sd15 = Model::open(Checkpoint::synthetic_sd15(), &numerics).unwrap();
        let (whole, bytes) = (sd15.footprint().unwrap(), sd15.footprint_in(Precision::Int8).unwrap());
        let large = Request { width: 1024, height: 1024, ..request.clone() };
        let less = whole.peak(&large, Series::One) - 1;
        let verdict = super::judge(&whole, Some(&bytes), &large, Series::One, false, less);
        let Verdict::TooLarge(_, hint) = verdict else { panic!("{verdict:?}") };
        assert!(hint.starts_with("--size ") && hint.contains(" or --precision int8 would fit"), "{hint}");
        // The float weights alone take more.
        let little = int8.peak(&request, Series::One) - 1;
        let Verdict::TooLarge(_, hint) = judge(little) else { panic!("{:?}", judge(little)) };
        assert!(hint.starts_with("--precision int8 --size "), "{hint}");
        let Verdict::TooLarge(_, hint) = judge(1) else { panic!("{:?}", judge(1)) };
        assert!(hint.starts_with("no size of this model fits"), "{hint}");
    }
}
