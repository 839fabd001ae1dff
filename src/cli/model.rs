//! Which model a run uses and which rule chose it; opening is the checkpoint's business.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure, OrExit};
use crate::checkpoint::Checkpoint;
use crate::hub::{self, ModelId, Pulled};

/// The built-in model's name; a folder of that name is `./pocket`.
pub const BUILT_IN: &str = "pocket";

/// The environment variable that replaces the built-in model.
pub const VARIABLE: &str = "POCHADE_MODEL";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    BuiltIn,
    Path(PathBuf),
    /// Named by its id or an alias, whether it has been pulled or not.
    Hub(ModelId),
}

/// Why a model is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Flag,
    /// What a subcommand is about.
    Argument,
    Picture,
    Variable,
    Pulled,
    Default,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub source: Source,
    pub rule: Rule,
}

impl Choice {
    /// The flag, else the built-in model when `--from` names it, else the environment, else Stable Diffusion
    /// 1.5 if it has been pulled, else the built-in model.
    pub fn new(flag: Option<&Path>, embedded: Option<&str>) -> Self {
        let is_pulled = |id: &ModelId| hub::find(id).is_ok_and(|pulled| pulled.is_some());
        Self::from_rules(flag, embedded, std::env::var_os(VARIABLE), is_pulled)
    }

    fn from_rules(
        flag: Option<&Path>,
        embedded: Option<&str>,
        variable: Option<OsString>,
        is_pulled: impl Fn(&ModelId) -> bool,
    ) -> Self {
        if let Some(path) = flag {
            return Self { source: Source::named(path), rule: Rule::Flag };
        }
        if embedded == Some(BUILT_IN) {
            return Self { source: Source::BuiltIn, rule: Rule::Picture };
        }
        if let Some(path) = variable.filter(|value| !value.is_empty()) {
            return Self { source: Source::named(Path::new(&path)), rule: Rule::Variable };
        }
        match ModelId::parse(hub::DEFAULT).filter(is_pulled) {
            Some(id) => Self { source: Source::Hub(id), rule: Rule::Pulled },
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
            Source::Hub(id) => match hub::find(id)? {
                Some(pulled) => open_pulled(&pulled),
                None => Err(not_pulled(id, &self.rule.to_string())),
            },
        }
    }

    /// Whether the model is there, as far as can be seen without opening it.
    pub fn is_there(&self) -> bool {
        match &self.source {
            Source::BuiltIn => true,
            Source::Path(path) => path.exists(),
            Source::Hub(id) => hub::find(id).is_ok_and(|pulled| pulled.is_some()),
        }
    }
}

/// Opens a pulled model under its own name instead of that of the folder it lies in.
///
/// # Errors
/// Says what is wrong with it.
pub fn open_pulled(pulled: &Pulled) -> Result<Checkpoint, Failure> {
    let mut checkpoint = Checkpoint::open(pulled.path()).or_exit(Exit::Model)?;
    if pulled.native.is_none() {
        let defaults = checkpoint.defaults();
        checkpoint.describe(pulled.name.clone(), defaults);
    }
    Ok(checkpoint)
}

impl Source {
    /// A path that exists is meant before an id or an alias of the same spelling.
    pub fn named(name: &Path) -> Self {
        if name.as_os_str() == BUILT_IN {
            return Self::BuiltIn;
        }
        match name.to_str().and_then(ModelId::parse) {
            Some(id) if !name.exists() => Self::Hub(id),
            _ => Self::Path(name.to_owned()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => write!(f, "{BUILT_IN} (built in)"),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Hub(id) => match hub::find(id) {
                Ok(Some(pulled)) => write!(f, "{id} ({})", pulled.path().display()),
                _ => write!(f, "{id}"),
            },
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("from --model"),
            Self::Argument => f.write_str("as named"),
            Self::Picture => f.write_str("from the picture"),
            Self::Variable => write!(f, "from ${VARIABLE}"),
            Self::Pulled => f.write_str("because it has been pulled"),
            Self::Default => f.write_str("by default"),
        }
    }
}

/// The error for a model that would have to be fetched first.
pub fn not_pulled(id: &ModelId, rule: &str) -> Failure {
    let message =
        format!("model '{id}' ({rule}) has not been pulled; fetch it with `pochade models pull {id}`");
    Failure::new(Exit::Model, message)
}

fn missing(path: &Path, rule: Rule) -> Failure {
    Failure::new(Exit::Model, format!("model '{}' ({rule}) is not a file or folder", path.display())).hint(
        format!(
            "pass the path of a diffusers folder or file, an id `org/name` or an alias ({}), or \
         `-m {BUILT_IN}` for the built-in model",
            hub::ALIASES.map(|alias| alias.name).join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_applies_chooses() {
        let choose = |flag: Option<&str>, embedded: Option<&str>, variable: Option<&str>| {
            let choice =
                Choice::from_rules(flag.map(Path::new), embedded, variable.map(Into::into), |_| false);
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
        assert_eq!(choose(Some("nobody/nothing@x"), None, None), ("nobody/nothing@x".into(), Rule::Flag));
        let pulled = Choice::from_rules(None, None, None, |id| *id == ModelId::parse("sd15").unwrap());
        assert_eq!(pulled.rule, Rule::Pulled);
        let picture = Choice::from_rules(None, Some("pocket"), None, |_| true);
        assert_eq!(picture, Choice { source: Source::BuiltIn, rule: Rule::Picture });
    }
}
