//! `pochade info`: what a picture says about its making, or what a model is made of; no network is loaded.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::InfoArgs;
use super::exit::{Exit, Failure, OrExit};
use super::report::shown;
use super::table::table;
use super::{model_info, printer};
use crate::checkpoint::Checkpoint;
use crate::png::{self, Header};
use crate::request::{Embedded, FIELDS};

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
            "unet": record.unet,
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
    let draft = embedded.draft();
    let fields = FIELDS.iter().filter(|field| !field.info.is_empty());
    let mut rows = vec![("picture", format!("{}x{} pixels", header.width, header.height))];
    rows.extend(fields.filter_map(|field| Some((field.info, (field.get)(draft)?))));
    // Nearly every picture has an empty one.
    rows.retain(|(name, value)| *name != "negative" || !value.is_empty());
    rows.extend(embedded.model().map(|model| ("model", model.to_owned())));
    match embedded {
        Embedded::Record(record) => {
            rows.extend(record.components.iter().map(|(part, file)| ("with", format!("{part} {file}"))));
            rows.extend(record.unet.map(|passes| ("unet", passes.to_string())));
            rows.push(("precision", record.precision.to_string()));
            rows.push(("kernel", record.kernel.clone()));
            rows.push(("device", record.device.clone()));
            rows.extend(record.tiled.then(|| ("decoded", "in parts".to_owned())));
            rows.push(("made by", format!("pochade {}", record.version)));
        }
        Embedded::Parameters(parameters) => {
            rows.extend(parameters.unknown.iter().map(|setting| ("other", setting.clone())));
        }
    }
    rows
}
