//! The check of what a network gives: int8 would quantize NaN to some number, and draw on as if nothing were wrong.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

/// # Errors
/// When a value of `what` is NaN or infinite.
pub(super) fn check_finite(values: &[f32], what: &str) -> Result<()> {
    ensure!(
        values.iter().all(|value| value.is_finite()),
        "NaN or infinity in {what}: the model or its precision is unsuited to these settings"
    );
    Ok(())
}

/// The same for a tensor, which is given back.
pub(super) fn finite(tensor: Tensor, what: &str) -> Result<Tensor> {
    let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    check_finite(&values, what)?;
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_enough() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..3 {
                let mut values = [1.0, f32::MAX, f32::MIN_POSITIVE];
                let tensor = |values: &[f32; 3]| Tensor::new(values, &Device::Cpu).unwrap();
                assert!(finite(tensor(&values), "x").is_ok());
                values[at] = odd;
                let error = finite(tensor(&values), "the latents").unwrap_err().to_string();
                assert!(error.starts_with("NaN or infinity in the latents"), "{error}");
            }
        }
    }
}
