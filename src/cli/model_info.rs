//! What `pochade info` says of a model: form, components, parameters, types, defaults.

use anyhow::{Context, Result};

use super::args::InfoArgs;
use super::exit::{Exit, Failure, OrExit};
use super::printer;
use super::table::table;
use crate::checkpoint::{Checkpoint, ComponentSummary, Summary};

/// Prints what the model at the path is made of.
///
/// # Errors
/// When there is no model.
pub fn run(args: &InfoArgs) -> Result<Exit, Failure> {
    let summary = Checkpoint::open(&args.image).or_exit(Exit::Model)?.summary();
    let text = if args.json {
        serde_json::to_string(&summary).context("writing the model as JSON").or_exit(Exit::PictureFailed)?
    } else {
        table(&rows(&summary))
    };
    printer::stdout_text(&text).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}

fn rows(summary: &Summary) -> Vec<(&str, String)> {
    let defaults = &summary.defaults;
    let mut rows = vec![("model", summary.name.clone()), ("kind", summary.kind.clone())];
    rows.extend(summary.components.iter().map(|component| (component.name, figures(component))));
    rows.extend([
        ("size", format!("{}x{}", defaults.width, defaults.height)),
        ("steps", defaults.steps.to_string()),
        ("guidance", defaults.guidance_scale.to_string()),
        ("sampler", defaults.sampler.to_string()),
        ("schedule", defaults.schedule.to_string()),
    ]);
    rows
}

fn figures(component: &ComponentSummary) -> String {
    let ComponentSummary { class, tensors, parameters, bytes, types, .. } = component;
    if *tensors == 0 {
        return "none".to_owned();
    }
    let (millions, megabytes) = (*parameters as f64 / 1e6, *bytes as f64 / 1e6);
    format!(
        "{class}, {tensors} tensors, {millions:.1} million parameters, {megabytes:.1} MB, {}",
        types.join(" ")
    )
}
