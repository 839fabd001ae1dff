//! F(4x4, 3x3) against the convolution's definition.

use super::comparison::assert_close;
use super::plain::{Random, im2col, on_threads, product};
use crate::kernels::{Conv2d, Epilogue, Isa, Padding, Winograd};

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
        let mut output = vec![0.0; 3600 * 70];
        layer.apply(&input, &conv, &Epilogue::default(), &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}
