//! Chunks of weighted tokens through the text encoder: one embedding per token of every chunk, side by side.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

use super::chunks::{Chunks, Token, Weighted};
use super::embeddings::Embeddings;
use super::tokenizer::Tokenizer;
use crate::networks::clip::TextEncoder;

/// Text embeddings `[prompts, chunks * positions, channels]` of prompts of as many chunks: each chunk with its own
/// start and end, the chunks one after the other.
///
/// # Errors
/// When a token has no place in the vocabulary or the encoder fails.
pub fn encode(
    prompts: &[&Chunks],
    encoder: &TextEncoder,
    tokenizer: &Tokenizer,
    embeddings: &Embeddings,
) -> Result<Tensor> {
    let chunks = || prompts.iter().flat_map(|prompt| &prompt.chunks);
    let rows: Result<Vec<Tensor>> =
        chunks().map(|chunk| vectors(chunk, encoder, tokenizer, embeddings)).collect();
    // All at once, since it takes longest to have the weights come from memory.
    let encoded = encoder.forward_embedded(&Tensor::stack(&rows?, 0)?)?;
    let weighed: Result<Vec<Tensor>> =
        chunks().enumerate().map(|(at, chunk)| weigh(chunk, encoded.narrow(0, at, 1)?)).collect();
    let weighed = Tensor::cat(&weighed?, 0)?;
    let (count, positions, channels) = weighed.dims3()?;
    Ok(weighed.reshape((prompts.len(), count / prompts.len() * positions, channels))?)
}

/// What the encoder takes for a chunk, `[positions, channels]`.
fn vectors(
    chunk: &[Weighted],
    encoder: &TextEncoder,
    tokenizer: &Tokenizer,
    embeddings: &Embeddings,
) -> Result<Tensor> {
    let positions = encoder.positions();
    ensure!(chunk.len() + 2 <= positions, "a chunk of {} tokens is too long", chunk.len());
    let ids = chunk.iter().map(|weighted| match weighted.token {
        Token::Id(id) => id,
        Token::Vector { .. } => tokenizer.end(),
    });
    let mut ids: Vec<u32> = std::iter::once(tokenizer.start()).chain(ids).collect();
    ids.resize(positions, tokenizer.end());
    let mut rows = encoder.lookup(&ids)?;
    for (at, weighted) in chunk.iter().enumerate() {
        if let Token::Vector { embedding, row } = weighted.token {
            let vector = Tensor::new(embeddings.vector(embedding, row)?, rows.device())?;
            rows = rows.slice_assign(
                &[at + 1..at + 2, 0..vector.elem_count()],
                &vector.to_dtype(rows.dtype())?.unsqueeze(0)?,
            )?;
        }
    }
    Ok(rows)
}

/// Multiplies each token's embedding with its weight and then all of them with one number that restores their
/// mean (AUTOMATIC1111's `EmphasisOriginal`).
fn weigh(chunk: &[Weighted], embedded: Tensor) -> Result<Tensor> {
    if chunk.iter().all(|weighted| weighted.weight == 1.0) {
        return Ok(embedded);
    }
    let (_, positions, _) = embedded.dims3()?;
    let mut weights = vec![1.0; positions];
    for (weight, weighted) in weights[1..].iter_mut().zip(chunk) {
        *weight = weighted.weight;
    }
    let weights = Tensor::from_vec(weights, (1, positions, 1), embedded.device())?;
    let weighed = embedded.broadcast_mul(&weights)?;
    let mean =
        |tensor: &Tensor| -> Result<f64> { Ok(tensor.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?) };
    let restore = mean(&embedded)? / mean(&weighed)?;
    // A mean of zero can't be scaled to another one.
    Ok(if restore.is_finite() { (weighed * restore)? } else { weighed })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn weights_keep_the_mean() {
        let embedded = Tensor::new(&[[[1.0f32, 3.0], [2.0, -1.0], [5.0, 2.0]]], &Device::Cpu).unwrap();
        let token = |weight| Weighted { token: Token::Id(0), weight };
        let weighed = weigh(&[token(2.0)], embedded.clone()).unwrap();
        // Sums: 12 before, 13 with the second row doubled.
        let expected = [1.0, 3.0, 4.0, -2.0, 5.0, 2.0].map(|value: f32| value * 12.0 / 13.0);
        for (a, b) in weighed.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        let same = weigh(&[token(1.0)], embedded.clone()).unwrap();
        assert_eq!(same.to_vec3::<f32>().unwrap(), embedded.to_vec3::<f32>().unwrap());
        let zero = Tensor::new(&[[[1.0f32], [1.0], [0.0]]], &Device::Cpu).unwrap();
        let weighed = weigh(&[token(-1.0)], zero).unwrap();
        assert_eq!(weighed.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0, -1.0, 0.0]);
    }
}
