//! What a model is made of: components, parameters, types and sizes, for people to read.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Checkpoint;
use super::names::Component;
use crate::request::Defaults;

/// A model in figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub name: String,
    /// The form it came in, e.g. `GGUF file`.
    pub kind: String,
    pub defaults: Defaults,
    pub components: Vec<ComponentSummary>,
}

/// A component in figures; what is not in the file has no tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentSummary {
    pub name: &'static str,
    /// The network's class, e.g. `AutoencoderTiny`.
    pub class: String,
    pub tensors: usize,
    pub parameters: usize,
    /// Bytes of the tensors where they are stored, with their scales.
    pub bytes: usize,
    /// What the tensors are stored as, in alphabetical order.
    pub types: Vec<String>,
}

pub fn of(checkpoint: &Checkpoint) -> Summary {
    let configs = &checkpoint.configs;
    let components = Component::ALL.into_iter().map(|component| {
        let (config, otherwise) = match component {
            Component::TextEncoder => (&configs.text_encoder, "CLIPTextModel"),
            Component::Unet => (&configs.unet, "UNet2DConditionModel"),
            Component::Vae => (&configs.vae, "AutoencoderKL"),
        };
        let class = config.get("_class_name").and_then(serde_json::Value::as_str).unwrap_or(otherwise);
        let mut summary = ComponentSummary {
            name: component.name(),
            class: class.to_owned(),
            tensors: 0,
            parameters: 0,
            bytes: 0,
            types: Vec::new(),
        };
        let mut types = BTreeSet::new();
        let tensors = &checkpoint.tensors;
        for name in tensors.parameters().filter(|name| Component::of(name) == Some(component)) {
            let Ok(view) = tensors.view(name) else { continue };
            summary.tensors += 1;
            summary.parameters += view.len();
            summary.bytes += tensors.stored_len(name);
            types.insert(view.type_name());
        }
        summary.types = types.into_iter().collect();
        summary
    });
    Summary {
        name: checkpoint.name.clone(),
        kind: checkpoint.origin.to_string(),
        defaults: checkpoint.defaults,
        components: components.collect(),
    }
}
