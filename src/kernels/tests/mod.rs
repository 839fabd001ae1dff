//! Every kernel agrees with its definition on every instruction set of this machine and on any number of threads.
//!
//! `cargo test --release --lib kernels`

mod attention;
mod causal_attention;
#[allow(dead_code, reason = "the tests of networks and pictures share it")]
#[path = "../../../tests/support/comparison.rs"]
mod comparison;
mod integer_products;
mod plain;
mod products;
mod rounded_attention;
mod rows;
mod winograd;
mod word_products;

#[cfg(target_os = "linux")]
pub use plain::Random;
