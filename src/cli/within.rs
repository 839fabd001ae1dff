//! `--within TIME`: the gentlest settings that draw a picture in that time, by speeds measured on this machine.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::args::ComputeArgs;
use super::exit::{Exit, Failure, OrExit};
use super::fast;
use super::memory_guard::Largest;
use super::printer::Printer;
use super::progress::human;
use super::session::{Session, exit_code};
use super::speeds::Speed;
use crate::pipeline::footprint::Series;
use crate::pipeline::{Residency, Work};
use crate::request::{Cache, Draft, FIELDS, Recipe, Request, Reuse, StepRange};

/// Times are expected to be met by this share: no two pictures take the same.
const SLACK: f64 = 0.05;

/// What a rung of the ladder leaves out.
struct Rung {
    /// 1 is none.
    cache: usize,
    /// Of the steps asked for.
    steps: f64,
    /// Of the steps, from the first.
    guided: f64,
}

const fn rung(cache: usize, steps: f64, guided: f64) -> Rung {
    Rung { cache, steps, guided }
}

/// From the gentlest to the roughest, in the order of what they cost the built-in model's pictures (see the README).
const LADDER: &[Rung] = &[
    rung(1, 0.75, 1.0),
    rung(2, 1.0, 1.0),
    rung(1, 0.6, 1.0),
    rung(2, 0.75, 1.0),
    rung(2, 0.65, 1.0),
    rung(3, 0.75, 1.0),
    rung(3, 0.6, 1.0),
    rung(4, 1.0, 0.3),
    rung(3, 0.6, 0.3),
    rung(3, 0.5, 0.3),
    rung(4, 0.4, 0.3),
];

/// Few-step recipes come after that, as they draw another picture; the steps they take go down.
const RECIPES: &[Recipe] = &[
    Recipe::Pocket,
    Recipe::Hyper8,
    Recipe::Hyper4,
    Recipe::Tcd,
    Recipe::Lcm,
    Recipe::Hyper2,
    Recipe::Hyper1,
];

/// Chooses settings for the pictures of a run.
pub struct Within<'a> {
    pub session: &'a Session,
    pub compute: &'a ComputeArgs,
    pub printer: Printer,
    /// For one picture, from the prompt to its file.
    pub budget: Duration,
    /// Whether that includes reading the model.
    pub loads: bool,
    /// What has been said, which is said once.
    pub told: RefCell<HashSet<String>>,
}

/// A request and what drawing it will take.
struct Estimate {
    request: Request,
    work: Work,
    seconds: f64,
}

impl Within<'_> {
    /// The request of `flags` over `below` that fits: what the flags say stays as it is.
    ///
    /// # Errors
    /// When none fits, with the least time; when the request can't be drawn at all.
    pub fn choose(&self, flags: &Draft, below: &Draft) -> Result<Request, Failure> {
        let asked = self.resolve(&Draft::default(), flags, below)?;
        // A seed from the system is drawn once.
        let flags = Draft { seed: Some(asked.seed), ..flags.clone() };
        let speed = match self.session.speeds.of(&asked) {
            Some(speed) => speed,
            None => self.measure(&asked)?,
        };
        let asked = self.estimate(asked, &speed)?;
        let budget = self.budget.as_secs_f64();
        let fits = |estimate: &Estimate| estimate.seconds * (1.0 + SLACK) <= budget;
        let within = format!("within {}", time(budget));
        if fits(&asked) {
            let takes = time(asked.seconds);
            self.tell(format!("{within}: as asked, about {takes}"));
            return Ok(asked.request);
        }
        let rungs = LADDER.iter().map(|rung| rung.draft(&asked.request));
        let recipes = RECIPES.iter().map(|recipe| Draft { fast: Some(*recipe), ..Draft::default() });
        let mut least = (asked.seconds, "as asked".to_owned());
        for change in rungs.chain(recipes) {
            // A recipe whose LoRA is not there, or for another model.
            let Ok(request) = self.resolve(&change, &flags, below) else { continue };
            let Ok(estimate) = self.estimate(request, &speed) else { continue };
            if fits(&estimate) {
                let share = estimate.work.total() as f64 / asked.work.total().max(1) as f64;
                self.tell(format!(
                    "{within}: {}, about {} ({share:.2} of the UNet's work; as asked it would be {})",
                    flags_of(&change, &asked.request, &estimate.request),
                    time(estimate.seconds),
                    time(asked.seconds),
                ));
                return Ok(estimate.request);
            }
            if estimate.seconds < least.0 {
                least = (estimate.seconds, flags_of(&change, &asked.request, &estimate.request));
            }
        }
        let (seconds, with) = least;
        // So that asking for what is told works.
        let seconds = seconds * (1.0 + SLACK);
        let seconds = if seconds < 9.9 { (seconds * 10.0).ceil() / 10.0 } else { seconds.ceil() };
        Err(Failure::usage(format!("nothing draws this {within}: the least is {} ({with})", time(seconds)))
            .hint("ask for a smaller picture, or leave out flags that say what may not be changed"))
    }

    fn tell(&self, message: String) {
        if !self.told.borrow().contains(&message) {
            self.printer.status(&message);
            self.told.borrow_mut().insert(message);
        }
    }

    fn resolve(&self, change: &Draft, flags: &Draft, below: &Draft) -> Result<Request, Failure> {
        let draft = fast::with_lora(flags.clone().over(change.clone().over(below.clone())))?;
        let size_of = |path: &Path| self.session.pictures.size(path);
        let request = draft.resolve(&self.session.defaults(), size_of).or_exit(Exit::Usage)?;
        if change.fast.is_some() {
            self.session.pipeline(Residency::OneByOne).check(&request).or_exit(Exit::Usage)?;
        }
        Ok(request)
    }

    fn estimate(&self, request: Request, speed: &Speed) -> Result<Estimate, Failure> {
        let work = self.session.model.work(&request).or_exit(Exit::Usage)?;
        let seconds = speed.seconds(work, self.loads);
        Ok(Estimate { request, work, seconds })
    }

    /// Draws what shows how fast everything in such a picture is: two whole steps and one of a cache, for one prompt.
    fn measure(&self, request: &Request) -> Result<Speed, Failure> {
        let mut probe = Request { steps: 3, guidance_scale: 1.0, guidance_range: None, ..request.clone() };
        probe.guidance_auto = None;
        probe.cache = Some(Cache { reuse: Reuse::ButEvery(3), branch: 0 });
        if let Some(init) = &mut probe.init {
            init.strength = 1.0;
        }
        if let Some(hires) = &mut probe.hires {
            hires.steps = 1;
        }
        self.printer
            .note("no picture of this kind has been drawn on this machine: measuring three steps of one");
        let session = self.session;
        let mut pipeline = session.pipeline(Residency::OneByOne);
        let mut largest = Largest::new(session);
        largest.add(&probe, None);
        largest.check(&mut pipeline, Series::One, self.compute, self.printer)?;
        let picture = pipeline.generate(&probe, &mut ());
        let picture = picture.map_err(|error| {
            let exit = exit_code(&error);
            Failure { exit, error: error.into_cause().context("measuring"), hint: None }
        })?;
        session.note(&probe, &picture);
        session.speeds.of(request).context("three steps took no time").or_exit(Exit::PictureFailed)
    }
}

impl Rung {
    fn draft(&self, asked: &Request) -> Draft {
        let steps = ((asked.steps as f64 * self.steps).round() as usize).max(1);
        Draft {
            steps: (self.steps < 1.0).then_some(steps),
            cache: (self.cache > 1).then_some(Reuse::ButEvery(self.cache)),
            guidance_range: (self.guided < 1.0 && asked.guidance_scale != 1.0)
                .then_some(StepRange { start: 0.0, end: self.guided }),
            ..Draft::default()
        }
    }
}

/// The flags of `change` that make `asked` what was `chosen`: others were given already.
fn flags_of(change: &Draft, asked: &Request, chosen: &Request) -> String {
    let (asked, chosen) = (Draft::from(asked.clone()), Draft::from(chosen.clone()));
    let changed = FIELDS.iter().filter_map(|field| {
        let value = (field.get)(change).filter(|_| (field.get)(&chosen) != (field.get)(&asked))?;
        Some(format!("--{} {value}", field.long()?))
    });
    changed.collect::<Vec<_>>().join(" ")
}

fn time(seconds: f64) -> String {
    if seconds < 0.0995 {
        return format!("{:.0} ms", 1e3 * seconds);
    }
    human(Duration::from_secs_f64(if seconds < 9.95 { seconds } else { seconds.round() }))
}
