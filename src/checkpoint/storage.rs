//! In which types a model is written, and what of it with how many bits; writing is elsewhere.

use crate::quantize::{Balance, Bits, Policy};
use crate::request::Precision;

/// In which type floats are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
}

/// In which types a model is written.
#[derive(Debug, Clone, Copy)]
pub enum Storage<'a> {
    Float(FloatType),
    /// int8 with a scale per output channel, or four bits with one per group, where the policy says so, else f16.
    Int8(&'a Policy),
    /// The same with columns' factors where the balance has some.
    Balanced(&'a Policy, &'a Balance),
}

impl Storage<'_> {
    pub(super) fn precision(self) -> Precision {
        match self {
            Self::Float(FloatType::F32) => Precision::F32,
            Self::Float(FloatType::F16) => Precision::F16,
            Self::Int8(_) | Self::Balanced(..) => Precision::Int8,
        }
    }

    pub(super) fn floats(self) -> FloatType {
        match self {
            Self::Float(floats) => floats,
            Self::Int8(_) | Self::Balanced(..) => FloatType::F16,
        }
    }

    pub(super) fn policy(&self) -> Option<&Policy> {
        match self {
            Self::Float(_) => None,
            Self::Int8(policy) | Self::Balanced(policy, _) => Some(policy),
        }
    }

    /// How many bits a tensor of floats is written with.
    pub fn bits(self, name: &str, shape: &[usize]) -> Bits {
        self.rounding(name).map_or(Bits::Sixteen, |policy| policy.stored_bits(name, shape))
    }

    /// How many bits a tensor of bytes is written with.
    pub(super) fn bits_of_bytes(self, name: &str, shape: &[usize]) -> Bits {
        self.rounding(name).map_or(Bits::Sixteen, |policy| policy.stored_bits_of_bytes(name, shape))
    }

    /// What decides on the bits of the tensor called `name`, unless its outliers do.
    fn rounding(&self, name: &str) -> Option<&Policy> {
        match self {
            Self::Balanced(_, balance) if balance.keeps(name) => None,
            storage => storage.policy(),
        }
    }

    /// The factors of the columns of a tensor that is rounded.
    pub(super) fn columns(&self, name: &str) -> Option<&[f32]> {
        match self {
            Self::Float(_) | Self::Int8(_) => None,
            Self::Balanced(_, balance) => balance.columns(name),
        }
    }
}
