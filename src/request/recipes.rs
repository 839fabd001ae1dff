//! Recipes for few-step drawing: a LoRA and the settings that its authors draw with, under one name.

use crate::named_enum::named_enum;
use crate::samplers::{Sampler, Schedule};

/// What a recipe sets where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub struct Ingredients {
    pub needs: Needs,
    pub sampler: Sampler,
    pub schedule: Schedule,
    pub steps: usize,
    pub guidance_scale: f64,
    pub eta: f64,
}

/// What a recipe works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A LoRA, by its alias for `models pull`, and the name of its file.
    Lora(&'static str, &'static str),
    /// The model of this name, and the LoRA of this name for it, which is part of the binary.
    BuiltIn(&'static str, &'static str),
}

/// Declares the enum and what its recipes are made of, so that one without an ingredient does not compile.
macro_rules! recipes {
    ($($recipe:ident = $name:literal { $($ingredient:ident: $value:expr,)+ })+) => {
        named_enum!(
            /// A few-step LoRA with its settings.
            Recipe, "recipe", { $($recipe = $name,)+ }
        );

        impl Recipe {
            /// What it sets.
            pub fn ingredients(self) -> Ingredients {
                match self { $(Self::$recipe => Ingredients { $($ingredient: $value,)+ },)+ }
            }
        }
    };
}

// Steps, guidance and schedules are those of the LoRAs' model cards.
recipes! {
    Pocket = "pocket" {
        needs: Needs::BuiltIn("pocket", "pocket-lcm"),
        sampler: Sampler::Lcm,
        schedule: Schedule::Leading,
        steps: 4,
        guidance_scale: 1.0,
        eta: 0.0,
    }
    Lcm = "lcm" {
        needs: Needs::Lora("lcm-lora", "pytorch_lora_weights.safetensors"),
        sampler: Sampler::Lcm,
        schedule: Schedule::Leading,
        steps: 4,
        guidance_scale: 1.0,
        eta: 0.0,
    }
    Tcd = "tcd" {
        needs: Needs::Lora("tcd-lora", "pytorch_lora_weights.safetensors"),
        sampler: Sampler::Tcd,
        schedule: Schedule::Leading,
        steps: 4,
        guidance_scale: 1.0,
        eta: 0.3,
    }
    Hyper1 = "hyper-1" {
        needs: Needs::Lora("hyper-1-lora", "Hyper-SD15-1step-lora.safetensors"),
        sampler: Sampler::Tcd,
        schedule: Schedule::Leading,
        steps: 1,
        guidance_scale: 1.0,
        eta: 1.0,
    }
    Hyper2 = "hyper-2" {
        needs: Needs::Lora("hyper-2-lora", "Hyper-SD15-2steps-lora.safetensors"),
        sampler: Sampler::Ddim,
        schedule: Schedule::Trailing,
        steps: 2,
        guidance_scale: 1.0,
        eta: 0.0,
    }
    Hyper4 = "hyper-4" {
        needs: Needs::Lora("hyper-4-lora", "Hyper-SD15-4steps-lora.safetensors"),
        sampler: Sampler::Ddim,
        schedule: Schedule::Trailing,
        steps: 4,
        guidance_scale: 1.0,
        eta: 0.0,
    }
    Hyper8 = "hyper-8" {
        needs: Needs::Lora("hyper-8-lora", "Hyper-SD15-8steps-lora.safetensors"),
        sampler: Sampler::Ddim,
        schedule: Schedule::Trailing,
        steps: 8,
        guidance_scale: 1.0,
        eta: 0.0,
    }
    Hyper8Cfg = "hyper-8-cfg" {
        needs: Needs::Lora("hyper-8-cfg-lora", "Hyper-SD15-8steps-CFG-lora.safetensors"),
        sampler: Sampler::Ddim,
        schedule: Schedule::Trailing,
        steps: 8,
        guidance_scale: 5.0,
        eta: 0.0,
    }
}
