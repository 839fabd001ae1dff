//! Files that a picture given with `--from` names, found where the user points and nowhere else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use super::printer::Printer;
use crate::request::{Draft, Lora};

/// What `below`, from a picture that may come from anyone, names is replaced by what `flags` give instead, or by the
/// file of that name in the folder they point to; each such file is told.
///
/// # Errors
/// Names the file that is pointed to by no flag, and the flag that would.
pub fn find(below: Draft, flags: &Draft, printer: &Printer) -> Result<Draft, Failure> {
    let mut found = Draft { lora_dir: None, embedding_dir: None, ..below.clone() };
    for (what, flag, named, given) in [
        ("from the picture", "--init", &below.init, &flags.init),
        ("with the mask", "--mask", &below.mask, &flags.mask),
    ] {
        if let (Some(named), None) = (named, given) {
            return Err(pointless(what, named, &format!("{flag} FILE")));
        }
    }
    (found.init, found.mask) = (None, None);
    if let (Some(loras), None) = (&below.lora, &flags.lora) {
        let find = |lora: &Lora| -> Result<Lora, Failure> {
            let path = in_folder(&lora.path, flags.lora_dir.as_deref(), printer);
            let flags = "--lora-dir FOLDER, or --lora FILE";
            Ok(Lora { path: path.ok_or_else(|| pointless("with the LoRA", &lora.path, flags))?, ..*lora })
        };
        found.lora = Some(loras.iter().map(find).collect::<Result<_, _>>()?);
    }
    if let (Some(embeddings), None) = (&below.embedding, &flags.embedding) {
        let find = |named: &PathBuf| -> Result<PathBuf, Failure> {
            let path = in_folder(named, flags.embedding_dir.as_deref(), printer);
            let flags = "--embedding-dir FOLDER, or --embedding FILE";
            path.ok_or_else(|| pointless("with the embedding", named, flags))
        };
        found.embedding = Some(embeddings.iter().map(find).collect::<Result<_, _>>()?);
    }
    Ok(found)
}

/// The file in `folder` of the same name as `named`, whatever folder that was in.
fn in_folder(named: &Path, folder: Option<&Path>, printer: &Printer) -> Option<PathBuf> {
    let path = folder?.join(name_of(named)?);
    path.is_file().then(|| {
        printer.note(&format!("using {}, which the picture names", path.display()));
        path
    })
}

/// A file's name, in paths of other systems too.
fn name_of(path: &Path) -> Option<&OsStr> {
    let name = path.file_name()?;
    match name.to_str() {
        Some(text) => text.rsplit('\\').next().map(OsStr::new).filter(|name| !name.is_empty()),
        None => Some(name),
    }
}

fn pointless(what: &str, named: &Path, flags: &str) -> Failure {
    let name = name_of(named).unwrap_or_default().to_string_lossy();
    Failure::usage(format!("the picture given with --from was made {what} '{name}', which no flag points to"))
        .hint(format!("say where it is, or which one to take instead: {flags}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::printer::Verbosity;

    #[test]
    fn files_are_found_where_the_user_points_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let (named, elsewhere) = (folder.path().join("a.safetensors"), folder.path().join("loras"));
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(&named, "").unwrap();
        let printer = Printer::new(Verbosity::Quiet, false);
        let lora = |path: &Path| Some(vec![Lora { path: path.to_owned(), weight: 0.5 }]);
        let pointing = |folder: &Path| Draft { lora_dir: Some(folder.to_owned()), ..Draft::default() };
        let refused = |below: Draft, flags: &Draft| {
            let failure = find(below, flags, &printer).unwrap_err();
            format!("{} {}", failure.error, failure.hint.unwrap())
        };
        // Neither the recorded path nor a folder without the file will do.
        let below = Draft { lora: lora(&named), ..Draft::default() };
        for flags in [Draft::default(), pointing(&elsewhere)] {
            let message = refused(below.clone(), &flags);
            assert!(message.contains("'a.safetensors'") && message.contains("--lora-dir"), "{message}");
            assert!(!message.contains(folder.path().to_str().unwrap()), "{message}");
        }
        for spelled in
            ["a.safetensors", "/home/else/a.safetensors", r"C:\loras\a.safetensors", "../../a.safetensors"]
        {
            let below =
                Draft { lora: lora(Path::new(spelled)), lora_dir: Some("/etc".into()), ..Draft::default() };
            let found = find(below, &pointing(folder.path()), &printer).unwrap();
            assert_eq!((found.lora, found.lora_dir), (lora(&named), None), "{spelled}");
        }
        // A flag of its own takes the place of what the picture names.
        let flags = Draft { lora: lora(&elsewhere), ..Draft::default() };
        assert!(find(below, &flags, &printer).is_ok());
        let init = |init: &str, mask: Option<&str>| Draft {
            init: Some(init.into()),
            mask: mask.map(PathBuf::from),
            ..Draft::default()
        };
        assert!(refused(init("/secret/x.png", None), &Draft::default()).contains("'x.png'"));
        let flags = init("mine.png", None);
        assert!(refused(init("x.png", Some("m.png")), &flags).contains("--mask"));
        let found = find(init("x.png", None), &flags, &printer).unwrap();
        assert_eq!(found.init, None);
        let below = Draft { embedding: Some(vec!["/x/word.pt".into()]), ..Draft::default() };
        assert!(refused(below, &Draft::default()).contains("--embedding-dir"));
    }
}
