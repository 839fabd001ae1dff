//! x
pub mod convert;
