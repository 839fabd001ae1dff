//! Which layers stay in float because int8 would cost too much of the picture.

/// Whether the weight called `name` (canonical, with its component) stays in float.
///
/// The first and last convolutions, the time embedding and the VAE's attention are small and sensitive
/// (MixDQ, Zhao et al. 2024); encoders run once.
pub fn stays_float(name: &str) -> bool {
    let sensitive = ["conv_in", "conv_out", "time_emb", "quant_conv"];
    let part_of = |prefix: &str| name.starts_with(prefix);
    !(part_of("unet.") || part_of("vae.decoder."))
        || sensitive.iter().any(|part| name.contains(part))
        || part_of("vae.decoder.mid_block.attentions.")
}
