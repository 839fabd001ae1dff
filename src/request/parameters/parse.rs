//! A draft from what AUTOMATIC1111 and its kin write.

use super::LATENT_UPSCALER;
use super::line::settings;
use crate::request::table::{Draft, FIELDS};
use crate::samplers::{Sampler, Schedule};

/// What a `parameters` text says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    pub draft: Draft,
    pub model: Option<String>,
    /// Settings that change the picture and mean nothing here, as `key: value`.
    pub unknown: Vec<String>,
}

/// Keys that say where a picture comes from and change nothing in it.
const PROVENANCE: [&str; 7] =
    ["Model hash", "VAE hash", "Hashes", "TI hashes", "Lora hashes", "Version", "User"];

/// Fewer settings than this in the last line, and it is part of the prompt.
const MIN_SETTINGS: usize = 3;

/// Reads what AUTOMATIC1111 and its kin write; never fails, because any text at all is a prompt.
pub fn parse_parameters(text: &str) -> Parameters {
    let mut lines: Vec<&str> = text.trim().lines().collect();
    let settings = lines.last().map(|line| settings(line)).filter(|found| found.len() >= MIN_SETTINGS);
    if settings.is_some() {
        lines.pop();
    }
    let (prompt, negative) = prompts(&lines);
    let mut parameters = Parameters {
        draft: Draft { prompt: Some(prompt), negative_prompt: Some(negative), ..Draft::default() },
        ..Parameters::default()
    };
    let Some(settings) = settings else { return parameters };
    // What a text leaves out had AUTOMATIC1111's own default.
    for field in FIELDS {
        if let Some(absent) = field.parameter.absent {
            // The table's own test reads each of them.
            let _ = (field.set)(&mut parameters.draft, absent.as_ref());
        }
    }
    let value =
        |wanted: &str| settings.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
    let (schedule, has_hires) = (value("Schedule type"), value("Hires upscale").is_some());
    for (key, value) in &settings {
        let understood = match key.as_str() {
            "Model" => {
                parameters.model = Some(value.clone());
                true
            }
            "Sampler" => apply_sampler(&mut parameters.draft, value),
            // Comes with the sampler.
            "Schedule type" => true,
            "Hires upscaler" => value == LATENT_UPSCALER,
            // Else it is how far to go from a picture, and the text does not say from which one.
            "Denoising strength" if !has_hires => false,
            key => apply(&mut parameters.draft, key, value),
        };
        if !understood && !PROVENANCE.contains(&key.as_str()) {
            parameters.unknown.push(format!("{key}: {value}"));
        }
    }
    apply_schedule(&mut parameters, schedule);
    parameters
}

/// Takes one setting over; false when it means nothing here.
fn apply(draft: &mut Draft, key: &str, value: &str) -> bool {
    // Of two fields with one key the later is the second pass's.
    let Some(field) = FIELDS.iter().rev().find(|field| field.parameter.key == key) else { return false };
    let names = field.parameter.names;
    let value = match names.iter().find(|(_, theirs)| theirs.eq_ignore_ascii_case(value)) {
        Some((ours, _)) => ours,
        None if names.is_empty() => value.trim(),
        None => return false,
    };
    (field.set)(draft, value.as_ref()).is_ok()
}

fn apply_sampler(draft: &mut Draft, value: &str) -> bool {
    // Versions before 1.9 spelled the schedule as a suffix of the sampler.
    let suffixed = Schedule::ALL.iter().find_map(|&schedule| {
        let name = value.strip_suffix(schedule.automatic1111())?.strip_suffix(' ')?;
        Some((sampler(name)?, schedule))
    });
    draft.sampler = suffixed.map(|(sampler, _)| sampler).or_else(|| sampler(value));
    draft.schedule = suffixed.map(|(_, schedule)| schedule);
    draft.sampler.is_some()
}

fn apply_schedule(parameters: &mut Parameters, schedule: Option<&str>) {
    let draft = &mut parameters.draft;
    let (Some(sampler), None) = (draft.sampler, draft.schedule) else { return };
    draft.schedule = match schedule {
        None => Some(sampler.automatic1111_schedule()),
        Some("Automatic") => Some(sampler.default_schedule()),
        Some(name) => find(Schedule::ALL, name, Schedule::automatic1111),
    };
    if let (None, Some(name)) = (draft.schedule, schedule) {
        parameters.unknown.push(format!("Schedule type: {name}"));
    }
}

fn sampler(name: &str) -> Option<Sampler> {
    find(Sampler::ALL, name, Sampler::automatic1111)
}

fn find<T: Copy>(all: &[T], name: &str, name_of: impl Fn(T) -> &'static str) -> Option<T> {
    all.iter().copied().find(|&value| name_of(value).eq_ignore_ascii_case(name))
}

/// Splits the lines above the settings at the one that opens the negative prompt.
fn prompts(lines: &[&str]) -> (String, String) {
    const OPENING: &str = "Negative prompt:";
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    let Some(split) = lines.iter().position(|line| line.starts_with(OPENING)) else {
        return (lines.join("\n"), String::new());
    };
    let negative = lines[split..].join("\n");
    (lines[..split].join("\n"), negative[OPENING.len()..].trim().to_owned())
}
