//! Which calibration one is: all that its outcome depends on, as a hash.

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
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
    let mut hasher = Sha256::new();
    hasher.update(format!("{settings:?}"));
    hasher.update(serde_json::to_vec(checkpoint.configs())?);
    let tensors = checkpoint.tensors();
    for name in tensors.parameters() {
        let shape = tensors.view(name)?.shape;
        hasher.update(format!("{name} {shape:?}"));
        let values = tensors.f32(name, shape)?;
        hasher.update(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    let hash = hasher.finalize();
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}
