//! Which layers stay in float because int8 would cost too much of the picture.

/// Whether the weight called `name` (canonical, with its component) stays in float.
///
/// The first and last convolutions and the time embedding are small and sensitive (MixDQ, Zhao et al. 2024);
/// the text encoder runs once; the VAE's errors are seen as they are, and its float convolutions are as fast.
pub fn stays_float(name: &str) -> bool {
    let sensitive = ["conv_in", "conv_out", "time_emb"];
    !name.starts_with("unet.") || sensitive.iter().any(|part| name.contains(part))
}
