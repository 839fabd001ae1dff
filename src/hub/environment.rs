//! What the environment says about the Hub: folders, endpoint, token, and whether connections are allowed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Uri;
use http::uri::Scheme;

use super::error::{Error, ErrorKind, Result};
use crate::files;

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
/// When `HF_ENDPOINT` is no http or https URL. What it is instead is not told: a password may be in it.
pub fn endpoint() -> Result<String> {
    match variable("HF_ENDPOINT") {
        Some(endpoint) => checked_endpoint(&endpoint.to_string_lossy()),
        None => Ok(ENDPOINT.to_owned()),
    }
}

fn checked_endpoint(text: &str) -> Result<String> {
    let endpoint = text.trim().trim_end_matches('/');
    let is_usable = endpoint.parse::<Uri>().is_ok_and(|url| {
        let web = [Some(&Scheme::HTTPS), Some(&Scheme::HTTP)].contains(&url.scheme());
        let host = url.authority().is_some_and(|authority| {
            let host = authority.host();
            // What follows the host can only be a port.
            !host.is_empty() && (authority.port_u16().is_some() || authority.as_str().ends_with(host))
        });
        web && host && url.query().is_none()
    });
    if is_usable {
        return Ok(endpoint.to_owned());
    }
    Err(Error::new(ErrorKind::Usage, "HF_ENDPOINT is no http or https URL")
        .advice(format!("set it to the mirror's address, or unset it for {ENDPOINT}")))
}

/// The user's token: `HF_TOKEN`, else the file that logging in with the Hub's own tools leaves.
///
/// # Errors
/// When it holds what no token can. What that is is not told.
pub fn token() -> Result<Option<String>> {
    if let Some(token) = variable("HF_TOKEN") {
        return checked_token(&token.to_string_lossy(), "HF_TOKEN");
    }
    let path = variable("HF_TOKEN_PATH").map(PathBuf::from);
    let path = path.or_else(|| Some(hub_home(variable, std::env::home_dir())?.join("token")));
    // Most have none, and need none.
    let text = path.as_ref().and_then(|path| files::text(path, LARGEST_TOKEN).ok());
    match (path, text) {
        (Some(path), Some(text)) => checked_token(&text, &path.display().to_string()),
        _ => Ok(None),
    }
}

fn checked_token(text: &str, place: &str) -> Result<Option<String>> {
    let token = text.trim();
    if token.chars().all(|c| c.is_ascii_graphic()) {
        return Ok((!token.is_empty()).then(|| token.to_owned()));
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!("{place} holds no token: one is a single word of ASCII characters"),
    )
    .advice("copy it again from your account's settings on the Hub"))
}

/// Bytes of the longest file of a token.
const LARGEST_TOKEN: u64 = 1 << 12;

/// User names with passwords in the addresses that the environment names: of the endpoint and of proxies.
pub fn credentials() -> Vec<String> {
    let names = ["HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];
    let lower = names.map(str::to_ascii_lowercase);
    let values = names.into_iter().chain(lower.iter().map(String::as_str)).filter_map(variable);
    values.filter_map(|value| credentials_in(&value.to_string_lossy()).map(str::to_owned)).collect()
}

/// What stands before the host in a URL.
fn credentials_in(url: &str) -> Option<&str> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next()?;
    authority.rsplit_once('@').map(|(credentials, _)| credentials).filter(|found| !found.is_empty())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_can_be_no_endpoint_is_a_usage_error_that_tells_no_password() {
        for (given, endpoint) in [
            ("https://hub.co/", "https://hub.co"),
            (" http://me:secret@hub.co:80/mirror// ", "http://me:secret@hub.co:80/mirror"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(checked_endpoint(given).unwrap(), endpoint);
        }
        for wrong in [
            "hub.co",
            "ftp://hub.co",
            "file:///etc/passwd",
            "https://",
            "https:///x",
            "https://me:secret@hub co",
            "http//me:secret@hub.co",
            "https://hub.co:port",
            "https://hub.co?x=secret",
            "https://h\u{e9}b.co",
        ] {
            let error = checked_endpoint(wrong).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage, "{wrong}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn what_can_be_no_token_is_a_usage_error_that_does_not_tell_it() {
        assert_eq!(checked_token(" hf_x\n", "X").unwrap().as_deref(), Some("hf_x"));
        assert_eq!(checked_token("\n", "X").unwrap(), None);
        for wrong in ["secret words", "secret\nlines", "secret\u{7}", "secr\u{e9}t"] {
            let error = checked_token(wrong, "HF_TOKEN").unwrap_err();
            assert_eq!((error.kind, error.message.contains("secr")), (ErrorKind::Usage, false));
        }
    }

    #[test]
    fn credentials_are_found_in_urls() {
        for (url, found) in [
            ("http://me:secret@hub.co/x@y", Some("me:secret")),
            ("me:p@ss@proxy:3128", Some("me:p@ss")),
            ("https://hub.co/@", None),
            ("https://@hub.co", None),
        ] {
            assert_eq!(credentials_in(url), found);
        }
    }

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
