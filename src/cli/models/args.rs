//! What can be typed after `pochade models`.

use clap::{Args, Subcommand};

use crate::hub::{ALIASES, PARTS};

#[derive(Debug, Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    pub command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Fetch a model and make its int8 file
    #[command(after_help = aliases())]
    Pull(PullArgs),
    /// List the models on this machine
    List(ListArgs),
    /// Show what a model is made of
    Show(ShowArgs),
    /// Print where a model lies
    Path(PathArgs),
    /// Check a pulled model's files against their hashes, and that it opens
    Verify(VerifyArgs),
    /// Remove a pulled model and its int8 file
    Remove(RemoveArgs),
}

fn aliases() -> String {
    let line =
        |alias: &crate::hub::Alias| format!("\n  {:<12} {} ({})", alias.name, alias.repository, alias.about);
    let part =
        |part: &crate::hub::Part| format!("\n  {:<16} {} ({})", part.name, part.repository, part.about);
    format!(
        "Aliases:{}\n\nFiles to use beside a model:{}",
        ALIASES.iter().map(line).collect::<String>(),
        PARTS.iter().map(part).collect::<String>()
    )
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// An id `org/name` on the Hugging Face Hub, or an alias
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// Branch, tag or commit, as also `MODEL@REVISION` [default: main]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// The file to fetch of a repository with several single-file models
    #[arg(long, value_name = "NAME")]
    pub file: Option<String>,

    /// Keep the model as it is instead of also making an int8 file
    #[arg(long)]
    pub no_quantize: bool,

    /// CPU threads for quantizing [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Print one JSON object instead of the path
    #[arg(long)]
    pub json: bool,

    /// Print nothing on stderr but errors
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An id, an alias, a path or `pocket`
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PathArgs {
    /// An id or an alias
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// What was fetched, not the int8 file made from it
    #[arg(long)]
    pub source: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Ids or aliases [default: every pulled model]
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,

    /// Print nothing on stderr but errors
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// An id or an alias; other commits of the repository stay
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,
}
