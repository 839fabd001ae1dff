//! Every kernel on every instruction set of this machine agrees with its definition, and its bytes do not depend on the number of threads.
//!
//! `cargo test --release --test kernels`

mod attention;
mod integer_products;
mod plain;
mod products;
mod rows;
mod winograd;
