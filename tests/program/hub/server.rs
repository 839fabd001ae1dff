//! A Hub on this machine: its API, its redirects to a second host, and everything that can go wrong with them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const ID: &str = "org/small";

/// What the server holds and how it misbehaves.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The names in `siblings` if not those of `files`.
    pub listed: Option<Vec<String>>,
    /// Its id, if not [`ID`].
    pub repository: Option<&'static str>,
    /// Leaves sizes and hashes out of the API's answer, as some mirrors do.
    pub terse: bool,
    /// Answers to the next requests in place of the right ones: status and further headers.
    pub failures: Vec<(u16, &'static str)>,
    /// The same for the next requests to the second host.
    pub cdn_failures: Vec<(u16, &'static str)>,
    /// After so many bytes of a large file the connection is cut, once each.
    pub cuts: Vec<usize>,
    /// The second host sends these bytes wrong.
    pub corrupt: Option<usize>,
    /// The second host ignores `Range`.
    pub no_ranges: bool,
    /// What a request must carry.
    pub token: Option<&'static str>,
    /// What the API says of the licence, if not the usual one.
    pub licence: Option<&'static str>,
    /// Every request: host (`hub` or `cdn`), path, range, authorization.
    pub log: Vec<Request>,
}

#[derive(Debug, Clone, Default)]
pub struct Request {
    pub host: &'static str,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Clone)]
pub struct Hub {
    pub state: Arc<Mutex<State>>,
    pub endpoint: String,
}

impl Hub {
    /// Serves a folder; files from 100 kB are large ones.
    pub fn new(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        collect(folder, folder, &mut files);
        Self::with(files)
    }

    pub fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let listeners = ["hub", "cdn"].map(|host| (host, TcpListener::bind("127.0.0.1:0").unwrap()));
        let [endpoint, cdn] =
            listeners.each_ref().map(|(_, l)| format!("http://{}", l.local_addr().unwrap()));
        for (host, listener) in listeners {
            let (state, cdn) = (state.clone(), cdn.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, cdn) = (state.clone(), cdn.clone());
                    // A client that goes away in the middle is what some tests are about.
                    std::thread::spawn(move || drop(answer(host, &stream, &state, &cdn)));
                }
            });
        }
        Self { state, endpoint }
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    pub fn log(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }
}

/// Every file below `folder`, by its path relative to `root`.
pub fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            collect(root, &entry.path(), files);
        } else {
            let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn is_large(bytes: &[u8]) -> bool {
    bytes.len() >= 100_000
}

/// The Hub's etag: SHA-256 of a large file, git's hash of a small one.
pub fn etag(bytes: &[u8]) -> String {
    if is_large(bytes) {
        return hex(&Sha256::digest(bytes));
    }
    hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn sibling(name: &str, state: &State) -> Value {
    let Some(bytes) = state.files.get(name).filter(|_| !state.terse) else {
        return json!({"rfilename": name});
    };
    let mut sibling = json!({"rfilename": name, "size": bytes.len()});
    if is_large(bytes) {
        sibling["blobId"] = json!("f".repeat(40));
        sibling["lfs"] = json!({"sha256": etag(bytes), "size": bytes.len(), "pointerSize": 134});
    } else {
        sibling["blobId"] = json!(etag(bytes));
    }
    sibling
}

fn answer(host: &'static str, stream: &TcpStream, state: &Mutex<State>, cdn: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut request =
        Request { host, path: first.split(' ').nth(1).unwrap_or_default().to_owned(), ..Request::default() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut state = state.lock().unwrap();
    state.log.push(request.clone());
    let failures = if host == "hub" { &mut state.failures } else { &mut state.cdn_failures };
    let failure = (!failures.is_empty()).then(|| failures.remove(0));
    if let Some((status, headers)) = failure {
        return send(stream, status, headers, b"", None);
    }
    if host == "hub"
        && state.token.is_some_and(|token| request.authorization != Some(format!("Bearer {token}")))
    {
        return send(stream, 401, "X-Error-Code: GatedRepo\r\n", b"", None);
    }
    let path = request.path.clone();
    let id = state.repository.unwrap_or(ID);
    if let Some(rest) = path.strip_prefix(&format!("/api/models/{id}/revision/")) {
        if rest != "main?blobs=true"
            && rest != format!("{COMMIT}?blobs=true")
            && rest != "refs%2Fpr%2F1?blobs=true"
        {
            return send(stream, 404, "X-Error-Code: RevisionNotFound\r\n", b"", None);
        }
        let names = state.listed.clone().unwrap_or_else(|| state.files.keys().cloned().collect());
        let siblings: Vec<Value> = names.iter().map(|name| sibling(name, &state)).collect();
        let info = json!({"id": id, "sha": COMMIT, "siblings": siblings, "gated": false,
            "tags": ["diffusers", "license:mit"], "cardData": {"license": state.licence.unwrap_or("creativeml-openrail-m")}});
        return send(stream, 200, "", info.to_string().as_bytes(), None);
    }
    let name = match host {
        "hub" => path.strip_prefix(&format!("/{id}/resolve/{COMMIT}/")).or(path.strip_prefix("/moved/")),
        _ => path.strip_prefix("/content/"),
    };
    let Some((name, bytes)) = name.and_then(|name| Some((name.to_owned(), state.files.get(name)?.clone())))
    else {
        return send(stream, 404, "X-Error-Code: RepoNotFound\r\n", b"", None);
    };
    let mut headers = String::new();
    if host == "hub" {
        write!(headers, "X-Repo-Commit: {COMMIT}\r\n").unwrap();
        if is_large(&bytes) {
            write!(headers, "X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nETag: \"abc\"\r\nLocation: {cdn}/content/{name}\r\n",
                etag(&bytes), bytes.len()).unwrap();
            return send(stream, 302, &headers, b"", None);
        }
        write!(headers, "ETag: W/\"{}\"\r\n", etag(&bytes)).unwrap();
        if !path.starts_with("/moved/") && name.ends_with("config.json") {
            write!(headers, "Location: /moved/{name}\r\n").unwrap();
            return send(stream, 307, &headers, b"", None);
        }
    } else {
        headers.push_str("ETag: \"of-the-cdn\"\r\n");
    }
    let mut body = bytes.clone();
    if let Some(at) = state.corrupt.filter(|_| host == "cdn") {
        body[at] ^= 1;
    }
    let start: Option<usize> = request
        .range
        .filter(|_| !state.no_ranges)
        .map(|range| range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap());
    let cut = (host == "cdn" && !state.cuts.is_empty()).then(|| state.cuts.remove(0));
    drop(state);
    match start {
        Some(start) if start >= body.len() => send(stream, 416, "", b"", None),
        Some(start) => {
            let total = body.len();
            write!(headers, "Content-Range: bytes {start}-{}/{total}\r\n", total - 1).unwrap();
            send(stream, 206, &headers, &body[start..], cut)
        }
        None => send(stream, 200, &headers, &body, cut),
    }
}

fn send(
    mut stream: &TcpStream,
    status: u16,
    headers: &str,
    body: &[u8],
    cut: Option<usize>,
) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n")?;
    stream.write_all(&body[..cut.unwrap_or(length).min(length)])
}
