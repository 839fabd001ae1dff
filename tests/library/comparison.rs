//! The tests' own comparison: it is blind to no NaN, infinity, shape or length, and computes what it says.

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};

use crate::support::comparison::{Distance, Numbers, assert_close, assert_identical, distance, largest};

/// Whether a comparison without any bound fails.
fn fails<F: Numbers, E: Numbers>(found: &F, expected: &E) -> bool {
    let panics =
        |compare: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(compare)).is_err();
    let close = panics(&|| assert_close(found, expected, f64::INFINITY, "planted"));
    let all = [
        Distance::between(found, expected).is_err(),
        panics(&|| _ = distance(found, expected)),
        panics(&|| assert_identical(found, expected, "planted")),
    ];
    assert!(all.iter().all(|fails| *fails == close), "{all:?} {close}");
    close
}

#[test]
fn what_is_not_a_finite_number_is_close_to_nothing() {
    let plain = vec![1.0f32, -2.0, 0.5, 3.0, 0.0, 7.0];
    assert!(!fails(&plain, &plain));
    for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut planted: Vec<Vec<f32>> = (0..plain.len())
            .map(|at| {
                let mut values = plain.clone();
                values[at] = wrong;
                values
            })
            .collect();
        planted.push(vec![wrong; plain.len()]);
        for planted in &planted {
            assert!(fails(planted, &plain), "found {planted:?}");
            assert!(fails(&plain, planted), "expected {planted:?}");
            assert!(fails(planted, planted), "both {planted:?}");
            let tensor =
                |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap().reshape((1, 2, 3)).unwrap();
            assert!(fails(&tensor(planted), &tensor(&plain)), "found a tensor of {planted:?}");
            assert!(fails(&tensor(&plain), &tensor(planted)), "expected a tensor of {planted:?}");
            let wide: Vec<f64> = planted.iter().map(|&value| value.into()).collect();
            assert!(fails(&plain, &wide) && fails(&wide, &plain), "{planted:?} in f64");
        }
    }
}

#[test]
fn results_of_other_shapes_are_close_to_nothing() {
    let plain = vec![1.0f32, 2.0, 3.0, 4.0];
    assert!(fails(&plain[..3].to_vec(), &plain) && fails(&plain, &plain[..3].to_vec()));
    assert!(fails(&Vec::<f32>::new(), &plain) && fails(&plain, &Vec::<f32>::new()));
    assert!(fails(&Vec::<f32>::new(), &Vec::<f32>::new()), "nothing was compared");
    let tensor = Tensor::new(plain.as_slice(), &Device::Cpu).unwrap();
    let square = tensor.reshape((2, 2)).unwrap();
    assert!(!fails(&square, &square) && fails(&square, &tensor) && fails(&square, &plain));
    let empty = Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(fails(&empty, &empty));
    assert!(fails(&RgbImage::new(2, 3), &RgbImage::new(3, 2)));
}

#[test]
fn a_failure_says_where() {
    let plain = Tensor::zeros((2, 3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut values = vec![0.0f32; 24];
    values[17] = f32::NAN;
    let wrong = Tensor::new(values.as_slice(), &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
    let reason = Distance::between(&wrong, &plain).unwrap_err();
    assert_eq!(reason, "found NaN at [1, 1, 1]; 1 of 24 values are not finite");
    let reason = Distance::between(&plain, &wrong).unwrap_err();
    assert_eq!(reason, "expected NaN at [1, 1, 1]; 1 of 24 values are not finite");
    let reason = Distance::between(&plain, &plain.flatten_all().unwrap()).unwrap_err();
    assert_eq!(reason, "found shape [2, 3, 4] where [24] is expected");
}

#[test]
fn distances_are_those_of_the_formulas() {
    let found = distance(&[1.0f32, -4.0, 2.5][..], &[1.0f64, -4.0, 2.0][..]);
    assert_eq!((found.largest, found.relative()), (0.5, 0.125));
    assert!((found.psnr(8.0) - 10.0 * (64.0f64 * 3.0 / 0.25).log10()).abs() < 1e-9);
    assert!((found.snr() - 10.0 * (21.0f64 / 0.25).log10()).abs() < 1e-9);
    let same = distance(&[0.0f32; 3][..], &[0.0f32; 3][..]);
    assert_eq!((same.relative(), same.psnr(1.0), same.snr()), (0.0, f64::INFINITY, f64::INFINITY));
    let something = distance(&[1.0f32, 0.0][..], &[0.0f32; 2][..]);
    assert_eq!((something.relative(), something.snr()), (f64::INFINITY, f64::NEG_INFINITY));
    assert_eq!(largest(&[1.0f32, -3.0, 2.0][..]), 3.0);
    let (black, gray) = (RgbImage::new(2, 2), RgbImage::from_pixel(2, 2, Rgb([51; 3])));
    assert!((distance(&gray, &black).psnr(255.0) - 10.0 * 25f64.log10()).abs() < 1e-9);
}

#[test]
#[should_panic(expected = "planted: relative error 2.5e-1, more than 2e-1")]
fn too_far_is_too_far() {
    assert_close(&[1.0f32, 5.0][..], &[1.0f32, 4.0][..], 0.2, "planted");
}

#[test]
#[should_panic(expected = "planted: found 2.5 at [1] where 2 is expected")]
fn another_value_is_not_identical() {
    assert_identical(&[1.0f32, 2.5][..], &[1.0f32, 2.0][..], "planted");
}
