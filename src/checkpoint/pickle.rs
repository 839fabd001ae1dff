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
        .and_then(|file| file.take(4).read_to_end(&mut start))
        .with_context(|| format!("can't open {shown}"))?;
    if start == b"PK\x03\x04"
        || start.first() == Some(&0x80) && start.get(1).is_some_and(|version| *version <= 5)
    {
        bail!(
            "{shown} is a PyTorch pickle, which could run a program when it is read: convert it, in Python: \
             x = torch.load('FILE', weights_only=True); safetensors.torch.save_file({{'emb_params': \
             x['string_to_param']['*'].detach()}}, 'FILE.safetensors')"
        );
    }
    Ok(())
}
