//! Recognises PyTorch's pickled files, which are programs rather than data, and refuses them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// # Errors
/// When the file at `path` can't be read or is a pickle, bare or in a zip archive, with the way to convert it.
pub fn refuse_pickle(path: &Path) -> Result<()> {
    let shown = path.display();
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(9).read_to_end(&mut start))
        .with_context(|| format!("can't open {shown}"))?;
    // A safetensors header may have a length that looks like the start of a pickle, but then a brace follows.
    let pickle = matches!(start[..], [0x80, ..=5, ..]) && start.get(8) != Some(&b'{');
    if pickle || start.starts_with(b"PK\x03\x04") {
        bail!(
            "{shown} is a PyTorch pickle, which could run a program when it is read: in Python, load it with \
             torch.load(file, weights_only=True) and write its tensors with safetensors.torch.save_file (of a \
             textual inversion, string_to_param['*'] as 'emb_params')"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickles_are_told_from_safetensors() {
        let is_pickle = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            refuse_pickle(file.path()).is_err()
        };
        assert!(is_pickle(b"PK\x03\x04\0\0\0\0{"));
        assert!(is_pickle(b"\x80\x02}q\0(X\x0f\0"));
        assert!(is_pickle(b"\x80\x04."));
        assert!(!is_pickle(b"\x80\x02\0\0\0\0\0\0{\"a\""));
        assert!(!is_pickle(b""));
    }
}
