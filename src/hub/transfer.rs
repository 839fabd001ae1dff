//! Talking to the Hub: the only place in the program that opens a connection.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use http::uri::{Parts, Scheme};
use http::{HeaderMap, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::{Agent, Body};

use super::environment;
use super::error::{Error, ErrorKind, Result};
use super::id::ModelId;
use super::info::{Blob, Hash, ModelInfo};
use crate::files;

/// Failures in a row, without a byte in between, that end a transfer.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest a server may make us wait before we try again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(15);
/// Of silence in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 10;
/// An answer of the API is a few hundred kilobytes.
const LARGEST_ANSWER: u64 = 32 << 20;
const CHUNK: usize = 1 << 18;

/// What is escaped in one part of a URL's path, and in all of it.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &PART.remove(b'/');

type Response = http::Response<Body>;

/// A connection to the Hub or a mirror of it.
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    /// What no message may tell.
    secrets: Vec<String>,
}

/// Why an attempt failed.
enum Trouble {
    /// Another attempt may succeed, after the pause the server asks for.
    Passing(Error, Option<Duration>),
    Lasting(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Lasting(error)
    }
}

impl Client {
    /// A client for the endpoint and with the token that the environment names. Opens no connection yet.
    ///
    /// # Errors
    /// When connections are forbidden, or the environment names an endpoint or a token that can be none.
    pub fn from_environment() -> Result<Self> {
        if let Some(what) = environment::offline() {
            return Err(Error::new(ErrorKind::Offline, format!("{what} forbids connecting to the Hub")));
        }
        let config = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("pochade/", env!("CARGO_PKG_VERSION")))
            .build();
        let token = environment::token()?;
        let secrets = environment::credentials().into_iter().chain(token.clone()).collect();
        Ok(Self { agent: config.new_agent(), endpoint: environment::endpoint()?, token, secrets })
    }

    /// An error that tells no password and no token, whatever it was made of.
    fn discreet(&self, mut error: Error) -> Error {
        for secret in &self.secrets {
            error.message = error.message.replace(secret, "***");
        }
        error
    }

    /// Asks what a repository holds.
    ///
    /// # Errors
    /// When the server can't be reached, or has no such model for this user.
    pub fn model_info(&self, id: &ModelId) -> Result<ModelInfo> {
        let revision = utf8_percent_encode(id.revision(), PART);
        let url = self.url(&format!("api/models/{}/revision/{revision}?blobs=true", id.repository()))?;
        let answer = persist(|| {
            let response = accepted(self.follow(&url, None)?.1, &id.to_string())?;
            let text = response.into_body().with_config().limit(LARGEST_ANSWER).read_to_vec();
            let text = text.map_err(|error| passing(&shown(&url), &error))?;
            serde_json::from_slice(&text).map_err(|error| {
                let url = shown(&url);
                let message = format!("{url}: the answer is not what the Hub's API sends: {error}");
                Error::new(ErrorKind::Network, message).into()
            })
        });
        answer.map_err(|error| self.discreet(error))
    }

    /// Asks for size and hash of a file that [`Self::model_info`] didn't describe, as some mirrors don't.
    ///
    /// # Errors
    /// When the answer names no hash that could be checked.
    pub fn describe(&self, id: &ModelId, commit: &str, name: &str) -> Result<Blob> {
        let url = self.file_url(id, commit, name)?;
        let answer = persist(|| {
            let (headers, response) = self.follow(&url, Some(0))?;
            let response = accepted(response, name)?;
            let total = header(response.headers(), "content-range")
                .and_then(|range| range.rsplit('/').next()?.parse().ok());
            let length = || header(response.headers(), "content-length")?.parse().ok();
            let size = header(&headers, "x-linked-size")
                .and_then(|size| size.parse().ok())
                .or(total)
                .or_else(length);
            match (size, promised(&headers)) {
                (Some(size), Some(hash)) => Ok(Blob { size, hash }),
                _ => {
                    let url = shown(&url);
                    let message = format!("{url}: the server names no size and hash to check the file by");
                    Err(Error::new(ErrorKind::Network, message).into())
                }
            }
        });
        answer.map_err(|error| self.discreet(error))
    }

    /// Appends what is missing of a file to `path`, from where it ends. `moved` is told how much is there.
    ///
    /// # Errors
    /// When the server fails several times in a row, or the disk does.
    pub fn fetch(
        &self,
        place: (&ModelId, &str, &str),
        blob: &Blob,
        path: &Path,
        moved: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.fetch_rest(place, blob, path, moved).map_err(|error| self.discreet(error))
    }

    fn fetch_rest(
        &self,
        (id, commit, name): (&ModelId, &str, &str),
        blob: &Blob,
        path: &Path,
        moved: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let url = self.file_url(id, commit, name)?;
        let mut file = files::append(path).map_err(|error| Error::disk("write", path, &error))?;
        let length = |file: &File| file.metadata().map_or(0, |file| file.len());
        let mut failures = 0;
        loop {
            let before = length(&file);
            if before == blob.size {
                return Ok(());
            }
            let (error, pause) = match self.attempt(&url, name, blob, (&mut file, path), moved) {
                Ok(()) => continue,
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing(error, pause)) => (error, pause),
            };
            failures = if length(&file) > before { 1 } else { failures + 1 };
            if failures >= ATTEMPTS {
                return Err(gave_up(error));
            }
            wait(failures, pause);
        }
    }

    /// One request for the rest of a file.
    fn attempt(
        &self,
        url: &Uri,
        name: &str,
        blob: &Blob,
        (file, path): (&mut File, &Path),
        moved: &mut dyn FnMut(u64),
    ) -> std::result::Result<(), Trouble> {
        let on_disk = |error: &io::Error| Trouble::from(Error::disk("write", path, error));
        let mut have = file.metadata().map_err(|error| on_disk(&error))?.len();
        if have > blob.size {
            file.set_len(0).map_err(|error| on_disk(&error))?;
            have = 0;
        }
        let (headers, response) = self.follow(url, (have > 0).then_some(have))?;
        if let Some(hash) = promised(&headers).filter(|hash| *hash != blob.hash) {
            let got = hash.as_str();
            return Err(Error::new(
                ErrorKind::Network,
                format!("{name}: the server sends content {got} where {} is listed", blob.hash.as_str()),
            )
            .into());
        }
        // The server can't continue there: what is on disk is not the beginning of what it has.
        if response.status() == 416 {
            file.set_len(0).map_err(|error| on_disk(&error))?;
            return Err(Trouble::Passing(refused(&response, name), Some(Duration::ZERO)));
        }
        let response = accepted(response, name)?;
        let start = header(response.headers(), "content-range")
            .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok())
            .unwrap_or(0);
        if response.status() != 206 || start != have {
            // All of it comes again.
            file.set_len(0).map_err(|error| on_disk(&error))?;
            have = 0;
            if response.status() == 206 && start != 0 {
                let error =
                    format!("{name}: the server continues at byte {start} instead of where it was asked to");
                return Err(Trouble::Passing(Error::new(ErrorKind::Network, error), None));
            }
        }
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match body.read(&mut chunk) {
                Ok(0) if have < blob.size => {
                    let error = format!("{name}: the connection ended after {have} of {} bytes", blob.size);
                    return Err(Trouble::Passing(Error::new(ErrorKind::Network, error), None));
                }
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) => return Err(passing(name, &error)),
            };
            have += read as u64;
            if have > blob.size {
                let error =
                    format!("{name}: the server sends more than the {} bytes it announced", blob.size);
                file.set_len(0).map_err(|error| on_disk(&error))?;
                return Err(Error::new(ErrorKind::Network, error).into());
            }
            file.write_all(&chunk[..read]).map_err(|error| on_disk(&error))?;
            moved(have);
        }
    }

    fn file_url(&self, id: &ModelId, commit: &str, name: &str) -> Result<Uri> {
        self.url(&format!("{}/resolve/{commit}/{}", id.repository(), utf8_percent_encode(name, PATH)))
    }

    fn url(&self, path: &str) -> Result<Uri> {
        let url = format!("{}/{path}", self.endpoint).parse();
        url.map_err(|error| {
            Error::new(ErrorKind::Unusable, format!("{path} can't be part of a URL: {error}"))
        })
    }

    /// The last answer of a chain of redirects, and the headers that the endpoint itself sent. The token goes
    /// to the endpoint and to no other host or port.
    fn follow(&self, url: &Uri, from: Option<u64>) -> std::result::Result<(HeaderMap, Response), Trouble> {
        let mut url = url.clone();
        let mut promised = HeaderMap::new();
        let endpoint = self.endpoint.parse().ok();
        for _ in 0..=REDIRECTS {
            let ours = endpoint.as_ref().is_some_and(|endpoint| origin(&url) == origin(endpoint));
            let mut request = self.agent.get(url.clone()).header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| ours) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| passing(&shown(&url), &error))?;
            if ours {
                promised.extend(response.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((promised, response));
            }
            let location = header(response.headers(), "location").unwrap_or_default();
            url = redirected(&url, location)?;
        }
        let message = format!("{}: redirected more than {REDIRECTS} times", shown(&url));
        Err(Error::new(ErrorKind::Network, message).into())
    }
}

/// Tries until it succeeds, fails for good, or has failed often enough.
fn persist<T>(mut attempt: impl FnMut() -> std::result::Result<T, Trouble>) -> Result<T> {
    let mut failures = 0;
    loop {
        let (error, pause) = match attempt() {
            Ok(answer) => return Ok(answer),
            Err(Trouble::Lasting(error)) => return Err(error),
            Err(Trouble::Passing(error, pause)) => (error, pause),
        };
        failures += 1;
        if failures >= ATTEMPTS {
            return Err(gave_up(error));
        }
        wait(failures, pause);
    }
}

/// Waits as long as the server asks for, or longer after each failure.
fn wait(failures: u32, asked: Option<Duration>) {
    std::thread::sleep(asked.unwrap_or(FIRST_PAUSE * 2u32.pow(failures - 1)).min(LONGEST_PAUSE));
}

fn gave_up(error: Error) -> Error {
    Error::new(error.kind, format!("{error}; gave up after {ATTEMPTS} attempts")).advice(
        error.advice.unwrap_or_else(|| "try again later; what has been fetched so far is kept".to_owned()),
    )
}

fn passing(place: &str, error: &dyn std::fmt::Display) -> Trouble {
    Trouble::Passing(Error::new(ErrorKind::Network, format!("{place}: {error}")), None)
}

/// An answer that carries what was asked for, or what the status says instead.
fn accepted(response: Response, what: &str) -> std::result::Result<Response, Trouble> {
    let status = response.status().as_u16();
    if matches!(status, 200 | 206) {
        return Ok(response);
    }
    let error = refused(&response, what);
    if status == 408 || status == 429 || status >= 500 {
        let pause = header(response.headers(), "retry-after").and_then(|seconds| seconds.parse().ok());
        return Err(Trouble::Passing(error, pause.map(Duration::from_secs)));
    }
    Err(Trouble::Lasting(error))
}

fn refused(response: &Response, what: &str) -> Error {
    let status = response.status();
    // The Hub explains itself in headers.
    let code = header(response.headers(), "x-error-code").unwrap_or_default();
    match (status.as_u16(), code) {
        (401 | 403, "GatedRepo") | (403, "") => Error::new(
            ErrorKind::Absent,
            format!("{what}: access is restricted ({status})"),
        )
        .advice(
            "accept the model's terms on its page on the Hub, then set HF_TOKEN to a token of that account",
        ),
        (401 | 403, _) => Error::new(
            ErrorKind::Absent,
            format!("{what}: no such model, or it is private ({status})"),
        )
        .advice("check the spelling; for a private or gated model set HF_TOKEN to a token that may read it"),
        (404, "RevisionNotFound") => {
            Error::new(ErrorKind::Absent, format!("{what}: no such revision ({status})"))
        }
        (404, "EntryNotFound") => Error::new(ErrorKind::Absent, format!("{what}: no such file ({status})")),
        (404, _) => Error::new(ErrorKind::Absent, format!("{what}: no such model on the Hub ({status})")),
        _ => Error::new(ErrorKind::Network, format!("{what}: the server answers {status}")),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The hash the endpoint announces for a file.
fn promised(headers: &HeaderMap) -> Option<Hash> {
    Hash::parse(header(headers, "x-linked-etag").or_else(|| header(headers, "etag"))?)
}

/// Scheme, host and port of a URL.
fn origin(url: &Uri) -> Option<(&Scheme, String, u16)> {
    let scheme = url.scheme()?;
    let port = url.port_u16().unwrap_or(if *scheme == Scheme::HTTPS { 443 } else { 80 });
    Some((scheme, url.host()?.to_ascii_lowercase(), port))
}

/// Where a redirect from `url` leads.
fn redirected(url: &Uri, location: &str) -> Result<Uri> {
    let refused = |why: &str| Error::new(ErrorKind::Network, format!("{}: redirected {why}", shown(url)));
    let next = joined(url, location).ok_or_else(|| refused("to what is no http URL"))?;
    if url.scheme() == Some(&Scheme::HTTPS) && next.scheme() != Some(&Scheme::HTTPS) {
        return Err(refused("from https to http, where anyone on the way could change the answer"));
    }
    Ok(next)
}

/// `location` as seen from `url`, if it is a page of the web.
fn joined(url: &Uri, location: &str) -> Option<Uri> {
    let absolute = match location.strip_prefix("//") {
        Some(rest) => format!("{}://{rest}", url.scheme_str()?),
        None => location.to_owned(),
    };
    let mut parts: Parts = absolute.parse::<Uri>().ok()?.into_parts();
    if parts.scheme.is_none() {
        // A lone word could be a host or a file beside this one; no server says that.
        if !location.starts_with('/') {
            return None;
        }
        parts.scheme = url.scheme().cloned();
        parts.authority = url.authority().cloned();
    }
    let web = parts.scheme.as_ref().is_some_and(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
    if web { Uri::from_parts(parts).ok() } else { None }
}

/// A URL as messages tell it: without a password, and without a query, which may be signed.
fn shown(url: &Uri) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let (scheme, host) = (url.scheme_str().unwrap_or_default(), url.host().unwrap_or_default());
    format!("{scheme}://{host}{port}{}", url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn redirects_are_resolved_against_where_they_came_from() {
        let from =
            |from: &str, location: &str| redirected(&url(from), location).map_err(|error| error.message);
        let redirected = |location: &str| from("https://me:secret@hub.co/a/b", location);
        assert_eq!(redirected("/x?y"), Ok(url("https://me:secret@hub.co/x?y")));
        assert_eq!(redirected("//cdn.co/x"), Ok(url("https://cdn.co/x")));
        assert_eq!(from("http://hub.co/a", "http://cdn.co/x"), Ok(url("http://cdn.co/x")));
        assert_eq!(from("http://hub.co/a", "https://cdn.co/x"), Ok(url("https://cdn.co/x")));
        for nowhere in ["file:///etc/passwd", "ftp://cdn.co/x", "", "cdn.co", "x/y", "https://", "a b"] {
            let message = redirected(nowhere).unwrap_err();
            assert_eq!(message, "https://hub.co/a/b: redirected to what is no http URL", "{nowhere}");
        }
    }

    #[test]
    fn no_redirect_leaves_https() {
        for location in ["http://hub.co/a", "HTTP://cdn.co/x", "http://localhost/x"] {
            let error = redirected(&url("https://hub.co/a"), location).unwrap_err();
            assert!(error.message.contains("from https to http"), "{error}");
        }
    }

    #[test]
    fn another_port_or_scheme_is_another_origin() {
        let ours = url("https://Hub.co/a");
        for same in ["https://hub.co/b?c", "https://hub.co:443/a", "https://me:secret@hub.co/a"] {
            assert_eq!(origin(&ours), origin(&url(same)), "{same}");
        }
        for other in
            ["http://hub.co/a", "https://hub.co:444/a", "https://cdn.hub.co/a", "https://hub.co@evil.co/a"]
        {
            assert_ne!(origin(&ours), origin(&url(other)), "{other}");
        }
    }

    #[test]
    fn names_are_escaped_for_urls() {
        let escaped = |name: &str| utf8_percent_encode(name, PATH).to_string();
        assert_eq!(escaped("unet/model v1#2.safetensors"), "unet/model%20v1%232.safetensors");
        assert_eq!(utf8_percent_encode("refs/pr/1", PART).to_string(), "refs%2Fpr%2F1");
    }

    #[test]
    fn messages_tell_no_secret() {
        assert_eq!(shown(&url("https://me:secret@hub.co:444/a?sign=secret")), "https://hub.co:444/a");
    }
}
