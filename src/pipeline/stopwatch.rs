//! Tells an observer what begins and keeps the time it takes, phase by phase; the work itself is passed in.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{DrawError, Observer, Phase};

/// Time by phase.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Zero where every network was in memory already.
    pub load: Duration,
    pub encode: Duration,
    pub denoise: Duration,
    pub decode: Duration,
}

impl Timings {
    fn of(&mut self, phase: Phase) -> &mut Duration {
        match phase {
            Phase::Load => &mut self.load,
            Phase::Encode => &mut self.encode,
            Phase::Denoise | Phase::Refine => &mut self.denoise,
            Phase::Decode => &mut self.decode,
        }
    }
}

/// The observer of a run and the run's times.
pub(super) struct Stopwatch<'a> {
    pub observer: &'a mut dyn Observer,
    pub timings: Timings,
}

impl<'a> Stopwatch<'a> {
    pub fn new(observer: &'a mut dyn Observer) -> Self {
        Self { observer, timings: Timings::default() }
    }

    /// Does `work` as `phase`.
    pub fn time<R>(&mut self, phase: Phase, work: impl FnOnce(&mut dyn Observer) -> R) -> R {
        self.observer.phase(phase);
        let start = Instant::now();
        let result = work(self.observer);
        *self.timings.of(phase) += start.elapsed();
        result
    }

    /// Loads a network.
    ///
    /// # Errors
    /// [`DrawError::UnusableModel`] when `load` fails.
    pub fn load<T>(&mut self, load: impl FnOnce() -> Result<T>) -> Result<T, DrawError> {
        self.time(Phase::Load, |_| load()).map_err(DrawError::UnusableModel)
    }

    /// The network in `slot`, loaded unless it is there.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn resident<'n, T>(
        &mut self,
        slot: &'n mut Option<T>,
        load: impl FnOnce() -> Result<T>,
    ) -> Result<&'n T, DrawError> {
        match slot {
            Some(network) => Ok(network),
            None => Ok(slot.insert(self.load(load)?)),
        }
    }
}
