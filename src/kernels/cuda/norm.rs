//! Group and layer normalisation, with sums in f32.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

use super::launch::{Arg, Grid, Module, address, device, launch, pack, unwritten};

/// Gain and offset of each channel, of the maps' type.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    pub gain: &'a Tensor,
    pub offset: &'a Tensor,
}

impl Affine<'_> {
    fn check(&self, input: &Tensor, channels: usize) -> Result<()> {
        for tensor in [self.gain, self.offset] {
            ensure!(
                tensor.elem_count() == channels && tensor.dtype() == input.dtype(),
                "a norm of {:?} with {:?}",
                input.shape(),
                tensor.shape()
            );
        }
        Ok(())
    }
}

/// Threads a block may have.
const MOST_THREADS: usize = 1024;

/// Whether [`group_norm`] takes maps of so many channels: a pack of them for each thread of a block.
pub fn takes_groups(dtype: DType, channels: usize) -> bool {
    pack(dtype, channels).is_ok_and(|(size, _)| channels / size <= MOST_THREADS)
}

/// The norm of `[batch, height, width, channels]`, with SiLU or without.
pub fn group_norm(input: &Tensor, groups: usize, affine: Affine<'_>, eps: f64, silu: bool) -> Result<Tensor> {
    let device = device(input)?;
    let input = input.contiguous()?;
    let (batch, height, width, channels) = input.dims4()?;
    affine.check(&input, channels)?;
    ensure!(channels.is_multiple_of(groups), "{channels} channels in {groups} groups");
    let rows = height * width;
    let (size, name) = pack(input.dtype(), channels)?;
    let packs = channels / size;
    // Threads of a block: one for each pack of a row, over so many rows.
    let lanes = (256 / packs).max(1);
    let chunks = (rows / (4 * lanes)).clamp(1, 64);
    let chunk_rows = rows.div_ceil(chunks);
    let chunks = rows.div_ceil(chunk_rows);
    let block_rows = (rows / 128).clamp(4, 64).max(lanes);
    let threads = (packs, lanes);
    // SAFETY: all moments and all of the output are written; sizes were checked.
    unsafe {
        let moments = unwritten(&device, DType::F32, (batch, chunks, groups, 2))?;
        let args = [
            Arg::At(address(&input)?),
            Arg::At(address(&moments)?),
            rows.into(),
            chunk_rows.into(),
            groups.into(),
        ];
        let grid = Grid { blocks: (chunks, batch, 1), threads, shared: 2 * 4 * lanes * channels };
        launch(&device, Module::Maps, &format!("group_moments_{name}"), &grid, &args)?;

        let output = unwritten(&device, input.dtype(), input.shape().clone())?;
        let args = [
            Arg::At(address(&input)?),
            Arg::At(address(&moments)?),
            Arg::At(address(affine.gain)?),
            Arg::At(address(affine.offset)?),
            Arg::At(address(&output)?),
            rows.into(),
            chunk_rows.into(),
            chunks.into(),
            groups.into(),
            Arg::F32(eps as f32),
            usize::from(silu).into(),
            block_rows.into(),
        ];
        let grid = Grid { blocks: (rows.div_ceil(block_rows), batch, 1), threads, shared: 2 * 4 * groups };
        launch(&device, Module::Maps, &format!("group_norm_{name}"), &grid, &args)?;
        Ok(output)
    }
}

/// The norm of each row of `[.., channels]`.
pub fn layer_norm(input: &Tensor, affine: Affine<'_>, eps: f64) -> Result<Tensor> {
    let device = device(input)?;
    let input = input.contiguous()?;
    let channels = input.dims().last().copied().unwrap_or_default();
    affine.check(&input, channels)?;
    let (size, name) = pack(input.dtype(), channels)?;
    let rows = input.elem_count() / channels;
    // SAFETY: each warp writes its row; sizes were checked.
    unsafe {
        let output = unwritten(&device, input.dtype(), input.shape().clone())?;
        let args = [
            Arg::At(address(&input)?),
            Arg::At(address(affine.gain)?),
            Arg::At(address(affine.offset)?),
            Arg::At(address(&output)?),
            rows.into(),
            (channels / size).into(),
            Arg::F32(eps as f32),
        ];
        launch(&device, Module::Maps, &format!("layer_norm_{name}"), &Grid::of_warps(rows), &args)?;
        Ok(output)
    }
}
