//! CLIP's byte-pair tokenizer, built from its vocabulary and merges.

use anyhow::{Context, Result, ensure};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::checkpoint::Vocabulary;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// What CLIP takes for a word: an English contraction, letters, one digit, or other signs.
const WORD: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Turns text into CLIP's token ids (Radford et al. 2021; byte-pair encoding, Sennrich et al. 2016).
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    comma: Option<u32>,
}

impl Tokenizer {
    /// # Errors
    /// When the vocabulary or the merges are damaged, with the line.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self> {
        let vocab: Vocab =
            serde_json::from_str(&vocabulary.vocab).context("the tokenizer's vocab.json is damaged")?;
        let id = |token: &str| {
            vocab.get(token).copied().with_context(|| format!("the tokenizer's vocabulary lacks '{token}'"))
        };
        let (start, end) = (id(START)?, id(END)?);
        let merges = merges(&vocabulary.merges)?;
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .unk_token(END.to_owned())
            .end_of_word_suffix("</w>".to_owned())
            .build()
            .map_err(|error| anyhow::anyhow!("the tokenizer's merges are damaged: {error}"))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let whitespace = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ");
        let words = Split::new(SplitPattern::Regex(WORD.to_owned()), SplitDelimiterBehavior::Removed, true);
        let invalid = |error| anyhow::anyhow!("the tokenizer's patterns are not usable: {error}");
        let normalizer = Normalizers::new(vec![
            NormalizerWrapper::NFC(NFC),
            NormalizerWrapper::Replace(whitespace.map_err(invalid)?),
            NormalizerWrapper::Lowercase(Lowercase),
        ]);
        let pre_tokenizer = PreTokenizers::new(vec![
            PreTokenizerWrapper::Split(words.map_err(invalid)?),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ]);
        inner
            .with_normalizer(Some(normalizer))
            .map_err(invalid)?
            .with_pre_tokenizer(Some(pre_tokenizer))
            .add_special_tokens([AddedToken::from(START, true), AddedToken::from(END, true)])
            .map_err(invalid)?;
        let comma = inner.token_to_id(",</w>");
        Ok(Self { inner, start, end, comma })
    }

    /// Token ids of `text` alone, without start or end.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|error| anyhow::anyhow!("can't tokenize the prompt: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token before the first of a chunk.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// The token after the last of a chunk, which also fills it up.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// A comma at the end of a word, if the vocabulary has it.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }

    /// A token as the vocabulary spells it, e.g. `apple</w>`.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One chunk of exactly `length` ids: start, as many tokens as fit, end, and the end repeated.
    ///
    /// The second value says how many tokens did not fit.
    pub fn chunk(&self, text: &str, length: usize) -> Result<(Vec<u32>, usize)> {
        ensure!(length >= 2, "a chunk of {length} tokens has no room for start and end");
        let tokens = self.tokens(text)?;
        let kept = tokens.len().min(length - 2);
        let mut ids = Vec::with_capacity(length);
        ids.push(self.start);
        ids.extend(&tokens[..kept]);
        ids.resize(length, self.end);
        Ok((ids, tokens.len() - kept))
    }
}

/// Pairs of `merges.txt`, whose first line may be a version comment.
fn merges(text: &str) -> Result<Merges> {
    text.lines()
        .enumerate()
        .filter(|(number, line)| !(line.is_empty() || *number == 0 && line.starts_with("#version")))
        .map(|(number, line)| {
            let pair = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
            let (left, right) = pair
                .with_context(|| format!("the tokenizer's merges.txt is damaged in line {}", number + 1))?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect()
}
