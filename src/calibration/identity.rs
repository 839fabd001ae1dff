//! Which calibration one is: all that its outcome depends on, as a hash.

use anyhow::Result;
use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::files::Fingerprint;
use crate::kernels::Isa;
use crate::quantize::{Learning, Policy};
use crate::request::Request;

/// The same for the same model, settings, version and kernels.
///
/// # Errors
/// Names the tensor that can't be read, or says that the environment chooses kernels that this CPU lacks.
pub fn identity(
    checkpoint: &Checkpoint,
    learning: Learning,
    policies: &[&Policy],
    requests: &[Request],
    timesteps: usize,
) -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let settings = (version, Isa::chosen()?.name(), learning, policies, requests, timesteps);
    let tensors = checkpoint.tensors();
    let names: Vec<&str> = tensors.parameters().collect();
    let hashes = names.par_iter().map(|name| {
        let shape = tensors.view(name)?.shape;
        let values = tensors.f32(name, shape)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(format!("{name} {shape:?} {}", Fingerprint::of_bytes(&bytes).whole))
    });
    let hashes = hashes.collect::<Result<Vec<_>>>()?;
    let all = format!("{settings:?} {} {hashes:?}", serde_json::to_string(checkpoint.configs())?);
    Ok(Fingerprint::of_bytes(all.as_bytes()).whole)
}
