//! The rate every cost is measured by: an f32 matrix product of the `gemm` crate, through candle.

use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};

const SIDE: usize = 1024;
const WARM_UP: usize = 5;
const RUNS: usize = 25;

/// Two square matrices to multiply.
pub struct Yardstick {
    a: Tensor,
    b: Tensor,
}

impl Yardstick {
    /// 10^9 multiply-accumulates of one product.
    pub const GMAC: f64 = (SIDE * SIDE * SIDE) as f64 / 1e9;

    pub fn new() -> Result<Self> {
        let matrix = || Tensor::rand(-1f32, 1.0, (SIDE, SIDE), &Device::Cpu);
        Ok(Self { a: matrix()?, b: matrix()? })
    }

    /// Seconds of each of several products on all threads.
    pub fn run(&self) -> Result<Vec<f64>> {
        for _ in 0..WARM_UP {
            self.a.matmul(&self.b)?;
        }
        (0..RUNS)
            .map(|_| {
                let start = Instant::now();
                self.a.matmul(&self.b)?;
                Ok(start.elapsed().as_secs_f64())
            })
            .collect()
    }
}
