//! f32 linear layers and convolutions.

use super::comparison::assert_close;
use super::plain::{Random, gelu, im2col, on_threads, product};
use crate::kernels::{Conv2d, Epilogue, Gather, Isa, PackedF32, Padding};

#[test]
fn linear_layers_of_odd_sizes() {
    let mut random = Random::new(1);
    let mut sizes = vec![(1, 1, 1), (1, 70, 3), (77, 1, 9), (193, 65, 4), (6, 64, 513), (25, 40, 128)];
    sizes.extend((0..30).map(|_| (random.size(1, 50), random.size(1, 140), random.size(1, 300))));
    for (rows, out, depth) in sizes {
        let input = random.floats(rows * depth);
        let weight = random.floats(out * depth);
        let expected = product(&input, &weight, depth);
        for &isa in Isa::available() {
            let packed = PackedF32::pack(&weight, out, 1, depth, isa);
            let mut output = vec![f32::NAN; rows * out];
            packed.apply(&input, &Gather::identity(rows), &Epilogue::default(), &mut output);
            assert_close(&output, &expected, 2e-6, format_args!("{isa} {rows} x {depth} x {out}"));
        }
    }
}

#[test]
fn convolutions_of_every_geometry() {
    let mut random = Random::new(2);
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
        (same, 37, 4),
        (same, 150, 33),
        (same, 3, 3),
        (Conv2d { stride: 2, ..same }, 20, 17),
        (Conv2d { stride: 2, padding: down, height: 6, ..same }, 8, 64),
        (Conv2d { enlarged: Some((14, 10)), ..same }, 12, 16),
        (Conv2d { enlarged: Some((13, 9)), ..same }, 12, 16),
        (Conv2d { kernel: 1, padding: Padding::default(), ..same }, 33, 97),
        (Conv2d { height: 1, width: 1, ..same }, 16, 48),
        (Conv2d { height: 20, width: 21, ..same }, 260, 20),
    ];
    for (conv, depth, out) in convs {
        let taps = conv.kernel * conv.kernel;
        let input = random.floats(conv.batch * conv.height * conv.width * depth);
        let weight = random.floats(out * taps * depth);
        let expected = product(&im2col(&conv, &input, depth), &weight, taps * depth);
        let gather = Gather::conv2d(&conv);
        for &isa in Isa::available() {
            let packed = PackedF32::pack(&weight, out, taps, depth, isa);
            let mut output = vec![f32::NAN; expected.len()];
            packed.apply(&input, &gather, &Epilogue::default(), &mut output);
            assert_close(&output, &expected, 2e-6, format_args!("{isa} {conv:?} {depth} -> {out}"));
        }
    }
}

#[test]
fn the_epilogue_adds_bias_and_residual_then_activates() {
    let mut random = Random::new(3);
    let (rows, depth) = (26, 10);
    for out in [5, 64, 70] {
        let input = random.floats(rows * depth);
        let weight = random.floats(out * depth);
        let bias = random.floats(out);
        let residual = random.floats(rows * out);
        let sums = product(&input, &weight, depth);
        let added: Vec<f64> =
            (0..sums.len()).map(|i| sums[i] + (bias[i % out] + residual[i]) as f64).collect();
        for &isa in Isa::available() {
            let packed = PackedF32::pack(&weight, out, 1, depth, isa);
            for relu in [false, true] {
                let expected: Vec<f64> = added.iter().map(|&x| if relu { x.max(0.0) } else { x }).collect();
                let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), relu };
                let mut output = vec![f32::NAN; sums.len()];
                packed.apply(&input, &Gather::identity(rows), &epilogue, &mut output);
                assert_close(&output, &expected, 2e-6, format_args!("{isa} {out} {relu}"));
            }
        }
    }
}

#[test]
fn gated_layers_are_products_then_geglu() {
    let mut random = Random::new(5);
    for (rows, out, depth) in [(1, 1, 1), (7, 5, 9), (30, 64, 20), (200, 77, 40)] {
        let input = random.floats(rows * depth);
        let weight = random.floats(2 * out * depth);
        let bias = random.floats(2 * out);
        let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
        let sums = product(&input, &weight, depth);
        let expected: Vec<f64> = (0..rows * out)
            .map(|i| {
                let (row, column) = (i / out, i % out);
                let at = |column: usize| sums[row * 2 * out + column] + bias[column] as f64;
                at(column) * gelu(at(out + column))
            })
            .collect();
        for &isa in Isa::available() {
            let mut output = vec![f32::NAN; rows * out];
            let packed = PackedF32::pack_gated(&weight, out, depth, isa);
            packed.apply(&input, &Gather::identity(rows), &epilogue, &mut output);
            assert_close(&output, &expected, 3e-6, format_args!("{isa} {rows} x {depth} x {out}"));
        }
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(4);
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
    let input = random.floats(800 * depth);
    let packed = PackedF32::pack(&random.floats(out * 9 * depth), out, 9, depth, Isa::best());
    let run = || {
        let mut output = vec![f32::NAN; 800 * out];
        packed.apply(&input, &Gather::conv2d(&conv), &Epilogue::default(), &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
    assert_eq!(on_threads(1, run), on_threads(5, run));
}

#[test]
#[should_panic(expected = "an input of")]
fn a_short_input_is_refused() {
    let packed = PackedF32::pack(&[1.0; 8], 2, 1, 4, Isa::best());
    packed.apply(&[0.0; 11], &Gather::identity(3), &Epilogue::default(), [0.0; 6].as_mut_slice());
}
