//! A request as AUTOMATIC1111 would print it.

use super::LATENT_UPSCALER;
use super::line::quoted;
use crate::request::files::{FileKind, Lora, UsedFile};
use crate::request::table::{Draft, FIELDS, Field, Request};
use crate::samplers::Schedule;

/// AUTOMATIC1111's order; settings it does not know come after these.
const ORDER: [&str; 15] = [
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Model",
    "RNG",
    "Eta DDIM",
    "Clip skip",
    "Hires upscale",
    "Hires steps",
    "Hires upscaler",
    "Denoising strength",
    "Emphasis",
];

/// Prints a request as AUTOMATIC1111 would, LoRAs as tags of the prompt.
pub fn print_parameters(request: &Request, model: &str, files: &[UsedFile]) -> String {
    let mut draft = Draft::from(request.clone());
    draft.eta = draft.eta.filter(|_| request.sampler.takes_eta());
    let mut settings: Vec<(&str, String)> =
        FIELDS.iter().filter_map(|field| Some((field.parameter.key, setting(field, &draft)?))).collect();
    let sampler = request.sampler.automatic1111();
    // The suffix is understood by every version; other schedules have only ever been a key.
    if request.schedule == Schedule::Karras {
        settings.push(("Sampler", format!("{sampler} {}", request.schedule.automatic1111())));
    } else {
        settings.push(("Sampler", sampler.to_owned()));
        settings.push(("Schedule type", request.schedule.automatic1111().to_owned()));
    }
    settings.push(("Model", model.to_owned()));
    settings.extend(request.hires.as_ref().map(|_| ("Hires upscaler", LATENT_UPSCALER.to_owned())));
    settings.sort_by_key(|(key, _)| ORDER.iter().position(|known| known == key).unwrap_or(ORDER.len()));
    for (key, kind) in [("Lora hashes", FileKind::Lora), ("TI hashes", FileKind::Embedding)] {
        let files = files.iter().filter(|file| file.kind == kind);
        let hashes: Vec<_> = files.map(|file| format!("{}: {}", file.name, file.shown_hash)).collect();
        if !hashes.is_empty() {
            settings.push((key, hashes.join(", ")));
        }
    }
    settings.push(("Version", format!("pochade {}", env!("CARGO_PKG_VERSION"))));

    let settings: Vec<String> =
        settings.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
    let negative = if request.negative_prompt.is_empty() {
        String::new()
    } else {
        format!("\nNegative prompt: {}", request.negative_prompt)
    };
    let mut prompt = request.prompt.clone();
    for Lora { path, weight } in &request.lora {
        prompt += &format!(" <lora:{}:{weight}>", path.file_stem().unwrap_or_default().to_string_lossy());
    }
    format!("{prompt}{negative}\n{}", settings.join(", "))
}

/// A field's value in AUTOMATIC1111's words, if it is written.
fn setting(field: &Field, draft: &Draft) -> Option<String> {
    let parameter = &field.parameter;
    let value = (field.get)(draft).filter(|_| !parameter.key.is_empty())?;
    if parameter.left_out && parameter.absent == Some(&value) {
        return None;
    }
    let name = parameter.names.iter().find(|(ours, _)| *ours == value);
    Some(name.map_or(value, |(_, theirs)| (*theirs).to_owned()))
}
