//! What several test files need: comparison, models and runs, the program in a folder of its own, models in other forms.

#![allow(dead_code, reason = "each test executable uses a part of it")]

pub mod comparison;
pub mod model_files;
pub mod models;
pub mod planting;
pub mod sandbox;
