//! A prompt as the chunks of weighted tokens that the text encoder reads one by one; no network is run here.

use anyhow::{Result, ensure};

use super::embeddings::Embeddings;
use super::syntax::{self, Piece};
use super::tokenizer::Tokenizer;
use crate::request::PromptSyntax;

/// Tokens after the last comma that move to the next chunk with the word that no longer fits, as
/// AUTOMATIC1111's default has it.
const BACKTRACK: usize = 20;

/// More chunks than this are refused: each is a pass of the text encoder and lengthens every attention.
pub const MAX_CHUNKS: usize = 32;

/// What stands at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Id(u32),
    /// A vector of a textual inversion: its number among the [`Embeddings`] and the row.
    Vector {
        embedding: usize,
        row: usize,
    },
}

/// A token and what its final embedding is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighted {
    pub token: Token,
    pub weight: f32,
}

/// A prompt cut into chunks.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunks {
    /// At least one; tokens without start, end and padding.
    pub chunks: Vec<Vec<Weighted>>,
    /// Tokens at the end that have no place.
    pub left_out: usize,
}

impl Chunks {
    /// Cuts `text` into chunks of up to `length` tokens.
    ///
    /// Weighted prompts are cut as AUTOMATIC1111 does: at `BREAK`, and where a chunk is full; if a comma is at
    /// most 20 tokens back, what follows it moves to the next chunk. An embedding is never cut. Plain text is
    /// one chunk, as diffusers has it; the rest is left out.
    ///
    /// # Errors
    /// When there are too many chunks, weights are out of range, or a textual inversion can't be read.
    pub fn cut(
        text: &str,
        syntax: PromptSyntax,
        length: usize,
        tokenizer: &Tokenizer,
        embeddings: &Embeddings,
    ) -> Result<Self> {
        let pieces = match syntax {
            PromptSyntax::Weighted => syntax::parse(text)?,
            PromptSyntax::Plain => vec![Piece::Text { text: text.to_owned(), weight: 1.0 }],
        };
        let mut cutter = Cutter { length, done: Vec::new(), chunk: Vec::new(), comma: None };
        let mut left_out = 0;
        for piece in pieces {
            let (text, weight) = match piece {
                Piece::Break => {
                    cutter.next(Vec::new())?;
                    continue;
                }
                Piece::Text { text, weight } => (text, weight as f32),
            };
            let ids = tokenizer.tokens(&text)?;
            let mut rest = ids.as_slice();
            while let Some((&id, after)) = rest.split_first() {
                let found = embeddings.at(rest)?;
                let tokens: Vec<Token> = match found {
                    Some((embedding, _)) => (0..embeddings.vectors(embedding)?)
                        .map(|row| Token::Vector { embedding, row })
                        .collect(),
                    None => vec![Token::Id(id)],
                };
                rest = found.map_or(after, |(_, words)| &rest[words..]);
                let tokens = tokens.into_iter().map(|token| Weighted { token, weight });
                if syntax == PromptSyntax::Plain {
                    cutter.chunk.extend(tokens);
                } else {
                    cutter.add(tokens.collect(), found.is_none() && Some(id) == tokenizer.comma())?;
                }
            }
        }
        if syntax == PromptSyntax::Plain {
            left_out = cutter.chunk.len().saturating_sub(length);
            cutter.chunk.truncate(length);
        }
        if !cutter.chunk.is_empty() || cutter.done.is_empty() {
            cutter.next(Vec::new())?;
        }
        Ok(Self { chunks: cutter.done, left_out })
    }

    /// Adds empty chunks until there are `count`.
    pub fn pad(&mut self, count: usize) {
        self.chunks.resize(self.chunks.len().max(count), Vec::new());
    }
}

struct Cutter {
    length: usize,
    done: Vec<Vec<Weighted>>,
    chunk: Vec<Weighted>,
    /// Position of the current chunk's last comma.
    comma: Option<usize>,
}

impl Cutter {
    /// Appends one word's token or one embedding's vectors.
    fn add(&mut self, tokens: Vec<Weighted>, is_comma: bool) -> Result<()> {
        if is_comma {
            self.comma = Some(self.chunk.len());
        } else if self.chunk.len() == self.length
            && let Some(comma) = self.comma
            && self.length - comma <= BACKTRACK
        {
            let moved = self.chunk.split_off(comma + 1);
            self.next(moved)?;
        }
        if self.chunk.len() + tokens.len() > self.length {
            self.next(Vec::new())?;
        }
        self.chunk.extend(tokens);
        Ok(())
    }

    /// Ends the current chunk and begins the next one with `start`.
    fn next(&mut self, start: Vec<Weighted>) -> Result<()> {
        ensure!(
            self.done.len() < MAX_CHUNKS,
            "the prompt is too long: it makes more than {MAX_CHUNKS} chunks of {} tokens",
            self.length
        );
        self.done.push(std::mem::replace(&mut self.chunk, start));
        self.comma = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Vocabulary;

    fn cut(text: &str, syntax: PromptSyntax) -> Result<Chunks> {
        let tokenizer = Tokenizer::new(&Vocabulary::clip()).unwrap();
        Chunks::cut(text, syntax, 75, &tokenizer, &Embeddings::none())
    }

    fn lengths(text: &str) -> Vec<usize> {
        cut(text, PromptSyntax::Weighted).unwrap().chunks.iter().map(Vec::len).collect()
    }

    #[test]
    fn chunks_end_where_automatic1111_ends_them() {
        let words = |count| "cat ".repeat(count);
        assert_eq!(lengths(""), [0]);
        assert_eq!(lengths(&words(75)), [75]);
        assert_eq!(lengths(&words(76)), [75, 1]);
        assert_eq!(lengths("a BREAK b c"), [1, 2]);
        assert_eq!(lengths("BREAK"), [0]);
        assert_eq!(lengths("BREAK a"), [0, 1]);
        // The comma is the 60th of 75 tokens: the 15 after it move on with what does not fit.
        assert_eq!(lengths(&format!("{},{}", words(59), words(20))), [60, 20]);
        // 20 tokens back is near enough, 21 is not.
        assert_eq!(lengths(&format!("{},{}", words(55), words(25))), [56, 25]);
        assert_eq!(lengths(&format!("{},{}", words(54), words(25))), [75, 5]);
        // A comma that does not fit begins the next chunk.
        assert_eq!(lengths(&format!("{},{}", words(75), words(3))), [75, 4]);
    }

    #[test]
    fn plain_text_is_one_chunk() {
        let plain = cut(&format!("(a:1.5) BREAK {}", "cat ".repeat(75)), PromptSyntax::Plain).unwrap();
        // Brackets, colon, digits and the word itself are tokens.
        assert_eq!((plain.chunks.len(), plain.chunks[0].len(), plain.left_out), (1, 75, 8));
        assert!(plain.chunks[0].iter().all(|token| token.weight == 1.0));
    }

    #[test]
    fn too_many_chunks_are_refused() {
        assert_eq!(lengths(&"BREAK a ".repeat(31)).len(), 32);
        let error = cut(&"BREAK a ".repeat(32), PromptSyntax::Weighted).unwrap_err().to_string();
        assert!(error.contains("more than 32 chunks"), "{error}");
    }

    #[test]
    fn padding_never_shortens() {
        let mut chunks = cut("a BREAK b", PromptSyntax::Weighted).unwrap();
        chunks.pad(1);
        assert_eq!(chunks.chunks.len(), 2);
        chunks.pad(3);
        assert_eq!(chunks.chunks[2], []);
    }
}
