//! Attention by products of 16 bits and fewer against softmax by its definition: ratios of signal to error, and extremes.

use super::attention::expected;
use super::comparison::assert_close;
use super::plain::{Random, on_threads, signal_to_error};
use crate::kernels::{Attention, Isa, Products};

const ROUNDED: [Products; 3] = [Products::Words, Products::WordsAndBytes, Products::Bf16];

/// On each set, as many dB above the error as `least` says of each of these products.
fn assert_above(sizes: &Attention, [q, k, v]: [&[f32]; 3], least: [f64; 3]) {
    let expected = expected(sizes, q, k, v);
    for &isa in Isa::available() {
        for (products, least) in ROUNDED.into_iter().zip(least) {
            let mut output = vec![f32::NAN; expected.len()];
            sizes.apply(isa, products, [q, k, v], &mut output);
            let found = signal_to_error(&output, &expected);
            assert!(found > least, "{isa} {products:?} {sizes:?}: {found:.1} dB");
        }
    }
}

#[test]
fn results_are_36_to_60_db_above_their_error() {
    let mut random = Random::new(23);
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
        (1, 1, 40, 48, 1000),
    ] {
        let sizes = Attention::dense(batch, heads, head_dim, q_len, kv_len);
        let width = heads * head_dim;
        let (q, k, v) = (
            random.floats(batch * q_len * width),
            random.floats(batch * kv_len * width),
            random.floats(batch * kv_len * width),
        );
        // From flat to nearly one-hot, which leaves of each value alone what it was rounded to.
        for (factor, words, bytes, bf16) in [
            (0.0, 60.0, 52.0, 50.0),
            (1.0, 60.0, 50.0, 50.0),
            (8.0, 60.0, 38.0, 45.0),
            (60.0, 55.0, 25.0, 36.0),
        ] {
            let q: Vec<f32> = q.iter().map(|q| q * factor).collect();
            assert_above(&sizes, [&q, &k, &v], [words, bytes, bf16]);
        }
    }
}

#[test]
fn means_of_keys_and_sizes_of_blocks_cost_nothing() {
    let mut random = Random::new(28);
    for (batch, heads, head_dim, q_len, kv_len) in
        [(1, 1, 1, 1, 1), (2, 2, 13, 100, 65), (2, 3, 40, 49, 130), (1, 2, 80, 33, 77), (1, 1, 512, 70, 90)]
    {
        let sizes = Attention::dense(batch, heads, head_dim, q_len, kv_len);
        let width = heads * head_dim;
        let (q, k, v) = (
            random.floats(batch * q_len * width),
            random
                .floats(batch * kv_len * width)
                .iter()
                .enumerate()
                .map(|(i, k)| if i / width % kv_len < 64 { k + 20.0 } else { 0.3 * k + 20.0 })
                .collect::<Vec<f32>>(),
            random.floats(batch * kv_len * width),
        );
        for (factor, words, bytes, bf16) in
            [(0.0, 60.0, 52.0, 50.0), (1.0, 60.0, 52.0, 50.0), (8.0, 60.0, 38.0, 45.0)]
        {
            let q: Vec<f32> = q.iter().map(|q| q * factor).collect();
            assert_above(&sizes, [&q, &k, &v], [words, bytes, bf16]);
        }
    }
}

#[test]
fn nothing_is_lost_beyond_the_precision_of_words() {
    let mut random = Random::new(24);
    let (head_dim, q_len, kv_len) = (40, 20, 2000);
    let sizes = Attention::dense(1, 1, head_dim, q_len, kv_len);
    let q = random.floats(q_len * head_dim);
    // Large means of keys and values; one key that outweighs each other one 60,000 times, but not all of them.
    let mut k: Vec<f32> = random.floats(kv_len * head_dim).iter().map(|x| 0.01 * x + 30.0).collect();
    let mut v: Vec<f32> = random.floats(kv_len * head_dim).iter().map(|x| x + 50.0).collect();
    let norm: f32 = q[..head_dim].iter().map(|x| x * x).sum();
    let boost = 11.0 * (head_dim as f32).sqrt() / norm;
    for (k, q) in k[..head_dim].iter_mut().zip(&q) {
        *k += boost * q;
    }
    v[..head_dim].iter_mut().for_each(|v| *v += 3.0);
    let expected = expected(&sizes, &q, &k, &v);
    for &isa in Isa::available() {
        for products in [Products::Words, Products::Bf16] {
            let mut output = vec![f32::NAN; expected.len()];
            sizes.apply(isa, products, [&q, &k, &v], &mut output);
            let worst = output.iter().zip(&expected).map(|(&y, x)| (y as f64 - x).abs()).fold(0.0, f64::max);
            assert!(worst < 0.01, "{isa} {products:?}: {worst}");
        }
    }
}

#[test]
fn rows_apart_are_read_and_any_number_of_threads_writes_the_same() {
    let mut random = Random::new(25);
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
        for (products, least) in ROUNDED.into_iter().zip([60.0, 45.0, 50.0]) {
            let run = || {
                let mut output = vec![f32::NAN; expected.len()];
                sizes.apply(isa, products, [q, k, v], &mut output);
                output
            };
            let output = on_threads(1, run);
            assert!(signal_to_error(&output, &expected) > least, "{isa} {products:?}");
            assert_eq!(output, on_threads(2, run), "{isa} {products:?}");
        }
    }
}

#[test]
fn sums_at_their_limits() {
    // Equal magnitudes everywhere bring every sum of integers to its bound.
    let sizes = Attention { scale: 1e-3, ..Attention::dense(1, 1, 40, 50, 200) };
    let signs = |len: usize, period: usize| -> Vec<f32> {
        (0..len).map(|i| if (i / period).is_multiple_of(2) { 1.0 } else { -1.0 }).collect()
    };
    for (q, k, v) in [(40, 40, 40), (1, 1, 40), (2000, 40, 1), (40, 2560, 2560)] {
        let (q, k, v) = (signs(2000, q), signs(8000, k), signs(8000, v));
        let expected = expected(&sizes, &q, &k, &v);
        for &isa in Isa::available() {
            // Exponentials of two sizes, nearly equal: bfloat16 rounds all of a size the same way.
            for (products, allowed) in ROUNDED.into_iter().zip([2e-3, 2e-3, 2e-2]) {
                let mut output = vec![f32::NAN; 2000];
                sizes.apply(isa, products, [&q, &k, &v], &mut output);
                assert_close(&output, &expected, allowed, format_args!("{isa} {products:?}"));
            }
        }
    }
}

#[test]
fn scores_of_any_size_neither_overflow_nor_vanish() {
    let sizes = Attention { scale: 1.0, ..Attention::dense(1, 1, 2, 30, 200) };
    for magnitude in [1e-25f32, 1e4, 1e15] {
        let q: Vec<f32> = (0..60).map(|i| if i % 4 < 2 { magnitude } else { -magnitude }).collect();
        let k: Vec<f32> = (0..400).map(|i| (i / 2) as f32 * magnitude / 200.0).collect();
        // Without their mean, those of the first and last key are what every format holds.
        let v: Vec<f32> = (0..400).map(|i| [4.0, 8.0][i / 2 % 2]).collect();
        for &isa in Isa::available() {
            for products in [Products::Words, Products::Bf16] {
                let mut output = vec![f32::NAN; 60];
                sizes.apply(isa, products, [&q, &k, &v], &mut output);
                for (row, output) in output.chunks_exact(2).enumerate() {
                    let chosen = if magnitude < 1.0 { 6.0 } else { [8.0, 4.0][row % 2] };
                    assert!(
                        output.iter().all(|y: &f32| (y - chosen).abs() < 0.01),
                        "{isa} {products:?} {magnitude} {output:?}"
                    );
                }
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
            for products in ROUNDED {
                let run = |place: usize| {
                    let [mut q, mut k, mut v] = [vec![0.5; q], vec![0.25; kv], vec![0.75; kv]];
                    [&mut q, &mut k, &mut v][place][6 * 65 + 2] = fault;
                    let mut output = vec![f32::NAN; q.len()];
                    sizes.apply(isa, products, [&q, &k, &v], &mut output);
                    output
                };
                let query = run(0);
                assert!(query[6 * 65..6 * 66].iter().all(|y| y.is_nan()), "{isa} {products:?} {fault}");
                assert!(query[..6 * 65].iter().all(|&y| y == 0.75), "{isa} {products:?} {fault}");
                assert!(run(1).iter().all(|y| y.is_nan()), "{isa} {products:?} {fault}");
                let value = run(2);
                assert!(
                    value.chunks_exact(6).all(|row| row[2].is_nan() && row[1] == 0.75),
                    "{isa} {products:?} {fault}"
                );
            }
        }
    }
}
