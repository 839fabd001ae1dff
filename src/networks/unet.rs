//! The denoising UNet (Ronneberger et al. 2015; Rombach et al. 2022), as diffusers' `UNet2DConditionModel`.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;

use super::blocks::{resnet, transformer};
use super::config::UnetConfig;
use super::graph::{Conv, Enlarge, Extent, Graph, Groups, Linear, Port, Prompts, Skip, Value, silu};
use super::network::{Beside, Network, channels_first, last, repeated};
pub use super::network::{ContextRows, Maps, Residuals};
use crate::layers::{ConvShape, Padding, Params};

/// The UNet of `config`. Its inputs are the latents, the timestep's sinusoids and, where guidance is one, the
/// guidance scale's.
pub fn describe(config: &UnetConfig) -> Graph {
    let mut graph = Graph::default();
    let g = &mut graph;
    let channels = &config.channels;
    let (levels, first) = (channels.len(), channels[0]);
    let groups = Groups { count: config.norm_groups, eps: config.norm_eps };
    let latents = g.input(config.in_channels);
    let timestep = g.input(first);
    let guidance = config.guidance_channels.map(|width| g.input(width));

    g.stage("time_embedding");
    let mut time = timestep;
    if let Some(guidance) = guidance {
        let projection = Linear::new("time_embedding.cond_proj", first, guidance).without_bias();
        time = g.linear(Linear { residual: Some(timestep), ..projection });
    }
    time = g.linear(Linear::new("time_embedding.linear_1", 4 * first, time));
    time = g.linear(Linear::new("time_embedding.linear_2", 4 * first, silu(time)));

    // A resnet and the transformer that may follow it, attending to the prompt.
    let layer = |g: &mut Graph, block: &str, index: usize, map: Value, level: usize, attends: bool| {
        let name = format!("{block}.resnets.{index}");
        let map = resnet(g, &name, map, channels[level], groups, Some(time));
        if !attends {
            return map;
        }
        let name = format!("{block}.attentions.{index}");
        transformer(g, &name, map, config.heads[level], config.norm_groups, config.context_channels)
    };

    g.stage("conv_in");
    let mut map = g.conv(Conv::new("conv_in", ConvShape::same(config.in_channels, first, 3), latents));
    // What the way down leaves for the way up.
    let mut skips = vec![map];
    for (level, &attends) in config.down_attention.iter().enumerate() {
        let block = format!("down_blocks.{level}");
        for index in 0..config.layers_per_block {
            g.stage(format!("{block}.{index}"));
            map = layer(g, &block, index, map, level, attends);
            skips.push(map);
        }
        if level + 1 < levels {
            g.stage(format!("{block}.downsamplers"));
            let shape = ConvShape::halving(channels[level], Padding::Around);
            map = g.conv(Conv::new(format!("{block}.downsamplers.0.conv"), shape, map));
            skips.push(map);
        }
    }

    g.stage("mid_block");
    if config.has_mid_block {
        map = layer(g, "mid_block", 0, map, levels - 1, true);
        map = resnet(g, "mid_block.resnets.1", map, channels[levels - 1], groups, Some(time));
    }
    map = g.receive(map, Port::Middle);

    for (number, &attends) in config.up_attention.iter().enumerate() {
        let (block, level) = (format!("up_blocks.{number}"), levels - 1 - number);
        for index in 0..=config.layers_per_block {
            g.stage(format!("{block}.{index}"));
            let skip = skips.pop().expect("every level saves one skip for each of its layers on the way up");
            map = g.join(map, skip, skips.len());
            map = layer(g, &block, index, map, level, attends);
        }
        if let Some(next) = skips.last() {
            g.stage(format!("{block}.upsamplers"));
            let shape = ConvShape::same(channels[level], channels[level], 3);
            let conv = Conv::new(format!("{block}.upsamplers.0.conv"), shape, map);
            map = g.conv(Conv { enlarge: Some(Enlarge::LikeMap(*next)), ..conv });
        }
    }

    g.stage("conv_out");
    let shape = ConvShape::same(first, config.out_channels, 3);
    g.conv(Conv::new("conv_out", shape, groups.norm_silu("conv_norm_out", map)));
    graph
}

/// The extents of a step's inputs for latents of this one.
pub fn extents(config: &UnetConfig, latents: Extent) -> Vec<Extent> {
    let rows = 1 + usize::from(config.guidance_channels.is_some());
    [vec![latents], vec![Extent::ROW; rows]].concat()
}

/// Prompts prepared for one UNet.
pub struct Context {
    rows: Vec<ContextRows>,
    /// How many there are.
    prompts: usize,
    /// For a UNet that was distilled to do the guidance itself.
    guidance_scale: Option<f64>,
}

impl Context {
    /// Guides by `scale` in the network itself; only for a UNet with [`UnetConfig::guidance_channels`].
    #[must_use]
    pub fn guided_by(self, scale: f64) -> Self {
        Self { guidance_scale: Some(scale), ..self }
    }

    /// The last prompt alone: under guidance the one to follow.
    ///
    /// # Errors
    /// None in practice: there is one.
    pub fn last(&self) -> Result<Self> {
        let rows = self.rows.iter().map(ContextRows::last).collect::<Result<_>>()?;
        Ok(Self { rows, prompts: 1, guidance_scale: self.guidance_scale })
    }

    /// How many prompts there are.
    pub fn prompts(&self) -> usize {
        self.prompts
    }
}

/// What one step takes.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// `[prompts, in_channels, height, width]`, or `[1, ..]` if they are the same for all prompts: what doesn't
    /// depend on the prompt is then computed once.
    pub latents: &'a Tensor,
    pub timestep: f64,
    pub context: &'a Context,
    pub residuals: Option<&'a Residuals>,
}

/// The map that comes up from the inner stages of one step, for the outer stages of another (DeepCache, Ma et al.
/// 2023).
#[derive(Clone)]
pub struct DeepMap {
    /// How many skips are computed outside of it.
    outer: usize,
    map: Tensor,
}

impl DeepMap {
    /// The same for as many prompts: all of them, or the last one of several.
    ///
    /// # Errors
    /// None in practice: there is one.
    pub fn for_prompts(self, prompts: usize) -> Result<Option<Self>> {
        match self.map.dim(0)? {
            found if found == prompts => Ok(Some(self)),
            _ if prompts == 1 => Ok(Some(Self { map: last(&self.map)?, ..self })),
            _ => Ok(None),
        }
    }
}

/// A step that has come down through its outer stages: it goes on through the inner ones, or returns with the map
/// that these gave in another step.
pub struct Descent {
    outer: usize,
    skip: Skip,
    maps: Maps,
}

impl Descent {
    /// What the last of the outer stages gives, `[1 or prompts, height, width, channels]`.
    ///
    /// # Errors
    /// None in practice: the stage has run.
    pub fn map(&self) -> Result<&Tensor> {
        self.maps.get(self.skip.saved).context("the last outer stage gives a map")
    }
}

pub struct Unet {
    config: UnetConfig,
    network: Network,
}

impl Unet {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: UnetConfig) -> Result<Self> {
        Ok(Self { network: Network::load(params, describe(&config))?, config })
    }

    /// Prepares text embeddings `[prompts, tokens, context_channels]` for [`Self::forward`].
    pub fn context(&self, embeddings: &Tensor) -> Result<Context> {
        let (prompts, _, _) = embeddings.dims3()?;
        Ok(Context { rows: self.network.context_rows(embeddings)?, prompts, guidance_scale: None })
    }

    /// Predicts noise (or velocity) `[prompts, out_channels, height, width]` for `latents` as in
    /// [`Step`](Step::latents) at `timestep`.
    ///
    /// # Errors
    /// When shapes do not fit, naming them.
    pub fn forward(&self, latents: &Tensor, timestep: f64, context: &Context) -> Result<Tensor> {
        self.predict(&Step { latents, timestep, context, residuals: None })
    }

    /// The same for all that a step can take.
    ///
    /// # Errors
    /// As [`Self::forward`]; says which residuals are missing or have another shape.
    pub fn predict(&self, step: &Step<'_>) -> Result<Tensor> {
        let mut maps = self.begin(step)?;
        self.run(&mut maps, 0..self.stages(), step)?;
        self.finish(maps)
    }

    /// How many stages there are to stop between.
    pub fn stages(&self) -> usize {
        self.network.graph().stages()
    }

    /// A step before its first stage.
    ///
    /// # Errors
    /// As [`Self::predict`].
    pub fn begin(&self, step: &Step<'_>) -> Result<Maps> {
        let channels = self.config.in_channels;
        let shape = step.latents.shape();
        let fits = step.latents.rank() == 4 && step.latents.dim(1)? == channels;
        ensure!(fits, "the unet takes {channels} channels, not latents of shape {shape:?}");
        let (pictures, prompts) = (step.latents.dim(0)?, step.context.prompts);
        ensure!(pictures == 1 || pictures == prompts, "latents of {pictures} pictures for {prompts} prompts");
        if let Some(residuals) = step.residuals {
            residuals.check(&self.skip_shapes(step)?)?;
        }
        let row = |values: Vec<f32>| -> Result<Tensor> {
            let row = Tensor::from_vec(values, (1, 1, 1, ()), step.latents.device())?;
            Ok(row.to_dtype(self.network.dtype())?)
        };
        let mut latents = self.network.channels_last(step.latents)?;
        if self.network.graph().prompt().is_empty() {
            // There is no layer where they would part.
            latents = repeated(&latents, prompts)?;
        }
        let mut inputs = vec![latents];
        inputs.push(row(sinusoids(step.timestep, &self.config))?);
        if let Some(width) = self.config.guidance_channels {
            // Zeros add nothing to the time embedding.
            let scale = step.context.guidance_scale;
            inputs.push(row(scale.map_or(vec![0.0; width], |scale| guidance_sinusoids(scale, width)))?);
        }
        self.network.start(inputs)
    }

    /// Goes on with `stages`, for which `maps` must hold what they take.
    ///
    /// # Errors
    /// Says which stage takes what has not been computed.
    pub fn run(&self, maps: &mut Maps, stages: Range<usize>, step: &Step<'_>) -> Result<()> {
        let beside = Beside { prompt: &step.context.rows, residuals: step.residuals };
        self.network.run(maps, stages, beside)
    }

    /// What the last stage has given, `[prompts, out_channels, height, width]`.
    ///
    /// # Errors
    /// When it has not run.
    pub fn finish(&self, maps: Maps) -> Result<Tensor> {
        channels_first(&self.network.output(maps)?)
    }

    /// The shapes of residuals: those of what is saved on the way down, `[prompts, height, width, channels]` of each
    /// skip in their order, and last of what comes out of the middle.
    ///
    /// # Errors
    /// When the latents are no feature maps.
    pub fn skip_shapes(&self, step: &Step<'_>) -> Result<Vec<Vec<usize>>> {
        let (_, _, height, width) = step.latents.dims4()?;
        let latents = Extent { batch: step.context.prompts, height, width };
        Ok(self.network.residual_shapes(&extents(&self.config, latents)))
    }

    /// How many skips there are, to choose from for [`Self::predict_keeping`].
    pub fn skips(&self) -> usize {
        self.network.graph().skips().len()
    }

    /// [`Self::predict`], and the map that joins the last of the first `outer` skips.
    ///
    /// # Errors
    /// As [`Self::predict`]; when there are not as many skips, or `outer` is zero.
    pub fn predict_keeping(&self, step: &Step<'_>, outer: usize) -> Result<(Tensor, DeepMap)> {
        self.go_on(self.descend(step, outer)?, step)
    }

    /// [`Self::predict`] with the outer stages alone: what comes up to them is `deep`, of a step before.
    ///
    /// # Errors
    /// As [`Self::predict`]; when `deep` is of another size.
    pub fn predict_outer(&self, step: &Step<'_>, deep: &DeepMap) -> Result<Tensor> {
        self.go_back(self.descend(step, deep.outer)?, step, deep)
    }

    /// Begins [`Self::predict`] with the stages down to the last of the first `outer` skips.
    ///
    /// # Errors
    /// As [`Self::predict_keeping`].
    pub fn descend(&self, step: &Step<'_>, outer: usize) -> Result<Descent> {
        let skip = self.skip(outer)?;
        let mut maps = self.begin(step)?;
        self.run(&mut maps, 0..skip.after, step)?;
        Ok(Descent { outer, skip, maps })
    }

    /// The rest of the step, and what its inner stages give.
    ///
    /// # Errors
    /// As [`Self::predict`].
    pub fn go_on(&self, descent: Descent, step: &Step<'_>) -> Result<(Tensor, DeepMap)> {
        let Descent { outer, skip, mut maps } = descent;
        self.run(&mut maps, skip.after..skip.joins, step)?;
        let map = maps.get(skip.map).context("the stage before a join gives a map")?.clone();
        self.run(&mut maps, skip.joins..self.stages(), step)?;
        Ok((self.finish(maps)?, DeepMap { outer, map }))
    }

    /// The rest of the step without its inner stages, whose map is `deep`, of a step before.
    ///
    /// # Errors
    /// As [`Self::predict`]; when `deep` is of another size.
    pub fn go_back(&self, descent: Descent, step: &Step<'_>, deep: &DeepMap) -> Result<Tensor> {
        let Descent { outer, skip, mut maps } = descent;
        ensure!(outer == deep.outer, "the map of {} outer skips where {outer} were computed", deep.outer);
        maps.set(skip.map, deep.map.clone());
        self.run(&mut maps, skip.joins..self.stages(), step)?;
        self.finish(maps)
    }

    /// Multiply-accumulates of a step: of all its stages, or of those outside of so many skips.
    ///
    /// # Errors
    /// When the latents are no feature maps, or there are not as many skips.
    pub fn macs(&self, step: &Step<'_>, outer: Option<usize>) -> Result<u64> {
        let (batch, _, height, width) = step.latents.dims4()?;
        let inputs = extents(&self.config, Extent { batch, height, width });
        let tokens = step.context.rows.first().map_or(0, ContextRows::tokens);
        step_macs(self.network.graph(), &inputs, Prompts { count: step.context.prompts, tokens }, outer)
    }

    fn skip(&self, outer: usize) -> Result<Skip> {
        skip(self.network.graph(), outer)
    }
}

/// Multiply-accumulates of a step of the UNet that `graph` [describes](describe), as [`Unet::macs`] has them.
///
/// # Errors
/// When there are not as many skips.
pub fn step_macs(graph: &Graph, inputs: &[Extent], prompts: Prompts, outer: Option<usize>) -> Result<u64> {
    let macs = |stages| graph.macs_in(stages, inputs, prompts).total();
    Ok(match outer.map(|outer| skip(graph, outer)).transpose()? {
        Some(skip) => macs(0..skip.after) + macs(skip.joins..graph.stages()),
        None => macs(0..graph.stages()),
    })
}

fn skip(graph: &Graph, outer: usize) -> Result<Skip> {
    let skips = graph.skips();
    let skip = outer.checked_sub(1).and_then(|last| skips.get(last));
    skip.copied().with_context(|| format!("{outer} outer skips where there are 1 to {}", skips.len()))
}

/// `sin(t w_i), cos(t w_i)` with `w_i = 10000^(-i / (half - freq_shift))` (Vaswani et al. 2017, in the order
/// of diffusers' `get_timestep_embedding`).
fn sinusoids(timestep: f64, config: &UnetConfig) -> Vec<f32> {
    let half = config.channels[0] / 2;
    let angles: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000f32.ln()) * i as f32 / (half as f32 - config.freq_shift as f32);
            timestep as f32 * exponent.exp()
        })
        .collect();
    let sines = angles.iter().map(|angle| angle.sin());
    let cosines = angles.iter().map(|angle| angle.cos());
    let mut values: Vec<f32> =
        if config.flip_sin_to_cos { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
    values.resize(config.channels[0], 0.0);
    values
}

/// `sin(1000 w f_i), cos(1000 w f_i)` of `w = scale - 1`, `f_i = 10000^(-i / (half - 1))` (Meng et al. 2023 in
/// the numbers of diffusers' `get_guidance_scale_embedding`).
fn guidance_sinusoids(scale: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angles: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000f32.ln()) * i as f32 / (half as f32 - 1.0);
            (scale as f32 - 1.0) * 1000.0 * exponent.exp()
        })
        .collect();
    let sines = angles.iter().map(|angle| angle.sin());
    let mut values: Vec<f32> = sines.chain(angles.iter().map(|angle| angle.cos())).collect();
    values.resize(width, 0.0);
    values
}
