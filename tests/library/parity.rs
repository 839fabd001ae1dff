//! Each network and the whole pipeline against diffusers' outputs for the same f16 weights.

use pochade::layers::{Backend, Params};
use pochade::networks::{taesd, vae};
use pochade::prompt::Tokenizer;
use pochade::request::{Defaults, Precision, Request, Schedule};

use crate::support::comparison::{assert_close, distance};
use crate::support::models::{
    self, data, float_backends, generate, kl_config, open, pipeline, reference, reference_settings, small,
    text_encoder,
};

/// What is compared, and how it was computed.
fn on(what: &str, backend: &Backend) -> String {
    format!("{what} on {}", backend.name())
}

#[test]
fn token_ids_equal() {
    let tokenizer = Tokenizer::new(small().vocabulary()).unwrap();
    let text = std::fs::read_to_string(data("reference/tokens.json")).unwrap();
    let samples: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(!samples.is_empty());
    for sample in samples {
        let text = sample["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(sample["ids"].clone()).unwrap();
        assert_eq!(tokenizer.chunk(text, 77).unwrap().0, expected, "{text:?}");
    }
}

#[test]
fn text_embeddings() {
    let checkpoint = small();
    let tokenizer = Tokenizer::new(checkpoint.vocabulary()).unwrap();
    let meta = reference_settings();
    let expected = reference("text.safetensors");
    for backend in float_backends() {
        let encoder = text_encoder(&checkpoint, &backend);
        for (text, embedding) in [("prompt", "prompt_embeds"), ("negative_prompt", "negative_prompt_embeds")]
        {
            let (ids, _) = tokenizer.chunk(meta[text].as_str().unwrap(), 77).unwrap();
            let found = encoder.forward(&ids).unwrap();
            assert_close(&found, &expected[embedding], 1e-4, on(text, &backend));
        }
    }
}

#[test]
fn unet() {
    let checkpoint = small();
    let expected = reference("networks.safetensors");
    for backend in float_backends() {
        let unet = models::unet(&checkpoint, &backend);
        let context = unet.context(&expected["unet_context"]).unwrap();
        let timestep = expected["unet_timestep"].to_vec1::<f32>().unwrap()[0];
        let output = unet.forward(&expected["unet_x"], f64::from(timestep), &context).unwrap();
        assert_close(&output, &expected["unet_y"], 1e-4, on("unet", &backend));
    }
}

#[test]
fn vae() {
    let checkpoint = small();
    let expected = reference("networks.safetensors");
    let config = kl_config(&checkpoint);
    for backend in float_backends() {
        let params = Params::new(checkpoint.tensors(), &backend, "vae");
        let decoder = vae::Decoder::load(&params, &config).unwrap();
        let picture = decoder.forward(&expected["vae_z"]).unwrap();
        assert_close(&picture, &expected["vae_image"], 1e-4, on("vae decoder", &backend));
        let encoder = vae::Encoder::load(&params, &config).unwrap();
        let latents = encoder.forward(&expected["vae_in"]).unwrap();
        assert_close(&latents.mean, &expected["vae_mean"], 1e-4, on("vae encoder mean", &backend));
        let variance = &latents.log_variance;
        assert_close(variance, &expected["vae_logvar"], 1e-4, on("vae encoder variance", &backend));
    }
}

#[test]
fn tiny_autoencoder() {
    let (tensors, config) = models::taesd();
    let expected = reference("taesd.safetensors");
    for backend in float_backends() {
        let params = Params::new(&tensors, &backend, "vae");
        let decoder = taesd::Decoder::load(&params, &config).unwrap();
        let picture = decoder.forward(&expected["z"]).unwrap();
        assert_close(&picture, &expected["image"], 1e-4, on("taesd decoder", &backend));
        let encoder = taesd::Encoder::load(&params, &config).unwrap();
        let latents = encoder.forward(&expected["in"]).unwrap();
        assert_close(&latents, &expected["latents"], 1e-4, on("taesd encoder", &backend));
    }
}

fn request(meta: &serde_json::Value, name: &str) -> Request {
    let run = &meta["samplers"][name];
    let variants = ["_karras", "_eta1", "_trailing", "_leading"];
    let sampler = variants.iter().find_map(|variant| name.strip_suffix(variant)).unwrap_or(name);
    let schedule = match run["config"]["use_karras_sigmas"].as_bool() {
        Some(true) => Schedule::Karras,
        _ => run["config"]["timestep_spacing"].as_str().unwrap_or("linspace").parse().unwrap(),
    };
    let integer = |value: &serde_json::Value| value.as_u64().unwrap();
    Request {
        negative_prompt: meta["negative_prompt"].as_str().unwrap().to_owned(),
        eta: run["eta"].as_f64().unwrap_or(0.0),
        ..Request::new(
            meta["prompt"].as_str().unwrap(),
            integer(&meta["seed"]),
            &Defaults {
                width: integer(&meta["width"]) as usize,
                height: integer(&meta["height"]) as usize,
                steps: integer(&run["steps"]) as usize,
                guidance_scale: run["guidance_scale"].as_f64().unwrap(),
                sampler: sampler.parse().unwrap(),
                schedule,
            },
        )
    }
}

/// All 19 sampler configurations of the references, through the whole pipeline.
#[test]
fn pictures() {
    let meta = reference_settings();
    let expected = reference("samplers.safetensors");
    let checkpoint = small();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    let names: Vec<_> = meta["samplers"].as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 19);
    for name in names {
        let picture = generate(&mut pipeline, &request(&meta, name));
        let latents = &expected[&format!("{name}.final")];
        assert_close(&picture.latents, latents, 2e-3, format_args!("final latents of {name}"));
        let image = expected[&format!("{name}.image")].permute((1, 2, 0)).unwrap();
        let levels = distance(&picture.rgb, &image).largest;
        assert!(levels <= 1.0, "{name}: a pixel is {levels} levels off");
    }
}
