//! F(4x4, 3x3) against the convolution's definition.

use super::comparison::assert_close;
use super::plain::{Random, im2col, on_threads, product, signal_to_error};
use crate::kernels::{Conv2d, Epilogue, GROUP, Grouped, Isa, Padding, Winograd, WinogradWords};

/// A convolution of `batch` images of `height` x `width`, enlarged first if `enlarged`.
fn conv2d(batch: usize, height: usize, width: usize, enlarged: Option<(usize, usize)>) -> Conv2d {
    Conv2d { batch, height, width, kernel: 3, stride: 1, padding: Padding::all(1), enlarged }
}

#[test]
fn images_of_odd_sizes() {
    let mut random = Random::new(40);
    for (conv, depth, out) in [
        (conv2d(1, 1, 1, None), 1, 1),
        (conv2d(2, 4, 4, None), 16, 64),
        (conv2d(1, 9, 6, None), 33, 70),
        (conv2d(2, 7, 11, None), 5, 3),
        (conv2d(1, 3, 5, Some((6, 10))), 20, 130),
        (conv2d(2, 3, 5, Some((5, 9))), 8, 16),
        (conv2d(1, 12, 12, None), 300, 40),
        (conv2d(1, 50, 61, None), 16, 32),
    ] {
        let (out_height, out_width) = conv.output_size();
        let input = random.floats(conv.batch * conv.height * conv.width * depth);
        let weight = random.floats(out * 9 * depth);
        let (bias, residual) = (random.floats(out), random.floats(conv.batch * out_height * out_width * out));
        let mut expected = product(&im2col(&conv, &input, depth), &weight, 9 * depth);
        for (i, y) in expected.iter_mut().enumerate() {
            *y += bias[i % out] as f64 + residual[i] as f64;
        }
        for &isa in Isa::available() {
            let layer = Winograd::new(weight.clone(), out, depth, isa);
            let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), relu: false };
            let mut output = vec![f32::NAN; expected.len()];
            layer.apply(&input, &conv, &epilogue, &mut output);
            assert_close(&output, &expected, 2e-5, format_args!("{isa} {conv:?} {depth} -> {out}"));
        }
    }
}

#[test]
fn many_blocks_of_tiles() {
    let mut random = Random::new(41);
    let conv = conv2d(1, 64, 64, None);
    for (depth, out) in [(512, 24), (40, 3)] {
        let input = random.floats(64 * 64 * depth);
        let weight = random.floats(out * 9 * depth);
        let expected = product(&im2col(&conv, &input, depth), &weight, 9 * depth);
        let layer = Winograd::new(weight, out, depth, Isa::best());
        let mut output = vec![f32::NAN; expected.len()];
        layer.apply(&input, &conv, &Epilogue::default(), &mut output);
        assert_close(&output, &expected, 2e-5, format_args!("{depth} -> {out}"));
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(42);
    let conv = conv2d(1, 30, 30, Some((60, 60)));
    let input = random.floats(900 * 36);
    let layer = Winograd::new(random.floats(70 * 9 * 36), 70, 36, Isa::best());
    let run = || {
        let mut output = vec![f32::NAN; 3600 * 70];
        layer.apply(&input, &conv, &Epilogue::default(), &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}

/// `[out][3 * 3][depth]` as `[out][depth][3 * 3]`.
fn taps_last<T: Copy>(weight: &[T], depth: usize) -> Vec<T> {
    let filters = weight.chunks_exact(9 * depth);
    filters.flat_map(|filter| (0..9 * depth).map(|i| filter[i % 9 * depth + i / 9])).collect()
}

#[test]
fn words_are_50_db_above_their_error() {
    let mut random = Random::new(43);
    for (conv, depth, out) in [
        (conv2d(1, 1, 1, None), 1, 1),
        (conv2d(2, 4, 4, None), 16, 64),
        (conv2d(1, 9, 6, None), 33, 70),
        (conv2d(2, 7, 11, None), 5, 3),
        (conv2d(1, 3, 5, Some((6, 10))), 20, 130),
        (conv2d(2, 3, 5, Some((5, 9))), 8, 16),
        (conv2d(1, 12, 12, None), 401, 40),
        (conv2d(1, 50, 61, None), 16, 32),
        (conv2d(2, 70, 70, None), 4, 5),
    ] {
        let (out_height, out_width) = conv.output_size();
        let input = random.floats(conv.batch * conv.height * conv.width * depth);
        let weight: Vec<i8> =
            random.floats(out * 9 * depth).iter().map(|w| (w * 127.0).round_ties_even() as i8).collect();
        let scales: Vec<f32> = (0..out).map(|o| (1.0 + o as f32) / 100.0).collect();
        let whole: Vec<f32> =
            weight.iter().enumerate().map(|(i, &w)| f32::from(w) * scales[i / (9 * depth)]).collect();
        let (bias, residual) = (random.floats(out), random.floats(conv.batch * out_height * out_width * out));
        let mut expected = product(&im2col(&conv, &input, depth), &whole, 9 * depth);
        for (i, y) in expected.iter_mut().enumerate() {
            *y += bias[i % out] as f64 + residual[i] as f64;
        }
        let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), relu: false };
        for &isa in Isa::available() {
            for layer in [
                WinogradWords::of_i8(&taps_last(&weight, depth), scales.clone(), out, depth, isa),
                WinogradWords::of_f32(&taps_last(&whole, depth), out, depth, isa),
            ] {
                let run = || {
                    let mut output = vec![f32::NAN; expected.len()];
                    layer.apply(&input, &conv, &epilogue, &mut output);
                    output
                };
                let output = on_threads(1, run);
                let found = signal_to_error(&output, &expected);
                assert!(found > 50.0, "{isa} {conv:?} {depth} -> {out}: {found:.1} dB");
                assert_eq!(output, on_threads(2, run), "{isa} {conv:?} {depth} -> {out}");
            }
        }
    }
}

#[test]
fn weights_of_four_bits_are_words() {
    let mut random = Random::new(44);
    for (conv, depth, out) in [
        (conv2d(1, 1, 1, None), 1usize, 1),
        (conv2d(2, 4, 4, None), 16, 64),
        (conv2d(1, 9, 6, None), 33, 70),
        (conv2d(1, 3, 5, Some((6, 10))), 20, 130),
        (conv2d(1, 12, 12, None), 401, 40),
        (conv2d(2, 20, 20, None), 340, 9),
    ] {
        let groups = depth.div_ceil(GROUP);
        let input = random.floats(conv.batch * conv.height * conv.width * depth);
        let values: Vec<i8> = (0..out * depth * 9).map(|_| (random.bits() % 16) as i8 - 8).collect();
        // Groups of very different scales, some negative.
        let scales: Vec<f32> = random.floats(out * groups * 9).iter().map(|s| 0.1 * (s + 0.1)).collect();
        let scale = |at: usize| scales[(at / (9 * depth) * groups + at / 9 % depth / GROUP) * 9 + at % 9];
        let whole: Vec<f32> = values.iter().enumerate().map(|(at, &v)| f32::from(v) * scale(at)).collect();
        let taps_first: Vec<f32> = (0..whole.len())
            .map(|at| whole[at / (9 * depth) * 9 * depth + at % depth * 9 + at / depth % 9])
            .collect();
        let expected = product(&im2col(&conv, &input, depth), &taps_first, 9 * depth);
        for &isa in Isa::available() {
            let layer =
                WinogradWords::of_grouped(Grouped { values: &values, scales: &scales }, out, depth, isa);
            let mut output = vec![f32::NAN; expected.len()];
            layer.apply(&input, &conv, &Epilogue::default(), &mut output);
            let found = signal_to_error(&output, &expected);
            // The errors of a single output are not spread.
            let least = if expected.len() == 1 { 45.0 } else { 50.0 };
            assert!(found > least, "{isa} {conv:?} {depth} -> {out}: {found:.1} dB");
        }
    }
}

#[test]
fn many_tiles_give_what_few_do() {
    // As many as are taken through all weights task by task, and parts of them that are not.
    let (height, width, depth, out) = (119, 121, 250, 70);
    let mut random = Random::new(46);
    let input = random.floats(height * width * depth);
    let (weight, bias) = (random.floats(out * 9 * depth), random.floats(out));
    for &isa in Isa::available() {
        let layer = WinogradWords::of_f32(&weight, out, depth, isa);
        let rows = |rows: std::ops::Range<usize>| {
            let conv = conv2d(1, rows.len(), width, None);
            let mut output = vec![f32::NAN; rows.len() * width * out];
            let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
            let input = &input[rows.start * width * depth..rows.end * width * depth];
            layer.apply(input, &conv, &epilogue, &mut output);
            output
        };
        let all = on_threads(3, || rows(0..height));
        assert!(all == on_threads(1, || rows(0..height)), "{isa}");
        // Whole tiles but the one that ends where the other part begins.
        let of_rows = |rows: std::ops::Range<usize>| rows.start * width * out..rows.end * width * out;
        assert!(all[of_rows(0..56)] == rows(0..60)[of_rows(0..56)], "{isa}");
        assert!(all[of_rows(60..height)] == rows(56..height)[of_rows(4..height - 56)], "{isa}");
    }
}

#[test]
fn words_at_their_limits() {
    let conv = conv2d(1, 10, 10, None);
    let depth = 500;
    // Equal signs everywhere bring sums to their bound.
    for (input, weight) in [(1.0f32, 127i8), (-1e20, -127), (1e-20, 127), (0.0, 127), (1.0, 0)] {
        let input = vec![input; 100 * depth];
        let expected =
            product(&im2col(&conv, &input, depth), &vec![f32::from(weight); 17 * 9 * depth], 9 * depth);
        for &isa in Isa::available() {
            let layer = WinogradWords::of_i8(&vec![weight; 17 * 9 * depth], vec![1.0; 17], 17, depth, isa);
            let mut output = vec![f32::NAN; expected.len()];
            layer.apply(&input, &conv, &Epilogue::default(), &mut output);
            for (y, x) in output.iter().zip(&expected) {
                assert!((*y as f64 - x).abs() <= 2e-3 * x.abs(), "{isa} {} {weight}: {y}, not {x}", input[0]);
            }
        }
    }
}

#[test]
fn words_pass_on_what_is_not_finite() {
    let conv = conv2d(1, 12, 12, None);
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for &isa in Isa::available() {
            let layer = WinogradWords::of_i8(&[1; 5 * 9 * 7], vec![1.0; 5], 5, 7, isa);
            for pixel in 0..144 {
                let mut input = vec![0.5; 144 * 7];
                input[pixel * 7 + pixel % 7] = fault;
                let mut output = vec![f32::NAN; 144 * 5];
                layer.apply(&input, &conv, &Epilogue::default(), &mut output);
                assert!(output[pixel * 5..][..5].iter().all(|y| y.is_nan()), "{isa} {fault} {pixel}");
            }
        }
    }
}
