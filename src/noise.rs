//! Seeded normal noise equal to PyTorch's, on the CPU or as on CUDA; scaling it is the samplers' business.

use std::f32::consts::TAU;

use anyhow::Result;
use candle_core::{Device, Tensor};

use crate::named_enum::named_enum;

named_enum!(
    /// Whose random numbers the noise equals.
    Rng, "rng", {
        /// PyTorch on the CPU, as diffusers uses it.
        Torch = "torch",
        /// PyTorch on CUDA, as AUTOMATIC1111 uses it.
        Philox = "philox",
    }
);

/// Draws tensors of independent standard normal numbers, one after the other, from one seed.
pub struct NoiseSource {
    generator: Generator,
}

enum Generator {
    Torch { words: Box<MersenneTwister>, cached: Option<f64> },
    Philox { seed: u64, draw: u32 },
}

impl NoiseSource {
    /// Starts at the first draw. The torch generator sees only the low 32 bits of `seed`, as in PyTorch.
    pub fn new(rng: Rng, seed: u64) -> Self {
        let generator = match rng {
            Rng::Torch => {
                Generator::Torch { words: Box::new(MersenneTwister::new(seed as u32)), cached: None }
            }
            Rng::Philox => Generator::Philox { seed, draw: 0 },
        };
        Self { generator }
    }

    /// The next f32 tensor of `shape`; each call continues where the last one ended.
    ///
    /// # Errors
    /// When the device refuses the tensor.
    pub fn normal(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let count = shape.iter().product();
        let values = match &mut self.generator {
            Generator::Torch { words, .. } if count >= TORCH_BLOCK => torch_blocks(words, count),
            Generator::Torch { words, cached } => {
                (0..count).map(|_| torch_single(words, cached) as f32).collect()
            }
            Generator::Philox { seed, draw } => {
                let values = (0..count).map(|index| philox_normal(*seed, *draw, index as u32)).collect();
                *draw = draw.wrapping_add(1);
                values
            }
        };
        Ok(Tensor::from_vec(values, shape, device)?)
    }
}

/// PyTorch fills tensors of at least this many numbers block by block, shorter ones number by number.
const TORCH_BLOCK: usize = 16;

/// PyTorch's `normal_fill`: uniform numbers first, then the Box-Muller transform within each block.
fn torch_blocks(words: &mut MersenneTwister, count: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..count).map(|_| words.uniform_f32()).collect();
    let (blocks, rest) = values.as_chunks_mut::<TORCH_BLOCK>();
    blocks.iter_mut().for_each(box_muller_block);
    if !rest.is_empty() {
        // The incomplete block is made whole by drawing the last 16 numbers of the tensor again.
        let mut last = std::array::from_fn(|_| words.uniform_f32());
        box_muller_block(&mut last);
        values[count - TORCH_BLOCK..].copy_from_slice(&last);
    }
    values
}

/// Box & Muller 1958 on 16 numbers of [0, 1): radii from the first half, angles from the second.
fn box_muller_block(block: &mut [f32; TORCH_BLOCK]) {
    let (first, second) = block.split_at_mut(TORCH_BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let (sin, cos) = (TAU * *b).sin_cos();
        (*a, *b) = (radius * cos, radius * sin);
    }
}

/// PyTorch's `normal_distribution<double>`: every second number is the sine half of the pair before.
fn torch_single(words: &mut MersenneTwister, cached: &mut Option<f64>) -> f64 {
    if let Some(value) = cached.take() {
        return value;
    }
    let (a, b) = (words.uniform_f64(), words.uniform_f64());
    let radius = (-2.0 * (-b).ln_1p()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * a).sin_cos();
    *cached = Some(radius * sin);
    radius * cos
}

/// MT19937 (Matsumoto & Nishimura 1998), seeded as in their `init_genrand`.
struct MersenneTwister {
    state: [u32; Self::N],
    next: usize,
}

impl MersenneTwister {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let last = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: Self::N }
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    fn word(&mut self) -> u32 {
        if self.next == Self::N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// 24 random bits, in [0, 1).
    fn uniform_f32(&mut self) -> f32 {
        (self.word() & 0xff_ffff) as f32 / (1 << 24) as f32
    }

    /// 53 random bits, in [0, 1).
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.word()), u64::from(self.word()));
        let bits = (high << 32 | low) & ((1 << 53) - 1);
        bits as f64 / (1_u64 << 53) as f64
    }
}

/// The number of `index` in the draw numbered `draw`, as cuRAND and AUTOMATIC1111's `rng_philox.py` make it:
/// the sine half of Box-Muller on the first two words, each moved to the middle of its interval.
fn philox_normal(seed: u64, draw: u32, index: u32) -> f32 {
    // cuRAND's constants have single precision; with exact ones the last digits would differ.
    const STEP: f64 = 2.328_306_4e-10_f32 as f64;
    const STEP_TAU: f64 = (2.328_306_4e-10 * 6.283_185_5) as f32 as f64;
    let [a, b, ..] = philox4x32_10([draw, 0, index, 0], [seed as u32, (seed >> 32) as u32]);
    let u = f64::from(a) * STEP + STEP / 2.0;
    let v = f64::from(b) * STEP_TAU + STEP_TAU / 2.0;
    ((-2.0 * u.ln()).sqrt() * v.sin()) as f32
}

/// Philox4x32 with ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let multiply = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let (high_0, low_0) = multiply(0xd251_1f53, counter[0]);
        let (high_1, low_1) = multiply(0xcd9e_8d57, counter[2]);
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}
