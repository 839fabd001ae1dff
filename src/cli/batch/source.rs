//! The file a list is read from, twice: once to check it whole, once to draw it.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::exit::{Exit, Failure, OrExit};
use crate::files;
use crate::request::list::expand::Pattern;
use crate::request::list::{Fault, Format, Item, LineError, List};

/// The longest list that is copied, in bytes: far more than a million pictures' prompts.
const MAX_COPIED: u64 = 256 << 20;

/// The longest file of words, in bytes.
const MAX_WORDS: u64 = 16 << 20;

/// Bytes read at a time of such a list.
const CHUNK: u64 = 1 << 16;

pub struct Source {
    /// As it is named in messages.
    pub name: String,
    file: File,
    format: Format,
    expansion: Option<Expansion>,
}

/// What the choices in a list's prompts need.
struct Expansion {
    /// Where files of words are looked for: beside the list.
    folder: PathBuf,
    /// Those that have been read.
    words: HashMap<String, Vec<String>>,
}

impl Source {
    /// Opens `path`, `-` for stdin. What can't be read twice is copied to a temporary file without a name.
    ///
    /// # Errors
    /// Names the file and why it can't be read.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let stdin = path.as_os_str() == "-";
        let name = if stdin { "stdin".to_owned() } else { path.display().to_string() };
        let unreadable = |error: io::Error| Failure::usage(format!("cannot read the list {name}: {error}"));
        let file = if stdin {
            spool(&mut io::stdin().lock(), &name)?
        } else {
            let mut file = File::open(path).map_err(unreadable)?;
            let kind = file.metadata().map_err(unreadable)?;
            if kind.is_dir() {
                return Err(Failure::usage(format!("the list {name} is a folder")));
            }
            if kind.is_file() { file } else { spool(&mut file, &name)? }
        };
        let mut source = Self { name, file, format: Format::Text, expansion: None };
        source.format = match Format::of_name(path) {
            Some(format) => format,
            None => Format::of_start(&source.start().or_exit(Exit::Usage)?),
        };
        Ok(source)
    }

    /// Takes the choices in prompts for what they stand for, if that is `wanted`; words are beside the list at `path`.
    #[must_use]
    pub fn expanding(self, wanted: bool, path: &Path) -> Self {
        let stdin = path.as_os_str() == "-";
        let folder = if stdin { PathBuf::from(".") } else { files::folder_of(path).to_owned() };
        Self { expansion: wanted.then(|| Expansion { folder, words: HashMap::new() }), ..self }
    }

    fn start(&mut self) -> io::Result<Vec<u8>> {
        self.file.rewind()?;
        let mut start = Vec::new();
        (&self.file).take(4096).read_to_end(&mut start)?;
        Ok(start)
    }

    /// The list from its first item on.
    ///
    /// # Errors
    /// Names the file and why it can't be read.
    pub fn list(&mut self) -> Result<impl Iterator<Item = Result<Item, Fault>>, Failure> {
        let name = &self.name;
        let rewound = self.file.rewind();
        rewound.map_err(|error| Failure::usage(format!("cannot read the list {name}: {error}")))?;
        let list = List::new(BufReader::with_capacity(1 << 16, &self.file), self.format);
        let mut expansion = self.expansion.as_mut();
        Ok(list.flat_map(move |item| -> Box<dyn Iterator<Item = Result<Item, Fault>>> {
            match (item, &mut expansion) {
                (Ok(item), Some(expansion)) => {
                    let line = item.line;
                    match expansion.items(item) {
                        Ok(items) => Box::new(items.map(Ok)),
                        Err(error) => {
                            let message = format!("{error:#}");
                            Box::new(std::iter::once(Err(Fault::Line(LineError { line, message }))))
                        }
                    }
                }
                (item, _) => Box::new(std::iter::once(item)),
            }
        }))
    }
}

impl Expansion {
    /// An item for each prompt that this one's stands for; ids are numbered where there are several.
    fn items(&mut self, item: Item) -> Result<impl Iterator<Item = Item> + use<>> {
        let prompt = item.draft.prompt.clone();
        let pattern = Pattern::parse(prompt.as_deref().unwrap_or_default(), &mut |name| self.words(name))?;
        let several = pattern.prompts().nth(1).is_some();
        Ok(pattern.prompts().zip(1..).map(move |(text, number)| {
            let mut item = item.clone();
            // The words may change between two readings of the list, too.
            let mut hasher = DefaultHasher::new();
            (item.fingerprint, &text).hash(&mut hasher);
            item.fingerprint = hasher.finish();
            item.draft.prompt = prompt.as_ref().map(|_| text);
            item.id = item.id.map(|id| if several { format!("{id}-{number}") } else { id });
            item
        }))
    }

    /// The lines of a file that say something.
    fn words(&mut self, name: &str) -> Result<Vec<String>> {
        if let Some(words) = self.words.get(name) {
            return Ok(words.clone());
        }
        let text = files::text(&self.folder.join(name), MAX_WORDS)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let words: Vec<String> = lines.map(str::to_owned).collect();
        self.words.insert(name.to_owned(), words.clone());
        Ok(words)
    }
}

/// A copy of the list `name`, which can be read but once, that ends with the process.
fn spool(source: &mut impl Read, name: &str) -> Result<File, Failure> {
    let no_room = || format!("can't copy the list {name} to {}", std::env::temp_dir().display());
    let mut file = tempfile::tempfile().with_context(no_room).or_exit(Exit::PictureFailed)?;
    let (mut chunk, mut copied) = (Vec::new(), 0);
    loop {
        chunk.clear();
        let read = source.by_ref().take(CHUNK).read_to_end(&mut chunk);
        let read = read.map_err(|error| Failure::usage(format!("cannot read the list {name}: {error}")))?;
        if read == 0 {
            return Ok(file);
        }
        copied += read as u64;
        if copied > MAX_COPIED {
            let limit = MAX_COPIED >> 20;
            return Err(Failure::usage(format!("the list {name} is longer than {limit} MiB"))
                .hint("put it into a file, which may be of any length"));
        }
        file.write_all(&chunk).with_context(no_room).or_exit(Exit::PictureFailed)?;
    }
}
