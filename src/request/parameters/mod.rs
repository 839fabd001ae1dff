//! The `parameters` text that AUTOMATIC1111 embeds and most viewers read: printed from a request, parsed into a draft.

mod line;
mod parse;
mod print;

pub use parse::{Parameters, parse_parameters};
pub use print::print_parameters;

/// AUTOMATIC1111's name of enlarging the latents.
const LATENT_UPSCALER: &str = "Latent";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Defaults, Draft, Hires, PromptSyntax, Request, Rng, Sampler, Schedule};

    fn request() -> Request {
        Request {
            negative_prompt: "blurry".into(),
            ..Request::new(
                "a red apple, on a (yellow:1.3) background",
                965_400_086,
                &Defaults {
                    width: 512,
                    height: 768,
                    steps: 20,
                    guidance_scale: 7.0,
                    sampler: Sampler::Dpmpp2m,
                    schedule: Schedule::Karras,
                },
            )
        }
    }

    #[test]
    fn prints_what_automatic1111_prints() {
        let expected = concat!(
            "a red apple, on a (yellow:1.3) background\n",
            "Negative prompt: blurry\n",
            "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, ",
            "Model: sd15, RNG: CPU, Version: pochade ",
            env!("CARGO_PKG_VERSION"),
        );
        assert_eq!(print_parameters(&request(), "sd15", &[]), expected);
    }

    #[test]
    fn an_empty_negative_prompt_has_no_line() {
        let text = print_parameters(&Request { negative_prompt: String::new(), ..request() }, "sd15", &[]);
        assert!(!text.contains("Negative prompt"));
        assert_eq!(parse_parameters(&text).draft.negative_prompt.as_deref(), Some(""));
    }

    #[test]
    fn every_sampler_and_schedule_survives_the_round_trip() {
        for &sampler in Sampler::ALL {
            for &schedule in Schedule::ALL {
                for &rng in Rng::ALL {
                    let request = Request { sampler, schedule, rng, ..request() };
                    let parsed = parse_parameters(&print_parameters(&request, "sd15", &[]));
                    assert_eq!(parsed.draft, request.into());
                    assert!(parsed.unknown.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_second_pass_survives_the_round_trip() {
        let request = Request { hires: Some(Hires { scale: 1.5, steps: 9, strength: 0.55 }), ..request() };
        let text = print_parameters(&request, "sd15", &[]);
        assert!(text.contains(
            "Hires upscale: 1.5, Hires steps: 9, Hires upscaler: Latent, Denoising strength: 0.55"
        ));
        assert!(text.contains("Size: 512x768"));
        let parsed = parse_parameters(&text);
        assert_eq!(parsed.draft, request.into());
        assert!(parsed.unknown.is_empty());
        let other = parse_parameters(&text.replace("upscaler: Latent", "upscaler: Lanczos"));
        assert_eq!(other.unknown, ["Hires upscaler: Lanczos"]);
    }

    #[test]
    fn eta_is_printed_for_ddim_alone() {
        let ddim = Request { sampler: Sampler::Ddim, eta: 0.5, ..request() };
        let text = print_parameters(&ddim, "sd15", &[]);
        assert!(text.contains("Eta DDIM: 0.5"));
        assert_eq!(parse_parameters(&text).draft.eta, Some(0.5));
        assert!(!print_parameters(&Request { eta: 0.5, ..request() }, "sd15", &[]).contains("Eta"));
    }

    #[test]
    fn values_with_separators_are_quoted() {
        let model = "a, \"b\": c\nd";
        let text = print_parameters(&request(), model, &[]);
        assert!(text.contains(r#"Model: "a, \"b\": c\nd","#));
        assert_eq!(parse_parameters(&text).model.as_deref(), Some(model));
    }

    #[test]
    fn prompts_may_span_lines() {
        let request = Request {
            prompt: "one\ntwo: 2, three".into(),
            negative_prompt: "bad\nworse".into(),
            ..request()
        };
        assert_eq!(parse_parameters(&print_parameters(&request, "sd15", &[])).draft, request.into());
    }

    #[test]
    fn a_picture_of_automatic1111_is_understood() {
        let text = "girl with an artist's beret\nNegative prompt: ugly, fat\nSteps: 25, Sampler: DPM++ 2M SDE, \
                    Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x640, Model hash: 45dee52b, \
                    Model: v1-5-pruned, Clip skip: 2, Lora hashes: \"add_detail: 7c6bad76eb54, x: 1\", \
                    Hashes: {\"model\": \"45dee52b\", \"vae\": \"0\"}, Version: v1.10.1";
        let parsed = parse_parameters(text);
        let expected = Draft {
            prompt: Some("girl with an artist's beret".into()),
            negative_prompt: Some("ugly, fat".into()),
            width: Some(512),
            height: Some(640),
            steps: Some(25),
            guidance_scale: Some(7.5),
            sampler: Some(Sampler::Dpmpp2mSde),
            schedule: Some(Schedule::Karras),
            eta: Some(0.0),
            seed: Some(965_400_086),
            rng: Some(Rng::Philox),
            prompt_syntax: Some(PromptSyntax::Weighted),
            clip_skip: Some(2),
            ..Draft::default()
        };
        assert_eq!(parsed.draft, expected);
        assert_eq!(parsed.model.as_deref(), Some("v1-5-pruned"));
        assert!(parsed.unknown.is_empty());
    }

    #[test]
    fn a_bare_sampler_ran_evenly_and_automatic_is_the_samplers_own() {
        let schedule = |sampler: &str| {
            let draft = parse_parameters(&format!("x\nSteps: 20, Sampler: {sampler}, Seed: 1")).draft;
            (draft.sampler, draft.schedule)
        };
        assert_eq!(schedule("DPM++ 2M"), (Some(Sampler::Dpmpp2m), Some(Schedule::Linspace)));
        assert_eq!(
            schedule("DPM++ 2M, Schedule type: Automatic"),
            (Some(Sampler::Dpmpp2m), Some(Schedule::Karras))
        );
        assert_eq!(schedule("LMS SGM Uniform"), (Some(Sampler::Lms), Some(Schedule::Trailing)));
        assert_eq!(schedule("DDIM"), (Some(Sampler::Ddim), Some(Schedule::Leading)));
        assert_eq!(schedule("Euler a"), (Some(Sampler::EulerA), Some(Schedule::Linspace)));
    }

    #[test]
    fn what_means_nothing_here_is_named() {
        let parsed = parse_parameters(
            "x\nSteps: 20, Sampler: DPM adaptive, Seed: -1, Size: huge, Schedule type: Beta, Denoising strength: 0.7",
        );
        assert_eq!(
            parsed.unknown,
            ["Sampler: DPM adaptive", "Seed: -1", "Size: huge", "Denoising strength: 0.7"]
        );
        let parsed = parse_parameters("x\nSteps: 20, Sampler: Euler, Schedule type: Beta, Seed: 1");
        assert_eq!(parsed.unknown, ["Schedule type: Beta"]);
    }

    #[test]
    fn any_text_is_at_least_a_prompt() {
        for text in ["", "a cat", "\n\n", "a: b, c: d", "Negative prompt:", "Steps: \"", "\"\\", "é:,:,,:"] {
            let parsed = parse_parameters(text);
            assert!(parsed.draft.prompt.is_some() && parsed.draft.steps.is_none());
        }
    }
}
