//! Every sampler walks as diffusers' scheduler of that name, on a network that is one formula.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use pochade::noise::NoiseSource;
use pochade::request::{Rng, Sampler, Schedule};
use pochade::samplers::{Progress, Run, Trajectory, sample};
use pochade::schedule::{BetaSchedule, NoiseSchedule, Prediction, SchedulerConfig};

use crate::support::comparison::{assert_close, distance, largest};
use crate::support::models::{data, reference, reference_settings};

const SHAPE: [usize; 4] = [1, 4, 1, 5];

/// Latents of each run, flat.
fn references() -> HashMap<String, Tensor> {
    reference("synthetic_samplers.safetensors")
}

fn schedule(prediction_type: Prediction) -> Result<NoiseSchedule> {
    NoiseSchedule::new(&SchedulerConfig { prediction_type, ..Default::default() })
}

/// Stands in for the UNet: bounded, smooth, and different at each timestep.
fn network(x: &Tensor, timestep: f64) -> Result<Tensor> {
    Ok(((x * 0.9)? + 0.5 * (timestep / 150.0).sin())?.tanh()?)
}

/// Latents after a whole run, and how often it called the network.
fn walk(
    noise_schedule: &NoiseSchedule,
    sampler: Sampler,
    eta: f64,
    trajectory: &Trajectory,
    clean: Option<&Tensor>,
) -> Result<(Tensor, usize)> {
    let mut noise = NoiseSource::new(Rng::Torch, 7);
    let initial = noise.normal(&SHAPE, &Device::Cpu)?;
    let x = match clean {
        Some(clean) => trajectory.start_from(clean, &initial)?,
        None => trajectory.start(&initial)?,
    };
    let mut calls = 0;
    let run = Run {
        trajectory,
        noise_schedule,
        model: &mut |x, timestep| {
            calls += 1;
            network(x, timestep)
        },
        noise: &mut noise,
        on_step: &mut |_| Ok(None),
    };
    Ok((sample(sampler, eta, run, x)?, calls))
}

fn parse_eta(text: &str) -> Result<f64> {
    if text == "-" { Ok(0.0) } else { Ok(text.parse()?) }
}

#[test]
fn samplers_equal_diffusers() -> Result<()> {
    let (mut checked, mut worst) = (0, 0.0_f64);
    for (name, expected) in references() {
        let [sampler, spacing, prediction, eta, all_steps] = *name.split('/').collect::<Vec<_>>() else {
            continue;
        };
        if sampler == "strength" {
            continue;
        }
        let (sampler, eta): (Sampler, f64) = (sampler.parse()?, parse_eta(eta)?);
        let noise_schedule = schedule(match prediction {
            "epsilon" => Prediction::Epsilon,
            _ => Prediction::VPrediction,
        })?;
        for (row, steps) in all_steps.split(',').enumerate() {
            let trajectory = Trajectory::new(&noise_schedule, sampler, spacing.parse()?, steps.parse()?)?;
            let (latents, calls) = walk(&noise_schedule, sampler, eta, &trajectory, None)?;
            let error = distance(&latents.flatten_all()?, &expected.get(row)?).relative();
            assert!(error < 5e-5, "{name}, {steps} steps: relative error {error:e}");
            assert_eq!(calls, sampler.model_calls(steps.parse()?), "{name}, {steps} steps");
            (checked, worst) = (checked + 1, worst.max(error));
        }
    }
    println!("{checked} walks, largest relative error {worst:e}");
    assert!(checked > 300, "only {checked} walks were checked");
    Ok(())
}

#[test]
fn walks_from_an_image_equal_diffusers() -> Result<()> {
    let noise_schedule = schedule(Prediction::Epsilon)?;
    let clean = ((Tensor::arange(0_f32, 20.0, &Device::Cpu)? / 9.5)? - 1.0)?.reshape(&SHAPE)?;
    let mut checked = 0;
    for (name, expected) in references() {
        let ["strength", sampler, spacing, eta, strengths] = *name.split('/').collect::<Vec<_>>() else {
            continue;
        };
        let (sampler, eta): (Sampler, f64) = (sampler.parse()?, parse_eta(eta)?);
        for (row, strength) in strengths.split(',').enumerate() {
            let whole = Trajectory::new(&noise_schedule, sampler, spacing.parse()?, 10)?;
            let trajectory = whole.with_strength(strength.parse()?)?;
            let (latents, _) = walk(&noise_schedule, sampler, eta, &trajectory, Some(&clean))?;
            let what = format_args!("{name}, strength {strength}");
            assert_close(&latents.flatten_all()?, &expected.get(row)?, 5e-5, what);
            checked += 1;
        }
    }
    assert_eq!(checked, 33);
    Ok(())
}

#[test]
fn timesteps_equal_diffusers() -> Result<()> {
    let meta = reference_settings();
    let noise_schedule = schedule(Prediction::Epsilon)?;
    for (name, reference) in meta["samplers"].as_object().context("no samplers")? {
        let sampler = Sampler::ALL.iter().filter(|sampler| name.starts_with(sampler.name()));
        let &sampler = sampler.max_by_key(|sampler| sampler.name().len()).context("unknown sampler")?;
        let config = &reference["config"];
        let spacing = match (config["use_karras_sigmas"].as_bool(), config["timestep_spacing"].as_str()) {
            (Some(true), _) => Schedule::Karras,
            (_, spacing) => spacing.unwrap_or("linspace").parse()?,
        };
        let steps = reference["steps"].as_u64().context("no steps")? as usize;
        let trajectory = Trajectory::new(&noise_schedule, sampler, spacing, steps)?;
        let mut expected: Vec<f64> = serde_json::from_value(reference["timesteps"].clone())?;
        expected.dedup();
        for (actual, expected) in trajectory.timesteps().iter().zip(&expected) {
            // diffusers finds Karras' timesteps in single precision.
            assert!((actual - expected).abs() < 5e-3, "{name}: timestep {actual} instead of {expected}");
        }
        assert_eq!(trajectory.timesteps().len(), expected.len(), "{name}");
    }
    Ok(())
}

#[test]
fn sigmas_equal_diffusers() -> Result<()> {
    let references = references();
    let sd15 = SchedulerConfig::default();
    for (name, config) in [
        ("scaled_linear", sd15.clone()),
        (
            "linear",
            SchedulerConfig {
                beta_schedule: BetaSchedule::Linear,
                beta_start: 1e-4,
                beta_end: 0.02,
                ..sd15.clone()
            },
        ),
        (
            "squaredcos_cap_v2",
            SchedulerConfig { beta_schedule: BetaSchedule::SquaredcosCapV2, ..sd15.clone() },
        ),
        ("zero_snr", SchedulerConfig { rescale_betas_zero_snr: true, ..sd15 }),
    ] {
        let noise_schedule = NoiseSchedule::new(&config)?;
        let expected: Vec<f32> = references[&format!("sigmas/{name}")].to_vec1()?;
        for (i, expected) in expected.into_iter().enumerate() {
            let (timestep, expected) = (37.0 * i as f64, f64::from(expected));
            let sigma = noise_schedule.sigma(timestep);
            let error = (sigma - expected).abs() / expected;
            // diffusers' single precision leaves few digits of the smallest sigmas.
            assert!(error < 1e-3, "{name}: sigma {sigma} instead of {expected} at timestep {timestep}");
            let back = noise_schedule.timestep(sigma);
            assert!((back - timestep).abs() < 1e-6, "{name}: timestep {back} instead of {timestep}");
        }
    }
    Ok(())
}

#[test]
fn a_published_scheduler_config_is_stable_diffusion_15s() -> Result<()> {
    let text = std::fs::read_to_string(data("small/scheduler/scheduler_config.json"))?;
    assert_eq!(serde_json::from_str::<SchedulerConfig>(&text)?, SchedulerConfig::default());
    Ok(())
}

#[test]
fn schedules_that_do_not_rise_are_refused() {
    for betas in [vec![], vec![0.1], vec![0.1, 0.0], vec![0.1, 1.0], vec![0.1, -0.1], vec![0.1, f64::NAN]] {
        let config = SchedulerConfig { trained_betas: Some(betas.clone()), ..Default::default() };
        assert!(NoiseSchedule::new(&config).is_err(), "{betas:?} was accepted");
    }
}

#[test]
fn every_sampler_works_with_every_schedule_and_number_of_steps() -> Result<()> {
    let noise_schedule = schedule(Prediction::Epsilon)?;
    for (&sampler, &spacing) in Sampler::ALL.iter().flat_map(|a| Schedule::ALL.iter().map(move |b| (a, b))) {
        for steps in [1, 2, 3, 4, 7, 30, 50, 51, 333, 501, 999, 1000] {
            let trajectory = Trajectory::new(&noise_schedule, sampler, spacing, steps)?;
            let name = format!("{sampler}, {spacing}, {steps} steps");
            assert_eq!(trajectory.timesteps().len(), steps, "{name}");
            assert!(trajectory.sigmas().is_sorted_by(|a, b| a > b), "{name}: {:?}", trajectory.sigmas());
            assert!(trajectory.timesteps().iter().all(|t| (0.0..1000.0).contains(t)), "{name}");
            let (latents, calls) = walk(&noise_schedule, sampler, 1.0, &trajectory, None)?;
            let largest = largest(&latents);
            assert!(largest < 50.0, "{name}: latents reach {largest}");
            assert_eq!(calls, sampler.model_calls(steps), "{name}");
        }
        let steps_0 = Trajectory::new(&noise_schedule, sampler, spacing, 0);
        let steps_1001 = Trajectory::new(&noise_schedule, sampler, spacing, 1001);
        assert!(steps_0.is_err() && steps_1001.is_err());
    }
    Ok(())
}

/// Walks with a network that knows the clean latents and sees what `on_step` makes of each step.
fn walk_to(
    clean: &Tensor,
    sampler: Sampler,
    trajectory: &Trajectory,
    on_step: &mut dyn FnMut(&Progress<'_>) -> Result<Option<Tensor>>,
) -> Result<Tensor> {
    let noise_schedule = schedule(Prediction::Epsilon)?;
    let mut noise = NoiseSource::new(Rng::Torch, 7);
    let x = trajectory.start_from(clean, &noise.normal(&SHAPE, &Device::Cpu)?)?;
    let run = Run {
        trajectory,
        noise_schedule: &noise_schedule,
        model: &mut |x, timestep| {
            let alpha = 1.0 / noise_schedule.sigma(timestep).hypot(1.0);
            Ok(((x - (clean * alpha)?)? / (1.0 - alpha * alpha).sqrt())?)
        },
        noise: &mut noise,
        on_step,
    };
    sample(sampler, 0.5, run, x)
}

#[test]
fn a_network_that_knows_the_answer_is_believed() -> Result<()> {
    let clean = Tensor::full(0.7_f32, &SHAPE, &Device::Cpu)?;
    let noise_schedule =
        NoiseSchedule::new(&SchedulerConfig { set_alpha_to_one: true, ..Default::default() })?;
    for &sampler in Sampler::ALL {
        let trajectory = Trajectory::new(&noise_schedule, sampler, Schedule::Trailing, 6)?;
        let mut seen = Vec::new();
        let latents = walk_to(&clean, sampler, &trajectory, &mut |progress| {
            let what = format_args!("{sampler}, step {}", progress.index);
            assert_close(progress.denoised, &clean, 1e-3, what);
            seen.push((progress.index, progress.total, progress.sigma));
            Ok(None)
        })?;
        assert_close(&latents, &clean, 1e-3, sampler);
        let expected: Vec<_> = (1..=6).map(|i| (i, 6, trajectory.sigmas()[i])).collect();
        assert_eq!(seen, expected, "{sampler}");
    }
    Ok(())
}

#[test]
fn a_step_can_be_replaced_or_end_the_run() -> Result<()> {
    let noise_schedule = schedule(Prediction::Epsilon)?;
    let (clean, known) =
        (Tensor::zeros(&SHAPE, DType::F32, &Device::Cpu)?, Tensor::full(-2_f32, &SHAPE, &Device::Cpu)?);
    for &sampler in Sampler::ALL {
        let whole = Trajectory::new(&noise_schedule, sampler, sampler.default_schedule(), 10)?;
        let trajectory = whole.with_strength(0.6)?;
        let (mut last, mut total) = (0, 0);
        let latents = walk_to(&clean, sampler, &trajectory, &mut |progress| {
            (last, total) = (progress.index, progress.total);
            Ok(Some(progress.noised(&known, &clean)?))
        })?;
        assert_eq!((last, total), (6, 6), "{sampler}");
        let what = format_args!("{sampler}: the last replacement and the result");
        assert_close(&latents, &known, 1e-6, what);

        let stopped = walk_to(&clean, sampler, &trajectory, &mut |progress| {
            last = progress.index;
            if progress.index == 2 { bail!("enough") } else { Ok(None) }
        });
        assert_eq!((stopped.unwrap_err().to_string().as_str(), last), ("enough", 2), "{sampler}");
    }
    Ok(())
}
