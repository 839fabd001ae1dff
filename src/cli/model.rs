//! Which model a run uses and which rule chose it; opening is the checkpoint's business.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure, OrExit};
use crate::checkpoint::Checkpoint;

/// The built-in model's name; a folder of that name is `./pocket`.
pub const BUILT_IN: &str = "pocket";

/// The environment variable that replaces the built-in model.
pub const VARIABLE: &str = "POCHADE_MODEL";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    BuiltIn,
    Path(PathBuf),
}

/// Why a model is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Flag,
    Picture,
    Variable,
    Default,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub source: Source,
    pub rule: Rule,
}

impl Choice {
    /// The flag, else the built-in model when `--from` names it, else the environment, else the built-in model.
    pub fn new(flag: Option<&Path>, embedded: Option<&str>) -> Self {
        Self::from_rules(flag, embedded, std::env::var_os(VARIABLE))
    }

    fn from_rules(flag: Option<&Path>, embedded: Option<&str>, variable: Option<OsString>) -> Self {
        if let Some(path) = flag {
            return Self { source: Source::named(path), rule: Rule::Flag };
        }
        if embedded == Some(BUILT_IN) {
            return Self { source: Source::BuiltIn, rule: Rule::Picture };
        }
        match variable.filter(|value| !value.is_empty()) {
            Some(path) => Self { source: Source::named(Path::new(&path)), rule: Rule::Variable },
            None => Self { source: Source::BuiltIn, rule: Rule::Default },
        }
    }

    /// Opens the model.
    ///
    /// # Errors
    /// Says that the model is not there, or what is wrong with it.
    pub fn open(&self) -> Result<Checkpoint, Failure> {
        match &self.source {
            Source::BuiltIn => Checkpoint::built_in().or_exit(Exit::Model),
            Source::Path(path) if path.exists() => Checkpoint::open(path).or_exit(Exit::Model),
            Source::Path(path) => Err(missing(path, self.rule)),
        }
    }
}

impl Source {
    fn named(path: &Path) -> Self {
        if path.as_os_str() == BUILT_IN { Self::BuiltIn } else { Self::Path(path.to_owned()) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => write!(f, "{BUILT_IN} (built in)"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("from --model"),
            Self::Picture => f.write_str("from the picture"),
            Self::Variable => write!(f, "from ${VARIABLE}"),
            Self::Default => f.write_str("by default"),
        }
    }
}

fn missing(path: &Path, rule: Rule) -> Failure {
    let failure =
        Failure::new(Exit::Model, format!("model '{}' ({rule}) is not a file or folder", path.display()));
    if is_hub_id(path) {
        failure.hint(format!(
            "models are not downloaded yet; fetch it with `hf download {} --local-dir DIR` and pass `-m DIR`",
            path.display()
        ))
    } else {
        failure
            .hint(format!("pass the path of a diffusers folder, or `-m {BUILT_IN}` for the built-in model"))
    }
}

/// `org/name`, as on the Hugging Face Hub.
fn is_hub_id(path: &Path) -> bool {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    path.to_str()
        .and_then(|text| text.split_once('/'))
        .is_some_and(|(organisation, name)| is_name(organisation) && is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_applies_chooses() {
        let choose = |flag: Option<&str>, embedded: Option<&str>, variable: Option<&str>| {
            let choice = Choice::from_rules(flag.map(Path::new), embedded, variable.map(Into::into));
            (choice.source.to_string(), choice.rule)
        };
        let built_in = "pocket (built in)".to_owned();
        assert_eq!(choose(None, None, None), (built_in.clone(), Rule::Default));
        assert_eq!(choose(None, None, Some("")), (built_in.clone(), Rule::Default));
        assert_eq!(choose(None, None, Some("/v")), ("/v".into(), Rule::Variable));
        assert_eq!(choose(None, Some("sd15"), Some("/v")), ("/v".into(), Rule::Variable));
        assert_eq!(choose(None, Some("pocket"), Some("/v")), (built_in.clone(), Rule::Picture));
        assert_eq!(choose(Some("/f"), Some("pocket"), Some("/v")), ("/f".into(), Rule::Flag));
        assert_eq!(choose(Some("pocket"), None, Some("/v")), (built_in, Rule::Flag));
        assert_eq!(choose(Some("./pocket"), None, None), ("./pocket".into(), Rule::Flag));
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        assert!(is_hub_id(Path::new("stable-diffusion-v1-5/stable-diffusion-v1-5")));
        for path in ["sd15", "./sd15", "/models/sd15", "models/sd15/unet", "../x"] {
            assert!(!is_hub_id(Path::new(path)), "{path}");
        }
    }
}
