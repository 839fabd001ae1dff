//! The second pass at a larger size: enlarging latents and laying out its steps; walking them is the pipeline's.

use anyhow::Result;
use candle_core::Tensor;

use crate::request::{Hires, Request};
use crate::samplers::Trajectory;
use crate::schedule::NoiseSchedule;

/// The last `hires.steps` of as many as its strength needs, as in AUTOMATIC1111.
///
/// # Errors
/// When the model was trained with fewer steps.
pub fn trajectory(schedule: &NoiseSchedule, request: &Request, hires: &Hires) -> Result<Trajectory> {
    Trajectory::new(schedule, request.sampler, request.schedule, hires.steps_from_noise())?
        .with_last(hires.steps)
}

/// Latents `[1, channels, h, w]` at another size, between neighbours linearly and without smoothing when they
/// shrink: AUTOMATIC1111's upscaler "Latent", PyTorch's `interpolate` with mode bilinear.
pub fn enlarge(latents: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    Ok(latents.upsample_bilinear2d(height, width, false)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn between_neighbours_it_is_linear_as_in_pytorch() {
        let row = Tensor::new(&[[[[1f32, 2.0, 4.0]]]], &Device::Cpu).unwrap();
        let wide = enlarge(&row, 2, 6).unwrap().squeeze(0).unwrap().squeeze(0).unwrap();
        // torch.nn.functional.interpolate(row, size=(2, 6), mode="bilinear")
        let expected = [1.0, 1.25, 1.75, 2.5, 3.5, 4.0];
        assert_eq!(wide.to_vec2::<f32>().unwrap(), [expected, expected]);
        let odd = enlarge(&row, 1, 5).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, expected) in odd.iter().zip([1.0, 1.4, 2.0, 3.2, 4.0]) {
            assert!((found - expected).abs() < 1e-6, "{odd:?}");
        }
        assert_eq!(
            enlarge(&row, 1, 3).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [1.0, 2.0, 4.0]
        );
    }
}
