//! Progress of a pull: a bar on a terminal, lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::super::printer::{self, Printer};
use super::super::progress::human;
use super::bytes;
use crate::hub::{ModelId, Plan, Watcher};

const BAR: &str = "{prefix} [{bar:24}] {msg}";

/// How often a line tells where a long file is.
const EVERY: Duration = Duration::from_secs(30);

/// Smaller files are over before their rate says anything about the network.
const TELLING: u64 = 1_000_000;

/// The rate is that of about the last seconds.
const MEMORY: Duration = Duration::from_secs(8);

pub struct Fetching<'a> {
    id: &'a ModelId,
    printer: Printer,
    lines: bool,
    bar: ProgressBar,
    /// Of all files.
    left: u64,
    file: String,
    size: u64,
    have: u64,
    rate: Rate,
    told: Instant,
    pub licence: Option<String>,
}

impl<'a> Fetching<'a> {
    /// `lines` says whether files are told one by one where there is no terminal.
    pub fn new(id: &'a ModelId, printer: Printer, lines: bool) -> Self {
        let target =
            if printer.progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            id,
            printer,
            lines,
            bar,
            left: 0,
            file: String::new(),
            size: 0,
            have: 0,
            rate: Rate::new(),
            told: Instant::now(),
            licence: None,
        }
    }

    fn say(&self, message: &str) {
        self.bar.suspend(|| self.printer.status(message));
    }

    /// Share of the file, rate, and time left for all files.
    fn state(&self) -> String {
        let rate = self.rate.per_second();
        if rate < 1.0 || self.size < TELLING {
            return format!("{} of {}", bytes(self.have), bytes(self.size));
        }
        let left = human(Duration::from_secs_f64((self.left as f64 / rate).min(1e6)));
        format!("{} of {}, {}/s, {left} left", bytes(self.have), bytes(self.size), bytes(rate as u64))
    }
}

impl Watcher for Fetching<'_> {
    fn planned(&mut self, plan: &Plan<'_>) {
        self.left = plan.missing;
        self.licence = plan.licence.map(str::to_owned);
        let licence = plan.licence.unwrap_or("not stated on the Hub");
        self.printer.status(&format!("{} at {}, licence: {licence}", self.id, &plan.commit[..12]));
        let (total, missing) = (bytes(plan.total), bytes(plan.missing));
        match plan.missing {
            0 => self.printer.status(&format!("{total}, all in the cache")),
            some if some == plan.total => self.printer.status(&format!("{total} to fetch")),
            _ => self.printer.status(&format!("{total}, {missing} of them to fetch")),
        }
    }

    fn begun(&mut self, file: &str, size: u64, have: u64) {
        file.clone_into(&mut self.file);
        (self.size, self.have) = (size, have);
        self.rate.since = Instant::now();
        self.bar.reset();
        self.bar.set_length(size);
        self.bar.set_prefix(printer::plain(file).into_owned());
    }

    fn waiting(&mut self, file: &str) {
        self.say(&format!("{file}: another process fetches it; waiting"));
    }

    fn moved(&mut self, have: u64) {
        // A file that begins anew takes back what was counted.
        self.left = (self.left + self.have).saturating_sub(have);
        if self.size >= TELLING {
            self.rate.add(have.saturating_sub(self.have));
        }
        self.have = have;
        if !self.bar.is_hidden() {
            self.bar.set_position(have);
            self.bar.set_message(self.state());
        } else if self.lines && self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            self.say(&format!("{}: {}", self.file, self.state()));
        }
    }

    fn finished(&mut self, file: &str) {
        self.bar.finish_and_clear();
        if self.file == file && self.lines {
            self.say(&format!("{file}: {}", bytes(self.size)));
        }
    }

    fn note(&mut self, message: &str) {
        self.bar.suspend(|| self.printer.note(message));
    }
}

/// Bytes per second, in which what is long ago counts less and less.
struct Rate {
    since: Instant,
    counted: f64,
    seconds: f64,
}

impl Rate {
    fn new() -> Self {
        Self { since: Instant::now(), counted: 0.0, seconds: 0.0 }
    }

    fn add(&mut self, count: u64) {
        let passed = self.since.elapsed();
        self.since = Instant::now();
        self.after(count, passed);
    }

    fn after(&mut self, count: u64, passed: Duration) {
        let kept = (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.counted = self.counted * kept + count as f64;
        self.seconds = self.seconds * kept + passed.as_secs_f64();
    }

    fn per_second(&self) -> f64 {
        if self.seconds < 0.2 { 0.0 } else { self.counted / self.seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_valid() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }

    #[test]
    fn the_rate_follows_the_last_seconds() {
        let mut rate = Rate::new();
        assert!(rate.per_second() < 1.0);
        for _ in 0..100 {
            rate.after(1_000, Duration::from_secs(1));
        }
        assert!((rate.per_second() - 1_000.0).abs() < 1.0);
        for _ in 0..40 {
            rate.after(5_000, Duration::from_secs(1));
        }
        assert!((rate.per_second() - 5_000.0).abs() < 100.0);
    }
}
