//! A model's part in what another one's run was like: its own embeddings, answers, picture and latents for the same.

use anyhow::Result;
use candle_core::Tensor;
use image::RgbImage;

use super::stopwatch::Stopwatch;
use super::{Call, DrawError, Model, Pipeline};
use crate::picture_in;
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

impl Model {
    /// What the decoder makes of a run's latents, `[1, 3, height, width]`, about -1 to 1.
    ///
    /// # Errors
    /// When the decoder can't be loaded or the latents are of another model.
    pub fn decoded(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = latents.dims4()?;
        let decoder = self.load_decoder(self.checkpoint().tensors())?;
        match self.strips(self.factor() * width, self.factor() * height) {
            Some(strips) => decoder.decode_in_strips(latents, strips),
            None => decoder.decode(latents),
        }
    }

    /// The likeliest latents of a picture, `[1, channels, height / factor, width / factor]`.
    ///
    /// # Errors
    /// When the encoder can't be loaded.
    pub fn encoded(&self, picture: &RgbImage) -> Result<Tensor> {
        let (width, height) = picture.dimensions();
        let (width, height) = (width as usize, height as usize);
        let values = picture_in::values(picture);
        let picture = Tensor::from_vec(values, (1, 3, height, width), &self.backend.device)?;
        let encoder = self.load_encoder(self.checkpoint().tensors())?;
        Ok(encoder.encode(&picture, self.strips(width, height))?.mean().clone())
    }
}
