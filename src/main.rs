//! The `pochade` binary: everything it does is in the library.

#![warn(clippy::unwrap_used)]

fn main() -> std::process::ExitCode {
    pochade::cli::run()
}
