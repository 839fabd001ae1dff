//! Causal attention against softmax by its definition.

use super::comparison::assert_close;
use super::plain::{Random, on_threads};
use crate::kernels::{Attention, Isa};

fn expected(sizes: &Attention, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let Attention { batch, heads, head_dim, q_len: len, .. } = *sizes;
    let mut output = Vec::new();
    for (item, row, head) in
        (0..batch).flat_map(|b| (0..len).flat_map(move |r| (0..heads).map(move |h| (b, r, h))))
    {
        let part = |values: &[f32], row: usize, stride: usize| -> Vec<f64> {
            let values = &values[(item * len + row) * stride + head * head_dim..][..head_dim];
            values.iter().map(|&x| x as f64).collect()
        };
        let q = part(q, row, sizes.q_stride);
        let scores: Vec<f64> = (0..=row)
            .map(|key| part(k, key, sizes.k_stride).iter().zip(&q).map(|(k, q)| k * q).sum::<f64>())
            .map(|score| score * sizes.scale as f64)
            .collect();
        let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let values: Vec<Vec<f64>> = (0..=row).map(|key| part(v, key, sizes.v_stride)).collect();
        output.extend((0..head_dim).map(|d| {
            let sum: f64 = weights.iter().zip(&values).map(|(weight, value)| weight * value[d]).sum();
            sum / total
        }));
    }
    output
}

#[test]
fn no_token_sees_a_later_one() {
    let mut random = Random::new(50);
    for (batch, heads, head_dim, len) in
        [(1, 1, 1, 1), (1, 2, 5, 2), (2, 3, 8, 7), (1, 1, 13, 33), (2, 12, 64, 77)]
    {
        // Queries, keys and values share rows, with something between them.
        let width = heads * head_dim;
        let stride = 3 * width + 1;
        let sizes = Attention {
            q_stride: stride,
            k_stride: stride,
            v_stride: stride,
            ..Attention::dense(batch, heads, head_dim, len, len)
        };
        let rows = random.floats(batch * len * stride);
        // Nearly uniform and nearly one-hot.
        for factor in [1.0, 60.0] {
            let mut rows = rows.clone();
            for row in rows.chunks_exact_mut(stride) {
                row[..width].iter_mut().for_each(|q| *q *= factor);
            }
            let (q, k, v) = (&rows[..], &rows[width..], &rows[2 * width..]);
            let expected = expected(&sizes, q, k, v);
            for &isa in Isa::available() {
                let mut output = vec![f32::NAN; expected.len()];
                sizes.apply_causal(isa, [q, k, v], &mut output);
                let allowed = if factor == 1.0 { 2e-6 } else { 2e-4 };
                assert_close(&output, &expected, allowed, format_args!("{isa} {sizes:?} x {factor}"));
            }
        }
    }
}

#[test]
fn a_later_key_however_large_changes_nothing() {
    let sizes = Attention::dense(1, 1, 8, 3, 3);
    let (q, mut k) = (vec![1.0; 24], vec![0.5; 24]);
    let v: Vec<f32> = (0..24).map(|i| i as f32).collect();
    k[16..].fill(1e30);
    for &isa in Isa::available() {
        let mut output = vec![f32::NAN; 24];
        sizes.apply_causal(isa, [&q, &k, &v], &mut output);
        assert_eq!(output[..8], v[..8], "{isa}");
        assert!(output[8..16].iter().zip(&v[4..]).all(|(y, x)| (y - x).abs() < 1e-5), "{isa} {output:?}");
        assert_eq!(output[16..], v[16..], "{isa}");
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(51);
    let sizes = Attention::dense(2, 3, 40, 77, 77);
    let [q, k, v] = std::array::from_fn(|_| random.floats(2 * 77 * 120));
    let run = || {
        let mut output = vec![f32::NAN; q.len()];
        sizes.apply_causal(Isa::best(), [&q, &k, &v], &mut output);
        output
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}
