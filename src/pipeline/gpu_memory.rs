//! The memory of a GPU: how much is left, and what to say when it is used up.

use candle_core::Device;

use super::DrawError;
use crate::request::Request;

/// What is left of a GPU's memory, in bytes, where it tells.
pub fn available(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let (_, memory) = crate::kernels::cuda::describe(device).ok()?;
        return Some(memory.available);
    }
    let _ = device;
    None
}

/// `error`, and if it is that a GPU's memory is used up, what to do about it.
pub fn explained(error: DrawError, request: &Request) -> DrawError {
    match error {
        DrawError::UnusableModel(cause) if is_used_up(&cause) => DrawError::UnusableModel(
            cause.context("it takes more memory than the GPU has left: try --device cpu"),
        ),
        DrawError::Failed(cause) if is_used_up(&cause) => {
            let Request { width, height, .. } = *request;
            let half = |side: usize| (side / 2).next_multiple_of(64).min(side);
            let ways = match (half(width), half(height)) {
                smaller if smaller == (width, height) => "--device cpu".to_owned(),
                (width, height) => format!("--size {width}x{height} or --device cpu"),
            };
            let needs = format!("a picture of {width}x{height} takes more memory than the GPU has left");
            DrawError::Failed(cause.context(format!("{needs}: try {ways}")))
        }
        error => error,
    }
}

/// Whether the driver or cuBLAS has said that memory is used up; candle keeps no more than their words.
fn is_used_up(error: &anyhow::Error) -> bool {
    let said = |text: &str| error.chain().any(|cause| cause.to_string().contains(text));
    said("CUDA_ERROR_OUT_OF_MEMORY") || said("CUBLAS_STATUS_ALLOC_FAILED")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn used_up_memory_names_a_smaller_size_and_other_errors_stay() {
        let defaults = Checkpoint::built_in().unwrap().defaults();
        let request = |width, height| Request { width, height, ..Request::new("x", 1, &defaults) };
        let used_up =
            || anyhow!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")").context("step 3");
        let message = |error, width, height| explained(error, &request(width, height)).to_string();
        let picture = |width, height| message(DrawError::Failed(used_up()), width, height);
        assert!(
            picture(1024, 768).contains("try --size 512x384 or --device cpu: step 3"),
            "{}",
            picture(1024, 768)
        );
        assert!(picture(64, 64).contains("try --device cpu: step 3"), "{}", picture(64, 64));
        let model = message(DrawError::UnusableModel(used_up()), 64, 64);
        assert!(model.starts_with("the model is not usable: it takes more memory"), "{model}");
        assert_eq!(message(DrawError::Failed(anyhow!("else")), 64, 64), "else");
    }
}
