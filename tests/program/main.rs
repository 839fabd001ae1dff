//! The program from outside: what its commands print and leave on disk, exit codes, and a Hub on this machine.
//!
//! `cargo test --release --test program`

#[path = "../support/mod.rs"]
mod support;

mod batch;
mod chosen_bits;
mod cli;
mod cli_models;
mod cli_picture_in;
mod cli_pictures;
mod components;
mod exit_codes;
mod hostile_files;
mod hub;
mod kernels;
#[cfg(target_os = "linux")]
mod limits;
mod overwriting;
mod prepack;
mod sweep;
mod within;
