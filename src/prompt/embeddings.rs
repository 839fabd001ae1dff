//! Textual inversions (Gal et al. 2022): files whose vectors take the place of a word among a prompt's tokens.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

use super::tokenizer::Tokenizer;
use crate::checkpoint::{self, TensorFile};
use crate::files;
use crate::request::{FileKind, UsedFile};

/// Vectors of one file, `[count, width]`.
struct Vectors {
    count: usize,
    values: Vec<f32>,
}

struct Embedding {
    path: PathBuf,
    /// Read when the word first occurs.
    vectors: OnceLock<Vectors>,
}

/// The words that are replaced by vectors.
#[derive(Default)]
pub struct Embeddings {
    /// Length of a vector: the text encoder's width.
    width: usize,
    /// Vectors that fit into one chunk.
    most: usize,
    files: Vec<Embedding>,
    named: usize,
    /// By a word's first token: all of its tokens and the file's number, the longest word first.
    words: HashMap<u32, Vec<(Vec<u32>, usize)>>,
}

impl Embeddings {
    /// No words.
    pub fn none() -> Self {
        Self::default()
    }

    /// Opens `files` and looks for more in `folder`, whose files are read when a prompt has their word. A file's
    /// word is its name without the ending; of diffusers' files, which hold one tensor, also that tensor's name.
    ///
    /// # Errors
    /// Names the file that can't be used.
    pub fn open(
        files: &[PathBuf],
        folder: Option<&Path>,
        tokenizer: &Tokenizer,
        width: usize,
        most: usize,
    ) -> Result<Self> {
        let mut embeddings = Self { width, most, named: files.len(), ..Self::default() };
        for path in files {
            let (vectors, name) = read(path, width, most)?;
            embeddings.add(path.clone(), OnceLock::from(vectors), name.as_deref(), tokenizer)?;
        }
        if let Some(folder) = folder {
            for path in listed(folder)? {
                embeddings.add(path, OnceLock::new(), None, tokenizer)?;
            }
        }
        for words in embeddings.words.values_mut() {
            // Stable, so that a file named by a flag wins over one in the folder.
            words.sort_by_key(|(tokens, _)| std::cmp::Reverse(tokens.len()));
        }
        Ok(embeddings)
    }

    fn add(
        &mut self,
        path: PathBuf,
        vectors: OnceLock<Vectors>,
        name: Option<&str>,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        for word in [Some(&*stem), name].into_iter().flatten() {
            let tokens = tokenizer.tokens(word)?;
            if let Some(first) = tokens.first() {
                self.words.entry(*first).or_default().push((tokens, self.files.len()));
            }
        }
        self.files.push(Embedding { path, vectors });
        Ok(())
    }

    /// The embedding whose word `ids` begin with, and the number of tokens of that word.
    ///
    /// # Errors
    /// When its file can't be used.
    pub fn at(&self, ids: &[u32]) -> Result<Option<(usize, usize)>> {
        let words = ids.first().and_then(|first| self.words.get(first));
        let found = words.and_then(|words| words.iter().find(|(word, _)| ids.starts_with(word)));
        found.map(|(word, file)| self.load(*file).map(|_| (*file, word.len()))).transpose()
    }

    fn load(&self, file: usize) -> Result<&Vectors> {
        let Embedding { path, vectors } = &self.files[file];
        if let Some(vectors) = vectors.get() {
            return Ok(vectors);
        }
        let (read, _) = read(path, self.width, self.most)?;
        Ok(vectors.get_or_init(|| read))
    }

    /// How many were given by name rather than found in a folder; these come first.
    pub fn named(&self) -> usize {
        self.named
    }

    /// Number of vectors of an embedding.
    pub fn vectors(&self, embedding: usize) -> Result<usize> {
        Ok(self.load(embedding)?.count)
    }

    /// One vector of an embedding.
    pub fn vector(&self, embedding: usize, row: usize) -> Result<&[f32]> {
        Ok(&self.load(embedding)?.values[row * self.width..][..self.width])
    }

    pub fn path(&self, embedding: usize) -> &Path {
        &self.files[embedding].path
    }

    /// The name and the hash of an embedding's file.
    ///
    /// # Errors
    /// When the file can't be read any more.
    pub fn used(&self, embedding: usize) -> Result<UsedFile> {
        let path = self.path(embedding);
        UsedFile::new(FileKind::Embedding, path, &files::fingerprint(path)?)
    }
}

/// The files in `folder` that could be embeddings, by name.
fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    let mut paths = read().with_context(|| format!("can't read the folder {}", folder.display()))?;
    paths.retain(|path| {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        path.is_file() && ["safetensors", "pt", "bin"].iter().any(|known| ending == *known)
    });
    // Of a word's files, the one in safetensors is preferred.
    paths.sort_by_key(|path| (path.extension() != Some("safetensors".as_ref()), path.clone()));
    Ok(paths)
}

/// The vectors of a file, and the name it gives itself if it is diffusers'.
fn read(path: &Path, width: usize, most: usize) -> Result<(Vectors, Option<String>)> {
    let shown = path.display();
    checkpoint::refuse_pickle(path)?;
    let file = TensorFile::open(path)?;
    let names: Vec<&str> = file.names().collect();
    let (name, own) = match names[..] {
        _ if names.contains(&"emb_params") => ("emb_params", None),
        [only] => (only, Some(only.to_owned())),
        _ if names.contains(&"clip_g") => bail!("{shown} is a textual inversion for SDXL"),
        _ => bail!("{shown} is no textual inversion: it holds {} tensors and no emb_params", names.len()),
    };
    let view = file.view(name).with_context(|| format!("{shown}: tensor '{name}' is missing"))?;
    let (count, found) = match *view.shape {
        [found] => (1, found),
        [count, found] => (count, found),
        _ => {
            bail!("{shown}: tensor '{name}' has shape {:?} where [vectors, {width}] is expected", view.shape)
        }
    };
    ensure!(
        found == width,
        "{shown}: its vectors have {found} numbers, but this model's text encoder takes {width}"
    );
    ensure!((1..=most).contains(&count), "{shown}: it holds {count} vectors, where 1 to {most} are possible");
    let values = view.to_f32().with_context(|| format!("{shown}: tensor '{name}'"))?;
    ensure!(values.iter().all(|value| value.is_finite()), "{shown}: tensor '{name}' holds NaN or infinity");
    Ok((Vectors { count, values }, own))
}
