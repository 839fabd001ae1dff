//! A request's prompts, read: which LoRAs they name, their chunks and the textual inversions among these.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::Tensor;

use super::chunks::{Chunks, Token};
use super::embeddings::Embeddings;
use super::encode::encode;
use super::syntax::{LoraTag, take_lora_tags};
use super::tokenizer::Tokenizer;
use crate::networks::clip::TextEncoder;
use crate::request::{Lora, PromptSyntax, Request, UsedFile};

/// What the text encoder takes.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Length of a token's vector.
    pub width: usize,
    /// Tokens of a chunk, start and end included.
    pub positions: usize,
}

impl Room {
    /// Tokens of a chunk without start and end.
    fn length(self) -> usize {
        self.positions.saturating_sub(2)
    }
}

/// Everything in a request that decides the text embeddings, but for the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    pub prompt: String,
    /// Absent without guidance.
    pub negative_prompt: Option<String>,
    pub syntax: PromptSyntax,
    pub clip_skip: usize,
    pub embedding: Vec<PathBuf>,
    pub embedding_dir: Option<PathBuf>,
    pub lora: Vec<Lora>,
    pub lora_dir: Option<PathBuf>,
}

impl Text {
    pub fn of(request: &Request, guided: bool) -> Self {
        Self {
            prompt: request.prompt.clone(),
            negative_prompt: guided.then(|| request.negative_prompt.clone()),
            syntax: request.prompt_syntax,
            clip_skip: request.clip_skip,
            embedding: request.embedding.clone(),
            embedding_dir: request.embedding_dir.clone(),
            lora: request.lora.clone(),
            lora_dir: request.lora_dir.clone(),
        }
    }
}

/// The prompts of a request, ready for the text encoder.
pub struct Prompts {
    /// Those of the request, then those the prompt names.
    pub loras: Vec<Lora>,
    pub prompt: Chunks,
    pub negative_prompt: Option<Chunks>,
    embeddings: Embeddings,
}

impl Prompts {
    /// Reads both prompts and pads them to the same number of chunks. Of textual inversions, only those that
    /// occur are opened.
    ///
    /// # Errors
    /// When a prompt can't be understood, or a file it needs is missing or unusable.
    pub fn read(text: &Text, tokenizer: &Tokenizer, room: Room) -> Result<Self> {
        let mut loras = text.lora.clone();
        let prompt = match text.syntax {
            PromptSyntax::Plain => text.prompt.clone(),
            PromptSyntax::Weighted => {
                let (prompt, tags) = take_lora_tags(&text.prompt)?;
                for tag in tags {
                    loras.push(find_lora(tag, text.lora_dir.as_deref())?);
                }
                prompt
            }
        };
        let folder = text.embedding_dir.as_deref();
        let embeddings = Embeddings::open(&text.embedding, folder, tokenizer, room.width, room.length())?;
        let cut = |prompt: &str| Chunks::cut(prompt, text.syntax, room.length(), tokenizer, &embeddings);
        let mut prompt = cut(&prompt)?;
        let mut negative_prompt =
            text.negative_prompt.as_deref().map(cut).transpose().context("in the negative prompt")?;
        if let Some(negative) = &mut negative_prompt {
            negative.pad(prompt.chunks.len());
            prompt.pad(negative.chunks.len());
        }
        Ok(Self { loras, prompt, negative_prompt, embeddings })
    }

    /// Text embeddings `[1 or 2, tokens, channels]`, the negative prompt first.
    ///
    /// # Errors
    /// When the encoder fails.
    pub fn encode(&self, encoder: &TextEncoder, tokenizer: &Tokenizer) -> Result<Tensor> {
        let prompts: Vec<&Chunks> = self.negative_prompt.iter().chain([&self.prompt]).collect();
        encode(&prompts, encoder, tokenizer, &self.embeddings)
    }

    /// Numbers of the embeddings that occur in either prompt.
    fn occurring(&self) -> BTreeSet<usize> {
        let chunks = [Some(&self.prompt), self.negative_prompt.as_ref()].into_iter().flatten();
        let tokens = chunks.flat_map(|chunks| chunks.chunks.iter().flatten());
        let numbers = tokens.filter_map(|weighted| match weighted.token {
            Token::Vector { embedding, .. } => Some(embedding),
            Token::Id(_) => None,
        });
        numbers.collect()
    }

    /// The textual inversions that occur in either prompt.
    ///
    /// # Errors
    /// When one of their files can't be read any more.
    pub fn used(&self) -> Result<Vec<UsedFile>> {
        self.occurring().into_iter().map(|number| self.embeddings.used(number)).collect()
    }

    /// What a user may not expect: words without a use, text without a place.
    pub fn warnings(&self) -> Vec<String> {
        let occurring = self.occurring();
        let named = 0..self.embeddings.named();
        let unused = named.filter(|number| !occurring.contains(number)).map(|number| {
            let path = self.embeddings.path(number);
            let word = path.file_stem().unwrap_or_default().to_string_lossy();
            format!("the embedding {} has no effect: its word '{word}' is in no prompt", path.display())
        });
        let left_out = [("prompt", Some(&self.prompt)), ("negative prompt", self.negative_prompt.as_ref())];
        let left_out = left_out.into_iter().filter_map(|(which, chunks)| {
            let count = chunks.map(|chunks| chunks.left_out).filter(|count| *count > 0)?;
            Some(format!("the {which} is too long: its last {count} tokens are left out"))
        });
        unused.chain(left_out).collect()
    }

    /// How messages call an embedding: its file's name without the ending.
    pub fn embedding_name(&self, embedding: usize) -> String {
        self.embeddings.path(embedding).file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The file in `folder` that a tag means, by its name without the ending in any case.
fn find_lora(LoraTag { name, weight }: LoraTag, folder: Option<&Path>) -> Result<Lora> {
    let Some(folder) = folder else {
        bail!("the prompt asks for the lora '{name}': pass the folder it is in with --lora-dir")
    };
    let entries =
        fs::read_dir(folder).with_context(|| format!("can't read the folder {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
            stem == name.to_lowercase() && (ending == "safetensors" || ending == "pt" || ending == "ckpt")
        })
        .collect();
    // A name spelled exactly wins, and safetensors over what will be refused.
    found.sort_by_key(|path| {
        let exact = path.file_stem().is_some_and(|stem| stem == name.as_str());
        (path.extension() != Some("safetensors".as_ref()), !exact, path.clone())
    });
    let path = found.into_iter().next();
    let path = path.with_context(|| {
        format!("{} holds no {name}.safetensors, which the prompt asks for", folder.display())
    })?;
    let lora = Lora { path, weight };
    lora.validate()?;
    Ok(lora)
}
