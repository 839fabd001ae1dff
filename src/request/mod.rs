//! One picture, described: its fields, limits and spellings (flags, JSON, `parameters`); no file is opened here.

mod defaults;
mod draft;
mod fields;
mod files;
mod limits;
pub mod list;
mod names;
mod parameters;
mod recipes;
mod record;
mod saving;
mod second_pass;
mod size;
mod spelled;
mod table;

pub use crate::noise::Rng;
pub use crate::samplers::{Sampler, Schedule};
pub use defaults::Defaults;
pub use draft::drawn_seed;
pub use fields::{Parameter, Row, Section};
pub use files::{FileKind, Lora, UsedFile};
pub use limits::{MAX_PROMPT, MAX_SIZE, MAX_STEPS, SIZE_STEP};
pub use names::{Precision, PromptSyntax, Resize};
pub use parameters::{Parameters, parse_parameters, print_parameters};
pub use recipes::{Ingredients, Needs, Recipe};
pub use record::{Embedded, PARAMETERS_KEYWORD, RECORD_KEYWORD, Record};
pub use saving::{Passes, Reuse, StepRange};
pub use size::parse_size;
pub use spelled::Form;
pub use table::{Cache, Draft, FIELDS, Field, Hires, Init, Request};
