//! Attention by products of bfloat16 against softmax by its definition: signal-to-error ratios, and what has no end.

use super::attention::expected;
use super::plain::{Random, on_threads, signal_to_error};
use crate::kernels::{Attention, Isa};

#[test]
fn results_are_36_to_50_db_above_their_error() {
    let mut random = Random::new(31);
    for (batch, heads, head_dim, q_len, kv_len) in [
        (1, 1, 1, 1, 1),
        (1, 1, 8, 3, 77),
        (2, 2, 16, 100, 65),
        (2, 3, 40, 49, 130),
        (1, 2, 64, 200, 64),
        (1, 2, 80, 33, 77),
        (2, 1, 160, 64, 64),
        (1, 1, 512, 70, 90),
        (1, 2, 13, 25, 5),
        (1, 1, 40, 48, 1001),
    ] {
        let sizes = Attention::dense(batch, heads, head_dim, q_len, kv_len);
        let width = heads * head_dim;
        // A large mean of keys costs nothing, nor do channels of other sizes.
        let sized = |i: usize| if i % 7 == 3 { 30.0 } else { 1.0 };
        let rows = |random: &mut Random, len: usize, mean: f32, large: bool| -> Vec<f32> {
            let values = random.floats(batch * len * width);
            values
                .iter()
                .enumerate()
                .map(|(i, x)| mean + if large { x * sized(i % width) } else { *x })
                .collect()
        };
        let q = rows(&mut random, q_len, 0.0, false);
        let k = rows(&mut random, kv_len, 20.0, false);
        let v = rows(&mut random, kv_len, 0.0, true);
        for factor in [0.0, 1.0, 8.0, 60.0] {
            let q: Vec<f32> = q.iter().map(|q| q * factor).collect();
            let expected = expected(&sizes, &q, &k, &v);
            for &isa in Isa::available() {
                let mut output = vec![f32::NAN; expected.len()];
                sizes.apply_in_bf16(isa, &q, &k, &v, &mut output);
                let found = signal_to_error(&output, &expected);
                // The last is nearly one-hot.
                let least = if factor < 8.0 {
                    50.0
                } else if factor < 60.0 {
                    45.0
                } else {
                    36.0
                };
                assert!(found > least, "{isa} {sizes:?} x {factor}: {found:.1} dB");
            }
        }
    }
}

#[test]
fn rows_apart_are_read_and_any_number_of_threads_writes_the_same() {
    let mut random = Random::new(32);
    let (batch, heads, head_dim, len) = (2, 2, 20, 390);
    let width = heads * head_dim;
    let rows = random.floats(batch * len * 3 * width);
    let strides = 3 * width;
    let sizes = Attention {
        q_stride: strides,
        k_stride: strides,
        v_stride: strides,
        ..Attention::dense(batch, heads, head_dim, len, len)
    };
    let (q, k, v) = (&rows[..], &rows[width..], &rows[2 * width..]);
    let expected = expected(&sizes, q, k, v);
    for &isa in Isa::available() {
        let run = || {
            let mut output = vec![f32::NAN; expected.len()];
            sizes.apply_in_bf16(isa, q, k, v, &mut output);
            output
        };
        let output = on_threads(1, run);
        let found = signal_to_error(&output, &expected);
        assert!(found > 50.0, "{isa} {found}");
        assert_eq!(output, on_threads(2, run), "{isa}");
    }
}

#[test]
fn scores_of_any_size_neither_overflow_nor_vanish() {
    let sizes = Attention { scale: 1.0, ..Attention::dense(1, 1, 2, 30, 200) };
    for magnitude in [1e-25f32, 1e4, 1e15] {
        let q: Vec<f32> = (0..60).map(|i| if i % 4 < 2 { magnitude } else { -magnitude }).collect();
        let k: Vec<f32> = (0..400).map(|i| (i / 2) as f32 * magnitude / 200.0).collect();
        // Values that bfloat16 holds, without their mean.
        let v: Vec<f32> = (0..400).map(|i| if i / 2 % 2 == 0 { 5.0 } else { 7.0 }).collect();
        for &isa in Isa::available() {
            let mut output = vec![f32::NAN; 60];
            sizes.apply_in_bf16(isa, &q, &k, &v, &mut output);
            for (row, output) in output.chunks_exact(2).enumerate() {
                let chosen = if magnitude < 1.0 { 6.0 } else { [7.0, 5.0][row % 2] };
                assert!(
                    output.iter().all(|y: &f32| (y - chosen).abs() < 1e-3),
                    "{isa} {magnitude} {output:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_passed_on() {
    let sizes = Attention::dense(1, 1, 6, 70, 130);
    let (q, kv) = (70 * 6, 130 * 6);
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for &isa in Isa::available() {
            let run = |place: usize| {
                let [mut q, mut k, mut v] = [vec![0.5; q], vec![0.25; kv], vec![0.75; kv]];
                [&mut q, &mut k, &mut v][place][6 * 65 + 2] = fault;
                let mut output = vec![f32::NAN; q.len()];
                sizes.apply_in_bf16(isa, &q, &k, &v, &mut output);
                output
            };
            let query = run(0);
            assert!(query[6 * 65..6 * 66].iter().all(|y| y.is_nan()), "{isa} {fault}");
            assert!(query[..6 * 65].iter().all(|&y| y == 0.75), "{isa} {fault}");
            assert!(run(1).iter().all(|y| y.is_nan()), "{isa} {fault}");
            let value = run(2);
            assert!(value.chunks_exact(6).all(|row| row[2].is_nan() && row[1] == 0.75), "{isa} {fault}");
        }
    }
}
