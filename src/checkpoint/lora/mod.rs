//! Adapters that change a model's weights (LoRA and its relatives): reading their files and merging them.

mod built_in;
mod factors;
mod keys;
mod merge;
mod names;

pub use built_in::built_in;
pub use factors::Adapter;
pub use merge::{Merge, Summary};
