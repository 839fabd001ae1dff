//! Blocked attention in f32 against softmax by its definition.

use super::comparison::assert_close;
use super::plain::{Random, on_threads};
use crate::kernels::{Attention, Isa, Products};

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
                sizes.apply(isa, Products::Floats, [&q, &k, &v], &mut output);
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
        sizes.apply(isa, Products::Floats, [q, k, v], &mut output);
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
            sizes.apply(isa, Products::Floats, [&q, &k, &v], &mut output);
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
        sizes.apply(isa, Products::Floats, [&[0.0; 80], &[0.0; 1600], &v], &mut output);
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
        sizes.apply(Isa::best(), Products::Floats, [&q, &k, &v], &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}
