//! Steps without guidance and with a part of the UNet: against diffusers' layers called from Python, and what they save.

use candle_core::Tensor;
use image::{Rgb, RgbImage};
use pochade::checkpoint::Checkpoint;
use pochade::pipeline::{Call, Observer, Phase, Pipeline};
use pochade::request::{Draft, Passes, Precision, Request, Sampler};

use crate::support::comparison::{assert_close, distance};
use crate::support::models::{
    Listener, data, draw, generate, open, pipeline, reference, reference_draft, resolve, small,
};
use crate::support::sandbox::Sandbox;

/// A draft with flags of less work, as `guidance_range=0.2..0.6 cache=3`.
fn saving(draft: Draft, flags: &str) -> Draft {
    let mut saving = Draft::default();
    for flag in flags.split_whitespace() {
        let (key, value) = flag.split_once('=').unwrap();
        let field = pochade::request::FIELDS.iter().find(|field| field.key == key).unwrap();
        (field.set)(&mut saving, value.as_ref()).unwrap();
    }
    saving.over(draft)
}

/// How many prompts each call answered.
#[derive(Default)]
struct Batches {
    batches: Vec<usize>,
    phases: Vec<Phase>,
}

impl Observer for Batches {
    fn called(&mut self, call: &Call) {
        self.batches.push(call.output.dim(0).unwrap());
    }

    fn phase(&mut self, phase: Phase) {
        self.phases.push(phase);
    }
}

fn watched(pipeline: &mut Pipeline<'_>, request: &Request) -> (Tensor, Passes, Vec<usize>) {
    let mut batches = Batches::default();
    let picture = pipeline.generate(request, &mut batches).unwrap();
    (picture.latents, picture.passes, batches.batches)
}

#[test]
fn latents_equal_those_of_diffusers_layers() {
    let expected = reference("less_work.safetensors");
    let checkpoint = small();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    let cases = [
        ("1.0", "cache=1"),
        ("2.0", "cache=2"),
        ("3.0", "cache=3 cache_branch=0"),
        ("3.2", "cache=3 cache_branch=2"),
        ("4.5", "cache=4 cache_branch=5"),
        ("5.11", "cache=5 cache_branch=11"),
        ("range.0.2..0.6", "guidance_range=0.2..0.6"),
        ("range.0.3..0.8.3.2", "guidance_range=0.3..0.8 cache=3 cache_branch=2"),
        ("auto.0.9988", "guidance_auto=0.9988"),
    ];
    assert_eq!(cases.len(), expected.len());
    for (name, flags) in cases {
        let request = resolve(saving(reference_draft(), flags), &checkpoint);
        let latents = generate(&mut pipeline, &request).latents;
        assert_close(&latents, &expected[name], 1e-3, flags);
        // It is this case's: the others are further away.
        for (other, expected) in &expected {
            let is_other = other != name;
            assert!(!is_other || distance(&latents, expected).relative() > 2e-3, "{name} is also {other}");
        }
    }
}

fn quick(prompt: &str) -> Draft {
    let (prompt, seed) = (Some(prompt.to_owned()), Some(3));
    Draft { prompt, seed, width: Some(64), height: Some(72), steps: Some(6), ..Draft::default() }
}

#[test]
fn a_step_without_guidance_is_one_pass_and_counts_half() {
    let checkpoint = small();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    let mut draw = |flags: &str| watched(&mut pipeline, &resolve(saving(quick("a cat"), flags), &checkpoint));
    let (_, exact, batches) = draw("");
    assert_eq!(batches, [2; 6]);
    assert_eq!((exact.whole, exact.outer, exact.macs), (12, 0, exact.exact_macs));
    let (_, half, batches) = draw("guidance_range=0..0.5");
    assert_eq!(batches, [2, 2, 2, 1, 1, 1]);
    assert_eq!((half.whole, half.exact_macs), (9, exact.macs));
    // What both passes share is computed once in either case.
    let (_, alone, _) = draw("guidance_scale=1");
    assert_eq!(half.macs, (exact.macs + alone.macs) / 2);
    assert!(half.share() < 0.8 && alone.macs * 2 < exact.macs * 6 / 5, "{half} {alone}");
    // Only the prompt is followed: another negative one changes nothing in steps that have none.
    let (kept, _, batches) = draw("guidance_range=0.9..1");
    assert_eq!(batches, [1, 1, 1, 1, 1, 2]);
    let (off, _, _) = draw("guidance_scale=1");
    assert!(distance(&kept, &off).relative() > 0.0);
    // A threshold that is met at once.
    let (_, auto, batches) = draw("guidance_auto=0.0001");
    assert_eq!((batches, auto.whole), (vec![2, 1, 1, 1, 1, 1], 7));
}

#[test]
fn settings_that_save_nothing_are_none() {
    let checkpoint = small();
    let plain = resolve(quick("a cat"), &checkpoint);
    for idle in ["cache=1", "cache=1 cache_branch=4", "guidance_range=0..1", "guidance_auto=1"] {
        assert_eq!(resolve(saving(quick("a cat"), idle), &checkpoint), plain, "{idle}");
    }
    // Computed with them all the same, the UNet's answers are those of whole steps, to the last bit.
    let model = open(&checkpoint, Precision::Int8);
    let mut pipeline = pipeline(&model);
    let exact = generate(&mut pipeline, &plain);
    let always = resolve(saving(quick("a cat"), "cache=auto=0.5 guidance_auto=0.5"), &checkpoint);
    let mut never = always;
    never.guidance_auto = None;
    never.guidance_range = "0..1".parse().ok();
    never.cache.as_mut().unwrap().reuse = "1".parse().unwrap();
    let same = generate(&mut pipeline, &never);
    assert_eq!(distance(&exact.latents, &same.latents).largest, 0.0);
    assert_eq!(exact.rgb, same.rgb);
    assert_eq!(exact.passes, same.passes);
}

#[test]
fn a_cache_works_with_every_sampler_and_counts() {
    let checkpoint = small();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    for &sampler in Sampler::ALL {
        let draft = Draft { sampler: Some(sampler), ..quick("a cat") };
        let (exact, all, _) = watched(&mut pipeline, &resolve(draft.clone(), &checkpoint));
        let calls = sampler.model_calls(6) as u64;
        assert_eq!((all.whole, all.outer), (2 * calls, 0), "{sampler}");
        let cached = resolve(saving(draft, "cache=2 cache_branch=2 guidance_range=0..0.7"), &checkpoint);
        let (latents, passes, batches) = watched(&mut pipeline, &cached);
        // Steps 1 and 3 reuse what steps 0 and 2 gave; step 5 is the last.
        assert!(passes.outer >= 4 && passes.macs < all.macs * 3 / 4, "{sampler}: {passes}");
        assert_eq!(passes.whole + passes.outer, batches.iter().sum::<usize>() as u64, "{sampler}");
        assert_eq!(passes.exact_macs, all.macs, "{sampler}");
        let foreseen = model.work(&cached).unwrap();
        assert_eq!((foreseen.total(), foreseen.outer > 0), (passes.macs, true), "{sampler}");
        assert!(distance(&latents, &exact).relative() > 0.0, "{sampler}");
    }
}

#[test]
fn the_first_and_the_last_step_are_whole_and_auto_follows_its_threshold() {
    let checkpoint = small();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    let mut passes = |flags: &str| {
        let (_, passes, _) = watched(&mut pipeline, &resolve(saving(quick("a cat"), flags), &checkpoint));
        (passes.whole, passes.outer)
    };
    assert_eq!(passes("cache=1000"), (4, 8));
    assert_eq!(passes("cache=2"), (8, 4));
    assert_eq!(passes("cache=5"), (4, 8));
    assert_eq!(passes("cache=auto=0.000001"), (12, 0));
    let (whole, loose) = passes("cache=auto=1");
    let (_, strict) = passes("cache=auto=0.15");
    assert!(whole >= 4 && loose > 0 && loose >= strict, "{whole} {loose} {strict}");
}

#[test]
fn a_cache_lasts_for_one_pass_and_works_with_all_else() {
    let checkpoint = small();
    let sandbox = Sandbox::new();
    let picture = RgbImage::from_fn(64, 72, |x, y| Rgb([x as u8 * 4, y as u8 * 3, 90]));
    let mask = RgbImage::from_fn(64, 72, |x, _| Rgb([if x < 32 { 255 } else { 0 }; 3]));
    picture.save(sandbox.join("init.png")).unwrap();
    mask.save(sandbox.join("mask.png")).unwrap();
    let model = open(&checkpoint, Precision::Int8);
    let mut pipeline = pipeline(&model);
    let lora = data("reference/lora_peft.safetensors").display().to_string();
    let init = format!("init={}", sandbox.join("init.png").display());
    let mask = format!("{init} mask={} strength=0.8", sandbox.join("mask.png").display());
    for with in
        [&init, &mask, "hires=1.5 hires_steps=4", "hires=1.25 sampler=heun", &format!("lora={lora}:2")]
    {
        let exact = resolve(saving(quick("a cat"), with), &checkpoint);
        let flags = "cache=2 cache_branch=1 guidance_range=0..0.8";
        let cached = resolve(saving(quick("a cat"), &format!("{with} {flags}")), &checkpoint);
        let (expected, all, _) = watched(&mut pipeline, &exact);
        let (found, passes, _) = watched(&mut pipeline, &cached);
        assert!(passes.outer > 0 && passes.share() < 0.8, "{with}: {passes}");
        assert_eq!(passes.exact_macs, all.macs, "{with}");
        let foreseen = [&exact, &cached].map(|request| model.work(request).unwrap().total());
        assert_eq!(foreseen, [all.macs, passes.macs], "{with}");
        assert!(distance(&found, &expected).relative() > 0.0, "{with}");
    }
    // A mask's black part stays as it is all the same.
    let cached = resolve(saving(quick("a cat"), &format!("{mask} cache=3")), &checkpoint);
    let rgb = generate(&mut pipeline, &cached).rgb;
    assert!((0..72).all(|y| (40..64).all(|x| rgb.get_pixel(x, y) == picture.get_pixel(x, y))));
}

#[test]
fn what_has_no_effect_or_is_not_there_is_told() {
    let checkpoint = small();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    let off = resolve(saving(quick("a cat"), "guidance_range=0..0.5 guidance_scale=1"), &checkpoint);
    let mut listener = Listener::default();
    pipeline.generate(&off, &mut listener).unwrap();
    assert_eq!(listener.0, ["the guidance range has no effect without guidance (scale 1)"]);
    let deep = resolve(saving(quick("a cat"), "cache=2 cache_branch=12"), &checkpoint);
    let refused = pipeline.check(&deep).unwrap_err().to_string();
    assert_eq!(refused, "cache branch 12 is out of range: this model's unet has 0 to 11");
}

#[test]
fn the_built_in_model_comes_near_its_exact_picture() {
    let checkpoint = Checkpoint::built_in().unwrap();
    let draft = || Draft { prompt: Some("a red apple".into()), seed: Some(5), ..Draft::default() };
    let exact = draw(&checkpoint, Precision::Int8, draft());
    let cheap = draw(&checkpoint, Precision::Int8, saving(draft(), "guidance_range=0..0.5 cache=2"));
    let psnr = pochade::compare::compare(&exact.rgb, &cheap.rgb).unwrap().psnr;
    assert!(psnr > 30.0 && cheap.passes.share() < 0.6, "{psnr} {}", cheap.passes);
}
