//! How much of the UNet is computed in each step of a walk: for both prompts or one, whole or its outer stages alone.

use anyhow::{Context as _, Result};
use candle_core::{Device, Tensor};

use super::work::{Work, is_end, is_guided, is_reused};
use crate::networks::unet::{Context, DeepMap, Step, Unet};
use crate::request::{Cache, Passes, Request, Reuse};

/// A UNet and what it is asked in one walk, which ends with the walk: another has maps of another size.
pub(super) struct Evaluation<'a> {
    unet: &'a Unet,
    /// Under guidance of the negative prompt and the one to follow.
    context: &'a Context,
    /// Of the one to follow alone, once it has been needed.
    alone: Option<Context>,
    request: &'a Request,
    /// How many there are.
    steps: usize,
    /// Counting from 0.
    step: usize,
    /// Whether both prompts' answers have become so much alike that guidance ends with this step.
    alike: bool,
    is_guidance_over: bool,
    kept: Option<Kept>,
    passes: Passes,
    /// Of the step that has not ended.
    work: Work,
}

/// What the inner stages gave when they last ran.
struct Kept {
    deep: DeepMap,
    /// What they were given; only where it decides when they run again.
    given: Option<Tensor>,
}

impl<'a> Evaluation<'a> {
    /// For so many steps; `passes` have been taken before.
    pub fn new(
        unet: &'a Unet,
        context: &'a Context,
        request: &'a Request,
        steps: usize,
        passes: Passes,
    ) -> Self {
        Self {
            unet,
            context,
            alone: None,
            request,
            steps,
            step: 0,
            alike: false,
            is_guidance_over: false,
            kept: None,
            passes,
            work: Work::default(),
        }
    }

    pub fn passes(self) -> Passes {
        self.passes
    }

    /// Ends a step, in which the UNet may have been asked several times, and says what it took.
    pub fn end_step(&mut self) -> Work {
        self.step += 1;
        self.is_guidance_over |= self.alike;
        std::mem::take(&mut self.work)
    }

    /// The UNet's answer to `input`: in a guided step to both prompts, as one batch.
    pub fn answer(&mut self, input: &Tensor, timestep: f64) -> Result<Tensor> {
        let exact = Step { latents: input, timestep, context: self.context, residuals: None };
        let exact_macs = self.unet.macs(&exact, None)?;
        if self.context.prompts() > 1 && !self.is_guided_step() && self.alone.is_none() {
            self.alone = Some(self.context.last()?);
        }
        let context = self.alone.as_ref().filter(|_| !self.is_guided_step()).unwrap_or(self.context);
        let step = Step { context, ..exact };
        let (output, outer) = match &self.request.cache {
            None => (self.unet.predict(&step)?, None),
            Some(cache) => {
                let kept = self.kept.take();
                let (output, kept, reused) = self.cached(&step, cache, kept)?;
                self.kept = kept;
                (output, reused.then_some(cache.branch + 1))
            }
        };
        let prompts = step.context.prompts() as u64;
        let macs = self.unet.macs(&step, outer)?;
        *if outer.is_some() { &mut self.work.outer } else { &mut self.work.whole } += macs;
        self.passes.macs += macs;
        self.passes.exact_macs += exact_macs;
        *if outer.is_some() { &mut self.passes.outer } else { &mut self.passes.whole } += prompts;
        Ok(output)
    }

    /// The answer, what to keep for the next one, and whether the inner stages were left out.
    fn cached(
        &self,
        step: &Step<'_>,
        cache: &Cache,
        kept: Option<Kept>,
    ) -> Result<(Tensor, Option<Kept>, bool)> {
        let prompts = step.context.prompts();
        let kept = kept.map(|kept| kept.for_prompts(prompts)).transpose()?.flatten();
        let descent = self.unet.descend(step, cache.branch + 1)?;
        let kept = match kept {
            Some(kept) if self.is_reused(&kept, cache.reuse, descent.map()?)? => kept,
            _ => {
                let given = match cache.reuse {
                    Reuse::ButEvery(_) => None,
                    Reuse::Within(_) => Some(descent.map()?.clone()),
                };
                let (output, deep) = self.unet.go_on(descent, step)?;
                return Ok((output, Some(Kept { deep, given }), false));
            }
        };
        let output = self.unet.go_back(descent, step, &kept.deep)?;
        Ok((output, Some(kept), true))
    }

    fn is_reused(&self, kept: &Kept, reuse: Reuse, given: &Tensor) -> Result<bool> {
        match (reuse, &kept.given) {
            (Reuse::ButEvery(steps), _) => Ok(is_reused(steps, self.step, self.steps)),
            (Reuse::Within(most), Some(then)) if !is_end(self.step, self.steps) => {
                Ok(change(then, given)? <= most)
            }
            (Reuse::Within(_), _) => Ok(false),
        }
    }

    fn is_guided_step(&self) -> bool {
        is_guided(self.request, self.step, self.steps) && !self.is_guidance_over
    }

    /// What the sampler goes on with, from an answer to both prompts or to one.
    pub fn guided(&mut self, answer: Tensor) -> Result<Tensor> {
        if answer.dim(0)? == 1 {
            return Ok(answer);
        }
        let (opposite, prompted) = (answer.narrow(0, 0, 1)?, answer.narrow(0, 1, 1)?);
        if let Some(most) = self.request.guidance_auto {
            self.alike |= cosine(&opposite, &prompted)? >= most;
        }
        guided(&opposite, &prompted, self.request.guidance_scale)
    }
}

impl Kept {
    /// The same for as many prompts, if they are among these.
    fn for_prompts(self, prompts: usize) -> Result<Option<Self>> {
        let Self { deep, given } = self;
        Ok(deep.for_prompts(prompts)?.map(|deep| Self { deep, given }))
    }
}

/// Classifier-free guidance (Ho & Salimans 2022, in diffusers' scaling) of the predictions for both prompts.
fn guided(opposite: &Tensor, prompted: &Tensor, scale: f64) -> Result<Tensor> {
    Ok((opposite + ((prompted - opposite)? * scale)?)?)
}

/// How much a map has changed: the mean of absolute differences, in the mean of what was. Of a batch and a single
/// picture the last one counts.
fn change(then: &Tensor, this: &Tensor) -> Result<f64> {
    let batch = then.dim(0)?.min(this.dim(0)?);
    let part = |map: &Tensor| map.narrow(0, map.dim(0)? - batch, batch);
    let (then, this) = (values(&part(then)?)?, values(&part(this)?)?);
    let moved: f64 = then.iter().zip(&this).map(|(a, b)| f64::from((a - b).abs())).sum();
    let size: f64 = then.iter().map(|a| f64::from(a.abs())).sum();
    Ok(moved / size.max(f64::MIN_POSITIVE))
}

/// Of the angle between two predictions (Castillo et al. 2023, equation 7).
fn cosine(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (values(a)?, values(b)?);
    let product =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    Ok(product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt().max(f64::MIN_POSITIVE))
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let values = tensor.to_dtype(candle_core::DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?;
    values.to_vec1().context("reading a map")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (1, values.len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn likeness_is_a_cosine() {
        let of = |a: &[f32], b: &[f32]| cosine(&tensor(a), &tensor(b)).unwrap();
        assert!((of(&[1.0, 2.0], &[2.0, 4.0]) - 1.0).abs() < 1e-12);
        assert!(of(&[1.0, 0.0], &[0.0, 3.0]).abs() < 1e-12);
        assert!((of(&[1.0, 1.0], &[-1.0, -1.0]) + 1.0).abs() < 1e-12);
        assert_eq!(of(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }

    #[test]
    fn change_is_relative_and_of_the_last_where_there_is_one() {
        let of = |a: &Tensor, b: &Tensor| change(a, b).unwrap();
        let (a, b) = (tensor(&[1.0, -3.0]), tensor(&[2.0, -3.0]));
        assert_eq!(of(&a, &b), 0.25);
        assert_eq!(of(&a, &a), 0.0);
        let both = Tensor::cat(&[&a, &b], 0).unwrap();
        assert_eq!((of(&both, &b), of(&a, &both)), (0.0, 0.25));
    }
}
