//! The Hugging Face Hub: where its cache lies; no picture is made and no model is parsed here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The cache folder shared with Python tools, if the environment names a home for it.
pub fn cache_folder() -> Option<PathBuf> {
    cache_folder_in(|name| std::env::var_os(name).filter(|value| !value.is_empty()), std::env::home_dir())
}

fn cache_folder_in(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    if let Some(cache) = variable("HF_HUB_CACHE") {
        return Some(cache.into());
    }
    if let Some(home) = variable("HF_HOME") {
        return Some(Path::new(&home).join("hub"));
    }
    let cache = variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(home?.join(".cache")))?;
    Some(cache.join("huggingface").join("hub"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_variable_wins() {
        let folder = |set: &[(&str, &str)]| {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            cache_folder_in(variable, Some("/home/me".into())).unwrap()
        };
        let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c")];
        assert_eq!(folder(&all), Path::new("/a"));
        assert_eq!(folder(&all[1..]), Path::new("/b/hub"));
        assert_eq!(folder(&all[2..]), Path::new("/c/huggingface/hub"));
        assert_eq!(folder(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache_folder_in(|_| None, None), None);
    }
}
