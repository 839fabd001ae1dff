//! A model's part in what another one's run was like: its own text embeddings, its own answers to the same questions.

use anyhow::Result;
use candle_core::Tensor;

use super::stopwatch::Stopwatch;
use super::{Call, DrawError, Pipeline};
use crate::request::Request;

impl Pipeline<'_> {
    /// Text embeddings `[1 or 2, tokens, channels]` of a request's prompts, under guidance the negative one first.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn embeddings(&mut self, request: &Request) -> Result<Tensor, DrawError> {
        let model = self.model;
        let prompts = self.encodings.prompts(model, request)?;
        let adapted = self.adapt(&prompts.loras)?;
        let tensors = (adapted.tensors(model.checkpoint()), self.residency.placement());
        let mut observer = ();
        self.encodings.embeddings(model, request, &prompts, tensors, &mut Stopwatch::new(&mut observer))
    }

    /// What the UNet answers to the `calls` of another run of the same request, of which it reads these
    /// `embeddings`.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn answers(
        &mut self,
        request: &Request,
        embeddings: &Tensor,
        calls: &[Call],
    ) -> Result<Vec<Tensor>, DrawError> {
        let model = self.model;
        let prompts = self.encodings.prompts(model, request)?;
        let adapted = self.adapt(&prompts.loras)?;
        let tensors = adapted.tensors(model.checkpoint());
        let mut observer = ();
        let mut watch = Stopwatch::new(&mut observer);
        let placement = self.residency.placement();
        let unet = watch.resident(&mut self.unet, || model.load_unet(tensors, placement))?;
        let context = model.context(unet, embeddings, request)?;
        let answer = |call: &Call| unet.forward(&call.input, call.timestep, &context);
        Ok(calls.iter().map(answer).collect::<Result<_>>()?)
    }
}
