//! F(4x4, 3x3) against the convolution's definition.

use pochade::kernels::{Conv2d, Epilogue, Images, Isa, PackedWinograd, Padding, Residual, Workspace};

use crate::plain::{Random, difference, im2col, on_threads, product};

fn conv2d(images: &Images) -> Conv2d {
    let Images { batch, height, width, upsample } = *images;
    Conv2d { batch, height, width, kernel: 3, stride: 1, padding: Padding::all(1), upsample }
}

#[test]
fn images_of_odd_sizes() {
    let mut random = Random::new(40);
    for (batch, height, width, upsample, depth, out) in [
        (1, 1, 1, 1, 1, 1),
        (2, 4, 4, 1, 16, 64),
        (1, 9, 6, 1, 33, 70),
        (2, 7, 11, 1, 5, 3),
        (1, 3, 5, 2, 20, 130),
        (1, 12, 12, 1, 300, 40),
        (1, 50, 61, 1, 16, 32),
    ] {
        let images = Images { batch, height, width, upsample };
        let conv = conv2d(&images);
        let input = random.floats(batch * height * width * depth);
        let weight = random.floats(out * 9 * depth);
        let (bias, residual) =
            (random.floats(out), random.floats(batch * height * width * upsample * upsample * out));
        let mut expected = product(&im2col(&conv, &input, depth), &weight, 9 * depth);
        for (i, y) in expected.iter_mut().enumerate() {
            *y += bias[i % out] as f64 + residual[i] as f64;
        }
        let mut workspace = Workspace::default();
        for &isa in Isa::available() {
            let mut packed = PackedWinograd::new(isa);
            packed.repack(&weight, out, depth);
            let epilogue =
                Epilogue { bias: Some(&bias), residual: Residual::Of(&residual), ..Default::default() };
            let mut output = vec![f32::NAN; expected.len()];
            packed.apply(&input, &images, &epilogue, &mut workspace, &mut output);
            let error = difference(&output, &expected);
            assert!(error < 2e-5, "{isa} {images:?} {depth} -> {out}: {error}");
        }
    }
}

#[test]
fn many_blocks_of_tiles_and_other_weights_after_larger_ones() {
    let mut random = Random::new(41);
    let images = Images { batch: 1, height: 64, width: 64, upsample: 1 };
    let mut packed = PackedWinograd::new(Isa::best());
    let mut workspace = Workspace::default();
    for (depth, out) in [(512, 24), (40, 3)] {
        let input = random.floats(64 * 64 * depth);
        let weight = random.floats(out * 9 * depth);
        let expected = product(&im2col(&conv2d(&images), &input, depth), &weight, 9 * depth);
        packed.repack(&weight, out, depth);
        let mut output = vec![f32::NAN; expected.len()];
        packed.apply(&input, &images, &Epilogue::default(), &mut workspace, &mut output);
        let error = difference(&output, &expected);
        assert!(error < 2e-5, "{depth} -> {out}: {error}");
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(42);
    let images = Images { batch: 1, height: 30, width: 30, upsample: 2 };
    let input = random.floats(900 * 36);
    let mut packed = PackedWinograd::new(Isa::best());
    packed.repack(&random.floats(70 * 9 * 36), 70, 36);
    let run = || {
        let mut output = vec![0.0; 3600 * 70];
        packed.apply(&input, &images, &Epilogue::default(), &mut Workspace::default(), &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}
