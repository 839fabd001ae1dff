//! Linear layers of floats in 16-bit integers.

use super::plain::{Random, geglu, on_threads, product, signal_to_error};
use crate::kernels::{Epilogue, Isa, PackedWords};

#[test]
fn words_are_65_db_above_their_error() {
    let mut random = Random::new(60);
    let mut sizes = vec![(1, 1, 1), (1, 70, 3), (77, 1, 9), (193, 65, 4), (6, 64, 513), (25, 40, 1300)];
    // Rows that don't all fit into the buffer at once.
    sizes.push((140_000, 3, 20));
    sizes.extend((0..20).map(|_| (random.size(1, 50), random.size(1, 140), random.size(1, 300))));
    for (rows, out, depth) in sizes {
        let (input, weight) = (random.floats(rows * depth), random.floats(out * depth));
        let (bias, residual) = (random.floats(out), random.floats(rows * out));
        let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), relu: true };
        let expected = product(&input, &weight, depth);
        for &isa in Isa::available() {
            let packed = PackedWords::pack(&weight, out, depth, isa);
            let run = |input: &[f32], epilogue: &Epilogue<'_>| {
                let mut output = vec![f32::NAN; rows * out];
                packed.apply(input, epilogue, &mut output);
                output
            };
            let sums = run(&input, &Epilogue::default());
            let found = signal_to_error(&sums, &expected);
            assert!(found > 65.0, "{isa} {rows} x {depth} x {out}: {found:.1} dB");
            for (i, y) in run(&input, &epilogue).into_iter().enumerate() {
                assert_eq!(
                    y,
                    (sums[i] + bias[i % out] + residual[i]).max(0.0),
                    "{isa} {rows} x {depth} x {out}"
                );
            }
            // Large rows hide nothing of small ones: each is rounded by itself.
            let factor = |row: usize| [1.0, 1024.0, 0.0, 0.125][row % 4];
            let scaled: Vec<f32> = input.iter().enumerate().map(|(i, x)| x * factor(i / depth)).collect();
            for (i, y) in run(&scaled, &Epilogue::default()).into_iter().enumerate() {
                assert_eq!(y, sums[i] * factor(i / out), "{isa} {rows} x {depth} x {out}");
            }
        }
    }
}

#[test]
fn sums_of_words_at_their_limits_are_exact() {
    let (rows, out) = (13, 70);
    for depth in [2, 31, 128, 129, 1280] {
        for sign in [1.0, -1.0] {
            for &isa in Isa::available() {
                let packed = PackedWords::pack(&vec![sign * 4095.0; out * depth], out, depth, isa);
                let mut output = vec![f32::NAN; rows * out];
                packed.apply(&vec![4095.0; rows * depth], &Epilogue::default(), &mut output);
                let expected = f64::from(sign) * 4095.0 * 4095.0 * depth as f64;
                let near = |y: &f32| (f64::from(*y) / expected - 1.0).abs() < 1e-6;
                assert!(output.iter().all(near), "{isa} {depth} {sign}: {} {expected}", output[0]);
            }
        }
    }
}

#[test]
fn gated_layers_are_products_then_geglu() {
    let mut random = Random::new(61);
    let (rows, out, depth) = (50, 77, 130);
    let input = random.floats(rows * depth);
    let (weight, bias) = (random.floats(2 * out * depth), random.floats(2 * out));
    let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
    for &isa in Isa::available() {
        let mut sums = vec![f32::NAN; rows * 2 * out];
        PackedWords::pack(&weight, 2 * out, depth, isa).apply(&input, &epilogue, &mut sums);
        let mut fused = vec![f32::NAN; rows * out];
        PackedWords::pack_gated(&weight, out, depth, isa).apply(&input, &epilogue, &mut fused);
        assert_eq!(geglu(isa, &sums, out), fused, "{isa}");
    }
}

#[test]
fn words_pass_on_what_is_not_finite() {
    let (rows, out, depth) = (9, 20, 150);
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for &isa in Isa::available() {
            let packed = PackedWords::pack(&vec![1.0; out * depth], out, depth, isa);
            for place in 0..depth {
                let faulty = place % rows;
                let mut input = vec![0.5; rows * depth];
                input[faulty * depth + place] = fault;
                let mut output = vec![0.0; rows * out];
                packed.apply(&input, &Epilogue::default(), &mut output);
                for (row, output) in output.chunks_exact(out).enumerate() {
                    let is_right = |y: &f32| if row == faulty { y.is_nan() } else { y.is_finite() };
                    assert!(output.iter().all(is_right), "{isa} {fault} {place} {row}: {output:?}");
                }
            }
        }
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(62);
    let (rows, out, depth) = (800, 130, 300);
    let input = random.floats(rows * depth);
    let packed = PackedWords::pack(&random.floats(out * depth), out, depth, Isa::best());
    let run = || {
        let mut output = vec![f32::NAN; rows * out];
        packed.apply(&input, &Epilogue::default(), &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
    assert_eq!(on_threads(1, run), on_threads(5, run));
}
