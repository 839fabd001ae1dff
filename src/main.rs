//! The `pochade` binary: everything it does is in the library.

fn main() -> std::process::ExitCode {
    pochade::cli::run()
}
