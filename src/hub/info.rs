//! What the Hub's API says about a repository, and the checks it must pass before a name becomes a path.

use serde::Deserialize;
use serde_json::Value;

use super::error::{Error, ErrorKind, Result};
use super::id::is_commit;

/// The answer of `GET /api/models/{id}/revision/{revision}?blobs=true`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct ModelInfo {
    /// The commit that the revision stands for.
    pub sha: String,
    #[serde(default)]
    pub siblings: Vec<Sibling>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default, rename = "cardData")]
    card: Value,
}

/// A file of the repository.
#[derive(Debug, Clone, Deserialize)]
pub struct Sibling {
    #[serde(rename = "rfilename")]
    pub name: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Content the Hub promises: how many bytes, and their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub size: u64,
    pub hash: Hash,
}

/// The Hub's `ETag`s, which name the files in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hash {
    /// Of a large file.
    Sha256(String),
    /// Of a small one: SHA-1 of `blob SIZE\0` and the content, as git does.
    Git(String),
}

impl Hash {
    /// Recognises a hash by its length; anything else is not fit to name a file.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_start_matches("W/").trim_matches('"');
        let hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        match text.len() {
            64 if hex => Some(Self::Sha256(text.to_owned())),
            40 if hex => Some(Self::Git(text.to_owned())),
            _ => None,
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }
}

impl Sibling {
    /// The content, if the answer describes it.
    pub fn blob(&self) -> Option<Blob> {
        let lfs = self.lfs.as_ref();
        let hash = lfs.and_then(|lfs| lfs.sha256.as_ref()).or(self.blob_id.as_ref())?;
        let size = lfs.and_then(|lfs| lfs.size).or(self.size)?;
        Some(Blob { size, hash: Hash::parse(hash)? })
    }
}

impl ModelInfo {
    /// Refuses what would lead out of the cache's folders.
    ///
    /// # Errors
    /// Names the commit or the file.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Unusable, what));
        if !is_commit(&self.sha) {
            return refuse(format!(
                "the server names the commit '{}', which is no hash",
                self.sha.escape_debug()
            ));
        }
        match self.siblings.iter().find(|file| !stays_inside(&file.name)) {
            Some(file) => refuse(format!(
                "the repository lists a file '{}', which would lie outside of its folder: nothing was fetched",
                file.name.escape_debug()
            )),
            None => Ok(()),
        }
    }

    /// The licence as the model card states it.
    pub fn licence(&self) -> Option<String> {
        let entry = |key: &str| self.card.get(key).and_then(Value::as_str);
        let tag = self.tags.iter().find_map(|tag| tag.strip_prefix("license:"));
        let licence = entry("license").or(tag)?;
        let name = if licence == "other" { entry("license_name").unwrap_or(licence) } else { licence };
        Some(match entry("license_link") {
            Some(link) => format!("{name} ({link})"),
            None => name.to_owned(),
        })
    }
}

/// A relative path that names a file below where it starts, on every system.
fn stays_inside(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(['\\', ':'])
            && !part.contains(char::is_control)
    };
    name.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(value: Value) -> ModelInfo {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["../x", "/etc/passwd", "unet/../../x", "a//b", "a\\b", "C:x", "./x", "a/", "", "a\nb"] {
            let info = info(json!({"sha": "0".repeat(40), "siblings": [{"rfilename": name}]}));
            assert!(info.check().is_err(), "{name}");
        }
        let odd = info(json!({"sha": "0".repeat(40), "siblings": [{"rfilename": "a/..b/c.json"}]}));
        assert!(odd.check().is_ok());
        assert!(info(json!({"sha": "../main"})).check().is_err());
    }

    #[test]
    fn large_and_small_files_have_their_hash() {
        let sibling = |value: Value| serde_json::from_value::<Sibling>(value).unwrap().blob();
        let (sha1, sha256) = ("1".repeat(40), "2".repeat(64));
        let small = sibling(json!({"rfilename": "a", "size": 3, "blobId": sha1}));
        assert_eq!(small, Some(Blob { size: 3, hash: Hash::Git(sha1.clone()) }));
        let lfs = json!({"sha256": sha256, "size": 9, "pointerSize": 130});
        let large = sibling(json!({"rfilename": "a", "size": 9, "blobId": sha1, "lfs": lfs}));
        assert_eq!(large, Some(Blob { size: 9, hash: Hash::Sha256(sha256) }));
        assert_eq!(sibling(json!({"rfilename": "a"})), None);
        assert_eq!(Hash::parse("W/\"../../../../../../../../../../../../../x\""), None);
    }

    #[test]
    fn the_licence_is_the_cards_or_a_tags() {
        let licence = |value: Value| info(value).licence();
        let openrail = "creativeml-openrail-m";
        assert_eq!(licence(json!({"sha": "", "cardData": {"license": openrail}})).as_deref(), Some(openrail));
        assert_eq!(licence(json!({"sha": "", "tags": ["x", "license:mit"]})).as_deref(), Some("mit"));
        let other = json!({"license": "other", "license_name": "mine", "license_link": "https://x.y/z"});
        assert_eq!(licence(json!({"sha": "", "cardData": other})).as_deref(), Some("mine (https://x.y/z)"));
        assert_eq!(licence(json!({"sha": ""})), None);
    }
}
