//! Ctrl-C and SIGTERM: whether one has come, and whether the next one ends the process on the spot.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::exit::Exit;

/// Signals received so far.
#[derive(Debug, Clone)]
pub struct Signals {
    received: Arc<AtomicUsize>,
    exit_at_once: Arc<AtomicBool>,
}

impl Signals {
    /// Catches signals from now on; until [`Self::exit_at_once`] says otherwise the first one ends the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn catch() -> io::Result<Self> {
        let signals = Self { received: Arc::default(), exit_at_once: Arc::new(AtomicBool::new(true)) };
        for (signal, exit) in [(SIGINT, Exit::Interrupted), (SIGTERM, Exit::Terminated)] {
            // Order matters: the first signal must find the flag as it was, the second one set.
            flag::register_conditional_shutdown(
                signal,
                i32::from(exit.code()),
                Arc::clone(&signals.exit_at_once),
            )?;
            flag::register(signal, Arc::clone(&signals.exit_at_once))?;
            flag::register_usize(signal, Arc::clone(&signals.received), usize::from(exit.code()))?;
        }
        Ok(signals)
    }

    /// True while nothing is on disk that would be left half-written and nobody polls [`Self::received`].
    pub fn exit_at_once(&self, at_once: bool) {
        self.exit_at_once.store(at_once || self.received().is_some(), Ordering::SeqCst);
    }

    /// The exit code of the last signal.
    pub fn received(&self) -> Option<Exit> {
        match self.received.load(Ordering::SeqCst) {
            0 => None,
            code if code == usize::from(Exit::Terminated.code()) => Some(Exit::Terminated),
            _ => Some(Exit::Interrupted),
        }
    }
}
