//! Blocked attention against softmax by its definition: in f32 to rounding, in words to a signal-to-error ratio.

use super::comparison::assert_close;
use super::plain::{Random, on_threads, signal_to_error};
use crate::kernels::{Attention, Isa};

pub fn expected(sizes: &Attention, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let Attention { batch, heads, head_dim, q_len, kv_len, .. } = *sizes;
    let mut output = vec![0.0; batch * q_len * heads * head_dim];
    for item in 0..batch {
        for head in 0..heads {
            for row in 0..q_len {
                let q = &q[(item * q_len + row) * sizes.q_stride + head * head_dim..][..head_dim];
                let scores: Vec<f64> = (0..kv_len)
                    .map(|key| &k[(item * kv_len + key) * sizes.k_stride + head * head_dim..][..head_dim])
                    .map(|k| q.iter().zip(k).map(|(&q, &k)| q as f64 * k as f64).sum::<f64>())
                    .map(|score| score * sizes.scale as f64)
                    .collect();
                let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let at =
                        |key: usize| v[(item * kv_len + key) * sizes.v_stride + head * head_dim + d] as f64;
                    let sum: f64 = weights.iter().enumerate().map(|(key, w)| w * at(key)).sum();
                    output[((item * q_len + row) * heads + head) * head_dim + d] = sum / total;
                }
            }
        }
    }
    output
}

#[test]
fn heads_of_every_size_and_odd_lengths() {
    let mut random = Random::new(20);
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
    ] {
        let sizes = Attention::dense(batch, heads, head_dim, q_len, kv_len);
        let width = heads * head_dim;
        let (q, k, v) = (
            random.floats(batch * q_len * width),
            random.floats(batch * kv_len * width),
            random.floats(batch * kv_len * width),
        );
        // Small and large scores: nearly uniform and nearly one-hot attention.
        for factor in [1.0, 60.0] {
            let q: Vec<f32> = q.iter().map(|q| q * factor).collect();
            let expected = expected(&sizes, &q, &k, &v);
            for &isa in Isa::available() {
                let mut output = vec![f32::NAN; expected.len()];
                sizes.apply(isa, &q, &k, &v, &mut output);
                let allowed = if factor == 1.0 { 2e-6 } else { 2e-4 };
                assert_close(&output, &expected, allowed, format_args!("{isa} {sizes:?} x {factor}"));
            }
        }
    }
}

#[test]
fn queries_keys_and_values_may_share_rows() {
    let mut random = Random::new(21);
    let (batch, heads, head_dim, len) = (2, 2, 20, 70);
    let width = heads * head_dim;
    let rows = random.floats(batch * len * 3 * width);
    let (q_stride, k_stride, v_stride) = (3 * width, 3 * width, 3 * width);
    let sizes =
        Attention { q_stride, k_stride, v_stride, ..Attention::dense(batch, heads, head_dim, len, len) };
    let (q, k, v) = (&rows[..], &rows[width..], &rows[2 * width..]);
    let expected = expected(&sizes, q, k, v);
    for &isa in Isa::available() {
        let mut output = vec![f32::NAN; expected.len()];
        sizes.apply(isa, q, k, v, &mut output);
        assert_close(&output, &expected, 2e-6, format_args!("{isa}"));
    }
}

#[test]
fn extreme_scores_neither_overflow_nor_vanish() {
    let sizes = Attention { scale: 1.0, ..Attention::dense(1, 1, 2, 30, 200) };
    for magnitude in [1e4f32, 1e15] {
        let q: Vec<f32> = (0..60).map(|i| if i % 4 < 2 { magnitude } else { -magnitude }).collect();
        let k: Vec<f32> = (0..400).map(|i| (i / 2) as f32 * magnitude / 200.0).collect();
        let v: Vec<f32> = (0..400).map(|i| (i / 2) as f32).collect();
        for &isa in Isa::available() {
            let mut output = vec![f32::NAN; 60];
            sizes.apply(isa, &q, &k, &v, &mut output);
            for (row, output) in output.chunks_exact(2).enumerate() {
                let chosen = if row % 2 == 0 { 199.0 } else { 0.0 };
                assert!(
                    output.iter().all(|y: &f32| (y - chosen).abs() < 1e-4),
                    "{isa} {magnitude} {output:?}"
                );
            }
        }
    }
}

#[test]
fn zeros_average_the_values() {
    let sizes = Attention::dense(1, 2, 8, 5, 100);
    let v: Vec<f32> = (0..1600).map(|i| (i / 16) as f32).collect();
    for &isa in Isa::available() {
        let mut output = vec![f32::NAN; 80];
        sizes.apply(isa, &[0.0; 80], &[0.0; 1600], &v, &mut output);
        assert!(output.iter().all(|y| (y - 49.5).abs() < 1e-4), "{isa}");
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(22);
    let sizes = Attention::dense(2, 2, 40, 500, 300);
    let (q, k, v) = (random.floats(2 * 500 * 80), random.floats(2 * 300 * 80), random.floats(2 * 300 * 80));
    let run = || {
        let mut output = vec![f32::NAN; q.len()];
        sizes.apply(Isa::best(), &q, &k, &v, &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}

#[test]
fn words_are_55_to_60_db_above_their_error() {
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
        for factor in [0.0, 1.0, 8.0, 60.0] {
            let q: Vec<f32> = q.iter().map(|q| q * factor).collect();
            let expected = expected(&sizes, &q, &k, &v);
            for &isa in Isa::available() {
                let mut output = vec![f32::NAN; expected.len()];
                sizes.apply_in_words(isa, &q, &k, &v, &mut output);
                let found = signal_to_error(&output, &expected);
                // The last is nearly one-hot: of each value alone, eleven bits are kept.
                let least = if factor < 60.0 { 60.0 } else { 55.0 };
                assert!(found > least, "{isa} {sizes:?} x {factor}: {found:.1} dB");
            }
        }
    }
}

#[test]
fn queries_and_keys_in_bytes_are_38_to_52_db_above_their_error() {
    let mut random = Random::new(28);
    for (batch, heads, head_dim, q_len, kv_len) in
        [(1, 1, 1, 1, 1), (2, 2, 13, 100, 65), (2, 3, 40, 49, 130), (1, 2, 80, 33, 77), (1, 1, 512, 70, 90)]
    {
        let sizes = Attention::dense(batch, heads, head_dim, q_len, kv_len);
        let width = heads * head_dim;
        let (q, k, v) = (
            random.floats(batch * q_len * width),
            // A large mean costs nothing, and blocks of keys may be of different sizes.
            random
                .floats(batch * kv_len * width)
                .iter()
                .enumerate()
                .map(|(i, k)| if i / width % kv_len < 64 { k + 20.0 } else { 0.3 * k + 20.0 })
                .collect::<Vec<f32>>(),
            random.floats(batch * kv_len * width),
        );
        for factor in [0.0, 1.0, 8.0] {
            let q: Vec<f32> = q.iter().map(|q| q * factor).collect();
            let expected = expected(&sizes, &q, &k, &v);
            for &isa in Isa::available() {
                let mut output = vec![f32::NAN; expected.len()];
                sizes.apply_in_words_and_bytes(isa, &q, &k, &v, &mut output);
                let found = signal_to_error(&output, &expected);
                let least = if factor < 8.0 { 52.0 } else { 38.0 };
                assert!(found > least, "{isa} {sizes:?} x {factor}: {found:.1} dB");
            }
        }
    }
}

#[test]
fn words_do_not_lose_what_lies_beyond_their_precision() {
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
        let mut output = vec![f32::NAN; expected.len()];
        sizes.apply_in_words(isa, &q, &k, &v, &mut output);
        let worst = output.iter().zip(&expected).map(|(&y, x)| (y as f64 - x).abs()).fold(0.0, f64::max);
        assert!(worst < 0.01, "{isa}: {worst}");
    }
}

#[test]
fn words_read_rows_apart_and_any_number_of_threads_writes_the_same() {
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
        let run = |in_bytes: bool| {
            let mut output = vec![f32::NAN; expected.len()];
            if in_bytes {
                sizes.apply_in_words_and_bytes(isa, q, k, v, &mut output);
            } else {
                sizes.apply_in_words(isa, q, k, v, &mut output);
            }
            output
        };
        for (in_bytes, least) in [(false, 60.0), (true, 45.0)] {
            let output = on_threads(1, || run(in_bytes));
            assert!(signal_to_error(&output, &expected) > least, "{isa}");
            assert_eq!(output, on_threads(2, || run(in_bytes)), "{isa}");
        }
    }
}

#[test]
fn words_at_their_limits() {
    // Equal magnitudes everywhere bring every sum to its bound.
    let sizes = Attention { scale: 1e-3, ..Attention::dense(1, 1, 40, 50, 200) };
    let signs = |len: usize, period: usize| -> Vec<f32> {
        (0..len).map(|i| if (i / period).is_multiple_of(2) { 1.0 } else { -1.0 }).collect()
    };
    for (q, k, v) in [(40, 40, 40), (1, 1, 40), (2000, 40, 1), (40, 2560, 2560)] {
        let (q, k, v) = (signs(2000, q), signs(8000, k), signs(8000, v));
        let expected = expected(&sizes, &q, &k, &v);
        for &isa in Isa::available() {
            let mut output = vec![f32::NAN; expected.len()];
            sizes.apply_in_words(isa, &q, &k, &v, &mut output);
            assert_close(&output, &expected, 2e-3, format_args!("{isa}"));
            output.fill(f32::NAN);
            sizes.apply_in_words_and_bytes(isa, &q, &k, &v, &mut output);
            assert_close(&output, &expected, 2e-3, format_args!("{isa}"));
        }
    }
    // Scores of any size.
    let sizes = Attention { scale: 1.0, ..Attention::dense(1, 1, 2, 30, 200) };
    for magnitude in [1e-25f32, 1e4, 1e15] {
        let q: Vec<f32> = (0..60).map(|i| if i % 4 < 2 { magnitude } else { -magnitude }).collect();
        let k: Vec<f32> = (0..400).map(|i| (i / 2) as f32 * magnitude / 200.0).collect();
        let v: Vec<f32> = (0..400).map(|i| (i / 2) as f32).collect();
        for &isa in Isa::available() {
            let mut output = vec![f32::NAN; 60];
            sizes.apply_in_words(isa, &q, &k, &v, &mut output);
            for (row, output) in output.chunks_exact(2).enumerate() {
                let chosen = if magnitude < 1.0 { 99.5 } else { [199.0, 0.0][row % 2] };
                assert!(
                    output.iter().all(|y: &f32| (y - chosen).abs() < 0.1),
                    "{isa} {magnitude} {output:?}"
                );
            }
        }
    }
}

#[test]
fn words_pass_on_what_is_not_finite() {
    let sizes = Attention::dense(1, 1, 6, 70, 130);
    let (q, kv) = (70 * 6, 130 * 6);
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for &isa in Isa::available() {
            for in_bytes in [false, true] {
                let run = |place: usize| {
                    let [mut q, mut k, mut v] = [vec![0.5; q], vec![0.25; kv], vec![0.75; kv]];
                    [&mut q, &mut k, &mut v][place][6 * 65 + 2] = fault;
                    let mut output = vec![f32::NAN; q.len()];
                    if in_bytes {
                        sizes.apply_in_words_and_bytes(isa, &q, &k, &v, &mut output);
                    } else {
                        sizes.apply_in_words(isa, &q, &k, &v, &mut output);
                    }
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
}
