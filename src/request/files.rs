//! The files a request names beside its model, and the hashes that tell them apart; nothing is read here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::files::Fingerprint;

/// A LoRA and how strongly it acts, spelled `file:weight`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lora {
    pub path: PathBuf,
    /// 1 is as trained; negative weights push away.
    pub weight: f64,
}

impl Lora {
    /// # Errors
    /// When the weight is too large to make sense.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            self.weight.is_finite() && self.weight.abs() <= 100.0,
            "lora weight {} of {} is out of range (-100 to 100)",
            self.weight,
            self.path.display()
        );
        Ok(())
    }
}

impl std::str::FromStr for Lora {
    type Err = anyhow::Error;

    /// Reads `file` or `file:weight`; what follows the last colon belongs to the name unless it is a number.
    fn from_str(text: &str) -> Result<Self> {
        let weighted = text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse().ok()?)));
        let (path, weight) = weighted.unwrap_or((text, 1.0));
        ensure!(!path.is_empty(), "'{text}' names no lora file");
        let lora = Self { path: path.into(), weight };
        lora.validate()?;
        Ok(lora)
    }
}

impl TryFrom<String> for Lora {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Lora> for String {
    fn from(lora: Lora) -> Self {
        lora.to_string()
    }
}

impl std::fmt::Display for Lora {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.weight)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    Lora,
    Embedding,
    /// The picture to start from.
    Init,
    Mask,
}

/// A file beside the model that a picture was made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedFile {
    pub kind: FileKind,
    /// File name without its ending.
    pub name: String,
    /// The first 12 digits of the file's SHA-256.
    pub sha256: String,
    /// The 12 digits AUTOMATIC1111 shows.
    pub shown_hash: String,
}

impl UsedFile {
    /// # Errors
    /// When the path has no name or the hashes are none.
    pub fn new(kind: FileKind, path: &Path, fingerprint: &Fingerprint) -> Result<Self> {
        let short = |hash: &str| hash.get(..12).map(str::to_owned).context("a hash is too short");
        let name = path.file_stem().with_context(|| format!("{} has no name", path.display()))?;
        let sha256 = short(&fingerprint.whole)?;
        let shown_hash = match kind {
            FileKind::Lora => short(&fingerprint.data)?,
            FileKind::Embedding | FileKind::Init | FileKind::Mask => sha256.clone(),
        };
        Ok(Self { kind, name: name.to_string_lossy().into_owned(), sha256, shown_hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_is_a_file_and_perhaps_a_weight() {
        for (text, path, weight) in [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors:0.8", "a.safetensors", 0.8),
            ("dir/b:-1", "dir/b", -1.0),
            (r"C:\loras\x", r"C:\loras\x", 1.0),
        ] {
            let lora: Lora = text.parse().unwrap();
            assert_eq!((lora.path.as_path(), lora.weight), (Path::new(path), weight));
            assert_eq!(String::from(lora.clone()).parse::<Lora>().unwrap(), lora);
        }
        for wrong in ["", ":1", "a:nan", "a:1e9"] {
            assert!(wrong.parse::<Lora>().is_err(), "{wrong}");
        }
    }
}
