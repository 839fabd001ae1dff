//! The definitions the kernels are tested against, written for clarity, most in f64, and seeded random operands.

use crate::kernels::simd::{Kernel, Simd};
use crate::kernels::{Conv2d, Isa, math};

/// Splitmix64 (Steele, Lea and Flood 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }

    /// Uniform in `low..=high`.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        low + self.bits() as usize % (high - low + 1)
    }
}

/// Copies input pixels under each tap side by side: `[out rows][taps][depth]`, zeros for padding.
pub fn im2col<T: Copy + Default>(conv: &Conv2d, input: &[T], depth: usize) -> Vec<T> {
    let (out_height, out_width) = conv.output_size();
    let (full_height, full_width) = conv.seen_size();
    let mut columns = Vec::new();
    for image in 0..conv.batch {
        for y in 0..out_height {
            for x in 0..out_width {
                for ky in 0..conv.kernel {
                    for kx in 0..conv.kernel {
                        let in_y = (y * conv.stride + ky).checked_sub(conv.padding.top);
                        let in_x = (x * conv.stride + kx).checked_sub(conv.padding.left);
                        match (in_y, in_x) {
                            (Some(in_y), Some(in_x)) if in_y < full_height && in_x < full_width => {
                                let in_y = in_y * conv.height / full_height;
                                let in_x = in_x * conv.width / full_width;
                                let pixel = (image * conv.height + in_y) * conv.width + in_x;
                                columns.extend_from_slice(&input[pixel * depth..][..depth]);
                            }
                            _ => columns.extend(std::iter::repeat_n(T::default(), depth)),
                        }
                    }
                }
            }
        }
    }
    columns
}

/// `a` `[rows][depth]` times `b` `[out][depth]` transposed.
pub fn product(a: &[f32], b: &[f32], depth: usize) -> Vec<f64> {
    let mut sums = Vec::new();
    for a in a.chunks_exact(depth) {
        for b in b.chunks_exact(depth) {
            sums.push(a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum());
        }
    }
    sums
}

/// Runs `work` in a pool of `threads`.
pub fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// x (1 + erf(x / sqrt 2)) / 2, with erf(z) = e^(-z^2) sum of 2^n z^(2n+1) / (2n+1)!!.
pub fn gelu(x: f64) -> f64 {
    let z = x * std::f64::consts::FRAC_1_SQRT_2;
    if z.abs() > 6.0 {
        return x.max(0.0);
    }
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= 2.0 * z * z / (2 * n + 1) as f64;
        sum += term;
    }
    0.5 * x * (1.0 + sum * (-z * z).exp() * std::f64::consts::FRAC_2_SQRT_PI)
}

/// `value * gelu(gate)` for rows `[value | gate]` of twice `width`, with the set's own GELU: what a gated product
/// gives to the bit.
pub fn geglu(isa: Isa, input: &[f32], width: usize) -> Vec<f32> {
    struct Geglu<'a>(&'a [f32], usize);
    impl Kernel for Geglu<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let mut output = Vec::new();
            for row in self.0.chunks_exact(2 * self.1) {
                for (value, &gate) in row.iter().zip(&row[self.1..]) {
                    output.push(value * simd.lanes(math::gelu(simd, simd.splat(gate)))[0]);
                }
            }
            output
        }
    }
    isa.run(Geglu(input, width))
}

/// Signal-to-error of `output` in dB.
pub fn signal_to_error(output: &[f32], expected: &[f64]) -> f64 {
    let signal: f64 = expected.iter().map(|x| x * x).sum();
    let error: f64 = output.iter().zip(expected).map(|(&y, x)| (y as f64 - x).powi(2)).sum();
    10.0 * (signal / error).log10()
}
