//! What a file is, by its first bytes: what can't be a model is refused by name.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::gguf;
use crate::files;

/// How far a file is looked at.
const START: u64 = 512;

/// Fails for files that hold no tensors in a form pochade reads.
///
/// # Errors
/// Says what the file at `path` looks like, and what to do about it.
pub fn check(path: &Path) -> Result<()> {
    let start = start(path)?;
    match refusal(&start) {
        Some(what) => bail!("{} {what}", path.display()),
        None => Ok(()),
    }
}

/// Fails for PyTorch's pickles, which are programs rather than data.
///
/// # Errors
/// When the file at `path` can't be read or is a pickle, bare or in a zip archive, with the way to convert it.
pub fn refuse_pickle(path: &Path) -> Result<()> {
    ensure!(!is_pickle(&start(path)?), "{} {PICKLE}", path.display());
    Ok(())
}

fn start(path: &Path) -> Result<Vec<u8>> {
    files::start(path, START).with_context(|| format!("can't open {}", path.display()))
}

/// Whether the file at `path` begins as safetensors and GGUF files do.
pub fn is_tensor_file(path: &Path) -> bool {
    files::start(path, START).is_ok_and(|start| is_gguf(&start) || is_safetensors(&start))
}

/// Why a file that begins with `start` is no model, if it can be told.
fn refusal(start: &[u8]) -> Option<&'static str> {
    if start.is_empty() {
        return Some("is empty");
    }
    if is_gguf(start) || is_safetensors(start) {
        return None;
    }
    if is_pickle(start) {
        return Some(PICKLE);
    }
    for (magic, what) in SIGNATURES {
        if start.starts_with(magic) {
            return Some(what);
        }
    }
    let text = start.trim_ascii_start().to_ascii_lowercase();
    if text.starts_with(b"<!doctype") || text.starts_with(b"<html") || text.starts_with(b"<?xml") {
        return Some("is a web page, not a model: the download must have failed");
    }
    if text.starts_with(b"{") {
        return Some("is a JSON file, not a model: pass the folder it is in, or the file with the weights");
    }
    let is_text = start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    is_text.then_some("is a text file, not a model")
}

const PICKLE: &str = "is a PyTorch pickle, which could run any code when it is read; convert it first, e.g. `python3 -c \
    \"import torch; from safetensors.torch import save_file; m = torch.load('IN.ckpt', weights_only=True); \
    save_file({k: v.contiguous() for k, v in m.get('state_dict', m).items() if hasattr(v, 'contiguous')}, \
    'OUT.safetensors')\"` (of a textual inversion, string_to_param['*'] as 'emb_params')";

const SIGNATURES: [(&[u8], &str); 10] = [
    (b"version https://git-lfs", "is a git-lfs pointer: run `git lfs pull` to fetch the weights"),
    (b"\x89PNG", "is a picture, not a model"),
    (b"\xff\xd8\xff", "is a picture, not a model"),
    (b"RIFF", "is a picture or a sound, not a model"),
    (b"\x1f\x8b", "is a compressed archive: unpack it first"),
    (b"7z\xbc\xaf", "is a compressed archive: unpack it first"),
    (b"Rar!", "is a compressed archive: unpack it first"),
    (b"lmgg", "is a GGML file, the predecessor of GGUF, which is not supported"),
    (b"tjgg", "is a GGML file, the predecessor of GGUF, which is not supported"),
    (b"\x08\x08\x12", "is an ONNX file, which is not supported"),
];

fn is_gguf(start: &[u8]) -> bool {
    start.starts_with(gguf::MAGIC)
}

/// Newer pickles are zip archives, older ones begin with their protocol; so may the length of a safetensors header.
fn is_pickle(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || matches!(start, [0x80, ..=5, ..]) && !is_safetensors(start)
}

/// Whether a JSON header of a plausible length begins behind the eight bytes of its length.
fn is_safetensors(start: &[u8]) -> bool {
    matches!(start, [_, _, _, _, _, 0, 0, 0, b'{', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_pass() {
        assert_eq!(refusal(b"GGUF\x03\0\0\0"), None);
        assert_eq!(refusal(b"\x40\0\0\0\0\0\0\0{\"a\":"), None);
        // A length that begins like a pickle is still a length.
        assert_eq!(refusal(b"\x80\x02\0\0\0\0\0\0{\"a\":"), None);
    }

    #[test]
    fn pickles_are_told_from_safetensors() {
        for pickle in [&b"PK\x03\x04\0\0\0\0{"[..], b"\x80\x02}q\0(X\x0f\0", b"\x80\x04."] {
            assert!(is_pickle(pickle), "{pickle:?}");
        }
        assert!(!is_pickle(b"\x80\x02\0\0\0\0\0\0{\"a\""));
        assert!(!is_pickle(b""));
    }

    #[test]
    fn the_rest_is_named() {
        for (start, what) in [
            (&b""[..], "empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
            (b"PK\x03\x04\0\0", "pickle"),
            (b"\x80\x02}q\0", "pickle"),
            (b"\n <!DOCTYPE html><html>", "web page"),
            (b"{\"error\": 1}", "JSON"),
            (b"hello world\n", "text file"),
            (b"\x89PNG\r\n", "picture"),
        ] {
            assert!(refusal(start).unwrap().contains(what), "{what}");
        }
    }
}
