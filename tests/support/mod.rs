//! What several test files need: the program in a folder of its own, and the small model in other forms.

#![allow(dead_code, reason = "each test executable uses a part of it")]

pub mod model_files;
pub mod sandbox;
