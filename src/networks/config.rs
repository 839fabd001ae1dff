//! The published configs of the networks, parsed and checked; a setting that isn't implemented is an error.

use anyhow::{Context, Result, bail, ensure};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::layers::Function;

/// Parses `config` as the config of `what`.
fn parse<T: DeserializeOwned>(config: &Value, what: &str) -> Result<T> {
    T::deserialize(config).with_context(|| format!("the {what} config is not usable"))
}

/// Fails if any of `keys` is set to something other than null or false.
fn refuse(config: &Value, what: &str, keys: &[&str]) -> Result<()> {
    for key in keys {
        match config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(value) => bail!("the {what} config sets '{key}' to {value}, which is not supported"),
        }
    }
    Ok(())
}

/// Channel counts and layer counts beyond these are damage, not design.
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LEVELS: usize = 8;
const MAX_LAYERS: usize = 64;

fn check_channels(what: &str, channels: &[usize], groups: usize) -> Result<()> {
    ensure!((1..=MAX_LEVELS).contains(&channels.len()), "the {what} config has {} levels", channels.len());
    for &count in channels {
        ensure!(
            (1..=MAX_CHANNELS).contains(&count) && groups > 0 && count.is_multiple_of(groups),
            "the {what} config has {count} channels, which do not divide into {groups} groups"
        );
    }
    Ok(())
}

/// One number for all levels, or one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum PerLevel {
    Same(usize),
    Each(Vec<usize>),
}

impl PerLevel {
    fn expand(&self, levels: usize, key: &str) -> Result<Vec<usize>> {
        match self {
            Self::Same(value) => Ok(vec![*value; levels]),
            Self::Each(values) => {
                ensure!(
                    values.len() == levels,
                    "the unet config has {} values of '{key}' for {levels} levels",
                    values.len()
                );
                Ok(values.clone())
            }
        }
    }
}

/// `UNet2DConditionModel`.
#[derive(Debug, Clone)]
pub struct UnetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Channels of each level, full resolution first.
    pub channels: Vec<usize>,
    /// Attention heads of each level.
    pub heads: Vec<usize>,
    pub layers_per_block: usize,
    /// Which levels on the way down attend to the prompt.
    pub down_attention: Vec<bool>,
    /// The same on the way up, lowest resolution first.
    pub up_attention: Vec<bool>,
    pub has_mid_block: bool,
    pub context_channels: usize,
    pub norm_groups: usize,
    pub norm_eps: f64,
    pub linear_projection: bool,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    /// Width of the embedded guidance scale a distilled UNet takes as an input.
    pub guidance_channels: Option<usize>,
}

#[derive(Deserialize)]
struct RawUnet {
    in_channels: usize,
    out_channels: usize,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    #[serde(default = "default_mid_block")]
    mid_block_type: Option<String>,
    cross_attention_dim: usize,
    attention_head_dim: PerLevel,
    #[serde(default)]
    num_attention_heads: Option<PerLevel>,
    #[serde(default = "default_groups")]
    norm_num_groups: usize,
    #[serde(default = "default_norm_eps")]
    norm_eps: f64,
    #[serde(default)]
    use_linear_projection: bool,
    #[serde(default = "default_true")]
    flip_sin_to_cos: bool,
    #[serde(default)]
    freq_shift: f64,
    #[serde(default)]
    time_cond_proj_dim: Option<usize>,
    #[serde(default = "default_silu")]
    act_fn: String,
}

fn default_mid_block() -> Option<String> {
    Some("UNetMidBlock2DCrossAttn".to_owned())
}

fn default_groups() -> usize {
    32
}

fn default_norm_eps() -> f64 {
    1e-5
}

fn default_true() -> bool {
    true
}

fn default_silu() -> String {
    "silu".to_owned()
}

impl UnetConfig {
    /// # Errors
    /// Names the key that is missing, damaged or not supported.
    pub fn parse(config: &Value) -> Result<Self> {
        refuse(
            config,
            "unet",
            &[
                "addition_embed_type",
                "class_embed_type",
                "cross_attention_norm",
                "dual_cross_attention",
                "encoder_hid_dim",
                "only_cross_attention",
                "resnet_skip_time_act",
                "time_embedding_act_fn",
                "center_input_sample",
            ],
        )?;
        let raw: RawUnet = parse(config, "unet")?;
        let levels = raw.block_out_channels.len();
        check_channels("unet", &raw.block_out_channels, raw.norm_num_groups)?;
        ensure!(raw.act_fn == "silu", "the unet config has act_fn '{}', only silu is known", raw.act_fn);
        ensure!(
            raw.down_block_types.len() == levels && raw.up_block_types.len() == levels,
            "the unet config has {levels} channel counts, {} down and {} up blocks",
            raw.down_block_types.len(),
            raw.up_block_types.len()
        );
        ensure!(
            (1..=MAX_LAYERS).contains(&raw.layers_per_block),
            "the unet config has layers_per_block {}",
            raw.layers_per_block
        );
        // Named "head_dim" but holding the number of heads in SD 1.x; the newer key wins where it is set.
        let heads = raw.num_attention_heads.as_ref().unwrap_or(&raw.attention_head_dim);
        let heads = heads.expand(levels, "attention_head_dim")?;
        for (&heads, &channels) in heads.iter().zip(&raw.block_out_channels) {
            ensure!(
                heads > 0 && channels.is_multiple_of(heads),
                "the unet config has {channels} channels, which do not divide into {heads} heads"
            );
        }
        let sizes = [raw.in_channels, raw.out_channels, raw.cross_attention_dim];
        for channels in sizes.into_iter().chain(raw.time_cond_proj_dim) {
            ensure!((1..=MAX_CHANNELS).contains(&channels), "the unet config has {channels} channels");
        }
        ensure!(
            raw.time_cond_proj_dim.is_none_or(|width| width >= 4 && width.is_multiple_of(2)),
            "the unet config has a time_cond_proj_dim that is odd or below 4"
        );
        let attends = |types: &[String], plain: &str, crossing: &str| -> Result<Vec<bool>> {
            types
                .iter()
                .map(|kind| match kind.as_str() {
                    kind if kind == plain => Ok(false),
                    kind if kind == crossing => Ok(true),
                    kind => bail!("the unet config has a block of type {kind}, which is not supported"),
                })
                .collect()
        };
        let has_mid_block = match raw.mid_block_type.as_deref() {
            Some("UNetMidBlock2DCrossAttn") => true,
            None => false,
            Some(kind) => bail!("the unet config has a middle block of type {kind}, which is not supported"),
        };
        Ok(Self {
            in_channels: raw.in_channels,
            out_channels: raw.out_channels,
            down_attention: attends(&raw.down_block_types, "DownBlock2D", "CrossAttnDownBlock2D")?,
            up_attention: attends(&raw.up_block_types, "UpBlock2D", "CrossAttnUpBlock2D")?,
            channels: raw.block_out_channels,
            heads,
            layers_per_block: raw.layers_per_block,
            has_mid_block,
            context_channels: raw.cross_attention_dim,
            norm_groups: raw.norm_num_groups,
            norm_eps: raw.norm_eps,
            linear_projection: raw.use_linear_projection,
            flip_sin_to_cos: raw.flip_sin_to_cos,
            freq_shift: raw.freq_shift,
            guidance_channels: raw.time_cond_proj_dim,
        })
    }
}

/// The two kinds of autoencoder.
#[derive(Debug, Clone)]
pub enum VaeConfig {
    Kl(KlConfig),
    Tiny(TinyConfig),
}

impl VaeConfig {
    /// # Errors
    /// Names the key that is missing, damaged or not supported.
    pub fn parse(config: &Value) -> Result<Self> {
        match config.get("_class_name").and_then(Value::as_str) {
            None | Some("AutoencoderKL") => KlConfig::parse(config).map(Self::Kl),
            Some("AutoencoderTiny") => TinyConfig::parse(config).map(Self::Tiny),
            Some(class) => bail!("the vae config is of class {class}, which is not supported"),
        }
    }

    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Kl(config) => config.latent_channels,
            Self::Tiny(config) => config.latent_channels,
        }
    }

    /// What the UNet's latents are divided by before they are decoded.
    pub fn scaling_factor(&self) -> f64 {
        match self {
            Self::Kl(config) => config.scaling_factor,
            Self::Tiny(config) => config.scaling_factor,
        }
    }

    /// How many pixels one latent is wide.
    pub fn factor(&self) -> usize {
        let levels = match self {
            Self::Kl(config) => config.channels.len(),
            Self::Tiny(config) => config.num_decoder_blocks.len(),
        };
        1 << (levels - 1)
    }
}

/// `AutoencoderKL`.
#[derive(Debug, Clone, Deserialize)]
pub struct KlConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    /// Channels of each level, full resolution first.
    #[serde(rename = "block_out_channels")]
    pub channels: Vec<usize>,
    pub layers_per_block: usize,
    #[serde(default = "default_groups")]
    pub norm_num_groups: usize,
    #[serde(default = "default_scaling")]
    pub scaling_factor: f64,
    #[serde(default = "default_true")]
    pub use_quant_conv: bool,
    #[serde(default = "default_true")]
    pub use_post_quant_conv: bool,
    #[serde(default = "default_true")]
    pub mid_block_add_attention: bool,
    #[serde(default = "default_silu")]
    act_fn: String,
    /// None in configs that leave them to the default.
    #[serde(default)]
    down_block_types: Vec<String>,
    #[serde(default)]
    up_block_types: Vec<String>,
}

fn default_scaling() -> f64 {
    0.18215
}

impl KlConfig {
    fn parse(config: &Value) -> Result<Self> {
        refuse(config, "vae", &["shift_factor", "latents_mean", "latents_std"])?;
        let parsed: Self = parse(config, "vae")?;
        check_channels("vae", &parsed.channels, parsed.norm_num_groups)?;
        ensure!(parsed.act_fn == "silu", "the vae config has act_fn '{}', only silu is known", parsed.act_fn);
        for (types, known) in
            [(&parsed.down_block_types, "DownEncoderBlock2D"), (&parsed.up_block_types, "UpDecoderBlock2D")]
        {
            if let Some(other) = types.iter().find(|kind| *kind != known) {
                bail!("the vae config has a block '{other}', only {known} is known");
            }
            ensure!(
                types.is_empty() || types.len() == parsed.channels.len(),
                "the vae config has {} blocks '{known}' for {} levels",
                types.len(),
                parsed.channels.len()
            );
        }
        ensure!(
            (1..=MAX_LAYERS).contains(&parsed.layers_per_block),
            "the vae config has layers_per_block {}",
            parsed.layers_per_block
        );
        check_ends(parsed.in_channels, parsed.out_channels, parsed.latent_channels, parsed.scaling_factor)?;
        Ok(parsed)
    }
}

/// `AutoencoderTiny` (TAESD, Bohan 2023).
#[derive(Debug, Clone, Deserialize)]
pub struct TinyConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub encoder_block_out_channels: Vec<usize>,
    pub decoder_block_out_channels: Vec<usize>,
    pub num_encoder_blocks: Vec<usize>,
    pub num_decoder_blocks: Vec<usize>,
    #[serde(default = "default_unit")]
    pub scaling_factor: f64,
    #[serde(default = "default_factor")]
    upsampling_scaling_factor: usize,
    #[serde(default = "default_upsample")]
    upsample_fn: String,
    #[serde(default = "default_relu")]
    act_fn: String,
}

fn default_unit() -> f64 {
    1.0
}

fn default_factor() -> usize {
    2
}

fn default_upsample() -> String {
    "nearest".to_owned()
}

fn default_relu() -> String {
    "relu".to_owned()
}

impl TinyConfig {
    fn parse(config: &Value) -> Result<Self> {
        let parsed: Self = parse(config, "vae")?;
        check_channels("vae encoder", &parsed.encoder_block_out_channels, 1)?;
        check_channels("vae decoder", &parsed.decoder_block_out_channels, 1)?;
        let uniform = |channels: &[usize]| channels.windows(2).all(|pair| pair[0] == pair[1]);
        ensure!(
            uniform(&parsed.encoder_block_out_channels) && uniform(&parsed.decoder_block_out_channels),
            "the vae config has levels of different widths, which AutoencoderTiny can't have"
        );
        ensure!(
            parsed.num_encoder_blocks.len() == parsed.encoder_block_out_channels.len()
                && parsed.num_decoder_blocks.len() == parsed.decoder_block_out_channels.len()
                && parsed.num_encoder_blocks.len() == parsed.num_decoder_blocks.len(),
            "the vae config names different numbers of levels"
        );
        ensure!(
            parsed.num_encoder_blocks.iter().chain(&parsed.num_decoder_blocks).all(|&n| n <= MAX_LAYERS),
            "the vae config has a level of over {MAX_LAYERS} blocks"
        );
        ensure!(
            parsed.act_fn == "relu"
                && parsed.upsample_fn == "nearest"
                && parsed.upsampling_scaling_factor == 2,
            "the vae config has another activation or upsampling than TAESD's"
        );
        check_ends(parsed.in_channels, parsed.out_channels, parsed.latent_channels, parsed.scaling_factor)?;
        Ok(parsed)
    }
}

fn check_ends(image_in: usize, image_out: usize, latent: usize, scaling: f64) -> Result<()> {
    ensure!(image_in == 3 && image_out == 3, "the vae config has {image_in} and {image_out} image channels");
    ensure!((1..=64).contains(&latent), "the vae config has {latent} latent channels");
    ensure!(scaling.is_finite() && scaling > 0.0, "the vae config has scaling_factor {scaling}");
    Ok(())
}

/// `CLIPTextModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct ClipConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    /// Of the feed-forward.
    #[serde(rename = "hidden_act", deserialize_with = "text_activation")]
    pub activation: Function,
    #[serde(default = "default_norm_eps")]
    pub layer_norm_eps: f64,
}

fn text_activation<'de, D: Deserializer<'de>>(value: D) -> Result<Function, D::Error> {
    match String::deserialize(value)?.as_str() {
        "quick_gelu" => Ok(Function::QuickGelu),
        "gelu" => Ok(Function::Gelu),
        other => Err(D::Error::custom(format!("hidden_act '{other}' is neither quick_gelu nor gelu"))),
    }
}

impl ClipConfig {
    /// # Errors
    /// Names the key that is missing, damaged or not supported.
    pub fn parse(config: &Value) -> Result<Self> {
        let parsed: Self = parse(config, "text encoder")?;
        let eps = parsed.layer_norm_eps;
        ensure!(eps > 0.0 && eps < 1.0, "the text encoder config has layer_norm_eps {eps}");
        ensure!(
            parsed.num_attention_heads > 0
                && (1..=MAX_CHANNELS).contains(&parsed.hidden_size)
                && parsed.hidden_size.is_multiple_of(parsed.num_attention_heads),
            "the text encoder config has hidden_size {}, which does not divide into {} heads",
            parsed.hidden_size,
            parsed.num_attention_heads
        );
        ensure!(
            (1..=MAX_LAYERS).contains(&parsed.num_hidden_layers)
                && (1..=MAX_CHANNELS).contains(&parsed.intermediate_size)
                && (3..=1 << 12).contains(&parsed.max_position_embeddings)
                && (3..=1 << 24).contains(&parsed.vocab_size),
            "the text encoder config has sizes out of range"
        );
        Ok(parsed)
    }
}
