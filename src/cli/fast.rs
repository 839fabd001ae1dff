//! The LoRA of a recipe (`--fast`), built in or found among what has been pulled; its other settings are the request's.

use std::path::PathBuf;

use super::exit::{Exit, Failure};
use crate::checkpoint::lora;
use crate::hub;
use crate::request::{Draft, Lora, Needs, Recipe};

/// `draft` with its recipe's LoRA before its others, unless a file of that name is among them.
///
/// # Errors
/// Names the LoRA that has not been pulled, and the command that does.
pub fn with_lora(draft: Draft) -> Result<Draft, Failure> {
    let Some(recipe) = draft.fast else { return Ok(draft) };
    let mut loras = draft.lora.clone().unwrap_or_default();
    if loras.iter().any(|lora| is_of(recipe, lora)) {
        return Ok(draft);
    }
    let path = match recipe.ingredients().needs {
        Needs::BuiltIn(_, name) => lora::built_in(name),
        Needs::Lora(name, _) => pulled(recipe, name)?,
    };
    loras.insert(0, Lora { path, weight: 1.0 });
    Ok(Draft { lora: Some(loras), ..draft })
}

/// The file of the LoRA called `name`.
fn pulled(recipe: Recipe, name: &str) -> Result<PathBuf, Failure> {
    let missing = || {
        Failure::new(
            Exit::Model,
            format!("--fast {recipe} needs the LoRA '{name}', which has not been pulled"),
        )
        .hint(format!("`pochade models pull {name}` fetches it; or name a copy of it with --lora"))
    };
    let part = hub::part(name).ok_or_else(missing)?;
    hub::find_file(&part.id(), part.file)?.and_then(|pulled| pulled.source).ok_or_else(missing)
}

/// `below`, from a picture, without its recipe's LoRA, which is found again by the recipe.
pub fn without_lora(mut below: Draft) -> Draft {
    if let (Some(recipe), Some(loras)) = (below.fast, &mut below.lora) {
        loras.retain(|lora| !is_of(recipe, lora));
    }
    below.lora = below.lora.filter(|loras| !loras.is_empty());
    below
}

fn is_of(recipe: Recipe, lora: &Lora) -> bool {
    let (Needs::Lora(_, file) | Needs::BuiltIn(_, file)) = recipe.ingredients().needs;
    lora.path.file_name().is_some_and(|name| name == file)
}
