//! What the environment says about the Hub: folders, endpoint, token, and whether connections are allowed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::{Error, Kind, Result};

/// The Hub itself, unless `HF_ENDPOINT` names a mirror.
const ENDPOINT: &str = "https://huggingface.co";

static FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// Forbids every connection of this process.
pub fn forbid_connections() {
    FORBIDDEN.store(true, Ordering::Relaxed);
}

/// What forbids connections, if something does.
pub fn offline() -> Option<&'static str> {
    let is_on = |value: OsString| {
        matches!(value.to_string_lossy().to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
    };
    if FORBIDDEN.load(Ordering::Relaxed) {
        return Some("--offline");
    }
    variable("HF_HUB_OFFLINE").is_some_and(is_on).then_some("HF_HUB_OFFLINE")
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The cache folder shared with Python tools, if the environment names a home for it.
pub fn cache_folder() -> Option<PathBuf> {
    cache_folder_in(variable, std::env::home_dir())
}

fn cache_folder_in(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    match variable("HF_HUB_CACHE") {
        Some(cache) => Some(cache.into()),
        None => Some(hub_home(variable, home)?.join("hub")),
    }
}

/// Where the Hub's tools keep everything of theirs.
fn hub_home(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    match variable("HF_HOME") {
        Some(home) => Some(home.into()),
        None => Some(caches(variable, home)?.join("huggingface")),
    }
}

fn caches(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(home?.join(".cache")))
}

/// Where the quantized files lie: a folder of our own, because other tools take every folder in the Hub's cache
/// for a repository.
pub fn native_folder() -> Option<PathBuf> {
    match variable("POCHADE_CACHE") {
        Some(folder) => Some(folder.into()),
        None => Some(caches(variable, std::env::home_dir())?.join("pochade")),
    }
}

/// The URL all requests begin with, without a slash at its end.
///
/// # Errors
/// When `HF_ENDPOINT` is no URL.
pub fn endpoint() -> Result<String> {
    let Some(endpoint) = variable("HF_ENDPOINT") else { return Ok(ENDPOINT.to_owned()) };
    let endpoint = endpoint.to_string_lossy().trim_end_matches('/').to_owned();
    if endpoint.starts_with("https://") || endpoint.starts_with("http://") {
        return Ok(endpoint);
    }
    Err(Error::new(Kind::Network, format!("HF_ENDPOINT is '{endpoint}', which is no http or https URL")))
}

/// The user's token: `HF_TOKEN`, else the file that logging in with the Hub's own tools leaves.
pub fn token() -> Option<String> {
    let given = variable("HF_TOKEN").map(|token| token.to_string_lossy().into_owned());
    let text = given.or_else(|| {
        let path = variable("HF_TOKEN_PATH").map(PathBuf::from);
        let path = path.or_else(|| Some(hub_home(variable, std::env::home_dir())?.join("token")))?;
        std::fs::read_to_string(Path::new(&path)).ok()
    })?;
    let token = text.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_variable_wins() {
        let folder = |set: &[(&str, &str)]| {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            cache_folder_in(variable, Some("/home/me".into())).unwrap()
        };
        let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c")];
        assert_eq!(folder(&all), Path::new("/a"));
        assert_eq!(folder(&all[1..]), Path::new("/b/hub"));
        assert_eq!(folder(&all[2..]), Path::new("/c/huggingface/hub"));
        assert_eq!(folder(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache_folder_in(|_| None, None), None);
    }
}
