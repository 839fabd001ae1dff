//! CLIP's text encoder (Radford et al. 2021): candle-transformers' layers between our own lookup and final norm.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use candle_transformers::models::clip::EncoderConfig;
use candle_transformers::models::clip::text_model::{Activation, ClipEncoder, ClipTextConfig};

use super::config::ClipConfig;
use crate::checkpoint::TensorSet;
use crate::layers::meter::{self, Kind};
use crate::layers::{LayerNorm, Params};

pub struct TextEncoder {
    config: ClipConfig,
    /// `[vocab, hidden]`
    tokens: Tensor,
    /// `[positions, hidden]`
    positions: Tensor,
    encoder: ClipEncoder,
    final_norm: LayerNorm,
    /// `[positions, positions]`: no token sees a later one.
    mask: Tensor,
}

impl TextEncoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: ClipConfig) -> Result<Self> {
        let backend = params.backend();
        let embeddings = params.at("embeddings");
        let (hidden, positions) = (config.hidden_size, config.max_position_embeddings);
        let layers = ClipTextConfig {
            vocab_size: config.vocab_size,
            embed_dim: hidden,
            activation: Activation::QuickGelu,
            intermediate_size: config.intermediate_size,
            max_position_embeddings: positions,
            pad_with: None,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            projection_dim: hidden,
        };
        let source = EncoderTensors { tensors: params.tensors(), prefix: params.path(&"encoder") };
        let vars = VarBuilder::from_backend(Box::new(source), backend.dtype, backend.device.clone());
        let encoder = ClipEncoder::new(vars, &EncoderConfig::Text(layers))?;
        let future = |row: usize, column: usize| if column > row { f32::MIN } else { 0.0 };
        let mask: Vec<f32> =
            (0..positions).flat_map(|row| (0..positions).map(move |column| future(row, column))).collect();
        Ok(Self {
            tokens: embeddings.tensor("token_embedding.weight", &[config.vocab_size, hidden])?,
            positions: embeddings.tensor("position_embedding.weight", &[positions, hidden])?,
            encoder,
            final_norm: LayerNorm::load(&params.at("final_layer_norm"), hidden, 1e-5)?,
            mask: Tensor::from_vec(mask, (positions, positions), &backend.device)?,
            config,
        })
    }

    /// The number of tokens of one chunk, start and end included.
    pub fn positions(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Text embeddings `[1, tokens, hidden]` of one chunk of token ids.
    ///
    /// # Errors
    /// As [`Self::lookup`] and [`Self::forward_embedded`].
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        self.forward_embedded(&self.lookup(ids)?)
    }

    /// The vectors `[tokens, hidden]` that stand for token ids.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn lookup(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            anyhow::bail!("token {id} is not among the text encoder's {}", self.config.vocab_size);
        }
        Ok(self.tokens.index_select(&Tensor::new(ids, self.tokens.device())?, 0)?)
    }

    /// Text embeddings `[1, tokens, hidden]` of one chunk of tokens' vectors, `[tokens, hidden]`.
    ///
    /// # Errors
    /// When there are more tokens than positions.
    pub fn forward_embedded(&self, tokens: &Tensor) -> Result<Tensor> {
        let (length, _) = tokens.dims2()?;
        ensure!(length <= self.positions(), "{length} tokens where {} is the most", self.positions());
        let embedded = (tokens + self.positions.narrow(0, 0, length)?)?;
        let mask = self.mask.narrow(0, 0, length)?.narrow(1, 0, length)?.contiguous()?;
        let hidden = meter::record(Kind::Other, self.config.macs(length), || {
            self.encoder.forward(&embedded.unsqueeze(0)?, Some(&mask))
        })?;
        Ok(self.final_norm.forward(&hidden)?.to_dtype(DType::F32)?)
    }
}

impl ClipConfig {
    /// How many weights there are: embeddings, and in each layer four projections, a feed-forward and two norms.
    pub fn weights(&self) -> usize {
        let Self { vocab_size, hidden_size: hidden, intermediate_size: inner, .. } = *self;
        let layer = 4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + hidden + 4 * hidden;
        (vocab_size + self.max_position_embeddings + 2) * hidden + self.num_hidden_layers * layer
    }

    /// Multiply-accumulates of all layers over one chunk of `tokens`: projections, attention, feed-forward.
    pub fn macs(&self, tokens: usize) -> usize {
        let products = 4 * self.hidden_size + 2 * tokens + 2 * self.intermediate_size;
        self.num_hidden_layers * tokens * self.hidden_size * products
    }
}

/// Feeds candle-transformers' encoder from a checkpoint's tensors.
struct EncoderTensors<'a> {
    tensors: &'a TensorSet,
    prefix: String,
}

impl SimpleBackend for EncoderTensors<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let values = self.tensors.f32(&format!("{}.{name}", self.prefix), shape.dims());
        let values = values.map_err(|error| candle_core::Error::Msg(format!("{error:#}")))?;
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("tensor '{name}' was asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains(&format!("{}.{name}", self.prefix))
    }
}
