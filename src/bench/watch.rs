//! Watches pictures being made: one sample of time and work for each encoding, step and decoding.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;

use crate::layers::meter::{Meter, Reading};
use crate::pipeline::{Observer, Phase, Step};

/// One run of one part of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub seconds: f64,
    pub reading: Reading,
}

impl Sample {
    fn plus(self, other: &Self) -> Self {
        Self { seconds: self.seconds + other.seconds, reading: self.reading.plus(&other.reading) }
    }
}

/// The samples of all pictures so far.
pub struct Watch {
    meter: Meter,
    lap: Instant,
    /// What the current lap is part of.
    phase: Option<Phase>,
    /// Loading of networks, several for one picture.
    pub load: Vec<Sample>,
    /// The parts of this picture's encoding so far: the UNet is loaded between them.
    encoding: Option<Sample>,
    pub encode: Vec<Sample>,
    pub steps: Vec<Sample>,
    pub decode: Vec<Sample>,
}

impl Watch {
    pub fn start() -> Self {
        Self {
            meter: Meter::start(),
            lap: Instant::now(),
            phase: None,
            load: Vec::new(),
            encoding: None,
            encode: Vec::new(),
            steps: Vec::new(),
            decode: Vec::new(),
        }
    }

    /// Watches `draw` make one picture.
    pub fn picture(&mut self, draw: impl FnOnce(&mut dyn Observer) -> Result<()>) -> Result<()> {
        draw(self)?;
        self.end_phase();
        self.phase = None;
        self.encode.extend(self.encoding.take());
        Ok(())
    }

    fn end_phase(&mut self) {
        let sample = self.lap();
        match self.phase {
            Some(Phase::Load) => self.load.push(sample),
            Some(Phase::Encode) => {
                self.encoding = Some(self.encoding.map_or(sample, |before| before.plus(&sample)));
            }
            Some(Phase::Decode) => self.decode.push(sample),
            // Its steps have been booked one by one.
            Some(Phase::Denoise | Phase::Refine) | None => {}
        }
    }

    /// What happened since the last call.
    fn lap(&mut self) -> Sample {
        let seconds = self.lap.elapsed().as_secs_f64();
        let reading = self.meter.take();
        self.lap = Instant::now();
        Sample { seconds, reading }
    }
}

impl Observer for Watch {
    fn phase(&mut self, phase: Phase) {
        self.end_phase();
        self.phase = Some(phase);
    }

    fn step(&mut self, _: &Step<'_>) -> ControlFlow<()> {
        let sample = self.lap();
        self.steps.push(sample);
        ControlFlow::Continue(())
    }
}

/// The middle one of `samples` by `seconds`; the slower one of two in the middle.
///
/// # Panics
/// If there is none.
pub fn median<T: Copy>(samples: &[T], seconds: impl Fn(&T) -> f64) -> T {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
    sorted[sorted.len() / 2]
}
