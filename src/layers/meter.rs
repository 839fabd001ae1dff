//! A stopwatch for layers: seconds and multiply-accumulates by kind of operation, on the thread that runs the network; off unless a [`Meter`] lives.

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
    Norm,
    /// candle-transformers' text encoder, as one.
    TextEncoder,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Conv3x3,
        Self::Conv1x1,
        Self::Linear,
        Self::SelfAttention,
        Self::CrossAttention,
        Self::Norm,
        Self::TextEncoder,
    ];
}

/// One kind's share of the work since the last [`Meter::take`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    pub time: Duration,
    /// Multiply-accumulates by definition of the operation, however few the kernel gets by with.
    pub macs: u64,
}

/// [`Spent`] of each kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading([Spent; Kind::ALL.len()]);

impl Reading {
    pub fn of(&self, kind: Kind) -> Spent {
        self.0[kind as usize]
    }

    /// The sum over all kinds.
    pub fn total(&self) -> Spent {
        self.0.iter().fold(Spent::default(), |sum, spent| Spent {
            time: sum.time + spent.time,
            macs: sum.macs + spent.macs,
        })
    }
}

thread_local! {
    static READING: RefCell<Option<Reading>> = const { RefCell::new(None) };
}

/// Switches recording on, on this thread, for as long as it lives.
pub struct Meter {
    /// Stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Meter {
    pub fn start() -> Self {
        READING.set(Some(Reading::default()));
        Self { thread: PhantomData }
    }

    /// What was recorded since the start or the last call.
    pub fn take(&self) -> Reading {
        READING.replace(Some(Reading::default())).unwrap_or_default()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        READING.set(None);
    }
}

/// Does `work` and, while a [`Meter`] lives, books its time and `macs` multiply-accumulates as `kind`.
///
/// Calls must not nest: time within two of them would be counted twice.
pub(crate) fn record<R>(kind: Kind, macs: usize, work: impl FnOnce() -> R) -> R {
    if READING.with_borrow(Option::is_none) {
        return work();
    }
    let start = Instant::now();
    let result = work();
    let time = start.elapsed();
    READING.with_borrow_mut(|reading| {
        if let Some(Reading(kinds)) = reading {
            let spent = &mut kinds[kind as usize];
            spent.time += time;
            spent.macs += macs as u64;
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_living_meter_records() {
        record(Kind::Linear, 1, || ());
        let meter = Meter::start();
        record(Kind::Linear, 2, || ());
        record(Kind::Linear, 3, || std::thread::sleep(Duration::from_millis(2)));
        record(Kind::Norm, 0, || ());
        let reading = meter.take();
        assert_eq!(reading.of(Kind::Linear).macs, 5);
        assert!(reading.of(Kind::Linear).time >= Duration::from_millis(2));
        assert_eq!(reading.total().macs, 5);
        assert_eq!(meter.take().total().macs, 0);
        drop(meter);
        record(Kind::Linear, 7, || ());
        assert_eq!(Meter::start().take().total().macs, 0);
    }
}
