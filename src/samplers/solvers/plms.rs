//! PNDM without its Runge-Kutta steps: Adams-Bashforth with fixed coefficients.

use std::collections::VecDeque;

use anyhow::Result;
use candle_core::Tensor;

use crate::samplers::run::Run;

/// Pseudo linear multistep (Liu et al. 2022), its first step corrected by a second network call (as in latent
/// diffusion's `plms.py`).
///
/// Outputs are combined before they are read as noise, as diffusers does it; the order matters with
/// v-prediction.
pub(super) fn plms(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    let mut outputs: VecDeque<Tensor> = VecDeque::with_capacity(4);
    let steps = run.steps();
    for i in steps.clone() {
        let dt = run.sigma(i + 1) - run.sigma(i);
        outputs.truncate(3);
        outputs.push_front(run.output(&x, i)?);
        let mut denoised = run.clean(&outputs[0], &x, i)?;
        let output = match outputs.make_contiguous() {
            [e] if i + 1 < steps.end => {
                let d = run.epsilon(e, &x, i)?;
                let x_2 = (&x + (d * dt)?)?;
                let e_2 = run.output(&x_2, i + 1)?;
                denoised = run.clean(&e_2, &x_2, i + 1)?;
                combine([e, &e_2], [1.0, 1.0], 2.0)
            }
            [e] => Ok(e.clone()),
            [e, e_1] => combine([e, e_1], [3.0, -1.0], 2.0),
            [e, e_1, e_2] => combine([e, e_1, e_2], [23.0, -16.0, 5.0], 12.0),
            [e, e_1, e_2, e_3, ..] => combine([e, e_1, e_2, e_3], [55.0, -59.0, 37.0, -9.0], 24.0),
            [] => unreachable!("an output was pushed above"),
        }?;
        let d = run.epsilon(&output, &x, i)?;
        x = run.finish(i, (x + d * dt)?, &denoised)?;
    }
    Ok(x)
}

/// The sum of `terms`, each times its factor, over `divisor`.
fn combine<const N: usize>(terms: [&Tensor; N], factors: [f64; N], divisor: f64) -> Result<Tensor> {
    let mut sum = (terms[0] * (factors[0] / divisor))?;
    for (term, factor) in terms.iter().zip(factors).skip(1) {
        sum = (sum + (*term * (factor / divisor))?)?;
    }
    Ok(sum)
}
