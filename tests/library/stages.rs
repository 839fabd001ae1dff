//! A UNet stopped and gone on with between any two stages, run without its inner stages, and added to from outside.

use candle_core::{DType, Device, Tensor};
use pochade::checkpoint::{TensorFile, TensorSet};
use pochade::layers::meter::{Kind, Meter};
use pochade::layers::{Backend, Params};
use pochade::networks::config::UnetConfig;
use pochade::networks::graph::{Extent, Prompts};
use pochade::networks::unet::{self, Context, Residuals, Step, Unet};
use pochade::networks::vae;

use crate::support::models::{data, kl_config, noise, small, unet_config};

fn values(tensor: &Tensor) -> Vec<f32> {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(values.iter().all(|value| value.is_finite()));
    values
}

/// What a UNet is asked.
struct Asked {
    unet: Unet,
    context_channels: usize,
    latents: Tensor,
    context: Context,
}

impl Asked {
    fn step(&self) -> Step<'_> {
        Step { latents: &self.latents, timestep: 601.0, context: &self.context, residuals: None }
    }
}

/// UNets with and without a middle block, in all ways they can be computed, on a size that is odd lower down.
fn unets() -> Vec<Asked> {
    let small = small();
    let file = TensorFile::open(&data("reference/unet_distilled.safetensors")).unwrap();
    let config = serde_json::from_str(&file.metadata()["config"]).unwrap();
    let mut distilled = TensorSet::default();
    distilled.add(file, |name| name.starts_with("unet.").then(|| name.to_owned())).unwrap();
    let models = [(small.tensors(), &small.configs().unet), (&distilled, &config)];
    let backends =
        [Backend::cpu().unwrap(), Backend::cpu_int8().unwrap(), Backend::candle(Device::Cpu, DType::F32)];
    let ask = |backend: &Backend, (tensors, config): (&TensorSet, &serde_json::Value)| {
        let config = UnetConfig::parse(config).unwrap();
        let latents = noise(1, &[2, config.in_channels, 9, 14]);
        let context_channels = config.context_channels;
        let embeddings = noise(2, &[2, 5, context_channels]);
        let unet = Unet::load(&Params::new(tensors, backend, "unet"), config).unwrap();
        Asked { context: unet.context(&embeddings).unwrap(), context_channels, latents, unet }
    };
    backends.iter().flat_map(|backend| models.map(|model| ask(backend, model))).collect()
}

#[test]
fn a_run_can_stop_before_any_stage_and_go_on() {
    for asked in unets() {
        let (unet, step) = (&asked.unet, asked.step());
        let whole = values(&unet.forward(&asked.latents, 601.0, &asked.context).unwrap());
        let stages = unet.stages();
        assert!(stages > 8, "{stages}");
        let mut walked = unet.begin(&step).unwrap();
        for stage in 0..=stages {
            let mut saved = walked.clone();
            unet.run(&mut saved, stage..stages, &step).unwrap();
            assert_eq!(values(&unet.finish(saved).unwrap()), whole, "from stage {stage}");
            if stage < stages {
                unet.run(&mut walked, stage..stage + 1, &step).unwrap();
            }
        }
    }
}

#[test]
fn the_outer_stages_alone_go_on_with_what_the_inner_ones_gave() {
    for asked in unets() {
        let (unet, step) = (&asked.unet, asked.step());
        let whole = values(&unet.predict(&step).unwrap());
        for outer in 1..=unet.skips() {
            let (output, deep) = unet.predict_keeping(&step, outer).unwrap();
            assert_eq!(values(&output), whole, "{outer} outer skips");
            // The transformers left out must not change which of the prompt's rows the others read.
            assert_eq!(values(&unet.predict_outer(&step, &deep).unwrap()), whole, "{outer} outer skips");
            let earlier = Step { timestep: 900.0, ..step };
            let (_, earlier) = unet.predict_keeping(&earlier, outer).unwrap();
            assert_ne!(values(&unet.predict_outer(&step, &earlier).unwrap()), whole, "{outer} outer skips");
        }
        for outer in [0, unet.skips() + 1] {
            let error = unet.predict_keeping(&step, outer).err().unwrap().to_string();
            assert!(error.contains(&format!("{outer} outer skips where there are 1 to")), "{error}");
        }
    }
}

/// The same latents for every prompt, as guidance has them, on sizes that are odd at every level.
#[test]
fn prompts_share_the_beginning_of_a_step() {
    for mut asked in unets() {
        for (height, width) in [(9, 14), (5, 7), (16, 8)] {
            let (_, channels, _, _) = asked.latents.dims4().unwrap();
            let one = noise(3, &[1, channels, height, width]);
            let embeddings = noise(4, &[3, 7, asked.context_channels]);
            asked.context = asked.unet.context(&embeddings).unwrap();
            asked.latents = Tensor::cat(&[&one, &one, &one], 0).unwrap();
            let (unet, whole) = (&asked.unet, asked.step());
            let shared = Step { latents: &one, ..whole };
            let expected = values(&unet.predict(&whole).unwrap());
            assert_eq!(values(&unet.predict(&shared).unwrap()), expected, "{height}x{width}");
            let third = expected.len() / 3;
            assert_ne!(expected[..third], expected[third..2 * third], "prompts matter");

            // What comes from outside is one for each prompt wherever it comes in.
            let shapes = unet.skip_shapes(&shared).unwrap();
            assert_eq!(shapes, unet.skip_shapes(&whole).unwrap());
            let mut residuals: Vec<Tensor> = shapes.iter().map(|shape| noise(5, shape)).collect();
            let middle = residuals.pop().unwrap();
            let residuals = Residuals { skips: residuals, middle };
            let expected = unet.predict(&Step { residuals: Some(&residuals), ..whole }).unwrap();
            let found = unet.predict(&Step { residuals: Some(&residuals), ..shared }).unwrap();
            assert_eq!(values(&found), values(&expected), "with residuals");

            for stage in 0..=unet.stages() {
                let mut maps = unet.begin(&shared).unwrap();
                unet.run(&mut maps, 0..stage, &shared).unwrap();
                let mut copy = maps.clone();
                unet.run(&mut copy, stage..unet.stages(), &shared).unwrap();
                unet.run(&mut maps, stage..unet.stages(), &shared).unwrap();
                let (copy, original) = (unet.finish(copy).unwrap(), unet.finish(maps).unwrap());
                assert_eq!(values(&copy), values(&original), "from stage {stage}");
            }
            for outer in 1..=unet.skips() {
                let (output, deep) = unet.predict_keeping(&shared, outer).unwrap();
                assert_eq!(values(&unet.predict_outer(&shared, &deep).unwrap()), values(&output));
            }
        }
    }
}

#[test]
fn pictures_of_their_own_share_nothing() {
    for asked in unets() {
        let (unet, step) = (&asked.unet, asked.step());
        let both = values(&unet.predict(&step).unwrap());
        let first = asked.latents.narrow(0, 0, 1).unwrap();
        let shared = values(&unet.predict(&Step { latents: &first, ..step }).unwrap());
        assert_eq!(both[..both.len() / 2], shared[..both.len() / 2]);
        assert_ne!(both[both.len() / 2..], shared[both.len() / 2..]);
        let three = Tensor::cat(&[&asked.latents, &first], 0).unwrap();
        let error = unet.predict(&Step { latents: &three, ..step }).unwrap_err().to_string();
        assert_eq!(error, "latents of 3 pictures for 2 prompts");
    }
}

#[test]
fn what_a_stage_lacks_is_named() {
    let asked = unets().swap_remove(0);
    let (unet, step) = (&asked.unet, asked.step());
    let stages = unet.stages();
    let mut maps = unet.begin(&step).unwrap();
    unet.run(&mut maps, 0..3, &step).unwrap();
    let error = unet.run(&mut maps.clone(), 4..stages, &step).unwrap_err().to_string();
    assert_eq!(
        error,
        "stage 'down_blocks.0.downsamplers' takes what 'down_blocks.0.1' gives, which has not run"
    );
    let error = unet.run(&mut maps.clone(), 3..stages + 1, &step).unwrap_err().to_string();
    assert!(error.contains(&format!("of {stages}")), "{error}");
    assert!(unet.finish(maps).unwrap_err().to_string().contains("has not run to its end"));
}

/// Residuals of the shapes the UNet's skips have, by stopping where they are.
fn zeros(asked: &Asked) -> Residuals {
    let shapes = asked.unet.skip_shapes(&asked.step()).unwrap();
    let zeros = |shape: &Vec<usize>| Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu).unwrap();
    let (middle, skips) = shapes.split_last().unwrap();
    Residuals { skips: skips.iter().map(zeros).collect(), middle: zeros(middle) }
}

#[test]
fn residuals_of_zeros_change_nothing_and_others_do() {
    for asked in unets() {
        let (unet, step) = (&asked.unet, asked.step());
        let whole = values(&unet.predict(&step).unwrap());
        let mut residuals = zeros(&asked);
        assert_eq!(values(&unet.predict(&Step { residuals: Some(&residuals), ..step }).unwrap()), whole);
        for skip in 0..residuals.skips.len() {
            let shape = residuals.skips[skip].dims().to_vec();
            let zeros = std::mem::replace(&mut residuals.skips[skip], noise(9, &shape));
            let changed = values(&unet.predict(&Step { residuals: Some(&residuals), ..step }).unwrap());
            assert_ne!(changed, whole, "skip {skip}");
            residuals.skips[skip] = zeros;
        }
        residuals.middle = noise(9, residuals.middle.dims());
        assert_ne!(values(&unet.predict(&Step { residuals: Some(&residuals), ..step }).unwrap()), whole);
    }
}

#[test]
fn residuals_that_do_not_fit_are_refused() {
    let asked = unets().swap_remove(0);
    let refused = |residuals: &Residuals| {
        let step = Step { residuals: Some(residuals), ..asked.step() };
        asked.unet.predict(&step).unwrap_err().to_string()
    };
    let mut residuals = zeros(&asked);
    let last = residuals.skips.pop().unwrap();
    let (found, skips) = (residuals.skips.len(), asked.unet.skips());
    assert_eq!(refused(&residuals), format!("{found} residuals where the unet has {skips} skips"));
    let expected = last.dims().to_vec();
    residuals.skips.push(last.unsqueeze(0).unwrap());
    let error = refused(&residuals);
    assert!(
        error.contains(&format!("residual {found} has shape")) && error.contains(&format!("{expected:?}"))
    );
    residuals = zeros(&asked);
    residuals.middle = residuals.middle.narrow(3, 0, 1).unwrap();
    assert!(refused(&residuals).contains("the middle's residual has shape"));
}

#[test]
fn the_work_done_is_the_work_described() {
    let checkpoint = small();
    let meter = Meter::start();
    for backend in [Backend::cpu().unwrap(), Backend::candle(Device::Cpu, DType::F32)] {
        let params = |part| Params::new(checkpoint.tensors(), &backend, part);
        let config = unet_config(&checkpoint);
        let graph = unet::describe(&config);
        let prompts = Prompts { count: 2, tokens: 5 };
        let expected = |batch: usize| {
            graph.macs(&unet::extents(&config, Extent { batch, height: 9, width: 14 }), prompts)
        };
        let [shared, expected] = [1, 2].map(expected);
        let (latents, embeddings) = (noise(1, &[2, 4, 9, 14]), noise(2, &[2, 5, config.context_channels]));
        let unet = Unet::load(&params("unet"), config).unwrap();
        meter.take();
        let context = unet.context(&embeddings).unwrap();
        assert_eq!(meter.take().macs(), graph.prompt_macs(prompts));
        unet.forward(&latents, 1.0, &context).unwrap();
        assert_eq!(meter.take().macs(), expected);
        unet.forward(&latents.narrow(0, 0, 1).unwrap(), 1.0, &context).unwrap();
        assert_eq!(meter.take().macs(), shared);
        assert!(shared.of(Kind::Conv3x3) < expected.of(Kind::Conv3x3));
        assert!(shared.of(Kind::SelfAttention) < expected.of(Kind::SelfAttention));
        assert_eq!(shared.of(Kind::CrossAttention), expected.of(Kind::CrossAttention));
        assert!(expected.of(Kind::Conv3x3) > 0 && expected.of(Kind::CrossAttention) > 0, "{expected:?}");

        let config = kl_config(&checkpoint);
        let extent = Extent { batch: 1, height: 9, width: 7 };
        let decoder = vae::Decoder::load(&params("vae"), &config).unwrap();
        let picture = decoder.forward(&noise(3, &[1, 4, 9, 7])).unwrap();
        assert_eq!(meter.take().macs(), vae::describe_decoder(&config).macs(&[extent], Prompts::default()));
        let extent = Extent { batch: 1, height: picture.dim(2).unwrap(), width: picture.dim(3).unwrap() };
        vae::Encoder::load(&params("vae"), &config).unwrap().forward(&picture).unwrap();
        assert_eq!(meter.take().macs(), vae::describe_encoder(&config).macs(&[extent], Prompts::default()));
    }
}
