//! `pochade info`: what a picture says about its making, or what a model is made of; no network is loaded.

use std::fmt::Display;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::InfoArgs;
use super::exit::{Exit, Failure, OrExit};
use super::report::shown;
use super::{model_info, printer};
use crate::checkpoint::Checkpoint;
use crate::png::{self, Header};
use crate::request::{Draft, Embedded, Lora};

/// Prints the parameters embedded in a picture.
///
/// # Errors
/// When the picture can't be read or carries none.
pub fn run(args: &InfoArgs) -> Result<Exit, Failure> {
    if Checkpoint::is_at(&args.image) {
        return model_info::run(args);
    }
    let header = png::read_header(&args.image).or_exit(Exit::Usage)?;
    let embedded = Embedded::find(header.chunks())
        .with_context(|| args.image.display().to_string())
        .or_exit(Exit::Usage)?
        .ok_or_else(|| {
            Failure::usage(format!("{} carries no generation parameters", args.image.display()))
        })?;
    let text = if args.json {
        json(&shown(&args.image), &header, &embedded).to_string()
    } else {
        table(&rows(&header, &embedded))
    };
    printer::stdout_text(&text).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}

fn json(path: &str, header: &Header, embedded: &Embedded) -> Value {
    let mut json = json!({
        "path": path,
        "width": header.width,
        "height": header.height,
        "model": embedded.model(),
        "request": embedded.draft(),
    });
    let more = match embedded {
        Embedded::Record(record) => json!({
            "source": "pochade",
            "version": record.version,
            "components": record.components,
            "tiled": record.tiled,
            "precision": record.precision,
            "kernel": record.kernel,
            "device": record.device,
        }),
        Embedded::Parameters(parameters) => {
            json!({ "source": "parameters", "unknown": parameters.unknown })
        }
    };
    if let (Value::Object(json), Value::Object(more)) = (&mut json, more) {
        json.extend(more);
    }
    json
}

fn rows(header: &Header, embedded: &Embedded) -> Vec<(&'static str, String)> {
    let Draft {
        prompt,
        negative_prompt,
        width,
        height,
        steps,
        guidance_scale,
        sampler,
        schedule,
        eta,
        seed,
        rng,
        prompt_syntax,
        clip_skip,
        lora,
        lora_dir,
        embedding,
        embedding_dir,
        init,
        mask,
        strength,
        resize,
        hires,
        hires_steps,
        hires_strength,
    } = embedded.draft();
    let size = width.zip(*height).map(|(width, height)| format!("{width}x{height}"));
    let mut rows = vec![("picture", Some(format!("{}x{} pixels", header.width, header.height)))];
    rows.extend([
        ("prompt", prompt.clone()),
        ("negative", negative_prompt.clone().filter(|text| !text.is_empty())),
        ("size", size),
        ("steps", text(steps)),
        ("guidance", text(guidance_scale)),
        ("sampler", text(sampler)),
        ("schedule", text(schedule)),
        ("eta", text(eta)),
        ("seed", text(seed)),
        ("rng", text(rng)),
        ("syntax", text(prompt_syntax)),
        ("clip skip", text(clip_skip)),
        ("lora", list(lora, Lora::to_string)),
        ("lora folder", lora_dir.as_deref().map(shown)),
        ("embedding", list(embedding, |path| shown(path))),
        ("embedding folder", embedding_dir.as_deref().map(shown)),
        ("init", init.as_deref().map(shown)),
        ("mask", mask.as_deref().map(shown)),
        ("strength", text(strength)),
        ("resize", text(resize)),
        ("hires", text(hires)),
        ("hires steps", text(hires_steps)),
        ("hires strength", text(hires_strength)),
        ("model", embedded.model().map(str::to_owned)),
    ]);
    match embedded {
        Embedded::Record(record) => rows.extend(
            record.components.iter().map(|(part, file)| ("with", Some(format!("{part} {file}")))).chain([
                ("precision", Some(record.precision.to_string())),
                ("kernel", Some(record.kernel.clone())),
                ("device", Some(record.device.clone())),
                ("decoded", record.tiled.then(|| "in parts".to_owned())),
                ("made by", Some(format!("pochade {}", record.version))),
            ]),
        ),
        Embedded::Parameters(parameters) => {
            rows.extend(parameters.unknown.iter().map(|setting| ("other", Some(setting.clone()))));
        }
    }
    rows.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// One line for each.
fn list<T>(values: &Option<Vec<T>>, print: impl Fn(&T) -> String) -> Option<String> {
    values.as_ref().map(|values| values.iter().map(print).collect::<Vec<_>>().join("\n"))
}

fn text(value: &Option<impl Display>) -> Option<String> {
    value.as_ref().map(ToString::to_string)
}

/// Two columns; further lines of a value stay in the second.
pub fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let row = |(name, value): &(&str, String)| {
        let value = value.lines().collect::<Vec<_>>().join(&format!("\n{:width$}  ", ""));
        format!("{name:width$}  {value}")
    };
    rows.iter().map(row).collect::<Vec<_>>().join("\n")
}
