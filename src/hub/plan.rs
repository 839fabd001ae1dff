//! Which of a repository's files make up the model: enough to draw with, no more; nothing is fetched here.

use super::error::{Error, ErrorKind, Result};
use super::info::{ModelInfo, Sibling};

/// The folders with weights and the stem of the weight files in them.
const COMPONENTS: [(&str, &str); 3] =
    [("unet", "diffusion_pytorch_model"), ("text_encoder", "model"), ("vae", "diffusion_pytorch_model")];

/// What is needed beside the weights, as far as the repository has it: configs, vocabulary, and the model card,
/// which states the licence.
const BESIDE: [&str; 10] = [
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
];

/// The files to fetch of a repository, small ones first: those of the diffusers layout, or the one file that is a whole
/// model.
///
/// # Errors
/// When the repository holds no weights of a model of the family, only pickles, or several single files.
pub fn needed<'a>(info: &'a ModelInfo, file: Option<&str>) -> Result<Vec<&'a Sibling>> {
    files(&info.siblings, file)
}

fn files<'a>(siblings: &'a [Sibling], file: Option<&str>) -> Result<Vec<&'a Sibling>> {
    let find = |name: &str| siblings.iter().find(|sibling| sibling.name == name);
    if let Some(file) = file {
        return single(siblings, file)
            .map(|weights| find("README.md").into_iter().chain([weights]).collect());
    }
    let inside = |folder: &str| siblings.iter().any(|sibling| sibling.name.starts_with(folder));
    for (folder, kind) in [("text_encoder_2/", "SDXL or newer"), ("transformer/", "a diffusion transformer")]
    {
        if inside(folder) {
            return Err(unusable(format!(
                "it is {kind} (it has {folder}), and only Stable Diffusion 1.x is drawn"
            )));
        }
    }
    if find("model_index.json").is_some() && inside("unet/") {
        let mut files: Vec<&Sibling> = BESIDE.iter().filter_map(|name| find(name)).collect();
        for (folder, stem) in COMPONENTS {
            files.extend(weights(siblings, folder, stem)?);
        }
        return Ok(files);
    }
    let models: Vec<&Sibling> =
        siblings.iter().filter(|sibling| sibling.name.ends_with(".safetensors")).collect();
    match models[..] {
        [weights] => Ok(find("README.md").into_iter().chain([weights]).collect()),
        [] if siblings.iter().any(|sibling| is_pickle(&sibling.name)) => Err(pickles("the repository")),
        [] => Err(unusable("it holds neither a diffusers model nor a .safetensors file".to_owned())),
        _ => {
            let names: Vec<&str> = models.iter().map(|sibling| sibling.name.as_str()).collect();
            Err(unusable(format!("it holds {} single files", names.len()))
                .advice(format!("choose one with `--file NAME`: {}", names.join(", "))))
        }
    }
}

/// The file called `name` in the repository.
fn single<'a>(siblings: &'a [Sibling], name: &str) -> Result<&'a Sibling> {
    if is_pickle(name) {
        return Err(pickles(name));
    }
    if let Some(file) = siblings.iter().find(|sibling| sibling.name == name) {
        return Ok(file);
    }
    let is_model = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
    let there: Vec<&str> =
        siblings.iter().map(|file| file.name.as_str()).filter(|name| is_model(name)).collect();
    let missing = Error::new(ErrorKind::Absent, format!("it has no file '{name}'"));
    Err(if there.is_empty() { missing } else { missing.advice(format!("it has: {}", there.join(", "))) })
}

/// The weights of one component: half precision before full, one file before shards.
fn weights<'a>(siblings: &'a [Sibling], folder: &str, stem: &str) -> Result<Vec<&'a Sibling>> {
    let inside: Vec<(&str, &Sibling)> = siblings
        .iter()
        .filter_map(|sibling| {
            let name = sibling.name.strip_prefix(folder)?.strip_prefix('/')?;
            Some((name, sibling))
        })
        .collect();
    let find = |wanted: &str| inside.iter().find(|(name, _)| *name == wanted).map(|(_, sibling)| *sibling);
    for variant in [".fp16", ""] {
        if let Some(single) = find(&format!("{stem}{variant}.safetensors")) {
            return Ok(vec![single]);
        }
        let index = find(&format!("{stem}.safetensors.index{variant}.json"))
            .or_else(|| find(&format!("{stem}{variant}.safetensors.index.json")));
        if let Some(index) = index {
            let shards = inside
                .iter()
                .filter(|(name, _)| is_shard(name, stem) && name.contains(".fp16") != variant.is_empty());
            return Ok(std::iter::once(index).chain(shards.map(|(_, sibling)| *sibling)).collect());
        }
    }
    if inside.iter().any(|(name, _)| is_pickle(name)) {
        return Err(pickles(&format!("{folder}/")));
    }
    Err(unusable(format!("it has no {folder}/{stem}.safetensors")))
}

/// `stem-00001-of-00002.safetensors`, with the variant before or after the numbers.
fn is_shard(name: &str, stem: &str) -> bool {
    name.starts_with(stem) && name.contains("-of-") && name.ends_with(".safetensors")
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".ckpt", ".pt", ".pth", ".pkl"].iter().any(|ending| name.ends_with(ending))
}

fn pickles(place: &str) -> Error {
    unusable(format!("{place} holds only PyTorch pickles, which can run code when they are opened")).advice(
        "look for a revision or a copy with .safetensors files, e.g. `--revision refs/pr/1`, or save it as \
             such with diffusers' `save_pretrained(..., safe_serialization=True)`",
    )
}

fn unusable(what: String) -> Error {
    Error::new(ErrorKind::Unusable, what)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn repository(names: &[&str]) -> Vec<Sibling> {
        names.iter().map(|name| serde_json::from_value(json!({"rfilename": name})).unwrap()).collect()
    }

    fn chosen(names: &[&str], file: Option<&str>) -> Vec<String> {
        files(&repository(names), file).unwrap().iter().map(|file| file.name.clone()).collect()
    }

    fn refused(names: &[&str], file: Option<&str>) -> String {
        let error = files(&repository(names), file).unwrap_err();
        format!("{error} / {}", error.advice.as_deref().unwrap_or_default())
    }

    const FOLDER: [&str; 4] = [
        "model_index.json",
        "unet/config.json",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ];

    #[test]
    fn half_precision_is_preferred_and_the_rest_left() {
        let more = [
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "safety_checker/model.safetensors",
            "v1-5-pruned.ckpt",
            "v1-5-pruned.safetensors",
        ];
        let files = chosen(&[&FOLDER[..], &more].concat(), None);
        assert_eq!(
            files,
            [
                "model_index.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "text_encoder/model.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors"
            ]
        );
    }

    #[test]
    fn shards_come_with_their_index() {
        let unet = [
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        ];
        let files = chosen(&[&FOLDER[..], &unet].concat(), None);
        assert_eq!(files[2..5], unet[..3]);
    }

    #[test]
    fn a_single_file_is_a_model_too() {
        assert_eq!(chosen(&["a.safetensors", "README.md", "a.ckpt"], None), ["README.md", "a.safetensors"]);
        assert_eq!(chosen(&["a.safetensors", "b.gguf"], Some("b.gguf")), ["b.gguf"]);
        let several = ["a.safetensors", "x/b.safetensors"];
        assert_eq!(chosen(&several, Some("x/b.safetensors")), ["x/b.safetensors"]);
        assert!(
            refused(&several, None)
                .contains("2 single files / choose one with `--file NAME`: a.safetensors, x/b")
        );
        assert!(refused(&several, Some("c.safetensors")).contains("no file 'c.safetensors'"));
    }

    #[test]
    fn what_is_no_model_is_refused_before_it_is_fetched() {
        let pickled = [&FOLDER[..], &["unet/diffusion_pytorch_model.bin"]].concat();
        assert!(refused(&pickled, None).contains("unet/ holds only PyTorch pickles"));
        assert!(refused(&["x.ckpt"], None).contains("pickles"));
        assert!(refused(&["x.ckpt"], Some("x.ckpt")).contains("pickles"));
        assert!(refused(&FOLDER, None).contains("no unet/diffusion_pytorch_model.safetensors"));
        assert!(refused(&["model_index.json", "text_encoder_2/config.json"], None).contains("SDXL"));
        assert!(refused(&["model_index.json", "transformer/config.json"], None).contains("transformer"));
        assert!(refused(&["README.md"], None).contains("neither"));
    }
}
