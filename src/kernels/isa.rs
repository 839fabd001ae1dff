//! Which instruction sets the processor has, under printable names, and the entry into code compiled for one; the vectors themselves are in `simd`.

use std::fmt;
use std::sync::OnceLock;

use super::dot::plain::Plain;
#[cfg(target_arch = "x86_64")]
use super::dot::x86::{DotAvx2, DotAvx512, DotAvx512Vnni, DotAvxVnni, DotSse2};
use super::dot::{Dot, DotKernel};
#[cfg(target_arch = "aarch64")]
use super::simd::neon::Neon;
use super::simd::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::simd::x86::{Avx2, Avx512, Sse2};
use super::simd::{Kernel, Simd};

/// An instruction set that this processor has been found to have.
///
/// Values come only from [`Isa::best`] and [`Isa::available`], so a kernel given one may use it unasked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(pub(super) Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Scalar,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "x86_64")]
    Sse2,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 with 256-bit `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with 512-bit `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Isa {
    /// The fastest set of this processor.
    pub fn best() -> Self {
        *Self::available().last().expect("the baseline is always there")
    }

    /// All sets of this processor, slowest first; detected once.
    pub fn available() -> &'static [Self] {
        static DETECTED: OnceLock<Vec<Isa>> = OnceLock::new();
        DETECTED.get_or_init(detect)
    }

    /// The name that reports print, such as `x86_64-avx512vnni`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "aarch64-neon",
            #[cfg(target_arch = "x86_64")]
            Kind::Sse2 => "x86_64-sse2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "x86_64-avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "x86_64-avxvnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "x86_64-avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "x86_64-avx512vnni",
        }
    }

    /// Runs `kernel` compiled for this set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Scalar => Scalar::new().vectorize(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => Neon::new().vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Sse2 => Sse2::new().vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni => Avx2::new().expect("detected").vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Avx512Vnni => Avx512::new().expect("detected").vectorize(kernel),
        }
    }

    /// Runs `kernel` compiled for this set.
    pub(super) fn run_dot<K: DotKernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Scalar => Plain(Scalar::new()).vectorize(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => Plain(Neon::new()).vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Sse2 => DotSse2::new().vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => DotAvx2::new().expect("detected").vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => DotAvxVnni::new().expect("detected").vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => DotAvx512::new().expect("detected").vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => DotAvx512Vnni::new().expect("detected").vectorize(kernel),
        }
    }

    /// Whether integer products sum pairs in 16 bits, as `vpmaddubsw` does, where large weights would saturate.
    pub fn may_saturate(self) -> bool {
        struct MaySaturate;
        impl DotKernel for MaySaturate {
            type Output = bool;
            #[inline(always)]
            fn run<D: Dot>(self, _: D) -> bool {
                D::MAY_SATURATE
            }
        }
        self.run_dot(MaySaturate)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Vec<Isa> {
    let mut sets = vec![Isa(Kind::Scalar), Isa(Kind::Sse2)];
    if Avx2::new().is_some() {
        sets.push(Isa(Kind::Avx2));
        if DotAvxVnni::new().is_some() {
            sets.push(Isa(Kind::AvxVnni));
        }
        if Avx512::new().is_some() {
            sets.push(Isa(Kind::Avx512));
            if DotAvx512Vnni::new().is_some() {
                sets.push(Isa(Kind::Avx512Vnni));
            }
        }
    }
    sets
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Vec<Isa> {
    vec![Isa(Kind::Scalar), Isa(Kind::Neon)]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Vec<Isa> {
    vec![Isa(Kind::Scalar)]
}
