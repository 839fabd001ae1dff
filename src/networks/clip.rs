//! CLIP's text encoder (Radford et al. 2021), as transformers' `CLIPTextModel`: vectors of tokens in, embeddings out.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

use super::blocks::text_layer;
use super::config::ClipConfig;
use super::graph::Graph;
use super::network::{Beside, Network};
use crate::checkpoint::TensorSet;
use crate::layers::{Backend, LayerNorm, Params};

/// All layers over tokens' vectors, which lie in one row.
pub fn describe(config: &ClipConfig) -> Graph {
    let mut graph = Graph::default();
    let feed_forward = (config.intermediate_size, config.activation);
    let mut tokens = graph.input(config.hidden_size);
    for index in 0..config.num_hidden_layers {
        let name = format!("encoder.layers.{index}");
        graph.stage(name.clone());
        let heads = config.num_attention_heads;
        tokens = text_layer(&mut graph, &name, tokens, heads, feed_forward, config.layer_norm_eps);
    }
    graph
}

pub struct TextEncoder {
    config: ClipConfig,
    vocabulary: Vocabulary,
    /// `[positions, hidden]`
    positions: Tensor,
    network: Network,
    final_norm: LayerNorm,
}

/// The vectors of all tokens, of which a prompt takes so few that they are read one by one.
struct Vocabulary {
    tensors: TensorSet,
    backend: Backend,
    name: String,
    /// `[vocab, hidden]`
    shape: [usize; 2],
}

impl TextEncoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: ClipConfig) -> Result<Self> {
        let embeddings = params.at("embeddings");
        let (hidden, positions) = (config.hidden_size, config.max_position_embeddings);
        let vocabulary = Vocabulary {
            tensors: params.tensors().clone(),
            backend: params.backend().clone(),
            name: embeddings.path(&"token_embedding.weight"),
            shape: [config.vocab_size, hidden],
        };
        // What is wrong with it shows before the layers are loaded.
        vocabulary.tensors.rows(&vocabulary.name, vocabulary.shape, &[0])?;
        Ok(Self {
            vocabulary,
            positions: embeddings.tensor("position_embedding.weight", &[positions, hidden])?,
            network: Network::load(params, describe(&config))?,
            final_norm: LayerNorm::load(&params.at("final_layer_norm"), hidden, config.layer_norm_eps)?,
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
        self.forward_embedded(&self.lookup(ids)?.unsqueeze(0)?)
    }

    /// The vectors `[tokens, hidden]` that stand for token ids.
    ///
    /// # Errors
    /// When an id is not in the vocabulary, or its vector can't be read.
    pub fn lookup(&self, ids: &[u32]) -> Result<Tensor> {
        let Vocabulary { tensors, backend, name, shape } = &self.vocabulary;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= shape[0]) {
            anyhow::bail!("token {id} is not among the text encoder's {}", shape[0]);
        }
        let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        backend.tensor(tensors.rows(name, *shape, &rows)?, (ids.len(), shape[1]))
    }

    /// Text embeddings `[chunks, tokens, hidden]` of chunks of tokens' vectors, of that shape too; no chunk sees
    /// another.
    ///
    /// # Errors
    /// When a chunk has more tokens than there are positions.
    pub fn forward_embedded(&self, tokens: &Tensor) -> Result<Tensor> {
        let (_, length, _) = tokens.dims3()?;
        ensure!(length <= self.positions(), "{length} tokens where {} is the most", self.positions());
        let embedded = tokens.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        let mut maps = self.network.start([embedded.unsqueeze(1)?])?;
        self.network.run(&mut maps, 0..self.network.graph().stages(), Beside::default())?;
        let hidden = self.network.output(maps)?.squeeze(1)?;
        Ok(self.final_norm.forward(&hidden)?.to_dtype(DType::F32)?)
    }
}
