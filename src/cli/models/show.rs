//! `pochade models show`: components, parameters, types, size, defaults and licence of any model.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use super::super::exit::{Exit, Failure, OrExit};
use super::super::model::{Choice, Rule, Source};
use super::super::printer;
use super::super::table::table;
use super::args::ShowArgs;
use super::{bytes, size};
use crate::checkpoint::{Checkpoint, Component, TensorSet};
use crate::hub;
use crate::request::Defaults;

/// A model, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Description {
    name: String,
    source: String,
    commit: Option<String>,
    licence: Option<String>,
    bytes: Option<u64>,
    components: Vec<ComponentRow>,
    defaults: Defaults,
}

#[derive(Debug, Serialize)]
struct ComponentRow {
    name: &'static str,
    class: Option<String>,
    layers: usize,
    parameters: usize,
    types: Vec<String>,
    bytes: usize,
}

/// Prints the description.
///
/// # Errors
/// When there is no such model, or it can't be opened.
pub fn run(args: &ShowArgs) -> Result<Exit, Failure> {
    let description = describe(&args.model)?;
    let text = if args.json {
        serde_json::to_string(&description).or_exit(Exit::PictureFailed)?
    } else {
        table(&description.rows())
    };
    printer::stdout_text(&text).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}

fn describe(name: &str) -> Result<Description, Failure> {
    let choice = Choice { source: Source::named(Path::new(name)), rule: Rule::Argument };
    let checkpoint = choice.open()?;
    let pulled = match &choice.source {
        Source::Hub(id) => hub::find(id)?,
        _ => None,
    };
    let on_disk = match &choice.source {
        Source::BuiltIn => Some(Checkpoint::built_in_bytes()),
        Source::Path(path) if path.is_file() => path.metadata().ok().map(|file| file.len()),
        _ => pulled.as_ref().map(size),
    };
    let licence = match &choice.source {
        Source::BuiltIn => Some(env!("CARGO_PKG_LICENSE").to_owned()),
        _ => pulled.as_ref().and_then(hub::licence),
    };
    Ok(Description {
        name: checkpoint.name().to_owned(),
        source: choice.source.to_string(),
        commit: pulled.map(|pulled| pulled.commit),
        licence,
        bytes: on_disk,
        components: Component::ALL.into_iter().map(|component| part(&checkpoint, component)).collect(),
        defaults: checkpoint.defaults(),
    })
}

fn part(checkpoint: &Checkpoint, component: Component) -> ComponentRow {
    let tensors = checkpoint.tensors();
    let names: Vec<&str> =
        tensors.parameters().filter(|name| Component::of(name) == Some(component)).collect();
    let views = || names.iter().filter_map(|name| tensors.view(name).ok());
    // A layer is what its weight and its bias belong to.
    let layers: BTreeSet<&str> = names.iter().filter_map(|name| Some(name.rsplit_once('.')?.0)).collect();
    let configs = checkpoint.configs();
    let config = match component {
        Component::TextEncoder => &configs.text_encoder,
        Component::Unet => &configs.unet,
        Component::Vae => &configs.vae,
    };
    let class = config.get("_class_name").or_else(|| config.get("architectures")?.get(0));
    ComponentRow {
        name: component.name(),
        class: class.and_then(|class| class.as_str()).map(str::to_owned),
        layers: layers.len(),
        parameters: views().map(|view| view.len()).sum(),
        types: distinct(views().map(|view| format!("{:?}", view.dtype))),
        bytes: views().map(|view| view.len() * view.dtype.bitsize() / 8).sum(),
    }
}

/// The types of a model's weights.
pub fn types(tensors: &TensorSet) -> Vec<String> {
    let views = tensors.parameters().filter_map(|name| tensors.view(name).ok());
    distinct(views.map(|view| view.type_name()))
}

fn distinct(types: impl Iterator<Item = String>) -> Vec<String> {
    types.map(|name| name.to_ascii_lowercase()).collect::<BTreeSet<_>>().into_iter().collect()
}

impl Description {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("model", self.name.clone()), ("source", self.source.clone())];
        rows.extend(self.commit.clone().map(|commit| ("commit", commit)));
        rows.push(("licence", self.licence.clone().unwrap_or_else(|| "not stated".to_owned())));
        rows.extend(self.bytes.map(|count| ("size", bytes(count))));
        for part in &self.components {
            let class = part.class.as_ref().map_or(String::new(), |class| format!("{class}, "));
            let millions = part.parameters as f64 / 1e6;
            rows.push((
                part.name,
                format!(
                    "{class}{} layers, {millions:.2} M parameters, {}, {}",
                    part.layers,
                    part.types.join(" "),
                    bytes(part.bytes as u64)
                ),
            ));
        }
        let Defaults { width, height, steps, guidance_scale, sampler, schedule } = self.defaults;
        rows.push((
            "defaults",
            format!("{width}x{height}, {steps} steps of {sampler} ({schedule}), guidance {guidance_scale}"),
        ));
        rows
    }
}
