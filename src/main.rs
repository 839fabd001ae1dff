//! The `pochade` binary: everything it does is in the library.

#![warn(clippy::unwrap_used)]

#[cfg(target_os = "linux")]
#[global_allocator]
static HEAP: pochade::kernels::Heap = pochade::kernels::Heap::new();

fn main() -> std::process::ExitCode {
    pochade::cli::run()
}
