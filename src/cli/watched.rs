//! Long work that is watched from a terminal: a bar, and how long it will take; what is done is the caller's.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::{Exit, Failure, OrExit};
use super::printer::Printer;
use super::progress::human;

/// Does `work`, whose parts are called `what`, showing how much of it is left.
pub fn watched<T>(
    what: &str,
    printer: Printer,
    work: impl FnOnce(&mut dyn FnMut(usize, usize)) -> Result<T>,
) -> Result<T, Failure> {
    let style =
        ProgressStyle::with_template("{prefix} {pos} of {len} [{bar:24}] {msg}").or_exit(Exit::Model)?;
    let target = if printer.progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target).with_style(style.progress_chars("=> "));
    bar.set_prefix(what.to_owned());
    let mut started = Instant::now();
    let done = work(&mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if done == 0 {
            started = Instant::now();
            return;
        }
        let left = started.elapsed().mul_f64((total - done) as f64 / done as f64);
        bar.set_message(format!("{} left", human(left)));
        // A log shows no bar, but should say once how long it will be silent.
        if done == 1 && bar.is_hidden() && left > Duration::from_secs(10) {
            printer.status(&format!("{what} 1 to {total}, about {}", human(left)));
        }
    });
    bar.finish_and_clear();
    done.or_exit(Exit::Model)
}
