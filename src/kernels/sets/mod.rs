//! The instruction sets: each in its file, all in one list; what a set has to offer is in `simd` and `byte_product`.
//!
//! A new set is a file here and its line in the list. Whatever it forgets is a compile error.

mod plain;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod dotprod;
#[cfg(target_arch = "aarch64")]
mod i8mm;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod sse2;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(any(test, target_arch = "x86_64"))]
mod tiled;

#[cfg(test)]
mod smmla_model;
#[cfg(test)]
mod tiles_model;

use super::bf16_product::{self, Bf16Kernel, Bf16Product};
use super::blocking::Tiling;
use super::byte_product::{self, ByteKernel, ByteProduct};
use super::quantized_rows::RowLayout;
use super::simd::{self, Kernel, MAX_LANES, Simd};
use super::tile;
use super::token::Token;
use super::word_product::{self, WordKernel, WordProduct};

sets! {
    // Slowest first: a processor's best is the last that it has.
    #[cfg(test)]
    TilesModel: "model-tiles" = tiles_model::TilesModel;
    #[cfg(test)]
    SmmlaModel: "model-smmla" = smmla_model::SmmlaModel;
    Scalar: "scalar" = plain::Plain<scalar::Scalar>;
    #[cfg(target_arch = "aarch64")]
    Neon: "aarch64-neon" = neon::Neon;
    #[cfg(target_arch = "aarch64")]
    DotProd: "aarch64-dotprod" = dotprod::DotProd;
    #[cfg(target_arch = "aarch64")]
    I8mm: "aarch64-i8mm" = i8mm::I8mm;
    #[cfg(target_arch = "x86_64")]
    Sse2: "x86_64-sse2" = sse2::Sse2;
    #[cfg(target_arch = "x86_64")]
    Avx2: "x86_64-avx2" = avx2::Avx2;
    #[cfg(target_arch = "x86_64")]
    AvxVnni: "x86_64-avxvnni" = avx2::AvxVnni;
    #[cfg(target_arch = "x86_64")]
    Avx512: "x86_64-avx512" = avx512::Avx512;
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni: "x86_64-avx512vnni" = avx512::Avx512Vnni;
    #[cfg(target_arch = "x86_64")]
    Amx: "x86_64-amx" = amx::Amx;
}

/// The enum of all sets of this architecture, each variant with the token that proves its instructions.
macro_rules! sets {
    ($($(#[$attribute:meta])* $name:ident: $text:literal = $token:ty;)+) => {
        /// An instruction set that the processor has.
        #[derive(Clone, Copy)]
        pub(super) enum Set {
            $($(#[$attribute])* $name($token),)+
        }

        impl Set {
            /// The names of all sets of this architecture.
            pub const NAMES: &'static [&'static str] = &[$($(#[$attribute])* $text),+];

            /// What the processor has, slowest first.
            pub fn detect() -> Vec<Self> {
                let mut found = Vec::new();
                $($(#[$attribute])* found.extend(<$token>::detect().map(Self::$name));)+
                found
            }

            /// The name that reports print: the architecture, if it is for one, and what is special.
            pub fn name(self) -> &'static str {
                match self {
                    $($(#[$attribute])* Self::$name(_) => $text,)+
                }
            }

            pub fn properties(self) -> Properties {
                match self {
                    $($(#[$attribute])* Self::$name(_) => Properties::of::<$token>(),)+
                }
            }

            /// Runs `kernel` compiled for this set's f32 vectors.
            pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
                match self {
                    $($(#[$attribute])* Self::$name(token) => simd::vectorize(ByteProduct::simd(token), kernel),)+
                }
            }

            /// Runs `kernel` compiled for this set's products of bytes.
            pub fn run_bytes<K: ByteKernel>(self, kernel: K) -> K::Output {
                match self {
                    $($(#[$attribute])* Self::$name(token) => byte_product::vectorize(token, kernel),)+
                }
            }

            /// Runs `kernel` compiled for this set's products of bfloat16.
            pub fn run_bf16<K: Bf16Kernel>(self, kernel: K) -> K::Output {
                match self {
                    $($(#[$attribute])* Self::$name(token) => bf16_product::vectorize(token.bf16(), kernel),)+
                }
            }

            /// Runs `kernel` compiled for this set's products of words.
            pub fn run_words<K: WordKernel>(self, kernel: K) -> K::Output {
                match self {
                    $($(#[$attribute])* Self::$name(token) => word_product::vectorize(token.words(), kernel),)+
                }
            }
        }

        $($(#[$attribute])* const _: () = check::<$token>();)+
    };
}
use sets;

/// What memory is laid out by before a set computes.
#[derive(Clone, Copy)]
pub(super) struct Properties {
    /// The tiles of f32 products.
    pub tiling: Tiling,
    /// Rows and columns of attention's tile.
    pub attention_tile: (usize, usize),
    /// The tiles of products of bytes.
    pub byte_tiling: Tiling,
    /// How rows of bytes lie in memory.
    pub rows: RowLayout,
    /// Rows and columns of the tile of attention by products of bfloat16.
    pub bf16_attention_tile: (usize, usize),
    /// See [`Bf16Product::RATE`].
    pub bf16_rate: f64,
    /// See [`ByteProduct::MAY_SATURATE`].
    pub may_saturate: bool,
    /// See [`ByteProduct::RATE`].
    pub byte_rate: f64,
    /// See [`WordProduct::MULTIPLIES_BYTES`].
    pub words_and_bytes: bool,
    /// See [`WordProduct::RATE`].
    pub word_rate: f64,
}

impl Properties {
    const fn of<B: ByteProduct>() -> Self {
        let lanes = B::Simd::LANES;
        let (rows, vectors) = B::Simd::ATTENTION_TILE;
        let (bf16_rows, bf16_vectors) = B::Bf16::ATTENTION_TILE;
        Self {
            tiling: Tiling { lanes, tiles: B::Simd::TILES },
            attention_tile: (rows, vectors * lanes),
            byte_tiling: Tiling { lanes, tiles: B::TILES },
            rows: B::ROWS,
            bf16_attention_tile: (bf16_rows, bf16_vectors * lanes),
            bf16_rate: B::Bf16::RATE,
            may_saturate: B::MAY_SATURATE,
            byte_rate: B::RATE,
            words_and_bytes: B::Words::MULTIPLIES_BYTES,
            word_rate: B::Words::RATE,
        }
    }
}

/// Fails to compile for a set that can't do every product.
const fn check<B: ByteProduct>() {
    assert!(B::Simd::LANES <= MAX_LANES, "MAX_LANES is that of the widest set");
    assert!(tile::suffice(B::TILES) && tile::suffice(B::Simd::TILES), "gated products take an even tile");
}

/// A token of these features, which `$detected` finds, and of those of the token it holds, all to be named.
macro_rules! feature_token {
    ($detected:ident: $(#[$doc:meta])* $name:ident($base:ty): $($feature:tt),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name($base);

        // SAFETY: `detect` is the only constructor, and looks for what `compiled` enables.
        unsafe impl Token for $name {
            fn detect() -> Option<Self> {
                let found = $($detected!($feature))&&+;
                <$base>::detect().filter(|_| found).map(Self)
            }

            #[inline]
            fn compiled<W: Work>(self, work: W) -> W::Output {
                $(#[target_feature(enable = $feature)])+
                fn compiled<W: Work>(work: W) -> W::Output {
                    work.run()
                }
                // SAFETY: a token exists only where its instructions do.
                unsafe { compiled(work) }
            }
        }
    };
}

/// Methods of vectors whose bodies are intrinsics of the set whose token `self` is.
macro_rules! intrinsics {
    ($($name:ident($($arg:ident),*) = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: Self::F),*) -> Self::F {
            // SAFETY: a token exists only where its instructions do.
            unsafe { $body }
        })*
    };
}
use {feature_token, intrinsics};
