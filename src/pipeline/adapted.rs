//! A model with LoRAs merged: which files, how they fit, and the tensors that result.

use std::sync::Arc;

use anyhow::Result;

use super::Observer;
use crate::checkpoint::lora::{Adapter, Merge, Summary};
use crate::checkpoint::{Checkpoint, TensorSet};
use crate::request::{FileKind, Lora, UsedFile};

/// Keys that a message names; an adapter for another model has hundreds.
const NAMED_KEYS: usize = 3;

/// No LoRAs by default, and then the model's own tensors.
#[derive(Default)]
pub struct Adapted {
    loras: Vec<Lora>,
    adapters: Vec<(Arc<Adapter>, Summary)>,
    tensors: Option<TensorSet>,
}

impl Adapted {
    /// # Errors
    /// Names the file that can't be used for this model.
    pub fn open(loras: &[Lora], tensors: &TensorSet) -> Result<Self> {
        let mut merge = Merge::default();
        let mut adapters: Vec<(Arc<Adapter>, Summary)> = Vec::new();
        for lora in loras {
            let opened = adapters.iter().find(|(adapter, _)| adapter.path() == lora.path);
            let adapter = match opened {
                Some((adapter, _)) => adapter.clone(),
                None => Arc::new(Adapter::open(&lora.path)?),
            };
            let summary = merge.add(adapter.clone(), lora.weight, tensors)?;
            adapters.push((adapter, summary));
        }
        let tensors = (!loras.is_empty()).then(|| tensors.merged(merge));
        Ok(Self { loras: loras.to_vec(), adapters, tensors })
    }

    pub fn loras(&self) -> &[Lora] {
        &self.loras
    }

    /// What networks are to be loaded from.
    pub fn tensors<'a>(&'a self, checkpoint: &'a Checkpoint) -> &'a TensorSet {
        self.tensors.as_ref().unwrap_or(checkpoint.tensors())
    }

    /// # Errors
    /// None in practice: the files have been read.
    pub fn used(&self) -> Result<Vec<UsedFile>> {
        let used = |(adapter, _): &(Arc<Adapter>, Summary)| {
            UsedFile::new(FileKind::Lora, adapter.path(), adapter.fingerprint())
        };
        self.adapters.iter().map(used).collect()
    }

    /// Says how the files fit the model.
    pub fn tell(&self, observer: &mut dyn Observer) {
        for ((_, Summary { matched, unmatched }), lora) in self.adapters.iter().zip(&self.loras) {
            let (path, weight) = (lora.path.display(), lora.weight);
            observer.inform(&format!("lora {path} at {weight}: merged into {matched} layers"));
            if !unmatched.is_empty() {
                let named: Vec<&str> = unmatched.iter().take(NAMED_KEYS).map(String::as_str).collect();
                let more = unmatched.len() - named.len();
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                observer.warn(&format!(
                    "lora {path}: no layer of this model belongs to {}{more}",
                    named.join(", ")
                ));
            }
        }
    }
}
