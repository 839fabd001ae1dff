//! What a picture carries about its making: its request as JSON beside the `parameters` text, and reading both.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::files::UsedFile;
use super::names::Precision;
use super::parameters::{Parameters, parse_parameters, print_parameters};
use super::saving::Passes;
use super::table::{Draft, Request};

/// The text chunk that AUTOMATIC1111 and most viewers read.
pub const PARAMETERS_KEYWORD: &str = "parameters";
/// Our own text chunk: everything needed to make the same bytes again.
pub const RECORD_KEYWORD: &str = "pochade";

/// How a picture was made; written with a complete request, read into a draft.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record<R> {
    pub version: String,
    pub model: String,
    /// The components that were not the model's own: flag, without its dashes, and file name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, String>,
    pub precision: Precision,
    /// Pictures are the same to the last bit only with the same kernels.
    pub kernel: String,
    pub device: String,
    /// The files beside the model that it was made with.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<UsedFile>,
    /// Whether the picture was decoded part by part, which rounds differently.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tiled: bool,
    /// What the UNet computed, where the request says to compute less than all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet: Option<Passes>,
    pub request: R,
}

impl Request {
    /// As a picture tells it: files by their names alone. Folders say who drew it and where, and are nobody else's;
    /// the files' hashes are told beside the request.
    #[must_use]
    pub fn without_folders(&self) -> Self {
        let name = |path: &PathBuf| path.file_name().map_or_else(|| path.clone(), PathBuf::from);
        let mut told = Self { lora_dir: None, embedding_dir: None, ..self.clone() };
        if let Some(init) = &mut told.init {
            init.picture = name(&init.picture);
            init.mask = init.mask.as_ref().map(name);
        }
        told.lora.iter_mut().for_each(|lora| lora.path = name(&lora.path));
        told.embedding.iter_mut().for_each(|path| *path = name(path));
        told
    }
}

impl Record<Request> {
    /// The text chunks of a picture, as keyword and text.
    ///
    /// # Errors
    /// None in practice: a request is plain data.
    pub fn text_chunks(&self) -> Result<Vec<(&'static str, String)>> {
        let json = serde_json::to_string(self).context("writing the request as JSON")?;
        Ok(vec![
            (PARAMETERS_KEYWORD, print_parameters(&self.request, &self.model, &self.files)),
            (RECORD_KEYWORD, json),
        ])
    }
}

/// What a picture says about its making.
#[derive(Debug, Clone, PartialEq)]
pub enum Embedded {
    /// Made by pochade.
    Record(Record<Draft>),
    /// Made by AUTOMATIC1111 or a program that writes as it does.
    Parameters(Parameters),
}

impl Embedded {
    /// Finds the best description among a picture's text chunks.
    ///
    /// # Errors
    /// Says why a record of ours can't be read, e.g. because a newer version wrote it.
    pub fn find<'a>(chunks: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Option<Self>> {
        let mut parameters = None;
        for (keyword, text) in chunks {
            if keyword == RECORD_KEYWORD {
                let record = serde_json::from_str(text)
                    .context("the embedded request can't be read (was it made by a newer pochade?)")?;
                return Ok(Some(Self::Record(record)));
            }
            if keyword == PARAMETERS_KEYWORD && parameters.is_none() {
                parameters = Some(Self::Parameters(parse_parameters(text)));
            }
        }
        Ok(parameters)
    }

    pub fn draft(&self) -> &Draft {
        match self {
            Self::Record(record) => &record.request,
            Self::Parameters(parameters) => &parameters.draft,
        }
    }

    pub fn model(&self) -> Option<&str> {
        match self {
            Self::Record(record) => Some(&record.model),
            Self::Parameters(parameters) => parameters.model.as_deref(),
        }
    }

    pub fn precision(&self) -> Option<Precision> {
        match self {
            Self::Record(record) => Some(record.precision),
            Self::Parameters(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Defaults, Rng, Sampler, Schedule};

    fn record() -> Record<Request> {
        Record {
            version: "0.1.0".into(),
            model: "pocket".into(),
            components: [("vae".to_owned(), "other".to_owned())].into(),
            precision: Precision::F32,
            kernel: "candle".into(),
            device: "cpu".into(),
            files: Vec::new(),
            tiled: false,
            unet: None,
            request: Request {
                eta: 1.0 / 3.0,
                rng: Rng::Philox,
                ..Request::new(
                    "  spaces, \"quotes\"\nNegative prompt: not one\n",
                    u64::MAX,
                    &Defaults {
                        width: 64,
                        height: 72,
                        steps: 3,
                        guidance_scale: 0.1 + 0.2,
                        sampler: Sampler::Ddim,
                        schedule: Schedule::Trailing,
                    },
                )
            },
        }
    }

    #[test]
    fn our_own_chunk_wins_and_is_exact() {
        let chunks = record().text_chunks().unwrap();
        let found = Embedded::find(chunks.iter().map(|(k, t)| (*k, t.as_str()))).unwrap().unwrap();
        assert_eq!(found.draft(), &record().request.into());
        assert_eq!((found.model(), found.precision()), (Some("pocket"), Some(Precision::F32)));
    }

    #[test]
    fn without_it_the_parameters_are_read() {
        let text = print_parameters(&record().request, "other", &[]);
        let found = Embedded::find([("Title", "x"), ("parameters", text.as_str())]).unwrap().unwrap();
        assert!(matches!(found, Embedded::Parameters(_)));
        assert_eq!((found.model(), found.draft().seed), (Some("other"), Some(u64::MAX)));
    }

    #[test]
    fn a_field_from_the_future_is_refused_not_dropped() {
        let chunks = record().text_chunks().unwrap();
        let newer = chunks[1].1.replace("\"steps\"", "\"sharpness\":2,\"steps\"");
        let error = format!("{:#}", Embedded::find([(RECORD_KEYWORD, newer.as_str())]).unwrap_err());
        assert!(error.contains("newer pochade") && error.contains("sharpness"));
    }

    #[test]
    fn no_chunk_is_no_description() {
        assert_eq!(Embedded::find([("Title", "x")]).unwrap(), None);
    }
}
