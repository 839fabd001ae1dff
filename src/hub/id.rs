//! How a model on the Hub is named: `org/name[@revision]` and a few short names; nothing is looked up here.

use std::fmt;

/// A short name for a repository of the SD 1.5 family.
#[derive(Debug, Clone, Copy)]
pub struct Alias {
    pub name: &'static str,
    pub repository: &'static str,
    pub about: &'static str,
}

pub const ALIASES: [Alias; 5] = [
    Alias {
        name: "sd15",
        repository: "stable-diffusion-v1-5/stable-diffusion-v1-5",
        about: "Stable Diffusion 1.5",
    },
    Alias {
        name: "inpainting",
        repository: "stable-diffusion-v1-5/stable-diffusion-inpainting",
        about: "Stable Diffusion 1.5 for filling in masked parts",
    },
    Alias { name: "dreamshaper", repository: "Lykon/dreamshaper-8", about: "a painterly finetune" },
    Alias { name: "lcm", repository: "SimianLuo/LCM_Dreamshaper_v7", about: "few steps, no guidance" },
    Alias { name: "tiny", repository: "nota-ai/bk-sdm-tiny", about: "distilled, fewer UNet blocks" },
];

/// A short name for a file that is used beside a model of the SD 1.5 family.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub name: &'static str,
    pub repository: &'static str,
    pub file: &'static str,
    pub about: &'static str,
}

pub const PARTS: [Part; 8] = [
    Part {
        name: "lcm-lora",
        repository: "latent-consistency/lcm-lora-sdv1-5",
        file: "pytorch_lora_weights.safetensors",
        about: "for --fast lcm",
    },
    Part {
        name: "tcd-lora",
        repository: "h1t/TCD-SD15-LoRA",
        file: "pytorch_lora_weights.safetensors",
        about: "for --fast tcd",
    },
    hyper("hyper-1-lora", "Hyper-SD15-1step-lora.safetensors", "for --fast hyper-1"),
    hyper("hyper-2-lora", "Hyper-SD15-2steps-lora.safetensors", "for --fast hyper-2"),
    hyper("hyper-4-lora", "Hyper-SD15-4steps-lora.safetensors", "for --fast hyper-4"),
    hyper("hyper-8-lora", "Hyper-SD15-8steps-lora.safetensors", "for --fast hyper-8"),
    hyper("hyper-8-cfg-lora", "Hyper-SD15-8steps-CFG-lora.safetensors", "for --fast hyper-8-cfg"),
    Part {
        name: "taesd",
        repository: "madebyollin/taesd",
        file: "diffusion_pytorch_model.safetensors",
        about: "a small autoencoder, for --taesd",
    },
];

const fn hyper(name: &'static str, file: &'static str, about: &'static str) -> Part {
    Part { name, repository: "ByteDance/Hyper-SD", file, about }
}

/// The part of this name.
pub fn part(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.name == name)
}

impl Part {
    /// The repository that has it.
    ///
    /// # Panics
    /// Never: each of them is an id.
    pub fn id(&self) -> ModelId {
        ModelId::parse(self.repository).expect("a repository of the table is an id")
    }
}

/// The alias whose model is the default once it has been pulled.
pub const DEFAULT: &str = "sd15";

/// The branch meant when no revision is named.
const MAIN: &str = "main";

/// A repository on the Hub at a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    organisation: String,
    name: String,
    revision: String,
}

impl ModelId {
    /// Reads an alias or `org/name`, either with `@revision`; none if the text is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, revision),
            None => (text, MAIN),
        };
        let alias = ALIASES.iter().find(|alias| alias.name == repository);
        let (organisation, name) = alias.map_or(repository, |alias| alias.repository).split_once('/')?;
        (is_name(organisation) && is_name(name) && is_revision(revision)).then(|| Self {
            organisation: organisation.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// The same repository at another revision; none if that is no revision.
    pub fn at(&self, revision: &str) -> Option<Self> {
        is_revision(revision).then(|| Self { revision: revision.to_owned(), ..self.clone() })
    }

    /// `org/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    /// The repository's name without its owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

/// The Hub's own rule; `--` is kept out because it separates the parts in the cache's folder names.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && !name.ends_with(['-', '.'])
        && name.len() <= 96
        && !name.contains("--")
        && !name.contains("..")
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// A revision becomes a path under `refs/`, so no part of it may lead out of there.
fn is_revision(revision: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
    };
    revision.len() <= 200 && revision.split('/').all(is_part)
}

/// Whether `text` is a full commit hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Needs, Recipe};

    #[test]
    fn ids_and_aliases_are_told_from_paths() {
        let shown = |text: &str| ModelId::parse(text).map(|id| id.to_string());
        let sd15 = "stable-diffusion-v1-5/stable-diffusion-v1-5";
        assert_eq!(shown(sd15).as_deref(), Some(sd15));
        assert_eq!(shown("sd15").as_deref(), Some(sd15));
        assert_eq!(shown("sd15@fp16"), Some(format!("{sd15}@fp16")));
        assert_eq!(shown("a/b@refs/pr/1").as_deref(), Some("a/b@refs/pr/1"));
        assert_eq!(shown("a/b@main").as_deref(), Some("a/b"));
        for path in [
            "pocket",
            "./sd15",
            "/models/sd15",
            "models/sd15/unet",
            "../x",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b@/x",
            "a/b@x//y",
            "a--b/c",
            "a/b@x y",
            "a/b.",
            "",
        ] {
            assert_eq!(ModelId::parse(path), None, "{path}");
        }
    }

    #[test]
    fn every_alias_is_an_id() {
        for alias in ALIASES {
            assert_eq!(ModelId::parse(alias.name).unwrap().repository(), alias.repository);
        }
        assert!(ALIASES.iter().any(|alias| alias.name == DEFAULT));
        for found in &PARTS {
            assert_eq!(part(found.name).unwrap().id().repository(), found.repository);
            assert!(ALIASES.iter().all(|alias| alias.name != found.name), "{}", found.name);
        }
        for recipe in Recipe::ALL {
            if let Needs::Lora(name, file) = recipe.ingredients().needs {
                assert_eq!(part(name).unwrap().file, file, "{recipe}");
            }
        }
    }
}
