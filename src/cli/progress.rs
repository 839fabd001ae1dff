//! Progress on a terminal, and stopping a run when a signal has come: the pipeline's observer.

use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::preview::Preview;
use super::printer::{self, Printer};
use super::signals::Signals;
use crate::pipeline::{Observer, Phase, Step};

const SPINNER: &str = "{prefix}{spinner} {msg}";
const BAR: &str = "{prefix}step {pos}/{len} [{bar:24}] {msg}";

/// How often the spinner moves.
const TURN: Duration = Duration::from_millis(120);

pub struct Progress<'a> {
    signals: &'a Signals,
    printer: Printer,
    bar: ProgressBar,
    /// What turns the spinner stops when this is dropped.
    turning: Option<Sender<()>>,
    denoising_since: Instant,
    patient: bool,
    preview: Preview,
    /// Steps of this picture so far, in both of its passes.
    steps: usize,
}

impl<'a> Progress<'a> {
    /// `prefix` tells the pictures of a run apart.
    pub fn new(signals: &'a Signals, printer: Printer, prefix: String) -> Self {
        let target =
            if printer.progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar =
            ProgressBar::with_draw_target(None, target).with_prefix(printer::plain(&prefix).into_owned());
        Self {
            signals,
            printer,
            bar,
            turning: None,
            denoising_since: Instant::now(),
            patient: false,
            preview: Preview::default(),
            steps: 0,
        }
    }

    /// A signal never ends the process on the spot, because there is something to say before.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { patient: true, ..self }
    }

    /// Shows previews besides.
    #[must_use]
    pub fn with_preview(self, preview: Preview) -> Self {
        Self { preview, ..self }
    }

    /// Shows that something of unknown length goes on.
    pub fn spin(&mut self, message: &'static str) {
        self.restyle(SPINNER, "-\\|/ ");
        self.bar.set_message(message);
        if !self.bar.is_hidden() {
            self.turning = turn(self.bar.clone());
        }
    }

    pub fn finish(&mut self) {
        self.turning = None;
        self.bar.finish_and_clear();
    }

    fn restyle(&self, template: &str, ticks: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.tick_chars(ticks).progress_chars("=> "));
        }
    }
}

impl Observer for Progress<'_> {
    fn phase(&mut self, phase: Phase) {
        // Loading and decoding have no steps to stop at, and nothing is on disk yet.
        self.signals.exit_at_once(!self.patient && matches!(phase, Phase::Load | Phase::Decode));
        let doing = match phase {
            Phase::Load => "loading the model",
            Phase::Encode => "encoding the prompt",
            Phase::Denoise => "denoising",
            Phase::Refine => "refining",
            Phase::Decode => "decoding",
        };
        self.denoising_since = Instant::now();
        self.bar.suspend(|| self.printer.detail(doing));
        self.spin(doing);
    }

    fn warn(&mut self, message: &str) {
        self.bar.suspend(|| self.printer.note(message));
    }

    fn inform(&mut self, message: &str) {
        self.bar.suspend(|| self.printer.status(message));
    }

    fn stopped(&self) -> bool {
        self.signals.received().is_some()
    }

    fn previews(&self) -> bool {
        self.preview.is_wanted()
    }

    fn step(&mut self, step: &Step<'_>) -> ControlFlow<()> {
        if self.signals.received().is_some() {
            return ControlFlow::Break(());
        }
        self.steps += 1;
        if self.preview.is_wanted()
            && let Err(error) = self.bar.suspend(|| self.preview.step(step, self.steps))
        {
            // The picture itself is not harmed.
            self.preview = Preview::default();
            self.warn(&format!("no further previews: {error:#}"));
        }
        if !self.bar.is_hidden() {
            if step.index == 1 {
                self.turning = None;
                self.restyle(BAR, "- ");
            }
            self.bar.set_length(step.total as u64);
            self.bar.set_position(step.index as u64);
            self.bar.set_message(rate(self.denoising_since.elapsed(), step.index, step.total));
        }
        ControlFlow::Continue(())
    }
}

/// Turns the spinner, by a thread as indicatif does; but where the system starts no further one, it stands still.
fn turn(bar: ProgressBar) -> Option<Sender<()>> {
    let (held, dropped) = mpsc::channel();
    let turn = move || {
        while dropped.recv_timeout(TURN) == Err(RecvTimeoutError::Timeout) {
            bar.tick();
        }
    };
    thread::Builder::new().spawn(turn).ok().map(|_| held)
}

/// Pace so far and the time left at that pace.
fn rate(elapsed: Duration, done: usize, total: usize) -> String {
    let seconds = elapsed.as_secs_f64() / done.max(1) as f64;
    let left = human(Duration::from_secs_f64(seconds * total.saturating_sub(done) as f64));
    if seconds >= 1.0 {
        format!("{seconds:.1} s/step, {left} left")
    } else {
        format!("{:.1} steps/s, {left} left", 1.0 / seconds.max(1e-6))
    }
}

/// A duration as a person would say it.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [SPINNER, BAR] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }

    #[test]
    fn pace_is_told_in_its_natural_unit() {
        assert_eq!(rate(Duration::from_secs(24), 2, 20), "12.0 s/step, 3 min 36 s left");
        assert_eq!(rate(Duration::from_secs(1), 4, 8), "4.0 steps/s, 1.0 s left");
        assert_eq!(rate(Duration::ZERO, 0, 0), "1000000.0 steps/s, 0.0 s left");
    }

    #[test]
    fn durations_are_human() {
        let told = [0.04, 9.96, 59.9, 61.0, 3_725.0].map(|s| human(Duration::from_secs_f64(s)));
        assert_eq!(told, ["0.0 s", "10.0 s", "59 s", "1 min 01 s", "1 h 02 min"]);
    }
}
