//! From a request's prompts and LoRAs to text embeddings, once for equal ones; how a prompt is read stands in `prompt`.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;

use super::adapted::Adapted;
use super::{Observer, Phase, Pipeline, Timings, Unusable};
use crate::checkpoint::TensorSet;
use crate::layers::Params;
use crate::networks::clip::TextEncoder;
use crate::prompt::{Prompts, Room, Text};
use crate::request::{Lora, Request};

/// The last request's prompts, and what the text encoder made of them.
pub(super) struct Encoded {
    pub text: Text,
    pub prompts: Rc<Prompts>,
    /// `[1 or 2, tokens, channels]`, the negative prompt first; absent until the encoder has run.
    pub embeddings: Option<Tensor>,
}

impl Pipeline<'_> {
    /// The request's prompts, read; unless they are known already, all others are forgotten.
    pub(super) fn prompts(&self, request: &Request) -> Result<Rc<Prompts>> {
        let text = Text::of(request, self.guided(request));
        let known = self.encoded.borrow().iter().any(|known| known.text == text);
        if !known {
            self.encoded.borrow_mut().clear();
        }
        self.read_prompts(request)
    }

    /// The request's prompts, read.
    pub(super) fn unstored_prompts(&self, request: &Request) -> Result<Prompts> {
        let layers = self.clip_config.num_hidden_layers;
        ensure!(
            (1..=layers).contains(&request.clip_skip),
            "clip skip {} is out of range: this model's text encoder has {layers} layers",
            request.clip_skip
        );
        let room =
            Room { width: self.clip_config.hidden_size, positions: self.clip_config.max_position_embeddings };
        Prompts::read(&Text::of(request, self.guided(request)), &self.tokenizer, room)
    }

    /// The request's prompts, read and added to those known.
    fn read_prompts(&self, request: &Request) -> Result<Rc<Prompts>> {
        let text = Text::of(request, self.guided(request));
        if let Some(known) = self.encoded.borrow().iter().find(|known| known.text == text) {
            return Ok(known.prompts.clone());
        }
        let prompts = Rc::new(self.unstored_prompts(request)?);
        self.encoded.borrow_mut().push(Encoded { text, prompts: prompts.clone(), embeddings: None });
        Ok(prompts)
    }

    /// The model with `loras` merged, for reading only: the networks in memory stay what they are.
    pub(super) fn adapters(&self, loras: &[Lora]) -> Result<Rc<Adapted>> {
        let adapted = self.adapted.borrow().clone();
        if adapted.loras() == loras {
            return Ok(adapted);
        }
        Ok(Rc::new(Adapted::open(loras, self.checkpoint.tensors())?))
    }

    /// The model with `loras` merged. Networks that were loaded with others are dropped.
    pub(super) fn adapt(&self, loras: &[Lora]) -> Result<Rc<Adapted>> {
        let adapted = self.adapters(loras)?;
        if Rc::ptr_eq(&adapted, &self.adapted.borrow()) {
            return Ok(adapted);
        }
        *self.unet.borrow_mut() = None;
        for known in self.encoded.borrow_mut().iter_mut() {
            known.embeddings = None;
        }
        *self.adapted.borrow_mut() = adapted.clone();
        Ok(adapted)
    }

    /// Encodes the prompts of `requests`, equal ones once, so that the text encoder is loaded once for all that
    /// use the same LoRAs and the same of its layers as the first; what was encoded before and is not among
    /// them is forgotten. Ends early when the observer has stopped. What can't be encoded is left to
    /// [`Self::generate`], which says why.
    ///
    /// # Errors
    /// With [`Unusable`] in its chain when the text encoder can't be loaded.
    pub fn encode_ahead(&self, requests: &[&Request], observer: &mut dyn Observer) -> Result<()> {
        let texts: Vec<Text> =
            requests.iter().map(|request| Text::of(request, self.guided(request))).collect();
        self.encoded.borrow_mut().retain(|known| texts.contains(&known.text));
        let is_encoded = |text: &Text| {
            self.encoded.borrow().iter().any(|known| known.text == *text && known.embeddings.is_some())
        };
        if texts.iter().all(is_encoded) {
            return Ok(());
        }
        let Some(first) = requests.first() else { return Ok(()) };
        let Ok(adapted) = self.read_prompts(first).and_then(|prompts| self.adapt(&prompts.loras)) else {
            return Ok(());
        };
        let tensors = adapted.tensors(self.checkpoint);
        observer.phase(Phase::Load);
        *self.text_encoder.borrow_mut() = Some(Rc::new(self.load_text_encoder(first, tensors)?));
        for request in requests.iter().filter(|request| request.clip_skip == first.clip_skip) {
            if observer.stopped() {
                break;
            }
            if let Ok(prompts) = self.read_prompts(request)
                && prompts.loras == adapted.loras()
            {
                let _ = self.encode(request, &prompts, tensors, observer, &mut Timings::default());
            }
        }
        *self.text_encoder.borrow_mut() = None;
        Ok(())
    }

    /// The text encoder without the layers that `request` skips.
    fn load_text_encoder(&self, request: &Request, tensors: &TensorSet) -> Result<TextEncoder> {
        let mut config = self.clip_config.clone();
        config.num_hidden_layers -= request.clip_skip - 1;
        TextEncoder::load(&Params::new(tensors, &self.backend, "text_encoder"), config).context(Unusable)
    }

    /// Loads, runs and drops the text encoder, unless the last request had the same prompts.
    pub(super) fn encode(
        &self,
        request: &Request,
        prompts: &Prompts,
        tensors: &TensorSet,
        observer: &mut dyn Observer,
        timings: &mut Timings,
    ) -> Result<Tensor> {
        let text = Text::of(request, self.guided(request));
        let known = self
            .encoded
            .borrow()
            .iter()
            .find(|known| known.text == text)
            .and_then(|known| known.embeddings.clone());
        if let Some(embeddings) = known {
            return Ok(embeddings);
        }
        let ahead = self.text_encoder.borrow().clone();
        let text_encoder = match ahead {
            Some(text_encoder) => text_encoder,
            None => {
                observer.phase(Phase::Load);
                let start = Instant::now();
                let loaded = self.load_text_encoder(request, tensors)?;
                timings.load += start.elapsed();
                Rc::new(loaded)
            }
        };

        observer.phase(Phase::Encode);
        let start = Instant::now();
        let embeddings = prompts.encode(&text_encoder, &self.tokenizer)?;
        timings.encode = start.elapsed();
        if let Some(known) = self.encoded.borrow_mut().iter_mut().find(|known| known.text == text) {
            known.embeddings = Some(embeddings.clone());
        }
        Ok(embeddings)
    }
}
