//! Elementary functions of f32 vectors, each with its formula and error; loops over memory are elsewhere.

use super::simd::Simd;

/// e^x for x clamped to [-87.3, 88.3], so never zero, infinite or subnormal; relative error below 2e-7.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's split, ln 2 = 355/512 - 2.12e-4), e^r by a minimax polynomial of
/// degree 6 (the coefficients of Cephes' `expf`), 2^n through the exponent bits.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    let x = simd.min(simd.max(x, simd.splat(-87.3)), simd.splat(88.3));
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.mul_add(n, simd.splat(-355.0 / 512.0), x);
    let r = simd.mul_add(n, simd.splat(2.121_944_4e-4), r);
    let mut p = simd.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = simd.mul_add(p, r, simd.splat(c));
    }
    let p = simd.mul_add(simd.mul(p, r), r, simd.add(r, simd.splat(1.0)));
    simd.mul(p, simd.pow2(n))
}

/// 2^x for x clamped to [-126, 127.4], so never zero, infinite or subnormal; relative error below 3e-7.
///
/// x = n + r with |r| <= 1/2, 2^r by a minimax polynomial of degree 6 (the coefficients of Cephes' `exp2f`),
/// 2^n through the exponent bits. One operation shorter than [`exp`] and as accurate.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::F) -> S::F {
    let (r, n) = simd.split(simd.min(simd.max(x, simd.splat(-126.0)), simd.splat(127.4)));
    let mut p = simd.splat(1.535_336_2e-4);
    for c in [1.339_887_5e-3, 9.618_437e-3, 5.550_332_6e-2, 2.402_264_8e-1, 6.931_472e-1] {
        p = simd.mul_add(p, r, simd.splat(c));
    }
    simd.scale_by_power(simd.mul_add(p, r, simd.splat(1.0)), n)
}

/// one * 2^x for x in [-126, 0], or below, which counts as -126; relative error below 4e-6, for results that are rounded
/// to 16 bits or less.
///
/// x = n + r with |r| <= 1/2 and 2^r by a polynomial of degree 4 whose relative error is least (fitted by Lawson's
/// algorithm), 2^n through the exponent bits.
#[inline(always)]
pub(super) fn exp2_of_few_bits<S: Simd>(simd: S, x: S::F, one: f32) -> S::F {
    const COEFFICIENTS: [f32; 4] = [0.055_917_863, 0.240_247_44, 0.693_121_8, 0.999_999_3];
    let (r, n) = simd.split(x);
    let mut p = simd.splat(0.009_570_102 * one);
    for c in COEFFICIENTS {
        p = simd.mul_add(p, r, simd.splat(c * one));
    }
    simd.scale_by_power(p, n)
}

/// x * sigmoid(x) = x / (1 + e^-x); relative error below 5e-7 where the result exceeds 1e-30 in magnitude.
#[inline(always)]
pub(super) fn silu<S: Simd>(simd: S, x: S::F) -> S::F {
    let negated = simd.sub(simd.splat(0.0), x);
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, negated)))
}

/// x * sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP (Hendrycks and Gimpel 2016); absolute error below
/// 4e-7 * max(1, |x|).
#[inline(always)]
pub(super) fn quick_gelu<S: Simd>(simd: S, x: S::F) -> S::F {
    let power = simd.mul(x, simd.splat(-1.702));
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, power)))
}

/// The exact GELU, x * (1 + erf(x / sqrt 2)) / 2; absolute error below 4e-7 * max(1, |x|).
///
/// erf(x / sqrt 2) / 2 is x P(x^2) / Q(x^2) for |x| <= 5.5, beyond which it is half of the sign: degrees 6 and 4, whose
/// greatest error is least (2e-8; fitted by Lawson's algorithm).
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::F) -> S::F {
    const END: f32 = 5.5;
    const NUMERATOR: [f32; 6] =
        [-2.208_222e-8, 3.241_072e-6, 1.703_759_3e-4, 4.509_179_4e-3, 3.592_244e-2, 3.989_421_4e-1];
    const DENOMINATOR: [f32; 4] = [1.830_656_4e-3, 2.909_162_8e-2, 2.567_087_8e-1, 1.0];
    let clamped = simd.min(simd.max(x, simd.splat(-END)), simd.splat(END));
    let square = simd.mul(clamped, clamped);
    let (mut p, mut q) = (simd.splat(1.117_562_6e-10), simd.splat(6.232_705e-5));
    for c in NUMERATOR {
        p = simd.mul_add(p, square, simd.splat(c));
    }
    for c in DENOMINATOR {
        q = simd.mul_add(q, square, simd.splat(c));
    }
    let half_erf = simd.div(simd.mul(clamped, p), q);
    simd.mul_add(x, half_erf, simd.mul(x, simd.splat(0.5)))
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::super::simd::Kernel;
    use super::*;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Exp2,
        Silu,
        Gelu,
        QuickGelu,
    }

    struct Apply(Function, f32);

    impl Kernel for Apply {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> f32 {
            let x = simd.splat(self.1);
            let y = match self.0 {
                Function::Exp => exp(simd, x),
                Function::Exp2 => exp2(simd, x),
                Function::Silu => silu(simd, x),
                Function::Gelu => gelu(simd, x),
                Function::QuickGelu => quick_gelu(simd, x),
            };
            simd.lanes(y)[S::LANES - 1]
        }
    }

    /// erf by its series of positive terms, e^(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!.
    fn erf(x: f64) -> f64 {
        if x.abs() > 6.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / (2 * n + 1) as f64;
            sum += term;
        }
        sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn errors_stay_below_those_stated() {
        for &isa in Isa::available() {
            for step in -8700..=8700 {
                let x = step as f32 * 0.01 + 0.003;
                let wide = x as f64;
                let (y, exact) = (isa.run(Apply(Function::Exp, x)) as f64, wide.exp());
                assert!((y - exact).abs() <= 2e-7 * exact, "{isa} exp({x}) = {y}");
                let (y, exact) = (isa.run(Apply(Function::Exp2, x)) as f64, wide.exp2());
                assert!((y - exact).abs() <= 3e-7 * exact, "{isa} exp2({x}) = {y}");
                let (y, exact) = (isa.run(Apply(Function::Silu, x)) as f64, wide / (1.0 + (-wide).exp()));
                assert!(
                    (y - exact).abs() <= 5e-7 * exact.abs() + 1e-30,
                    "{isa} silu({x}) = {y}, not {exact}"
                );
                let exact = 0.5 * wide * (1.0 + erf(wide * std::f64::consts::FRAC_1_SQRT_2));
                let y = isa.run(Apply(Function::Gelu, x)) as f64;
                assert!(
                    (y - exact).abs() <= 4e-7 * wide.abs().max(1.0),
                    "{isa} gelu({x}) = {y}, not {exact}"
                );
                let exact = wide / (1.0 + (-1.702 * wide).exp());
                let y = isa.run(Apply(Function::QuickGelu, x)) as f64;
                assert!(
                    (y - exact).abs() <= 4e-7 * wide.abs().max(1.0),
                    "{isa} quick_gelu({x}) = {y}, not {exact}"
                );
            }
        }
    }
}
