//! UniPC of second order: a multistep predictor, corrected by the estimate that the next step makes anyway.

use anyhow::Result;
use candle_core::Tensor;

use crate::samplers::run::{Run, lambda};

/// One finished prediction: where it started, and the clean latents found there.
struct Earlier {
    x: Tensor,
    denoised: Tensor,
    lambda: f64,
}

/// UniPC-2 with B(h) = e^h - 1, "bh2", on clean latents (Zhao et al. 2023). The first and the last step are
/// of first order.
pub(super) fn unipc(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    let (mut last, mut before): (Option<Earlier>, Option<Earlier>) = (None, None);
    for i in run.steps() {
        let (sigma, sigma_next) = (run.sigma(i), run.sigma(i + 1));
        let denoised = run.denoise(&x, i)?;
        if let Some(last) = &last {
            x = correct(last, before.as_ref(), &denoised, lambda(sigma))?;
        }
        let current = Earlier { x, denoised, lambda: lambda(sigma) };
        let predicted = predict(&current, last.as_ref(), sigma_next)?;
        x = run.finish(i, predicted, &current.denoised)?;
        (before, last) = (last, Some(current));
    }
    Ok(x)
}

/// UniP: from `current` to `sigma_next`, with the slope between the last two estimates.
fn predict(current: &Earlier, last: Option<&Earlier>, sigma_next: f64) -> Result<Tensor> {
    let h = lambda(sigma_next) - current.lambda;
    let b = (-h).exp_m1();
    let first_order = ((&current.x * (-h).exp())? - (&current.denoised * b)?)?;
    let Some(last) = last.filter(|_| sigma_next > 0.0) else {
        return Ok(first_order);
    };
    let r = (last.lambda - current.lambda) / h;
    let d = ((&last.denoised - &current.denoised)? / r)?;
    Ok((first_order - d * (0.5 * b))?)
}

/// UniC: takes the step from `last` once more, now knowing the estimate `denoised` at its end.
fn correct(last: &Earlier, before: Option<&Earlier>, denoised: &Tensor, lambda_end: f64) -> Result<Tensor> {
    let h = lambda_end - last.lambda;
    let b = (-h).exp_m1();
    let first_order = ((&last.x * (-h).exp())? - (&last.denoised * b)?)?;
    let d_end = (denoised - &last.denoised)?;
    let Some(before) = before else {
        return Ok((first_order - d_end * (0.5 * b))?);
    };
    let r = (before.lambda - last.lambda) / h;
    let d = ((&before.denoised - &last.denoised)? / r)?;
    // The two weights solve [[1, 1], [r, 1]] w = phi(h) / b, the paper's order conditions.
    let phi_1 = b / -h - 1.0;
    let phi_2 = 2.0 * (phi_1 / -h - 0.5);
    let w = (phi_2 - phi_1) / b / (r - 1.0);
    let w_end = phi_1 / b - w;
    Ok((first_order - ((d * w)? + d_end * w_end)? * b)?)
}
