//! Where pictures go: from `--output` to one path per picture, checked before anything expensive happens.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::exit::{Exit, Failure, OrExit};
use super::slug::slug;
use super::template::{Template, Values};
use crate::files;
use crate::request::Request;

const DEFAULT_NAME: &str = "{slug}-{seed}.png";

/// Extensions that promise a format which is not written.
const OTHER_FORMATS: [&str; 9] = ["jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jxl"];

/// What `--output` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Stdout,
    /// One name, numbered when there are several pictures.
    File(PathBuf),
    /// A name of its own for each picture, inside `folder`.
    Pattern {
        folder: PathBuf,
        name: Template,
    },
}

impl Target {
    /// Reads `--output`; a folder or nothing means the default name.
    ///
    /// # Errors
    /// Names an unknown placeholder or a format other than PNG.
    pub fn parse(output: Option<&Path>) -> Result<Self> {
        let Some(path) = output else { return Self::default_name(PathBuf::new()) };
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        // A folder is taken by its name, braces and all; a trailing separator says that one is meant.
        let ends_as_folder = path
            .as_os_str()
            .as_encoded_bytes()
            .last()
            .is_some_and(|&byte| std::path::is_separator(char::from(byte)));
        if path.is_dir() || ends_as_folder {
            return Self::default_name(path.to_owned());
        }
        check_format(path).context("--output")?;
        let Some(text) = path.to_str() else { return Ok(Self::File(path.to_owned())) };
        let name = Template::parse(text).context("--output")?;
        if name.names_id() {
            bail!("--output: {{id}} is for the items of a list (`pochade batch`)");
        }
        if name.is_constant() {
            let unescaped = name.fill(&Values { seed: 0, index: 0, slug: "", model: "", id: "" });
            return Ok(Self::File(unescaped.into()));
        }
        Ok(Self::Pattern { folder: PathBuf::new(), name })
    }

    fn default_name(folder: PathBuf) -> Result<Self> {
        Ok(Self::Pattern { folder, name: Template::parse(DEFAULT_NAME)? })
    }

    /// Refuses picture bytes where they would only be noise.
    ///
    /// # Errors
    /// Says why stdout can't take them.
    pub fn check_stdout(&self, json: bool, count: u32) -> Result<(), Failure> {
        if *self != Self::Stdout {
            return Ok(());
        }
        if json {
            return Err(Failure::usage("--output - and --json both write to stdout"));
        }
        if count > 1 {
            return Err(Failure::usage("--output - takes one picture, --count asks for more")
                .hint("write files instead, e.g. `-o 'picture-{index}.png'`"));
        }
        if io::stdout().is_terminal() {
            return Err(Failure::usage("--output - writes PNG bytes, and stdout is a terminal")
                .hint("redirect it, e.g. `> picture.png`, or draw the picture with `--show`"));
        }
        Ok(())
    }

    /// One path per picture of a run that starts with `request`; none for stdout.
    pub fn paths(&self, request: &Request, count: u32, model: &str) -> Vec<PathBuf> {
        let (slug, model) = (slug(&request.prompt), slug(model));
        let path = |index: u32| match self {
            Self::Stdout => None,
            Self::File(path) if count > 1 => Some(files::with_suffix(path, index)),
            Self::File(path) => Some(path.clone()),
            Self::Pattern { folder, name } => {
                let seed = request.seed.saturating_add(u64::from(index - 1));
                let values = Values { seed, index: u64::from(index), slug: &slug, model: &model, id: "" };
                Some(folder.join(name.fill(&values)))
            }
        };
        (1..=count).filter_map(path).collect()
    }
}

/// Makes sure that every path can become a file, before hours of work depend on it.
///
/// # Errors
/// Names the path or the folder and what is wrong with it.
pub fn check_paths(paths: &[PathBuf]) -> Result<(), Failure> {
    // Renaming a picture to a device or a pipe would replace it by a file.
    if let Some(path) = paths.iter().find(|path| path.metadata().is_ok_and(|target| !target.is_file())) {
        return Err(Failure::usage(format!("output '{}' is not a regular file", path.display()))
            .hint("write to stdout with `-o -`, or choose another name"));
    }
    for path in paths {
        check_lengths(path).context("--output").or_exit(Exit::Usage)?;
    }
    let mut folders: Vec<&Path> = paths.iter().map(|path| files::folder_of(path)).collect();
    folders.sort_unstable();
    folders.dedup();
    for folder in folders {
        let shown = folder.display();
        if !folder.is_dir() {
            return Err(Failure::usage(format!("output folder '{shown}' does not exist"))
                .hint(format!("create it first: `mkdir -p {shown}`")));
        }
        if let Err(error) = tempfile::tempfile_in(folder) {
            return Err(Failure::usage(format!("output folder '{shown}' can't be written to: {error}"))
                .hint("choose another one with `--output`"));
        }
    }
    Ok(())
}

/// The longest name of a file or folder that every common file system takes, in bytes.
const MAX_NAME: usize = 255;
/// The longest path, in bytes.
const MAX_PATH: usize = 4095;

/// Refuses a path that no file can have, of which the system would tell only when the picture is drawn.
///
/// # Errors
/// Names the part that is too long.
pub fn check_lengths(path: &Path) -> Result<()> {
    let long = path.iter().find(|part| part.len() > MAX_NAME);
    if let Some(part) = long {
        let start: String = part.to_string_lossy().chars().take(40).collect();
        bail!("the name '{}…' has {} bytes: the most is {MAX_NAME}", start.escape_debug(), part.len());
    }
    let length = path.as_os_str().len();
    ensure!(length <= MAX_PATH, "the path has {length} bytes: the most is {MAX_PATH}");
    Ok(())
}

/// Refuses the name of a format that is not written.
///
/// # Errors
/// Names the file.
pub fn check_format(path: &Path) -> Result<()> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if OTHER_FORMATS.contains(&extension.as_str()) {
        bail!("{}: only PNG is written; name it .png", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Defaults, Sampler, Schedule};

    fn paths(output: Option<&str>, count: u32) -> Vec<PathBuf> {
        let request = Request::new(
            "A cat",
            42,
            &Defaults {
                width: 64,
                height: 64,
                steps: 1,
                guidance_scale: 1.0,
                sampler: Sampler::Euler,
                schedule: Schedule::Linspace,
            },
        );
        Target::parse(output.map(Path::new)).unwrap().paths(&request, count, "Org/My Model")
    }

    #[test]
    fn each_picture_has_a_path() {
        let expect = |output, count, expected: &[&str]| {
            assert_eq!(paths(output, count), expected.iter().map(PathBuf::from).collect::<Vec<_>>());
        };
        expect(None, 2, &["a-cat-42.png", "a-cat-43.png"]);
        expect(Some("x.png"), 1, &["x.png"]);
        expect(Some("x.png"), 2, &["x-1.png", "x-2.png"]);
        expect(Some("a.b/x"), 2, &["a.b/x-1", "a.b/x-2"]);
        expect(Some("new/"), 1, &["new/a-cat-42.png"]);
        expect(Some("."), 1, &["./a-cat-42.png"]);
        expect(Some("{model}/{index:02}.png"), 1, &["org-my-model/01.png"]);
        expect(Some("a{{1}}.png"), 1, &["a{1}.png"]);
        expect(Some("-"), 1, &[]);
    }

    #[test]
    fn only_png_is_promised() {
        let message = |output: &str| format!("{:#}", Target::parse(Some(Path::new(output))).unwrap_err());
        assert!(message("x.jpg").contains("only PNG"));
        assert!(message("{seed}.WEBP").contains("only PNG"));
        assert!(message("{sed}.png").contains("--output: unknown placeholder '{sed}'"));
        assert!(Target::parse(Some(Path::new("v1.5"))).is_ok());
    }

    #[test]
    fn stdout_takes_one_picture_and_nothing_else() {
        let refused = |json, count| Target::Stdout.check_stdout(json, count).unwrap_err().error.to_string();
        assert!(refused(true, 1).contains("--json"));
        assert!(refused(false, 2).contains("one picture"));
        let file = Target::parse(None).unwrap();
        assert!(file.check_stdout(true, 9).is_ok());
    }

    #[test]
    fn paths_are_checked_for_real() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_paths(&[folder.path().join("a.png"), "b.png".into()]).is_ok());
        let missing = check_paths(&[folder.path().join("no/a.png")]).unwrap_err();
        assert!(missing.error.to_string().contains("does not exist"));
        let taken = check_paths(&[folder.path().to_owned()]).unwrap_err();
        assert!(taken.error.to_string().contains("not a regular file"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
