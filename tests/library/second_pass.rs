//! The second pass, previews and decoding in parts through the library and the program.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use pochade::checkpoint::Checkpoint;
use pochade::layers::{Backend, Params};
use pochade::networks::autoencoder::LatentDecoder;
use pochade::networks::config::VaeConfig;
use pochade::noise::NoiseSource;
use pochade::pipeline::projection::Projection;
use pochade::pipeline::tiling::{Tile, decode_peak_bytes};
use pochade::pipeline::{Observer, Step};
use pochade::prompt::{Prompts, Room, Text, Tokenizer};
use pochade::request::{Draft, Hires, Precision, Request};
use pochade::samplers::{self, Run, Trajectory};
use pochade::schedule::NoiseSchedule;

use crate::support::comparison::distance;
use crate::support::models::{clip_config, generate, open, pipeline, resolve, text_encoder, unet};
use crate::support::sandbox::Sandbox;

/// The shapes of each step's estimate.
#[derive(Default)]
struct Shapes(Vec<Vec<usize>>);

impl Observer for Shapes {
    fn step(&mut self, step: &Step<'_>) -> ControlFlow<()> {
        assert!(step.projection.is_none());
        self.0.push(step.denoised.dims().to_vec());
        ControlFlow::Continue(())
    }
}

fn request(checkpoint: &Checkpoint, hires: Option<f64>) -> Request {
    let draft = Draft {
        prompt: Some("a red apple".into()),
        width: Some(64),
        height: Some(48),
        steps: Some(3),
        seed: Some(5),
        hires,
        hires_steps: hires.map(|_| 7),
        ..Draft::default()
    };
    resolve(draft, checkpoint)
}

#[test]
fn the_second_pass_starts_from_the_first_ones_latents_enlarged() {
    let checkpoint = Checkpoint::built_in().unwrap();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    let first = generate(&mut pipeline, &request(&checkpoint, None));
    let both = request(&checkpoint, Some(1.5));
    assert_eq!(both.hires, Some(Hires { scale: 1.5, steps: 7, strength: 0.7 }));
    assert_eq!(both.final_size(), (96, 72));
    let mut shapes = Shapes::default();
    let large = pipeline.generate(&both, &mut shapes).unwrap();
    assert_eq!((large.rgb.dimensions(), first.rgb.dimensions()), ((96, 72), (64, 48)));
    let (small, big) = (first.latents.dims().to_vec(), large.latents.dims().to_vec());
    assert_eq!(shapes.0, [vec![small; 3], vec![big; 7]].concat());
    let expected = refined(&checkpoint, &both, &first.latents);
    let error = distance(&large.latents, &expected).relative_rms();
    assert!(error < 1e-5, "{error}");
}

/// The second pass of `request` from the library's parts; guidance as two calls.
fn refined(checkpoint: &Checkpoint, request: &Request, first: &Tensor) -> Tensor {
    let backend = Backend::cpu().unwrap();
    let configs = checkpoint.configs();
    let clip = clip_config(checkpoint);
    let tokenizer = Tokenizer::new(checkpoint.vocabulary()).unwrap();
    let room = Room { width: clip.hidden_size, positions: clip.max_position_embeddings };
    let prompts = Prompts::read(&Text::of(request, true), &tokenizer, room).unwrap();
    let encoder = text_encoder(checkpoint, &backend);
    let embeddings = prompts.encode(&encoder, &tokenizer).unwrap();
    let unet = unet(checkpoint, &backend);
    let [negative, positive] =
        [0, 1].map(|at| unet.context(&embeddings.narrow(0, at, 1).unwrap().contiguous().unwrap()).unwrap());
    let schedule = NoiseSchedule::new(&serde_json::from_value(configs.scheduler.clone()).unwrap()).unwrap();

    // 7 steps of strength 0.7 are the last of 10.
    let trajectory = Trajectory::new(&schedule, request.sampler, request.schedule, 10).unwrap();
    let trajectory = trajectory.with_strength(0.7).unwrap();
    let (_, _, height, width) = first.dims4().unwrap();
    let clean = first.upsample_bilinear2d(height * 3 / 2, width * 3 / 2, false).unwrap();
    let mut noise = NoiseSource::new(request.rng, request.seed);
    let drawn = noise.normal(clean.dims(), &Device::Cpu).unwrap();
    let x = trajectory.start_from(&clean, &drawn).unwrap();
    let mut model = |latents: &Tensor, timestep: f64| {
        let [without, with] = [&negative, &positive].map(|context| unet.forward(latents, timestep, context));
        let (without, with) = (without?, with?);
        Ok((&without + ((with - &without)? * request.guidance_scale)?)?)
    };
    let run = Run {
        trajectory: &trajectory,
        noise_schedule: &schedule,
        model: &mut model,
        noise: &mut noise,
        on_step: &mut |_| Ok(None),
    };
    samplers::sample(request.sampler, request.eta, run, x).unwrap()
}

#[test]
fn the_projection_resembles_the_decoder() {
    let checkpoint = Checkpoint::built_in().unwrap();
    let config = VaeConfig::parse(&checkpoint.configs().vae).unwrap();
    let backend = Backend::cpu().unwrap();
    let decoder = LatentDecoder::load(&Params::new(checkpoint.tensors(), &backend, "vae"), &config).unwrap();
    let projection = Projection::fit(&decoder, config.latent_channels(), &Device::Cpu).unwrap();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    let picture = generate(&mut pipeline, &request(&checkpoint, None));
    let preview = projection.project(&picture.latents).unwrap();
    let (width, height) = preview.dimensions();
    let small = image::imageops::thumbnail(&picture.rgb, width, height);
    let mean = |values: &[u8]| values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
    let (a, b) = (preview.as_raw(), small.as_raw());
    let (mean_a, mean_b) = (mean(a), mean(b));
    let moment = |x: &[u8], mx: f64, y: &[u8], my: f64| -> f64 {
        x.iter().zip(y).map(|(&x, &y)| (f64::from(x) - mx) * (f64::from(y) - my)).sum()
    };
    let correlation =
        moment(a, mean_a, b, mean_b) / (moment(a, mean_a, a, mean_a) * moment(b, mean_b, b, mean_b)).sqrt();
    assert!(correlation > 0.8, "correlation {correlation}");
}

#[test]
fn pictures_are_decoded_in_parts_when_memory_is_short() {
    let checkpoint = Checkpoint::built_in().unwrap();
    let config = VaeConfig::parse(&checkpoint.configs().vae).unwrap();
    let peak = decode_peak_bytes(&config, 512, 512, None);
    assert_eq!(4 * peak, decode_peak_bytes(&config, 1024, 1024, None));
    for (tile, available, expected) in [
        (Tile::Auto, Some(peak - 1), true),
        (Tile::Auto, Some(peak), false),
        (Tile::Auto, None, false),
        (Tile::On, Some(u64::MAX), true),
        (Tile::Off, Some(0), false),
    ] {
        assert_eq!(tile.applies(&config, 512, 512, available), expected, "{tile:?} {available:?}");
    }
}

#[test]
fn the_program_repeats_a_tiled_second_pass_and_keeps_steps() {
    let sandbox = Sandbox::new();
    let args =
        ["an apple", "--size", "64x64", "--steps", "3", "-s", "1", "--hires", "1.5", "--hires-steps", "2"];
    let more = ["--tile", "on", "--steps-dir", "steps", "--preview=now.png", "-o", "a.png"];
    sandbox.run(&[&args[..], &more[..]].concat()).done();
    sandbox.run(&["--from", "a.png", "-o", "b.png"]).done();
    let bytes = |name: &str| std::fs::read(sandbox.join(name)).unwrap();
    assert_eq!(bytes("a.png"), bytes("b.png"));
    let size = |name: &str| image::image_dimensions(sandbox.join(name)).unwrap();
    assert_eq!(
        [size("a.png"), size("steps/003.png"), size("steps/005.png"), size("now.png")],
        [(96, 96), (64, 64), (96, 96), (96, 96)]
    );
    assert!(!sandbox.join("steps/006.png").exists());
    assert_eq!(bytes("steps/005.png"), bytes("now.png"));
    let info = sandbox.run(&["info", "a.png"]);
    assert!(info.done().contains("hires           1.5\n") && info.done().contains("in parts"));
}

#[test]
fn what_can_not_be_done_is_refused() {
    let sandbox = Sandbox::new();
    for (args, message) in [
        (&["--hires", "5"][..], "hires scale 5 is out of range (1 to 4)"),
        (&["--hires", "nan"], "hires scale NaN is out of range"),
        (&["--hires", "4", "--size", "1024x64"], "the most is 2048"),
        (&["--hires-steps", "5"], "no meaning without hires"),
        (&["--hires", "2", "--hires-strength", "0"], "hires strength 0 is out of range"),
        (&["--hires", "2", "--hires-steps", "900", "--hires-strength", "0.1"], "the most is 1000"),
        (&["--preview"], "stderr is not a terminal"),
        (&["--preview=missing/now.png"], "missing"),
    ] {
        let run = sandbox.run(&[&["x"], args].concat());
        run.refused(2, &[message]);
    }
}
