//! Every kernel agrees with its definition on every instruction set of this machine and on any number of threads.
//!
//! `cargo test --release --lib kernels`

mod attention;
mod integer_products;
mod plain;
mod products;
mod rows;
mod winograd;
