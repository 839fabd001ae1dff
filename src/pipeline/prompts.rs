//! Text embeddings of a pipeline's prompts, made once for equal ones; how a prompt is read lives in `prompt`.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;

use super::finite::finite;
use super::stopwatch::Stopwatch;
use super::{DrawError, Model, Phase};
use crate::checkpoint::TensorSet;
use crate::layers::Placement;
use crate::networks::clip::TextEncoder;
use crate::prompt::{Prompts, Text};
use crate::request::Request;

/// A request's prompts, and what the text encoder made of them.
struct Encoded {
    text: Text,
    prompts: Arc<Prompts>,
    /// `[1 or 2, tokens, channels]`, the negative prompt first; absent until the encoder has run.
    embeddings: Option<Tensor>,
}

/// The last request's prompts, or those encoded ahead.
#[derive(Default)]
pub(super) struct Encodings {
    known: Vec<Encoded>,
}

impl Encodings {
    fn find(&mut self, text: &Text) -> Option<&mut Encoded> {
        self.known.iter_mut().find(|known| known.text == *text)
    }

    /// Whether any prompt has been encoded.
    pub fn any_encoded(&self) -> bool {
        self.known.iter().any(|known| known.embeddings.is_some())
    }

    /// Drops what a text encoder with other adapters made.
    pub fn forget_embeddings(&mut self) {
        self.known.iter_mut().for_each(|known| known.embeddings = None);
    }

    /// Forgets all but the prompts of `requests`; whether all of these have been encoded.
    pub fn keep_only(&mut self, model: &Model, requests: &[&Request]) -> bool {
        let texts: Vec<Text> = requests.iter().map(|request| model.text(request)).collect();
        self.known.retain(|known| texts.contains(&known.text));
        texts.iter().all(|text| self.find(text).is_some_and(|known| known.embeddings.is_some()))
    }

    /// The request's prompts, read; unless they are known already, all others are forgotten.
    pub fn prompts(&mut self, model: &Model, request: &Request) -> Result<Arc<Prompts>> {
        if self.find(&model.text(request)).is_none() {
            self.known.clear();
        }
        self.read(model, request)
    }

    /// The request's prompts, read and added to those known.
    pub fn read(&mut self, model: &Model, request: &Request) -> Result<Arc<Prompts>> {
        let text = model.text(request);
        if let Some(known) = self.find(&text) {
            return Ok(known.prompts.clone());
        }
        let prompts = Arc::new(model.read_prompts(request)?);
        self.known.push(Encoded { text, prompts: prompts.clone(), embeddings: None });
        Ok(prompts)
    }

    /// Text embeddings `[1 or 2, tokens, channels]` of the request's prompts. Loads, runs and drops the text
    /// encoder unless they are known.
    pub fn embeddings(
        &mut self,
        model: &Model,
        request: &Request,
        prompts: &Prompts,
        (tensors, placement): (&TensorSet, Placement),
        watch: &mut Stopwatch<'_>,
    ) -> Result<Tensor, DrawError> {
        let known = self.find(&model.text(request)).and_then(|known| known.embeddings.clone());
        if let Some(embeddings) = known {
            return Ok(embeddings);
        }
        let encoder = watch.load(|| model.load_text_encoder(tensors, request.clip_skip, placement))?;
        Ok(self.encode(model, request, prompts, &encoder, watch)?)
    }

    /// The same with an encoder that is in memory.
    pub fn encode(
        &mut self,
        model: &Model,
        request: &Request,
        prompts: &Prompts,
        encoder: &TextEncoder,
        watch: &mut Stopwatch<'_>,
    ) -> Result<Tensor> {
        if let Some(embeddings) = self.find(&model.text(request)).and_then(|known| known.embeddings.clone()) {
            return Ok(embeddings);
        }
        let embeddings = watch.time(Phase::Encode, |_| prompts.encode(encoder, model.tokenizer()))?;
        let embeddings = finite(embeddings, "the prompt's embeddings")?;
        if let Some(known) = self.find(&model.text(request)) {
            known.embeddings = Some(embeddings.clone());
        }
        Ok(embeddings)
    }
}
