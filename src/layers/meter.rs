//! A stopwatch for layers: seconds and multiply-accumulates by kind of operation; off unless a [`Meter`] lives.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// What a layer spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Conv3x3,
    Conv1x1,
    Linear,
    SelfAttention,
    CrossAttention,
    /// With its activation, and quantized where the next product takes int8.
    Norm,
}

const KINDS: usize = Kind::Norm as usize + 1;

/// Multiply-accumulates by kind of operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Macs([u64; KINDS]);

impl Macs {
    pub fn add(&mut self, kind: Kind, macs: usize) {
        self.0[kind as usize] += macs as u64;
    }

    pub fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for (macs, more) in self.0.iter_mut().zip(other.0) {
            *macs += more;
        }
        self
    }
}

/// What one kind of operation took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    pub time: Duration,
    /// Multiply-accumulates by definition of the operation, however few the kernel gets by with.
    pub macs: u64,
    /// Multiply-accumulates in f32 that would take as long as the kernel's own, if these went as fast as they can.
    pub at_best: f64,
}

impl Spent {
    /// How many times the rate of f32 products could be reached; none where there are no products.
    pub fn gain(&self) -> Option<f64> {
        (self.macs > 0).then(|| self.macs as f64 / self.at_best)
    }
}

/// What each kind took since the last [`Meter::take`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading([Spent; KINDS]);

impl Reading {
    pub fn of(&self, kind: Kind) -> Spent {
        self.0[kind as usize]
    }

    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for (spent, more) in self.0.iter_mut().zip(&other.0) {
            spent.time += more.time;
            spent.macs += more.macs;
            spent.at_best += more.at_best;
        }
        self
    }

    /// What has been multiplied.
    pub fn macs(&self) -> Macs {
        Macs(self.0.map(|spent| spent.macs))
    }
}

#[derive(Default)]
struct Recorder {
    reading: Reading,
    /// Time of finished operations within the current one.
    within: Duration,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Switches recording on, on this thread, for as long as it lives.
pub struct Meter {
    /// Stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Meter {
    pub fn start() -> Self {
        RECORDER.set(Some(Recorder::default()));
        Self { thread: PhantomData }
    }

    /// What was recorded since the start or the last call.
    pub fn take(&self) -> Reading {
        RECORDER.replace(Some(Recorder::default())).unwrap_or_default().reading
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        RECORDER.set(None);
    }
}

/// Does `work` and, while a [`Meter`] lives, books its time and `macs` multiply-accumulates as `kind`; these could be
/// `gain` times as fast as products in f32.
///
/// Time that a call within `work` books is not booked again.
pub(crate) fn record<R>(kind: Kind, macs: usize, gain: f64, work: impl FnOnce() -> R) -> R {
    let Some(around) = with_recorder(|recorder| std::mem::take(&mut recorder.within)) else {
        return work();
    };
    let start = Instant::now();
    let result = work();
    let time = start.elapsed();
    with_recorder(|recorder| {
        let spent = &mut recorder.reading.0[kind as usize];
        spent.time += time.saturating_sub(recorder.within);
        spent.macs += macs as u64;
        spent.at_best += macs as f64 / gain;
        recorder.within = around + time;
    });
    result
}

fn with_recorder<R>(use_recorder: impl FnOnce(&mut Recorder) -> R) -> Option<R> {
    RECORDER.with_borrow_mut(|recorder| recorder.as_mut().map(use_recorder))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(20);

    fn pause() {
        std::thread::sleep(PAUSE);
    }

    #[test]
    fn only_a_living_meter_records() {
        record(Kind::Linear, 1, 1.0, || ());
        let meter = Meter::start();
        record(Kind::Linear, 2, 1.0, || ());
        record(Kind::Linear, 3, 4.0, pause);
        let reading = meter.take();
        assert_eq!(reading.of(Kind::Linear).macs, 5);
        assert_eq!(reading.of(Kind::Linear).gain(), Some(5.0 / 2.75));
        assert_eq!(reading.of(Kind::Norm).gain(), None);
        assert!(reading.of(Kind::Linear).time >= PAUSE);
        assert_eq!(meter.take().macs().total(), 0);
        drop(meter);
        record(Kind::Linear, 7, 1.0, || ());
        assert_eq!(Meter::start().take().macs().total(), 0);
    }

    #[test]
    fn time_within_is_counted_once() {
        let meter = Meter::start();
        let start = Instant::now();
        record(Kind::Conv3x3, 1, 1.0, || {
            record(Kind::Norm, 0, 1.0, pause);
            record(Kind::Linear, 0, 1.0, || record(Kind::Norm, 0, 1.0, pause));
        });
        let all = start.elapsed();
        let reading = meter.take();
        let [conv, norm, linear] =
            [Kind::Conv3x3, Kind::Norm, Kind::Linear].map(|kind| reading.of(kind).time);
        assert!(norm >= 2 * PAUSE);
        assert!(conv + norm + linear <= all, "{conv:?} {norm:?} {linear:?} {all:?}");
    }
}
