//! f32 matrix products that others are measured by: candle's, which is the `gemm` crate's, and the kernels' own.

use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};

use crate::kernels::{Epilogue, Gather, Isa, PackedF32};

const SIDE: usize = 1024;
const WARM_UP: usize = 5;
const RUNS: usize = 25;

/// 10^9 multiply-accumulates of one product.
pub const GMAC: f64 = (SIDE * SIDE * SIDE) as f64 / 1e9;

/// Seconds of each of several products of two square matrices on all threads.
pub struct Runs {
    pub candle: Vec<f64>,
    pub kernels: Vec<f64>,
}

/// Multiplies matrices that are gone afterwards: they are no part of what a model takes.
pub fn run(isa: Isa) -> Result<Runs> {
    let matrix = || Tensor::rand(-1f32, 1.0, (SIDE, SIDE), &Device::Cpu);
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let (a, b) = (matrix()?, matrix()?);
    let candle = timed(|| {
        a.matmul(&b)?;
        Ok(())
    })?;
    let (rows, packed) = (values(&a)?, PackedF32::pack(&values(&b)?, SIDE, 1, SIDE, isa));
    let (gather, mut output) = (Gather::identity(SIDE), vec![0.0; SIDE * SIDE]);
    let kernels = timed(|| {
        packed.apply(&rows, &gather, &Epilogue::default(), &mut output);
        Ok(())
    })?;
    Ok(Runs { candle, kernels })
}

/// Seconds of each run of `product`, the first few of which don't count.
fn timed(mut product: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..WARM_UP {
        product()?;
    }
    (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            product()?;
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}
