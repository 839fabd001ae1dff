//! Norms and the quantizer.

use super::comparison::assert_close;
use super::plain::{Random, gelu, on_threads, sigmoid};
use crate::kernels::{Activation, GroupNorm, Isa, LayerNorm, QuantizedRows, quantize_rows};

/// Group normalisation by its definition.
fn group_norm(norm: &GroupNorm, input: &[f32], images: usize) -> Vec<f64> {
    let channels = norm.weight.len();
    let width = channels / norm.groups;
    let pixels = input.len() / images / channels;
    let mut output = vec![0.0; input.len()];
    for image in 0..images {
        for group in 0..norm.groups {
            let members: Vec<usize> = (0..pixels)
                .flat_map(|pixel| {
                    (0..width).map(move |c| (image * pixels + pixel) * channels + group * width + c)
                })
                .collect();
            let mean = members.iter().map(|&i| input[i] as f64).sum::<f64>() / members.len() as f64;
            let variance =
                members.iter().map(|&i| (input[i] as f64 - mean).powi(2)).sum::<f64>() / members.len() as f64;
            for i in members {
                let c = i % channels;
                let x = (input[i] as f64 - mean) / (variance + norm.epsilon as f64).sqrt();
                let y = x * norm.weight[c] as f64 + norm.bias[c] as f64;
                output[i] = if norm.silu { y * sigmoid(y) } else { y };
            }
        }
    }
    output
}

#[test]
fn group_norm_follows_its_definition() {
    let mut random = Random::new(10);
    for (images, pixels, groups, width) in
        [(1, 1, 1, 2), (2, 9, 4, 3), (1, 300, 32, 10), (2, 64, 32, 40), (2, 70, 2, 33), (1, 4500, 8, 4)]
    {
        let channels = groups * width;
        for mean in [0.0, 300.0] {
            let input: Vec<f32> =
                random.floats(images * pixels * channels).iter().map(|x| x * 3.0 + mean).collect();
            let (weight, bias) = (random.floats(channels), random.floats(channels));
            for silu in [false, true] {
                let norm = GroupNorm { groups, epsilon: 1e-5, weight: &weight, bias: &bias, silu };
                let expected = group_norm(&norm, &input, images);
                for &isa in Isa::available() {
                    let mut output = vec![f32::NAN; input.len()];
                    norm.apply(isa, &input, images, &mut output);
                    // Values near 300 carry an error of 1.5e-5 themselves.
                    let allowed = if mean == 0.0 { 1e-6 } else { 5e-5 };
                    let what = format_args!("{isa} {images} x {pixels} x {groups} x {width}");
                    assert_close(&output, &expected, allowed, what);
                }
            }
        }
    }
}

#[test]
fn a_constant_image_normalises_to_the_bias() {
    let norm = GroupNorm { groups: 2, epsilon: 1e-5, weight: &[1.0; 6], bias: &[0.5; 6], silu: false };
    for &isa in Isa::available() {
        let mut output = vec![f32::NAN; 60];
        norm.apply(isa, &[7.0; 60], 2, &mut output);
        assert!(output.iter().all(|y| (y - 0.5).abs() < 1e-4), "{isa}");
    }
}

#[test]
fn layer_norm_follows_its_definition() {
    let mut random = Random::new(11);
    for (rows, width) in [(1, 1), (3, 7), (1, 320), (100, 333), (40, 1280)] {
        let input = random.floats(rows * width);
        let (weight, bias) = (random.floats(width), random.floats(width));
        let norm = LayerNorm { epsilon: 1e-5, weight: &weight, bias: &bias };
        let mut expected = Vec::new();
        for row in input.chunks_exact(width) {
            let mean = row.iter().map(|&x| x as f64).sum::<f64>() / width as f64;
            let variance = row.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / width as f64;
            expected.extend((0..width).map(|c| {
                (row[c] as f64 - mean) / (variance + 1e-5).sqrt() * weight[c] as f64 + bias[c] as f64
            }));
        }
        for &isa in Isa::available() {
            let mut output = vec![f32::NAN; input.len()];
            norm.apply(isa, &input, &mut output);
            assert_close(&output, &expected, 2e-6, format_args!("{isa} {rows} x {width}"));
        }
    }
}

#[test]
fn activations_follow_their_definitions() {
    let mut random = Random::new(17);
    for (rows, width) in [(1, 1), (3, 7), (5, 333), (9, 3072)] {
        let input: Vec<f32> = random.floats(rows * width).iter().map(|x| x * 9.0).collect();
        for function in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
            let value = |x: f64| match function {
                Activation::Silu => x * sigmoid(x),
                Activation::Gelu => gelu(x),
                Activation::QuickGelu => x * sigmoid(1.702 * x),
            };
            let expected: Vec<f64> = input.iter().map(|&x| value(x as f64)).collect();
            for &isa in Isa::available() {
                let mut output = vec![f32::NAN; input.len()];
                function.apply(isa, &input, width, &mut output);
                assert_close(&output, &expected, 1e-6, format_args!("{isa} {function:?} {rows} x {width}"));
                let (mut fused, mut after) = (QuantizedRows::default(), QuantizedRows::default());
                function.apply(isa, &input, width, &mut fused);
                quantize_rows(isa, &output, width, &mut after);
                assert!((0..rows).all(|row| fused.row(row).eq(after.row(row))), "{isa} {function:?}");
            }
        }
    }
}

#[test]
fn quantizing_errs_by_half_a_step_and_equally_everywhere() {
    let mut random = Random::new(14);
    for (rows, depth) in [(1, 1), (1, 4), (5, 33), (60, 320), (3, 1283)] {
        let mut input = random.floats(rows * depth);
        for (i, row) in input.chunks_exact_mut(depth).enumerate() {
            let (factor, shift) = [(1.0, 0.0), (1e-12, 0.0), (30.0, 100.0), (1e20, -1e21), (0.0, 0.0)][i % 5];
            row.iter_mut().for_each(|x| *x = *x * factor + shift);
        }
        let mut first: Option<QuantizedRows> = None;
        for &isa in Isa::available() {
            let mut output = QuantizedRows::default();
            quantize_rows(isa, &input, depth, &mut output);
            for row in 0..rows {
                let scale = output.scales()[row];
                assert!((0..=255).contains(&output.zeros[row]));
                for (x, y) in input[row * depth..].iter().zip(output.dequantize(row)) {
                    assert!((x - y).abs() <= scale * 0.5001, "{isa} {depth} row {row}: {x} became {y}");
                }
                if let Some(first) = &first {
                    assert!(first.row(row).eq(output.row(row)), "{isa}");
                    assert_eq!((first.scales()[row], first.zeros[row]), (scale, output.zeros[row]), "{isa}");
                }
            }
            first = Some(output);
        }
    }
}

#[test]
fn fused_quantization_equals_quantizing_afterwards() {
    let mut random = Random::new(15);
    let (images, pixels, channels) = (2, 21, 36);
    let input = random.floats(images * pixels * channels);
    let (weight, bias) = (random.floats(channels), random.floats(channels));
    let norm = GroupNorm { groups: 4, epsilon: 1e-5, weight: &weight, bias: &bias, silu: true };
    for &isa in Isa::available() {
        let check = |fused: QuantizedRows, float: Vec<f32>| {
            let mut separate = QuantizedRows::default();
            quantize_rows(isa, &float, float.len() / fused.rows(), &mut separate);
            assert_eq!(fused.scales(), separate.scales(), "{isa}");
            assert_eq!(fused.zeros, separate.zeros, "{isa}");
            assert!((0..fused.rows()).all(|row| fused.row(row).eq(separate.row(row))), "{isa}");
        };
        let (mut float, mut fused) = (vec![f32::NAN; input.len()], QuantizedRows::default());
        norm.apply(isa, &input, images, &mut float);
        norm.apply(isa, &input, images, &mut fused);
        check(fused, float);
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(16);
    let input = random.floats(2 * 900 * 64);
    let (weight, bias) = (random.floats(64), random.floats(64));
    let norm = GroupNorm { groups: 32, epsilon: 1e-5, weight: &weight, bias: &bias, silu: true };
    let run = || {
        let mut output = vec![f32::NAN; input.len()];
        norm.apply(Isa::best(), &input, 2, &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}
