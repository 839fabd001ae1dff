//! Floats as 16-bit integers: whole networks and pictures beside f32, where the processor multiplies them fast.

use pochade::kernels::Isa;
use pochade::layers::Backend;
use pochade::pipeline::Picture;
use pochade::request::Precision;

use crate::support::comparison::distance;
use crate::support::models::{
    draw, float_backends, noise, reference_draft, small, text_encoder, unet, unet_config,
};

fn is_fast() -> bool {
    Isa::chosen().unwrap().multiplies_words_fast()
}

#[test]
fn networks_are_50_db_above_their_error() {
    if !is_fast() {
        assert!(Backend::cpu_words().is_err());
        return;
    }
    let (model, words) = (small(), Backend::cpu_words().unwrap());
    let config = unet_config(&model);
    let embeddings = noise(3, &[2, 16, config.context_channels]);
    let latents = noise(4, &[2, config.in_channels, 16, 24]);
    let call = |backend: &Backend| {
        let unet = unet(&model, backend);
        unet.forward(&latents, 300.0, &unet.context(&embeddings).unwrap()).unwrap()
    };
    let embed = |backend: &Backend| text_encoder(&model, backend).forward(&[49406, 320, 49407]).unwrap();
    for floats in float_backends() {
        for (name, found) in [
            ("unet", distance(&call(&words), &call(&floats))),
            ("text encoder", distance(&embed(&words), &embed(&floats))),
        ] {
            let ratio = found.snr();
            println!("{name} beside {}: {ratio:.1} dB", floats.name());
            assert!(ratio > 50.0 && ratio < 90.0, "{name} beside {}: {ratio:.1} dB", floats.name());
        }
    }
}

#[test]
fn pictures_are_those_of_floats() {
    if !is_fast() {
        return;
    }
    let model = small();
    let draw = |precision| draw(&model, precision, reference_draft());
    let (words, floats, int8) = (draw(Precision::F16), draw(Precision::F32), draw(Precision::Int8));
    let off = |picture: &Picture| {
        let levels = picture.rgb.as_raw().iter().zip(floats.rgb.as_raw());
        levels.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    };
    println!("{} levels, {} in int8", off(&words), off(&int8));
    assert!(off(&words) <= 2 && off(&words) < off(&int8) && words.rgb != floats.rgb);
}
