//! The residual block that UNet and VAE share.

use anyhow::{Result, bail};
use candle_core::Tensor;

use super::strips::{Map, Source, Strips, widened, without_margin};
use crate::layers::{Conv2d, ConvShape, Fused, GroupNorm, Linear, Params, silu};

/// `ResnetBlock2D`: norm, SiLU, convolution, twice, around which the input is added.
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_projection: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    /// `time_channels` is the width of the time embedding, absent in a VAE, whose maps are large.
    pub fn load(
        params: &Params,
        in_channels: usize,
        out_channels: usize,
        time_channels: Option<usize>,
        groups: usize,
        eps: f64,
    ) -> Result<Self> {
        let conv = |from: usize, to: usize| {
            let shape = ConvShape::same(from, to, 3);
            if time_channels.is_none() { shape.over_large_maps() } else { shape }
        };
        Ok(Self {
            norm1: GroupNorm::load(&params.at("norm1"), groups, in_channels, eps)?,
            conv1: Conv2d::load(&params.at("conv1"), conv(in_channels, out_channels))?,
            time_projection: time_channels
                .map(|channels| Linear::load(&params.at("time_emb_proj"), channels, out_channels))
                .transpose()?,
            norm2: GroupNorm::load(&params.at("norm2"), groups, out_channels, eps)?,
            conv2: Conv2d::load(&params.at("conv2"), conv(out_channels, out_channels))?,
            shortcut: (in_channels != out_channels)
                .then(|| {
                    Conv2d::load(&params.at("conv_shortcut"), ConvShape::same(in_channels, out_channels, 1))
                })
                .transpose()?,
        })
    }

    /// `[batch, height, width, in]` to `[batch, height, width, out]`; `time` is `[1, time_channels]`.
    pub fn forward(&self, input: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let shift = match (&self.time_projection, time) {
            (Some(projection), Some(time)) => Some(projection.forward(&silu(time)?)?.squeeze(0)?),
            _ => None,
        };
        let shifted = Fused { shift: shift.as_ref(), ..Fused::default() };
        let hidden = self.conv1.forward_fused(self.norm1.silu_of(input), shifted)?;
        let shortcut = self.shortcut.as_ref().map(|conv| conv.forward(input)).transpose()?;
        let added = Fused { residual: Some(shortcut.as_ref().unwrap_or(input)), ..Fused::default() };
        self.conv2.forward_fused(self.norm2.silu_of(&hidden), added)
    }
    /// The same without a time embedding, strip by strip.
    pub fn forward_in_strips(&self, source: Source<'_>, strips: Strips) -> Result<Map> {
        let (height, width) = (source.height(), source.width());
        let ConvShape { in_channels, out_channels, .. } = self.conv1.shape();
        let row = width * in_channels.max(out_channels);
        let moments = source.moments(in_channels, strips)?;
        let like = source.rows(0..1)?;
        let map = || Map::new(height, width, out_channels, &like);
        let mut hidden = map();
        // A stored input that nothing changes on its way is the residual itself.
        let mut residual =
            if self.shortcut.is_some() || !matches!(source, Source::Stored(_)) { Some(map()) } else { None };
        for strip in strips.of(height, row) {
            let wide = widened(&strip, 1, height);
            let input = source.rows(wide.clone())?.contiguous()?;
            let output = self.conv1.forward(self.norm1.silu_of_part(&input, &moments))?;
            hidden.write(strip.start, &without_margin(&output, &wide, &strip)?)?;
            if let Some(residual) = &mut residual {
                let input = without_margin(&input, &wide, &strip)?;
                let input = self.shortcut.as_ref().map_or(Ok(input.clone()), |conv| conv.forward(&input))?;
                residual.write(strip.start, &input)?;
            }
        }
        let mut output = match (residual, source) {
            (Some(residual), _) => residual,
            (None, Source::Stored(input)) => input,
            (None, _) => bail!("a computed input has no residual"),
        };
        output.forget_moments();
        for strip in strips.of(height, row) {
            let wide = widened(&strip, 1, height);
            let input = hidden.rows(wide.clone())?;
            let change = self.conv2.forward(self.norm2.silu_of_part(&input, &hidden.moments))?;
            let change = without_margin(&change, &wide, &strip)?;
            let sum = (output.rows(strip.clone())? + change)?;
            output.write(strip.start, &sum)?;
        }
        Ok(output)
    }
}
