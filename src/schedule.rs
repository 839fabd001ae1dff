//! The noise a model was trained with (betas, sigmas) and the ways to spread timesteps over it.

use std::f64::consts::FRAC_PI_2;

use anyhow::{Result, ensure};
use serde::Deserialize;

/// How noise grows over the training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Betas on a line (Ho et al. 2020).
    Linear,
    /// Square roots of betas on a line (Rombach et al. 2022).
    ScaledLinear,
    /// Alpha bar is a squared cosine (Nichol & Dhariwal 2021).
    SquaredcosCapV2,
}

/// What the network's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// `alpha * noise - sigma * clean` (Salimans & Ho 2022).
    VPrediction,
}

/// The fields of diffusers' `scheduler_config.json` that describe the model rather than a sampler; absent
/// ones are Stable Diffusion 1.5's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: BetaSchedule,
    /// Takes the place of the three fields above.
    pub trained_betas: Option<Vec<f64>>,
    pub num_train_timesteps: usize,
    pub prediction_type: Prediction,
    /// Added to every timestep of the leading spacing.
    pub steps_offset: usize,
    /// Whether the last DDIM or PNDM step removes all noise, or leaves that of timestep 0.
    pub set_alpha_to_one: bool,
    /// Whether betas are stretched until the last timestep is pure noise (Lin et al. 2023).
    pub rescale_betas_zero_snr: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            num_train_timesteps: 1000,
            prediction_type: Prediction::Epsilon,
            steps_offset: 1,
            set_alpha_to_one: false,
            rescale_betas_zero_snr: false,
        }
    }
}

impl SchedulerConfig {
    /// The variances of the noise added at each training timestep.
    fn betas(&self) -> Vec<f64> {
        let n = self.num_train_timesteps;
        if let Some(betas) = &self.trained_betas {
            return betas.clone();
        }
        match self.beta_schedule {
            BetaSchedule::Linear => linspace(self.beta_start, self.beta_end, n),
            BetaSchedule::ScaledLinear => {
                let roots = linspace(self.beta_start.sqrt(), self.beta_end.sqrt(), n);
                roots.into_iter().map(|root| root * root).collect()
            }
            BetaSchedule::SquaredcosCapV2 => {
                let alpha_bar = |i: usize| ((i as f64 / n as f64 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
                (0..n).map(|i| (1.0 - alpha_bar(i + 1) / alpha_bar(i)).min(0.999)).collect()
            }
        }
    }

    /// Alpha bar: the share of the clean latents' variance that is left at each training timestep.
    fn alphas_cumprod(&self) -> Vec<f64> {
        let mut product = 1.0;
        let alphas: Vec<f64> = self
            .betas()
            .into_iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        match (self.rescale_betas_zero_snr, alphas.as_slice()) {
            (true, &[first, .., last]) => {
                let (first, last) = (f64::sqrt(first), f64::sqrt(last));
                let stretch = |alpha: f64| ((alpha.sqrt() - last) * first / (first - last)).powi(2);
                // Zero would be an infinite sigma; diffusers stops at the same number.
                alphas.into_iter().map(|alpha| stretch(alpha).max(2.0_f64.powi(-24))).collect()
            }
            _ => alphas,
        }
    }
}

/// The noise level at every training timestep.
///
/// Sigma is the standard deviation of the noise beside clean latents of scale 1: `x = clean + sigma * noise`
/// (Karras et al. 2022). The network was trained on `x / sqrt(1 + sigma^2)`, which is
/// `alpha * clean + sqrt(1 - alpha^2) * noise` with `alpha^2` = alpha bar.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    config: SchedulerConfig,
    sigmas: Vec<f64>,
}

impl NoiseSchedule {
    /// Computes `sigma = sqrt((1 - alpha_bar) / alpha_bar)` for each training timestep.
    ///
    /// # Errors
    /// When the configuration's sigmas don't rise from above zero, or are fewer than two.
    pub fn new(config: &SchedulerConfig) -> Result<Self> {
        let mut config = config.clone();
        if let Some(betas) = &config.trained_betas {
            config.num_train_timesteps = betas.len();
        }
        ensure!(
            (2..=1_000_000).contains(&config.num_train_timesteps),
            "a noise schedule of {} timesteps (2 to 1000000 are possible)",
            config.num_train_timesteps
        );
        let sigmas: Vec<f64> = config
            .alphas_cumprod()
            .into_iter()
            .map(|alpha_bar| ((1.0 - alpha_bar) / alpha_bar).sqrt())
            .collect();
        ensure!(
            sigmas[0] > 0.0
                && sigmas.iter().all(|sigma| sigma.is_finite())
                && sigmas.is_sorted_by(|a, b| a < b),
            "the noise schedule does not rise: its betas must lie between 0 and 1"
        );
        Ok(Self { config, sigmas })
    }

    pub fn prediction(&self) -> Prediction {
        self.config.prediction_type
    }

    /// Whether DDIM and PNDM end free of noise.
    pub fn ends_clean(&self) -> bool {
        self.config.set_alpha_to_one
    }

    /// How many timesteps the model was trained with.
    pub fn train_steps(&self) -> usize {
        self.sigmas.len()
    }

    /// Sigma at a timestep, linear between whole ones.
    pub fn sigma(&self, timestep: f64) -> f64 {
        let low = (timestep.max(0.0) as usize).min(self.sigmas.len() - 2);
        let weight = (timestep - low as f64).clamp(0.0, 1.0);
        self.sigmas[low] + weight * (self.sigmas[low + 1] - self.sigmas[low])
    }

    /// The timestep of a sigma, linear in log sigma between whole ones.
    pub fn timestep(&self, sigma: f64) -> f64 {
        let above = self.sigmas.partition_point(|&known| known <= sigma);
        let low = above.saturating_sub(1).min(self.sigmas.len() - 2);
        let (low_log, high_log) = (self.sigmas[low].ln(), self.sigmas[low + 1].ln());
        let weight = (sigma.max(f64::MIN_POSITIVE).ln() - low_log) / (high_log - low_log);
        low as f64 + weight.clamp(0.0, 1.0)
    }

    fn last(&self) -> f64 {
        (self.train_steps() - 1) as f64
    }

    /// `points` timesteps, a whole `train_steps / points` apart, down to the configuration's offset.
    pub fn leading(&self, points: usize) -> Vec<f64> {
        let stride = (self.train_steps() / points).max(1);
        let top = (points - 1) * stride;
        // The offset gives way where it would lead past the last timestep.
        let offset = (self.config.steps_offset as f64).min(self.last() - top as f64);
        (0..points).rev().map(|i| (i * stride) as f64 + offset).collect()
    }

    /// `points` timesteps evenly from the last to 0, not rounded; the last alone when `points` is 1.
    pub fn linspace(&self, points: usize) -> Vec<f64> {
        let stride = self.last() / (points - 1).max(1) as f64;
        if points == 1 { vec![self.last()] } else { (0..points).rev().map(|i| i as f64 * stride).collect() }
    }

    /// The upper ends of `points` equal parts (Lin et al. 2023), rounded.
    pub fn trailing(&self, points: usize) -> Vec<f64> {
        let n = self.train_steps() as f64;
        (0..points).map(|i| (n * (points - i) as f64 / points as f64).round_ties_even() - 1.0).collect()
    }

    /// `points` sigmas from the largest to the smallest, evenly spaced in `sigma^(1/7)` (Karras et al. 2022,
    /// eq. 5).
    pub fn karras(&self, points: usize) -> Vec<f64> {
        const RHO: f64 = 7.0;
        let root = |sigma: f64| sigma.powf(1.0 / RHO);
        let ends = (root(self.sigmas[self.sigmas.len() - 1]), root(self.sigmas[0]));
        linspace(ends.0, ends.1, points).into_iter().map(|sigma| sigma.powf(RHO)).collect()
    }
}

/// `n` numbers from `start` to `end`, both included; `start` alone when `n` is 1.
fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| start + i as f64 * step).collect()
}
