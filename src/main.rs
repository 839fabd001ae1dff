use clap::Parser;
#[derive(Parser)]
struct A {
    #[command(subcommand)]
    c: C,
}
#[derive(clap::Subcommand)]
enum C {
    Convert(pochade::cli::convert::ConvertArgs),
}
fn main() -> anyhow::Result<()> {
    let A { c: C::Convert(a) } = A::parse();
    pochade::cli::convert::run(&a)
}
