//! Which instruction sets the processor has, under printable names, and which one computes; the sets are in `sets`.

use std::fmt;
use std::sync::OnceLock;

use super::bf16_product::Bf16Kernel;
use super::byte_product::ByteKernel;
use super::sets::{Properties, Set};
use super::simd::Kernel;
use super::word_product::WordKernel;

/// The environment variable that holds the kernels down to a set of this name; see [`Isa::chosen`].
pub const VARIABLE: &str = "POCHADE_KERNEL";

/// An instruction set that this processor has been found to have: a kernel given one may use it unasked.
#[derive(Clone, Copy)]
pub struct Isa(Set);

/// A name under which this processor has no instruction set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSuchKernel {
    name: String,
    /// Whether another processor of this architecture could have it.
    exists: bool,
}

impl Isa {
    /// The fastest set of this processor.
    pub fn best() -> Self {
        *Self::available().last().expect("the baseline is always there")
    }

    /// The set that is to compute: the one that [`VARIABLE`] names, or the fastest if it is unset or empty.
    ///
    /// # Errors
    /// When it names none that this processor has.
    pub fn chosen() -> Result<Self, NoSuchKernel> {
        Self::asked().map_or_else(|| Ok(Self::best()), |name| Self::named(&name))
    }

    /// What [`VARIABLE`] names. Nothing else reads it: kernels are handed their set.
    pub fn asked() -> Option<String> {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty())?;
        Some(name.to_string_lossy().into_owned())
    }

    /// The set of this name, long (`x86_64-avx2`) or short (`avx2`), in letters of any case.
    ///
    /// # Errors
    /// When this processor has no such set.
    pub fn named(name: &str) -> Result<Self, NoSuchKernel> {
        let fits = |full: &str| full.eq_ignore_ascii_case(name) || short(full).eq_ignore_ascii_case(name);
        Self::available().iter().copied().find(|isa| fits(isa.name())).ok_or_else(|| NoSuchKernel {
            name: name.to_owned(),
            exists: Set::NAMES.iter().any(|full| fits(full)),
        })
    }

    /// All sets of this processor, slowest first; detected once.
    pub fn available() -> &'static [Self] {
        static DETECTED: OnceLock<Vec<Isa>> = OnceLock::new();
        DETECTED.get_or_init(|| Set::detect().into_iter().map(Self).collect())
    }

    /// The name that reports print, such as `x86_64-avx512vnni`.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The name without the architecture, such as `avx512vnni`.
    pub fn short_name(self) -> &'static str {
        short(self.name())
    }

    /// Whether products of 16-bit integers take half the time of f32's.
    pub fn multiplies_words_fast(self) -> bool {
        self.word_rate() >= 2.0
    }

    /// Whether products of bfloat16 take half the time of f32's.
    pub fn multiplies_bf16_fast(self) -> bool {
        self.bf16_rate() >= 2.0
    }

    /// Whether 3x3 convolutions by Winograd's algorithm, which takes a fourth of the products, but of 16-bit integers,
    /// take less time than products of bytes.
    pub fn convolves_in_words(self) -> bool {
        self.multiplies_words_fast() && 4.0 * self.word_rate() > self.byte_rate()
    }

    /// Whether products of bytes in the place of words take half of their time.
    pub fn multiplies_words_and_bytes(self) -> bool {
        self.properties().words_and_bytes
    }

    /// Products of 16-bit integers in the time of one of f32, at the most.
    pub fn word_rate(self) -> f64 {
        self.properties().word_rate
    }

    /// Products of bfloat16 in the time of one of f32, at the most.
    pub fn bf16_rate(self) -> f64 {
        self.properties().bf16_rate
    }

    /// Products of bytes in the time of one of f32, at the most.
    pub fn byte_rate(self) -> f64 {
        self.properties().byte_rate
    }

    /// Runs `kernel` compiled for this set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        self.0.run(kernel)
    }

    /// Runs `kernel` compiled for this set.
    pub(super) fn run_bytes<K: ByteKernel>(self, kernel: K) -> K::Output {
        self.0.run_bytes(kernel)
    }

    /// Runs `kernel` compiled for this set.
    pub(super) fn run_bf16<K: Bf16Kernel>(self, kernel: K) -> K::Output {
        self.0.run_bf16(kernel)
    }

    /// Runs `kernel` compiled for this set.
    pub(super) fn run_words<K: WordKernel>(self, kernel: K) -> K::Output {
        self.0.run_words(kernel)
    }

    pub(super) fn properties(self) -> Properties {
        self.0.properties()
    }
}

/// A set's name without the architecture.
fn short(name: &str) -> &str {
    name.split_once('-').map_or(name, |(_, short)| short)
}

impl PartialEq for Isa {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Isa {}

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

impl fmt::Display for NoSuchKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, exists } = self;
        let names: Vec<_> = Isa::available().iter().map(|isa| isa.short_name()).collect();
        let names = names.join(", ");
        if *exists {
            write!(f, "this processor can't run kernel '{name}'; it has {names}")
        } else {
            write!(f, "there is no kernel '{name}'; this processor has {names}")
        }
    }
}

impl std::error::Error for NoSuchKernel {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_long_and_short() {
        for names in [Set::NAMES.to_vec(), Set::NAMES.iter().map(|name| short(name)).collect()] {
            for (i, name) in names.iter().enumerate() {
                assert!(!names[..i].contains(name), "two sets are called {name}");
            }
        }
    }

    #[test]
    fn a_set_is_found_by_either_name_in_any_case() {
        for &isa in Isa::available() {
            for name in [isa.name().to_owned(), isa.short_name().to_owned(), isa.name().to_uppercase()] {
                assert_eq!(Isa::named(&name), Ok(isa));
            }
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_there_is() {
        let unknown = Isa::named("avx3").unwrap_err().to_string();
        assert!(unknown.starts_with("there is no kernel 'avx3'; this processor has "), "{unknown}");
        assert!(unknown.contains("scalar"), "{unknown}");
        let elsewhere = NoSuchKernel { name: "avx512".to_owned(), exists: true }.to_string();
        assert!(elsewhere.starts_with("this processor can't run kernel 'avx512'; it has "), "{elsewhere}");
        // Even in tests, where sets of no processor are listed, the best is one of its own.
        assert!(!Isa::best().name().starts_with("model"));
    }
}
