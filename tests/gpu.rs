//! NVIDIA GPUs against candle's CPU operations, diffusers' outputs and the CPU's pictures; needs a GPU, so only by hand.
//!
//! `cargo test --release --features cuda --test gpu -- --ignored --test-threads 1 --nocapture`

#[path = "support/mod.rs"]
mod support;

use std::ops::ControlFlow;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use pochade::checkpoint::Checkpoint;
use pochade::kernels::cuda::{self, Addends, Affine};
use pochade::kernels::{Conv2d, Padding};
use pochade::layers::{Backend, Params};
use pochade::networks::vae;
use pochade::pipeline::tiling::Tile;
use pochade::pipeline::{Model, Numerics, Observer, Phase, Pipeline, Residency, Step};
use pochade::prompt::Tokenizer;
use pochade::request::{Draft, Precision, Request, Sampler};

use support::comparison::distance;
use support::models::{data, kl_config, reference, reference_settings, resolve, small, text_encoder, unet};

static GPU: LazyLock<Device> = LazyLock::new(|| cuda::open().unwrap());

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0.3f32, 1.0, shape, &Device::Cpu).unwrap()
}

/// Runs `gpu` on `inputs` in both types there and `plain` in f64 here, on the same rounded values.
#[track_caller]
fn agree(
    what: &str,
    inputs: &[Tensor],
    gpu: impl Fn(&[Tensor]) -> anyhow::Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) {
    for (dtype, bound) in [(DType::F32, 2e-6), (DType::F16, 2e-3)] {
        let rounded: Vec<_> = inputs.iter().map(|input| input.to_dtype(dtype).unwrap()).collect();
        let there: Vec<_> = rounded.iter().map(|input| input.to_device(&GPU).unwrap()).collect();
        let here: Vec<_> = rounded.iter().map(|input| input.to_dtype(DType::F64).unwrap()).collect();
        let error = distance(&gpu(&there).unwrap(), &plain(&here).unwrap()).relative_rms();
        assert!(error < bound, "{what} in {dtype:?}: {error:.1e}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn linear_layers() {
    for (rows, depth, out) in [(1, 8, 8), (77, 64, 40), (33, 35, 17)] {
        let inputs =
            [random(&[2, rows, depth]), random(&[out, depth]), random(&[out]), random(&[2, rows, out])];
        let product = |x: &[Tensor]| x[0].broadcast_matmul(&x[1].t()?);
        agree("product", &inputs, |x| cuda::linear(&x[0], &x[1], Addends::default()), product);
        agree(
            "product, bias, residual",
            &inputs,
            |x| cuda::linear(&x[0], &x[1], Addends { bias: Some(&x[2]), shift: None, residual: Some(&x[3]) }),
            |x| product(x)?.broadcast_add(&x[2])? + &x[3],
        );
    }
    for channels in [16, 5] {
        let gated = |x: &[Tensor]| -> candle_core::Result<Tensor> {
            let halves = x[0].chunk(2, 1)?;
            &halves[0] * halves[1].gelu_erf()?
        };
        agree("geglu", &[random(&[9, 2 * channels])], |x| cuda::geglu(&x[0]), gated);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn convolutions() {
    let conv = |height: usize, width: usize, kernel: usize, stride: usize, padding: Padding| Conv2d {
        batch: 2,
        height,
        width,
        kernel,
        stride,
        padding,
        enlarged: None,
    };
    let below = Padding { top: 0, bottom: 1, left: 0, right: 1 };
    let cases = [
        (conv(16, 24, 3, 1, Padding::all(1)), 64, 32),
        (conv(7, 5, 3, 1, Padding::all(1)), 4, 9),
        (conv(9, 8, 3, 2, Padding::all(1)), 9, 8),
        (conv(8, 8, 3, 2, below), 3, 16),
        (conv(6, 7, 1, 1, Padding::default()), 12, 20),
        (Conv2d { enlarged: Some((10, 14)), ..conv(5, 7, 3, 1, Padding::all(1)) }, 8, 8),
        (Conv2d { enlarged: Some((9, 13)), ..conv(5, 7, 3, 1, Padding::all(1)) }, 8, 8),
    ];
    for (conv, channels, out) in cases {
        let (height, width) = conv.output_size();
        let inputs = [
            random(&[2, conv.height, conv.width, channels]),
            random(&[out, conv.kernel, conv.kernel, channels]),
            random(&[out]),
            random(&[out]),
            random(&[2, height, width, out]),
        ];
        agree(
            &format!("{conv:?}"),
            &inputs,
            |x| {
                let weight = x[1].reshape((out, ()))?;
                let addends = Addends { bias: Some(&x[2]), shift: Some(&x[3]), residual: Some(&x[4]) };
                cuda::conv2d(&x[0], &weight, &conv, addends)
            },
            |x| {
                let mut input = x[0].clone();
                if let Some((height, width)) = conv.enlarged {
                    let from = |seen: usize, stored: usize| -> candle_core::Result<Tensor> {
                        let index: Vec<_> = (0..seen).map(|at| (at * stored / seen) as u32).collect();
                        Tensor::from_vec(index, seen, &Device::Cpu)
                    };
                    input = input.index_select(&from(height, conv.height)?, 1)?;
                    input = input.index_select(&from(width, conv.width)?, 2)?;
                }
                let Padding { top, bottom, left, right } = conv.padding;
                let input = input.pad_with_zeros(1, top, bottom)?.pad_with_zeros(2, left, right)?;
                let weight = x[1].permute((0, 3, 1, 2))?.contiguous()?;
                let output =
                    input.permute((0, 3, 1, 2))?.contiguous()?.conv2d(&weight, 0, conv.stride, 1, 1)?;
                let added = x[4].broadcast_add(&x[2])?.broadcast_add(&x[3])?;
                output.permute((0, 2, 3, 1))? + added
            },
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn norms() {
    for (height, width, channels, groups) in
        [(64, 64, 320, 32), (8, 8, 2560, 32), (5, 3, 36, 4), (1, 1, 30, 10)]
    {
        let inputs = [
            (random(&[2, height, width, channels]) + 5.0).unwrap(),
            random(&[channels]),
            random(&[channels]),
        ];
        for silu in [false, true] {
            agree(
                &format!("group norm over {channels}, silu {silu}"),
                &inputs,
                |x| cuda::group_norm(&x[0], groups, Affine { gain: &x[1], offset: &x[2] }, 1e-5, silu),
                |x| {
                    let grouped = x[0].reshape((2, height * width, groups, channels / groups))?;
                    let centered = grouped.broadcast_sub(&grouped.mean_keepdim((1, 3))?)?;
                    let deviation = (centered.sqr()?.mean_keepdim((1, 3))? + 1e-5)?.sqrt()?;
                    let normed = centered.broadcast_div(&deviation)?.reshape(x[0].shape())?;
                    let output = normed.broadcast_mul(&x[1])?.broadcast_add(&x[2])?;
                    if silu { output.silu() } else { Ok(output) }
                },
            );
        }
    }
    for channels in [320, 36, 35] {
        let inputs = [(random(&[7, channels]) + 3.0).unwrap(), random(&[channels]), random(&[channels])];
        agree(
            &format!("layer norm over {channels}"),
            &inputs,
            |x| cuda::layer_norm(&x[0], Affine { gain: &x[1], offset: &x[2] }, 1e-5),
            |x| {
                let centered = x[0].broadcast_sub(&x[0].mean_keepdim(1)?)?;
                let deviation = (centered.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
                centered.broadcast_div(&deviation)?.broadcast_mul(&x[1])?.broadcast_add(&x[2])
            },
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn attention() {
    let plain = |x: &[Tensor], heads: usize| -> candle_core::Result<Tensor> {
        let (batch, rows, channels) = x[0].dims3()?;
        let split =
            |x: &Tensor| x.reshape((batch, (), heads, channels / heads))?.transpose(1, 2)?.contiguous();
        let (query, key, value) = (split(&x[0])?, split(&x[1])?, split(&x[2])?);
        let scores = (query.matmul(&key.t()?)? * ((channels / heads) as f64).powf(-0.5))?;
        let weights = candle_nn::ops::softmax(&scores, 3)?;
        weights.matmul(&value)?.transpose(1, 2)?.reshape((batch, rows, channels))
    };
    // With heads of 40 to 160 values: all scores in registers in f16; the others, and f32: by blocks.
    for (rows, context, heads, size) in [
        (100, 100, 8, 40),
        (65, 77, 8, 80),
        (64, 64, 2, 160),
        (33, 130, 3, 8),
        (50, 50, 1, 512),
        (9, 7, 2, 9),
    ] {
        let channels = heads * size;
        let inputs =
            [random(&[2, rows, channels]), random(&[2, context, channels]), random(&[2, context, channels])];
        let what = format!("attention of {rows} to {context}, {heads} heads of {size}");
        agree(&what, &inputs, |x| cuda::attention(&x[0], &x[1], &x[2], heads), |x| plain(x, heads));
        // Slices of wider rows.
        let stacked = [random(&[2, rows, 3 * channels])];
        let parts = |x: &[Tensor]| x[0].chunk(3, 2);
        agree(
            &what,
            &stacked,
            |x| {
                let parts = parts(x)?;
                cuda::attention(&parts[0], &parts[1], &parts[2], heads)
            },
            |x| plain(&parts(x)?.iter().map(Tensor::contiguous).collect::<Result<Vec<_>, _>>()?, heads),
        );
    }
}

/// As in `library/parity.rs`, on the GPU; half precision has bounds of its own.
#[test]
#[ignore = "needs a GPU"]
fn networks_against_diffusers() {
    let checkpoint = small();
    let (networks, texts) = (reference("networks.safetensors"), reference("text.safetensors"));
    let meta = reference_settings();
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::F16, 2e-2)] {
        let backend = Backend::candle(GPU.clone(), dtype);
        let close = |what: &str, got: &Tensor, expected: &Tensor| {
            let error = distance(got, expected).relative();
            println!("{what} in {dtype:?}: {error:.1e}");
            assert!(error <= bound, "{what} in {dtype:?}: relative error {error}");
        };
        let there = |name: &str| networks[name].to_device(&GPU).unwrap();

        let (ids, _) = Tokenizer::new(checkpoint.vocabulary())
            .unwrap()
            .chunk(meta["prompt"].as_str().unwrap(), 77)
            .unwrap();
        let text = text_encoder(&checkpoint, &backend).forward(&ids).unwrap();
        close("text", &text, &texts["prompt_embeds"]);

        let unet = unet(&checkpoint, &backend);
        let context = unet.context(&there("unet_context")).unwrap();
        let timestep = networks["unet_timestep"].to_vec1::<f32>().unwrap()[0];
        let output = unet.forward(&there("unet_x"), f64::from(timestep), &context).unwrap();
        close("unet", &output, &networks["unet_y"]);

        let params = Params::new(checkpoint.tensors(), &backend, "vae");
        let config = kl_config(&checkpoint);
        let decoder = vae::Decoder::load(&params, &config).unwrap();
        close("decoder", &decoder.forward(&there("vae_z")).unwrap(), &networks["vae_image"]);
        let latents = vae::Encoder::load(&params, &config).unwrap().forward(&there("vae_in")).unwrap();
        close("encoder", &latents.mean, &networks["vae_mean"]);
    }
}

/// Waits for steps, with the time of each.
#[derive(Default)]
struct Watch {
    steps: Vec<Duration>,
    last: Option<Instant>,
}

impl Observer for Watch {
    fn phase(&mut self, phase: Phase) {
        if phase == Phase::Denoise {
            self.last = Some(Instant::now());
        }
    }

    fn step(&mut self, _: &Step<'_>) -> ControlFlow<()> {
        let now = Instant::now();
        self.steps.extend(self.last.map(|last| now - last));
        self.last = Some(now);
        ControlFlow::Continue(())
    }
}

fn draw(checkpoint: &Checkpoint, device: &Device, precision: Precision, request: &Request) -> RgbImage {
    let model = Model::open(checkpoint.clone(), &Numerics::new(device.clone(), precision)).unwrap();
    Pipeline::new(&model, Residency::OneByOne).generate(request, &mut Watch::default()).unwrap().rgb
}

fn psnr(expected: &RgbImage, got: &RgbImage) -> f64 {
    distance(got, expected).psnr(255.0)
}

/// The same seed on CPU and GPU, for everything a request can be.
#[test]
#[ignore = "needs a GPU"]
fn pictures_of_the_same_seed() {
    let pocket = Checkpoint::built_in().unwrap();
    let small = small();
    let asked = |prompt: &str| Draft { prompt: Some(prompt.to_owned()), seed: Some(7), ..Draft::default() };
    let apple = || asked("a red apple on a yellow background");
    let init = || Draft { init: Some(data("golden/03.png")), strength: Some(0.6), ..asked("a fox") };
    let ancestral = Draft { sampler: Some(Sampler::EulerA), ..apple() };
    let lora = Draft {
        lora: Some(vec![
            format!("{}:0.8", data("reference/lora_peft.safetensors").display()).parse().unwrap(),
        ]),
        ..asked("a photo of a cat")
    };
    for (what, checkpoint, draft) in [
        ("plain", &pocket, apple()),
        ("unguided", &pocket, Draft { guidance_scale: Some(1.0), ..apple() }),
        ("ancestral", &pocket, ancestral),
        ("wide", &pocket, Draft { width: Some(192), height: Some(136), ..apple() }),
        ("from a picture", &pocket, init()),
        ("masked", &pocket, Draft { mask: Some(data("golden/00.png")), ..init() }),
        ("hires", &pocket, Draft { hires: Some(1.5), ..apple() }),
        ("cached", &pocket, Draft { cache: Some("3".parse().unwrap()), ..apple() }),
        ("cached by change", &pocket, Draft { cache: Some("auto=0.2".parse().unwrap()), ..apple() }),
        ("guided in part", &pocket, Draft { guidance_range: Some("0.2..0.6".parse().unwrap()), ..apple() }),
        ("guided while it matters", &pocket, Draft { guidance_auto: Some(0.99), ..apple() }),
        ("lora", &small, lora),
    ] {
        let request = resolve(draft, checkpoint);
        let expected = draw(checkpoint, &Device::Cpu, Precision::F32, &request);
        let found = [Precision::F32, Precision::F16]
            .map(|precision| psnr(&expected, &draw(checkpoint, &GPU, precision, &request)));
        println!("{what}: {:.1} dB in f32, {:.1} dB in f16", found[0], found[1]);
        assert!(found[0] >= 60.0 && found[1] >= 30.0, "{what}: {found:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn pictures_of_the_built_in_model_equal_diffusers() {
    let pocket = Checkpoint::built_in().unwrap();
    let meta = std::fs::read_to_string(data("golden/meta.json")).unwrap();
    let samples: Vec<serde_json::Value> = serde_json::from_str(&meta).unwrap();
    for precision in [Precision::F32, Precision::F16] {
        let mut worst = f64::INFINITY;
        for sample in &samples {
            let prompt = sample["prompt"].as_str().unwrap();
            let request = Request::new(prompt, sample["seed"].as_u64().unwrap(), &pocket.defaults());
            let expected =
                image::open(data("golden").join(sample["file"].as_str().unwrap())).unwrap().to_rgb8();
            worst = worst.min(psnr(&expected, &draw(&pocket, &GPU, precision, &request)));
        }
        println!("the worst of {} pictures in {precision}: {worst:.1} dB", samples.len());
        assert!(worst >= if precision == Precision::F32 { 40.0 } else { 30.0 });
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_picture_in_strips_is_the_same() {
    let pocket = Checkpoint::built_in().unwrap();
    let request = Request::new("a teapot", 3, &pocket.defaults());
    for precision in [Precision::F32, Precision::F16] {
        let [whole, strips] = [Tile::Off, Tile::On].map(|tile| {
            let model = Model::open(pocket.clone(), &Numerics::new(GPU.clone(), precision)).unwrap();
            let model = model.with_tile(tile);
            Pipeline::new(&model, Residency::OneByOne).generate(&request, &mut Watch::default()).unwrap()
        });
        assert!(strips.tiled && !whole.tiled);
        let psnr = psnr(&whole.rgb, &strips.rgb);
        println!("strips in {precision}: {psnr:.1} dB");
        assert!(psnr >= 45.0, "strips in {precision}: {psnr:.1} dB");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn used_up_memory_names_a_smaller_size() {
    let (name, memory) = cuda::describe(&GPU).unwrap();
    println!("{name}: {memory:?}");
    // All but a part of what a large picture takes in one piece.
    let ballast = Tensor::zeros((memory.available - (256 << 20)) as usize, DType::U8, &GPU).unwrap();
    let checkpoint = Checkpoint::built_in().unwrap();
    let model = Model::open(checkpoint.clone(), &Numerics::new(GPU.clone(), Precision::F16)).unwrap();
    let model = model.with_tile(Tile::Off);
    let mut pipeline = Pipeline::new(&model, Residency::OneByOne);
    let large = Request { width: 2048, height: 2048, ..Request::new("a fox", 1, &checkpoint.defaults()) };
    let request = Request { steps: 1, ..large };
    let error = pipeline.generate(&request, &mut Watch::default()).err().unwrap().to_string();
    println!("{error}");
    assert!(error.contains("2048x2048") && error.contains("--size 1024x1024"), "{error}");
    drop(ballast);
    let request = Request::new("a fox", 1, &checkpoint.defaults());
    pipeline.generate(&request, &mut Watch::default()).unwrap();
}

/// SD 1.5's geometry with random weights: the same seed on both, then seconds a step at full size.
#[test]
#[ignore = "needs a GPU and minutes of CPU time"]
fn full_size() {
    let checkpoint = Checkpoint::synthetic_sd15();
    let request = |side: usize, steps: usize| Request {
        width: side,
        height: side,
        steps,
        ..Request::new("a lighthouse in a storm", 5, &checkpoint.defaults())
    };
    let (name, _) = cuda::describe(&GPU).unwrap();
    for precision in [Precision::F16, Precision::F32] {
        let model = Model::open(checkpoint.clone(), &Numerics::new(GPU.clone(), precision)).unwrap();
        let mut pipeline = Pipeline::new(&model, Residency::Kept);
        for round in 0..3 {
            let mut watch = Watch::default();
            let start = Instant::now();
            let picture = pipeline.generate(&request(512, 20), &mut watch).unwrap();
            let total = start.elapsed().as_secs_f64();
            let first = watch.steps[0].as_secs_f64() * 1e3;
            watch.steps.sort();
            let median = watch.steps[watch.steps.len() / 2].as_secs_f64() * 1e3;
            println!(
                "{name}, {precision}, 512x512, round {round}: {median:.2} ms a step (first {first:.1}), \
                 picture {total:.2} s, {:?}",
                picture.timings
            );
        }
    }
    let request = request(256, 4);
    let expected = draw(&checkpoint, &Device::Cpu, Precision::F32, &request);
    let found = [Precision::F32, Precision::F16]
        .map(|precision| psnr(&expected, &draw(&checkpoint, &GPU, precision, &request)));
    println!("256x256, 4 steps, CPU against GPU: {:.1} dB in f32, {:.1} dB in f16", found[0], found[1]);
    assert!(found[0] >= 60.0 && found[1] >= 30.0, "{found:?}");
}
