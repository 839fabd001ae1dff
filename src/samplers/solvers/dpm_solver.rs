//! DPM-Solver++ of second order: multistep, multistep with fresh noise, and single-step.
//!
//! The papers' `alpha_t (e^-h - 1)` is `expm1(-h)` here, and their `sigma_t / sigma_s` is `e^-h`, because `x`
//! is not scaled by alpha. Steps to sigma 0, where h is infinite, come out as `x = denoised`.

use anyhow::Result;
use candle_core::Tensor;

use crate::samplers::run::{Run, lambda};

/// The clean latents found at an earlier step, and that step's lambda.
struct Earlier {
    denoised: Tensor,
    lambda: f64,
}

/// DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): extrapolates from the last two estimates. The first and
/// the last step are of first order.
pub(super) fn dpmpp_2m(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    let mut earlier: Option<Earlier> = None;
    for i in run.steps() {
        let (sigma, sigma_next) = (run.sigma(i), run.sigma(i + 1));
        let denoised = run.denoise(&x, i)?;
        let d = extrapolate(&denoised, earlier.as_ref(), sigma, sigma_next)?;
        let h = lambda(sigma_next) - lambda(sigma);
        x = ((x * (-h).exp())? - d * (-h).exp_m1())?;
        x = run.finish(i, x, &denoised)?;
        earlier = Some(Earlier { denoised, lambda: lambda(sigma) });
    }
    Ok(x)
}

/// SDE-DPM-Solver++(2M) (Lu et al. 2022b): the same for the stochastic equation, hence `2h` and fresh noise.
pub(super) fn dpmpp_2m_sde(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    let mut earlier: Option<Earlier> = None;
    for i in run.steps() {
        let (sigma, sigma_next) = (run.sigma(i), run.sigma(i + 1));
        let denoised = run.denoise(&x, i)?;
        let d = extrapolate(&denoised, earlier.as_ref(), sigma, sigma_next)?;
        let h = lambda(sigma_next) - lambda(sigma);
        x = ((x * (-2.0 * h).exp())? - d * (-2.0 * h).exp_m1())?;
        if sigma_next > 0.0 {
            let sigma_up = sigma_next * (-(-2.0 * h).exp_m1()).sqrt();
            x = (&x + run.fresh_noise(&x)? * sigma_up)?;
        }
        x = run.finish(i, x, &denoised)?;
        earlier = Some(Earlier { denoised, lambda: lambda(sigma) });
    }
    Ok(x)
}

/// The estimate in the middle of the step from `sigma` to `sigma_next`, on the line through the last two.
fn extrapolate(denoised: &Tensor, earlier: Option<&Earlier>, sigma: f64, sigma_next: f64) -> Result<Tensor> {
    let Some(earlier) = earlier.filter(|_| sigma_next > 0.0) else {
        return Ok(denoised.clone());
    };
    let h = lambda(sigma_next) - lambda(sigma);
    let r = (lambda(sigma) - earlier.lambda) / h;
    Ok((denoised + ((denoised - &earlier.denoised)? / (2.0 * r))?)?)
}

/// DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1) as diffusers counts its steps, one network call each:
/// steps of first and second order take turns, and one of second order starts over from where the one before
/// it did.
pub(super) fn dpmpp_2s(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    let mut pending: Option<(Tensor, Earlier)> = None;
    let end = run.steps().end;
    for i in run.steps() {
        let (sigma, sigma_next) = (run.sigma(i), run.sigma(i + 1));
        let denoised = run.denoise(&x, i)?;
        let second_order = i % 2 == 1 && i + 1 < end;
        let stepped = match pending.take().filter(|_| second_order) {
            Some((x_s, Earlier { denoised: denoised_s, lambda: lambda_s })) => {
                let h = lambda(sigma_next) - lambda_s;
                let r = (lambda(sigma) - lambda_s) / h;
                let d = (&denoised_s + ((&denoised - &denoised_s)? / (2.0 * r))?)?;
                ((x_s * (-h).exp())? - d * (-h).exp_m1())?
            }
            None => {
                let h = lambda(sigma_next) - lambda(sigma);
                let stepped = ((&x * (-h).exp())? - (&denoised * (-h).exp_m1())?)?;
                pending = Some((x, Earlier { denoised: denoised.clone(), lambda: lambda(sigma) }));
                stepped
            }
        };
        x = run.finish(i, stepped, &denoised)?;
    }
    Ok(x)
}
