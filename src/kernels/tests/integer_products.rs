//! int8 linear layers and convolutions.

use super::comparison::assert_close;
use super::plain::{Random, geglu, im2col, on_threads, product};
use crate::kernels::{
    Conv2d, Epilogue, GROUP, Gather, Grouped, Isa, PackedF32, PackedI8, Padding, QuantizedRows, quantize_rows,
};

fn weights(random: &mut Random, count: usize) -> Vec<i8> {
    (0..count).map(|_| ((random.bits() % 255) as i32 - 127) as i8).collect()
}

fn quantize(isa: Isa, input: &[f32], depth: usize) -> QuantizedRows {
    let mut rows = QuantizedRows::default();
    quantize_rows(isa, input, depth, &mut rows);
    rows
}

/// What the packed weights of `depth` inputs a tap stand for: where the set asks for it, made so small that
/// no pair of neighbours exceeds what 16 bits hold of its products with 255.
fn effective(weight: &[i8], scales: &[f32], depth: usize, isa: Isa) -> Vec<f32> {
    let outputs = weight.chunks_exact(weight.len() / scales.len()).zip(scales);
    let values = outputs.flat_map(|(weight, scale)| {
        let mut largest = 0;
        for pair in weight.chunks_exact(depth).flat_map(|tap| tap.chunks(2)) {
            for sign in [1, -1] {
                largest = largest.max(pair.iter().map(|&w| (sign * w as i32).max(0)).sum());
            }
        }
        let factor =
            if isa.properties().may_saturate && largest > 128 { 127.0 / largest as f32 } else { 1.0 };
        let scale = scale / factor;
        weight.iter().map(move |&w| (w as f32 * factor).round_ties_even() * scale)
    });
    values.collect()
}

fn dequantize(rows: &QuantizedRows) -> Vec<f32> {
    (0..rows.rows()).flat_map(|row| rows.dequantize(row)).collect()
}

#[test]
fn linear_layers_of_odd_sizes() {
    let mut random = Random::new(30);
    let mut sizes = vec![(1, 1, 1), (1, 70, 3), (77, 1, 9), (193, 65, 4), (6, 64, 513), (25, 40, 5120)];
    sizes.extend((0..30).map(|_| (random.size(1, 50), random.size(1, 140), random.size(1, 300))));
    for (rows, out, depth) in sizes {
        let mut input = random.floats(rows * depth);
        // Rows of very different ranges, some far from zero, some empty.
        for (i, row) in input.chunks_exact_mut(depth).enumerate() {
            let (factor, shift) = [(1.0, 0.0), (0.01, 0.0), (1.0, 2.0), (0.0, 0.0), (0.5, -0.7)][i % 5];
            row.iter_mut().for_each(|x| *x = *x * factor + shift);
        }
        let weight = weights(&mut random, out * depth);
        let scales: Vec<f32> = random.floats(out).iter().map(|s| 0.01 * (s + 1.5)).collect();
        for &isa in Isa::available() {
            let input = quantize(isa, &input, depth);
            let expected = product(&dequantize(&input), &effective(&weight, &scales, depth, isa), depth);
            let packed = PackedI8::pack(&weight, &scales, out, 1, depth, isa);
            let mut output = vec![f32::NAN; rows * out];
            packed.apply(&input, &Gather::identity(rows), &Epilogue::default(), &mut output);
            assert_close(&output, &expected, 2e-6, format_args!("{isa} {rows} x {depth} x {out}"));
        }
    }
}

#[test]
fn convolutions_sum_taps_of_different_scales() {
    let mut random = Random::new(31);
    let same = Conv2d {
        batch: 2,
        height: 7,
        width: 5,
        kernel: 3,
        stride: 1,
        padding: Padding::all(1),
        enlarged: None,
    };
    let down = Padding { top: 0, bottom: 1, left: 0, right: 1 };
    let convs = [
        (same, 4, 40),
        (same, 150, 33),
        (same, 3, 3),
        (Conv2d { stride: 2, ..same }, 20, 17),
        (Conv2d { stride: 2, padding: down, height: 6, ..same }, 8, 64),
        (Conv2d { enlarged: Some((14, 10)), ..same }, 12, 16),
        (Conv2d { height: 20, width: 21, ..same }, 260, 20),
        (Conv2d { height: 11, width: 12, stride: 2, ..same }, 1100, 5),
    ];
    for (conv, depth, out) in convs {
        let taps = conv.kernel * conv.kernel;
        let mut input = random.floats(conv.batch * conv.height * conv.width * depth);
        for (i, row) in input.chunks_exact_mut(depth).enumerate() {
            row.iter_mut().for_each(|x| *x = *x * (1 + i % 7) as f32 + (i % 3) as f32);
        }
        let weight = weights(&mut random, out * taps * depth);
        let scales: Vec<f32> = random.floats(out).iter().map(|s| 0.01 * (s + 1.5)).collect();
        for &isa in Isa::available() {
            let input = quantize(isa, &input, depth);
            let columns = im2col(&conv, &dequantize(&input), depth);
            let expected = product(&columns, &effective(&weight, &scales, depth, isa), taps * depth);
            let packed = PackedI8::pack(&weight, &scales, out, taps, depth, isa);
            let mut output = vec![f32::NAN; expected.len()];
            packed.apply(&input, &Gather::conv2d(&conv), &Epilogue::default(), &mut output);
            assert_close(&output, &expected, 2e-6, format_args!("{isa} {conv:?} {depth} -> {out}"));
        }
    }
}

#[test]
fn values_and_weights_at_their_limits_are_exact() {
    let (rows, out) = (13, 70);
    // Sums up to 64 * 255 * 127 stay below 2^24, where f32 holds every integer.
    for depth in [1, 2, 4, 7, 64] {
        for (positive, weight) in [(true, 127i8), (true, -127), (false, 127), (false, -127), (true, 0)] {
            // A row of one value spans 0 to it: all bytes 255 and zero point 0, or 0 and 255.
            let value = if positive { 255.0 } else { -255.0 };
            for &isa in Isa::available() {
                let input = quantize(isa, &vec![value; rows * depth], depth);
                let first = (input.row(0).next().unwrap(), input.zeros[0]);
                assert_eq!(first, if positive { (255, 0) } else { (0, 255) });
                let packed = PackedI8::pack(&vec![weight; out * depth], &vec![1.0; out], out, 1, depth, isa);
                let mut output = vec![f32::NAN; rows * out];
                packed.apply(&input, &Gather::identity(rows), &Epilogue::default(), &mut output);
                let weights = effective(&vec![weight; depth], &[1.0], depth, isa);
                let expected = weights[0] * value * depth as f32;
                assert!(output.iter().all(|&y| y == expected), "{isa} {depth} {weight}: {output:?}");
            }
        }
    }
}

#[test]
fn sets_with_equal_weights_agree_to_the_bit_on_one_tap() {
    let mut random = Random::new(32);
    let (rows, out, depth) = (50, 90, 333);
    let values = random.floats(rows * depth);
    let (weight, scales) = (weights(&mut random, out * depth), random.floats(out));
    for saturating in [false, true] {
        let mut first: Option<Vec<f32>> = None;
        for &isa in Isa::available().iter().filter(|isa| isa.properties().may_saturate == saturating) {
            let input = quantize(isa, &values, depth);
            let packed = PackedI8::pack(&weight, &scales, out, 1, depth, isa);
            let mut output = vec![f32::NAN; rows * out];
            packed.apply(&input, &Gather::identity(rows), &Epilogue::default(), &mut output);
            if let Some(first) = &first {
                assert_eq!(first, &output, "{isa}");
            }
            first = Some(output);
        }
        // Every processor has sets whose sums can't saturate.
        if !saturating {
            assert_eq!(hash(&first.unwrap()), 0x256a_1d0b_8ab6_08dd, "the same on processors of every kind");
        }
    }
}

/// Of the values' bits (FNV-1a).
fn hash(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn the_epilogue_is_that_of_f32_products() {
    let mut random = Random::new(33);
    let (rows, out, depth) = (26, 70, 10);
    let values = random.floats(rows * depth);
    let weight = weights(&mut random, out * depth);
    let scales: Vec<f32> = random.floats(out).iter().map(|s| 0.01 * (s + 1.5)).collect();
    let (bias, residual) = (random.floats(out), random.floats(rows * out));
    let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), relu: true };
    for &isa in Isa::available() {
        let input = quantize(isa, &values, depth);
        let gather = Gather::identity(rows);
        let (mut output, mut float) = (vec![f32::NAN; rows * out], vec![f32::NAN; rows * out]);
        PackedI8::pack(&weight, &scales, out, 1, depth, isa).apply(&input, &gather, &epilogue, &mut output);
        PackedF32::pack(&effective(&weight, &scales, depth, isa), out, 1, depth, isa).apply(
            &dequantize(&input),
            &gather,
            &epilogue,
            &mut float,
        );
        let float: Vec<f64> = float.iter().map(|&y| y as f64).collect();
        assert_close(&output, &float, 2e-6, format_args!("{isa}"));
    }
}

#[test]
fn gated_layers_are_products_then_geglu() {
    let mut random = Random::new(35);
    let (rows, out, depth) = (50, 77, 30);
    let values = random.floats(rows * depth);
    let weight = weights(&mut random, 2 * out * depth);
    let scales: Vec<f32> = random.floats(2 * out).iter().map(|s| 0.01 * (s + 1.5)).collect();
    let bias = random.floats(2 * out);
    let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
    let gather = Gather::identity(rows);
    for &isa in Isa::available() {
        let input = quantize(isa, &values, depth);
        let mut sums = vec![f32::NAN; rows * 2 * out];
        PackedI8::pack(&weight, &scales, 2 * out, 1, depth, isa).apply(&input, &gather, &epilogue, &mut sums);
        let separate = geglu(isa, &sums, out);
        let mut fused = vec![f32::NAN; rows * out];
        PackedI8::pack_gated(&weight, &scales, out, depth, isa).apply(&input, &gather, &epilogue, &mut fused);
        assert_eq!(separate, fused, "{isa}");
    }
}

/// Four-bit weights `[out][taps][depth]` with their scales, groups of an output of very different ones, some negative.
fn nibbles(random: &mut Random, out: usize, taps: usize, depth: usize) -> (Vec<i8>, Vec<f32>) {
    let values = (0..out * taps * depth).map(|_| (random.bits() % 16) as i8 - 8).collect();
    let scales = random.floats(out * taps * depth.div_ceil(GROUP)).iter().map(|s| 0.1 * (s + 0.1)).collect();
    (values, scales)
}

/// The bytes that stand for them, each output with a scale of its own, by the definition.
fn as_bytes(values: &[i8], scales: &[f32], taps: usize, depth: usize, isa: Isa) -> Vec<f32> {
    let groups = depth.div_ceil(GROUP);
    let scale = |at: usize| scales[at / depth * groups + at % depth / GROUP];
    let filters = (0..values.len()).step_by(taps * depth);
    let rounded = filters.flat_map(|first| {
        let filter = first..first + taps * depth;
        let largest = filter.clone().map(|at| {
            let (value, next) =
                (i32::from(values[at]), values.get(at + 1).map_or(0, |&next| i32::from(next)));
            let is_pair =
                (at % depth).is_multiple_of(2) && at % depth + 1 < depth && (value < 0) == (next < 0);
            let sum = if is_pair && isa.properties().may_saturate { value + next } else { value };
            value.abs().max(sum.abs()) as f32 * scale(at).abs()
        });
        let unit = largest.fold(0.0, f32::max) / 127.0;
        filter.map(move |at| {
            let factor = (scale(at) / unit * 256.0).round_ties_even();
            let byte = (f32::from(values[at]) * factor / 256.0 + 0.5).floor();
            assert!(
                (byte * unit - f32::from(values[at]) * scale(at)).abs() < 0.52 * unit && byte.abs() <= 127.0
            );
            byte * unit
        })
    });
    rounded.collect()
}

#[test]
fn weights_of_four_bits_are_multiplied_as_bytes() {
    let mut random = Random::new(36);
    let mut sizes = vec![(1, 1, 1), (1, 70, 3), (77, 1, 9), (193, 65, 64), (6, 64, 513), (300, 40, 96)];
    sizes.extend((0..20).map(|_| (random.size(1, 50), random.size(1, 140), random.size(1, 300))));
    for (rows, out, depth) in sizes {
        let values = random.floats(rows * depth);
        let (weight, scales) = nibbles(&mut random, 2 * out, 1, depth);
        for &isa in Isa::available() {
            let input = quantize(isa, &values, depth);
            let gather = Gather::identity(rows);
            let floats = as_bytes(&weight, &scales, 1, depth, isa);
            let expected = product(&dequantize(&input), &floats, depth);
            let grouped = Grouped { values: &weight, scales: &scales };
            let mut output = vec![f32::NAN; rows * 2 * out];
            let packed = PackedI8::pack_grouped(grouped, 2 * out, 1, depth, isa);
            packed.apply(&input, &gather, &Epilogue::default(), &mut output);
            assert_close(&output, &expected, 2e-6, format_args!("{isa} {rows} x {depth} x {out}"));
            let (separate, mut fused) = (geglu(isa, &output, out), vec![f32::NAN; rows * out]);
            let packed = PackedI8::pack_gated_grouped(grouped, out, depth, isa);
            packed.apply(&input, &gather, &Epilogue::default(), &mut fused);
            assert_eq!(separate, fused, "{isa} {rows} x {depth} x {out}");
        }
    }
}

#[test]
fn convolutions_take_weights_of_four_bits() {
    let mut random = Random::new(37);
    let same = Conv2d {
        batch: 2,
        height: 7,
        width: 5,
        kernel: 3,
        stride: 2,
        padding: Padding::all(1),
        enlarged: None,
    };
    for (depth, out) in [(3, 3), (40, 17), (64, 70), (130, 33)] {
        let input = random.floats(same.batch * same.height * same.width * depth);
        let (weight, scales) = nibbles(&mut random, out, 9, depth);
        for &isa in Isa::available() {
            let input = quantize(isa, &input, depth);
            let floats = as_bytes(&weight, &scales, 9, depth, isa);
            let expected = product(&im2col(&same, &dequantize(&input), depth), &floats, 9 * depth);
            let packed =
                PackedI8::pack_grouped(Grouped { values: &weight, scales: &scales }, out, 9, depth, isa);
            let mut output = vec![f32::NAN; expected.len()];
            packed.apply(&input, &Gather::conv2d(&same), &Epilogue::default(), &mut output);
            assert_close(&output, &expected, 2e-6, format_args!("{isa} {depth} -> {out}"));
        }
    }
}

#[test]
fn pairs_of_four_bit_weights_at_their_limits_do_not_saturate() {
    let (rows, out, depth) = (5, 9, 64);
    for (value, scale) in [(-8, 1.0), (7, 1.0), (-8, -1.0)] {
        for &isa in Isa::available() {
            let input = quantize(isa, &vec![255.0; rows * depth], depth);
            let grouped = Grouped { values: &vec![value; out * depth], scales: &vec![scale; out * 2] };
            let mut output = vec![f32::NAN; rows * out];
            let packed = PackedI8::pack_grouped(grouped, out, 1, depth, isa);
            packed.apply(&input, &Gather::identity(rows), &Epilogue::default(), &mut output);
            let expected = f32::from(value) * scale * 255.0 * depth as f32;
            let near = |y: f32| (y / expected - 1.0).abs() < 0.01;
            assert!(output.iter().all(|&y| near(y)), "{isa} {value} {scale}: {} {expected}", output[0]);
        }
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(34);
    let conv = Conv2d {
        batch: 2,
        height: 20,
        width: 20,
        kernel: 3,
        stride: 1,
        padding: Padding::all(1),
        enlarged: None,
    };
    let (depth, out) = (140, 130);
    let values = random.floats(800 * depth);
    let weight = weights(&mut random, out * 9 * depth);
    for &isa in Isa::available() {
        let input = quantize(isa, &values, depth);
        let packed = PackedI8::pack(&weight, &vec![0.01; out], out, 9, depth, isa);
        let run = || {
            let mut output = vec![f32::NAN; 800 * out];
            packed.apply(&input, &Gather::conv2d(&conv), &Epilogue::default(), &mut output);
            output
        };
        assert_eq!(on_threads(1, run), on_threads(2, run), "{isa}");
        assert_eq!(on_threads(1, run), on_threads(5, run), "{isa}");
    }
}

#[test]
#[should_panic(expected = "symmetric weights")]
fn weights_of_minus_128_are_refused() {
    PackedI8::pack(&[-128; 4], &[1.0], 1, 1, 4, Isa::best());
}

#[test]
#[should_panic(expected = "rows laid out for model-smmla")]
fn rows_of_another_layout_are_refused() {
    let input = quantize(Isa::named("scalar").unwrap(), &[1.0; 8], 8);
    let packed = PackedI8::pack(&[1; 8], &[1.0], 1, 1, 8, Isa::named("smmla").unwrap());
    packed.apply(&input, &Gather::identity(1), &Epilogue::default(), [0.0].as_mut_slice());
}
