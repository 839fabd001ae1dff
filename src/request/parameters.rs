//! The `parameters` text that AUTOMATIC1111 embeds and most viewers read: printed from a request, parsed into a draft.

use std::borrow::Cow;
use std::str::FromStr;

use super::{Draft, FileKind, Lora, PromptSyntax, Request, Rng, Sampler, Schedule, UsedFile};

/// What a `parameters` text says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    pub draft: Draft,
    pub model: Option<String>,
    /// Settings that change the picture and mean nothing here, as `key: value`.
    pub unknown: Vec<String>,
}

/// AUTOMATIC1111's names of the samplers; it has no DDPM and no deterministic 2S, so these follow its style.
const SAMPLERS: [(Sampler, &str); 12] = [
    (Sampler::Ddim, "DDIM"),
    (Sampler::Ddpm, "DDPM"),
    (Sampler::Pndm, "PLMS"),
    (Sampler::Euler, "Euler"),
    (Sampler::EulerA, "Euler a"),
    (Sampler::Heun, "Heun"),
    (Sampler::Lms, "LMS"),
    (Sampler::Dpmpp2m, "DPM++ 2M"),
    (Sampler::Dpmpp2mSde, "DPM++ 2M SDE"),
    (Sampler::Dpmpp2s, "DPM++ 2S"),
    (Sampler::Unipc, "UniPC"),
    (Sampler::Lcm, "LCM"),
];

/// AUTOMATIC1111's names of the schedules.
const SCHEDULES: [(Schedule, &str); 4] = [
    (Schedule::Leading, "DDIM"),
    (Schedule::Linspace, "Uniform"),
    (Schedule::Trailing, "SGM Uniform"),
    (Schedule::Karras, "Karras"),
];

/// Keys that say where a picture comes from and change nothing in it.
const PROVENANCE: [&str; 8] =
    ["Model hash", "Model", "VAE hash", "Hashes", "TI hashes", "Lora hashes", "Version", "User"];

/// AUTOMATIC1111's name of enlarging the latents.
const LATENT_UPSCALER: &str = "Latent";

/// Fewer settings than this in the last line, and it is part of the prompt.
const MIN_SETTINGS: usize = 3;

/// Prints a request as AUTOMATIC1111 would, LoRAs as tags of the prompt.
pub fn print_parameters(request: &Request, model: &str, files: &[UsedFile]) -> String {
    let mut settings: Vec<(&str, String)> = vec![("Steps", request.steps.to_string())];
    let sampler = name_of(&SAMPLERS, request.sampler);
    // The suffix is understood by every version; other schedules have only ever been a key.
    if request.schedule == Schedule::Karras {
        settings.push(("Sampler", format!("{sampler} Karras")));
    } else {
        settings.push(("Sampler", sampler.to_owned()));
        settings.push(("Schedule type", name_of(&SCHEDULES, request.schedule).to_owned()));
    }
    settings.push(("CFG scale", request.guidance_scale.to_string()));
    settings.push(("Seed", request.seed.to_string()));
    settings.push(("Size", format!("{}x{}", request.width, request.height)));
    settings.push(("Model", model.to_owned()));
    // NV is Philox computed on the CPU; a text without RNG means the same numbers from a GPU.
    let rng = match request.rng {
        Rng::Torch => "CPU",
        Rng::Philox => "NV",
    };
    settings.push(("RNG", rng.to_owned()));
    if request.sampler == Sampler::Ddim && request.eta != 0.0 {
        settings.push(("Eta DDIM", request.eta.to_string()));
    }
    if request.clip_skip != 1 {
        settings.push(("Clip skip", request.clip_skip.to_string()));
    }
    if let Some(strength) = request.strength {
        settings.push(("Denoising strength", strength.to_string()));
    }
    if let Some(scale) = request.hires {
        settings.push(("Hires upscale", scale.to_string()));
        settings.extend(request.hires_steps.map(|steps| ("Hires steps", steps.to_string())));
        settings.push(("Hires upscaler", LATENT_UPSCALER.to_owned()));
        settings.extend(request.hires_strength.map(|strength| ("Denoising strength", strength.to_string())));
    }
    if request.prompt_syntax == PromptSyntax::Plain {
        settings.push(("Emphasis", "None".to_owned()));
    }
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
    parameters.draft.rng = Some(Rng::Philox);
    parameters.draft.eta = Some(0.0);
    parameters.draft.clip_skip = Some(1);
    parameters.draft.prompt_syntax = Some(PromptSyntax::Weighted);
    let mut schedule = None;
    let has_hires = settings.iter().any(|(key, _)| key == "Hires upscale");
    for (key, value) in settings {
        if key == "Schedule type" {
            schedule = Some(value);
        } else if has_hires && key == "Denoising strength" {
            set(&mut parameters.draft.hires_strength, &value);
        } else if !apply(&mut parameters, &key, &value) && !PROVENANCE.contains(&key.as_str()) {
            parameters.unknown.push(format!("{key}: {value}"));
        }
    }
    apply_schedule(&mut parameters, schedule);
    parameters
}

/// Takes one setting over; false when it means nothing here.
fn apply(parameters: &mut Parameters, key: &str, value: &str) -> bool {
    let draft = &mut parameters.draft;
    match key {
        "Steps" => set(&mut draft.steps, value),
        "CFG scale" => set(&mut draft.guidance_scale, value),
        "Seed" => set(&mut draft.seed, value),
        "Clip skip" => set(&mut draft.clip_skip, value),
        "Emphasis" => {
            draft.prompt_syntax = match value {
                "None" => Some(PromptSyntax::Plain),
                "Original" => Some(PromptSyntax::Weighted),
                _ => return false,
            };
            true
        }
        "Hires upscale" => set(&mut draft.hires, value),
        "Hires steps" => set(&mut draft.hires_steps, value),
        "Hires upscaler" => value == LATENT_UPSCALER,
        "Eta DDIM" => set(&mut draft.eta, value),
        "Size" => value
            .split_once('x')
            .is_some_and(|(width, height)| set(&mut draft.width, width) && set(&mut draft.height, height)),
        "Model" => {
            parameters.model = Some(value.to_owned());
            true
        }
        "RNG" => {
            draft.rng = match value.to_ascii_lowercase().as_str() {
                "cpu" => Some(Rng::Torch),
                "gpu" | "nv" | "cuda" => Some(Rng::Philox),
                _ => return false,
            };
            true
        }
        "Sampler" => {
            // Versions before 1.9 spelled the schedule as a suffix of the sampler.
            let suffixed = SCHEDULES.iter().find_map(|&(schedule, suffix)| {
                let name = value.strip_suffix(suffix)?.strip_suffix(' ')?;
                Some((named(&SAMPLERS, name)?, schedule))
            });
            draft.sampler = suffixed.map(|(sampler, _)| sampler).or_else(|| named(&SAMPLERS, value));
            draft.schedule = suffixed.map(|(_, schedule)| schedule);
            draft.sampler.is_some()
        }
        _ => false,
    }
}

fn apply_schedule(parameters: &mut Parameters, schedule: Option<String>) {
    let draft = &mut parameters.draft;
    let (Some(sampler), None) = (draft.sampler, draft.schedule) else { return };
    draft.schedule = match schedule.as_deref() {
        // These three run over evenly spaced timesteps whatever the schedule says.
        None if matches!(sampler, Sampler::Ddim | Sampler::Pndm | Sampler::Unipc) => Some(Schedule::Leading),
        None => Some(Schedule::Linspace),
        Some("Automatic") => Some(sampler.default_schedule()),
        Some(name) => named(&SCHEDULES, name),
    };
    if let (None, Some(name)) = (draft.schedule, schedule) {
        parameters.unknown.push(format!("Schedule type: {name}"));
    }
}

fn set<T: FromStr>(field: &mut Option<T>, value: &str) -> bool {
    *field = value.trim().parse().ok();
    field.is_some()
}

fn name_of<T: Copy + PartialEq>(names: &[(T, &'static str)], value: T) -> &'static str {
    names.iter().find(|(known, _)| *known == value).map_or("", |(_, name)| name)
}

fn named<T: Copy>(names: &[(T, &'static str)], name: &str) -> Option<T> {
    names.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(value, _)| *value)
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

/// The `key: value` pairs of the last line, in order; what is no pair is skipped.
fn settings(line: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (item, tail) = split_item(rest);
        if let Some((key, value)) = item.split_once(':')
            && is_key(key.trim())
        {
            found.push((key.trim().to_owned(), unquoted(value.trim()).into_owned()));
        }
        rest = tail;
    }
    found
}

/// Splits at the first comma outside a quoted value.
fn split_item(text: &str) -> (&str, &str) {
    let (mut quoted, mut escaped, mut after_colon) = (false, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if quoted => quoted = false,
            '"' if after_colon => quoted = true,
            ',' if !quoted => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
        after_colon = c == ':' || (after_colon && c.is_whitespace());
    }
    (text, "")
}

fn is_key(key: &str) -> bool {
    key.len() >= 2
        && key.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        && key.chars().all(|c| c.is_alphanumeric() || "_ -/".contains(c))
}

fn quoted(value: &str) -> Cow<'_, str> {
    if value.contains([',', ':', '\n']) {
        serde_json::Value::from(value).to_string().into()
    } else {
        value.into()
    }
}

fn unquoted(value: &str) -> Cow<'_, str> {
    if value.starts_with('"')
        && let Ok(text) = serde_json::from_str::<String>(value)
    {
        text.into()
    } else {
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Defaults;

    fn request() -> Request {
        Request {
            negative_prompt: "blurry".into(),
            ..Request::new(
                "a red apple, on a (yellow:1.3) background",
                965_400_086,
                &Defaults {
                    width: 512,
                    height: 768,
                    steps: 20,
                    guidance_scale: 7.0,
                    sampler: Sampler::Dpmpp2m,
                    schedule: Schedule::Karras,
                },
            )
        }
    }

    #[test]
    fn prints_what_automatic1111_prints() {
        let expected = concat!(
            "a red apple, on a (yellow:1.3) background\n",
            "Negative prompt: blurry\n",
            "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, ",
            "Model: sd15, RNG: CPU, Version: pochade ",
            env!("CARGO_PKG_VERSION"),
        );
        assert_eq!(print_parameters(&request(), "sd15", &[]), expected);
    }

    #[test]
    fn an_empty_negative_prompt_has_no_line() {
        let text = print_parameters(&Request { negative_prompt: String::new(), ..request() }, "sd15", &[]);
        assert!(!text.contains("Negative prompt"));
        assert_eq!(parse_parameters(&text).draft.negative_prompt.as_deref(), Some(""));
    }

    #[test]
    fn every_sampler_and_schedule_survives_the_round_trip() {
        for &sampler in Sampler::ALL {
            for &schedule in Schedule::ALL {
                for &rng in Rng::ALL {
                    let request = Request { sampler, schedule, rng, ..request() };
                    let parsed = parse_parameters(&print_parameters(&request, "sd15", &[]));
                    assert_eq!(parsed.draft, request.into());
                    assert!(parsed.unknown.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_second_pass_survives_the_round_trip() {
        let request =
            Request { hires: Some(1.5), hires_steps: Some(9), hires_strength: Some(0.55), ..request() };
        let text = print_parameters(&request, "sd15", &[]);
        assert!(text.contains(
            "Hires upscale: 1.5, Hires steps: 9, Hires upscaler: Latent, Denoising strength: 0.55"
        ));
        assert!(text.contains("Size: 512x768"));
        let parsed = parse_parameters(&text);
        assert_eq!(parsed.draft, request.into());
        assert!(parsed.unknown.is_empty());
        let other = parse_parameters(&text.replace("upscaler: Latent", "upscaler: Lanczos"));
        assert_eq!(other.unknown, ["Hires upscaler: Lanczos"]);
    }

    #[test]
    fn eta_is_printed_for_ddim_alone() {
        let ddim = Request { sampler: Sampler::Ddim, eta: 0.5, ..request() };
        let text = print_parameters(&ddim, "sd15", &[]);
        assert!(text.contains("Eta DDIM: 0.5"));
        assert_eq!(parse_parameters(&text).draft.eta, Some(0.5));
        assert!(!print_parameters(&Request { eta: 0.5, ..request() }, "sd15", &[]).contains("Eta"));
    }

    #[test]
    fn values_with_separators_are_quoted() {
        let model = "a, \"b\": c\nd";
        let text = print_parameters(&request(), model, &[]);
        assert!(text.contains(r#"Model: "a, \"b\": c\nd","#));
        assert_eq!(parse_parameters(&text).model.as_deref(), Some(model));
    }

    #[test]
    fn prompts_may_span_lines() {
        let request = Request {
            prompt: "one\ntwo: 2, three".into(),
            negative_prompt: "bad\nworse".into(),
            ..request()
        };
        assert_eq!(parse_parameters(&print_parameters(&request, "sd15", &[])).draft, request.into());
    }

    #[test]
    fn a_picture_of_automatic1111_is_understood() {
        let text = "girl with an artist's beret\nNegative prompt: ugly, fat\nSteps: 25, Sampler: DPM++ 2M SDE, \
                    Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x640, Model hash: 45dee52b, \
                    Model: v1-5-pruned, Clip skip: 2, Lora hashes: \"add_detail: 7c6bad76eb54, x: 1\", \
                    Hashes: {\"model\": \"45dee52b\", \"vae\": \"0\"}, Version: v1.10.1";
        let parsed = parse_parameters(text);
        let expected = Draft {
            prompt: Some("girl with an artist's beret".into()),
            negative_prompt: Some("ugly, fat".into()),
            width: Some(512),
            height: Some(640),
            steps: Some(25),
            guidance_scale: Some(7.5),
            sampler: Some(Sampler::Dpmpp2mSde),
            schedule: Some(Schedule::Karras),
            eta: Some(0.0),
            seed: Some(965_400_086),
            rng: Some(Rng::Philox),
            prompt_syntax: Some(PromptSyntax::Weighted),
            clip_skip: Some(2),
            ..Draft::default()
        };
        assert_eq!(parsed.draft, expected);
        assert_eq!(parsed.model.as_deref(), Some("v1-5-pruned"));
        assert!(parsed.unknown.is_empty());
    }

    #[test]
    fn a_bare_sampler_ran_evenly_and_automatic_is_the_samplers_own() {
        let schedule = |sampler: &str| {
            let draft = parse_parameters(&format!("x\nSteps: 20, Sampler: {sampler}, Seed: 1")).draft;
            (draft.sampler, draft.schedule)
        };
        assert_eq!(schedule("DPM++ 2M"), (Some(Sampler::Dpmpp2m), Some(Schedule::Linspace)));
        assert_eq!(
            schedule("DPM++ 2M, Schedule type: Automatic"),
            (Some(Sampler::Dpmpp2m), Some(Schedule::Karras))
        );
        assert_eq!(schedule("LMS SGM Uniform"), (Some(Sampler::Lms), Some(Schedule::Trailing)));
        assert_eq!(schedule("DDIM"), (Some(Sampler::Ddim), Some(Schedule::Leading)));
        assert_eq!(schedule("Euler a"), (Some(Sampler::EulerA), Some(Schedule::Linspace)));
    }

    #[test]
    fn what_means_nothing_here_is_named() {
        let parsed = parse_parameters(
            "x\nSteps: 20, Sampler: DPM adaptive, Seed: -1, Size: huge, Schedule type: Beta, Denoising strength: 0.7",
        );
        assert_eq!(
            parsed.unknown,
            ["Sampler: DPM adaptive", "Seed: -1", "Size: huge", "Denoising strength: 0.7"]
        );
        let parsed = parse_parameters("x\nSteps: 20, Sampler: Euler, Schedule type: Beta, Seed: 1");
        assert_eq!(parsed.unknown, ["Schedule type: Beta"]);
    }

    #[test]
    fn any_text_is_at_least_a_prompt() {
        for text in ["", "a cat", "\n\n", "a: b, c: d", "Negative prompt:", "Steps: \"", "\"\\", "é:,:,,:"] {
            let parsed = parse_parameters(text);
            assert!(parsed.draft.prompt.is_some() && parsed.draft.steps.is_none());
        }
    }
}
