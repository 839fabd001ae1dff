//! The linear multistep method of k-diffusion, over uneven sigmas.

use std::collections::VecDeque;

use anyhow::Result;
use candle_core::Tensor;

use crate::samplers::run::{Run, to_d};

const ORDER: usize = 4;

/// Adams-Bashforth with coefficients for the actual sigmas (k-diffusion's `sample_lms`): integrates the
/// polynomial through the last four slopes.
pub(super) fn lms(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    let mut slopes = VecDeque::with_capacity(ORDER);
    for i in run.steps() {
        let denoised = run.denoise(&x, i)?;
        slopes.truncate(ORDER - 1);
        slopes.push_front(to_d(&x, run.sigma(i), &denoised)?);
        let sigmas: Vec<f64> = (0..slopes.len()).map(|k| run.sigma(i - k)).collect();
        for (j, d) in slopes.iter().enumerate() {
            x = (x + (d * coefficient(&sigmas, j, run.sigma(i + 1)))?)?;
        }
        x = run.finish(i, x, &denoised)?;
    }
    Ok(x)
}

/// The integral from `sigmas[0]` to `end` of the Lagrange polynomial that is 1 at `sigmas[j]` and 0 at the
/// others.
fn coefficient(sigmas: &[f64], j: usize, end: f64) -> f64 {
    let polynomial = |tau: f64| {
        let others = sigmas.iter().enumerate().filter(|&(k, _)| k != j);
        others.map(|(_, sigma)| (tau - sigma) / (sigmas[j] - sigma)).product::<f64>()
    };
    // Gauss-Legendre with two points is exact up to degree 3, which four slopes don't exceed.
    let (middle, half) = ((sigmas[0] + end) / 2.0, (end - sigmas[0]) / 2.0);
    let offset = half / 3.0_f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}
