//! The file a list is read from, twice: once to check it whole, once to draw it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use anyhow::Context;

use crate::cli::exit::{Exit, Failure, OrExit};
use crate::request::list::{Format, List};

/// The longest list that is copied, in bytes: far more than a million pictures' prompts.
const MAX_COPIED: u64 = 256 << 20;

/// Bytes read at a time of such a list.
const CHUNK: u64 = 1 << 16;

pub struct Source {
    /// As it is named in messages.
    pub name: String,
    file: File,
    format: Format,
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
        let mut source = Self { name, file, format: Format::Text };
        source.format = match Format::of_name(path) {
            Some(format) => format,
            None => Format::of_start(&source.start().or_exit(Exit::Usage)?),
        };
        Ok(source)
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
    pub fn list(&mut self) -> Result<List<BufReader<&File>>, Failure> {
        let name = &self.name;
        let rewound = self.file.rewind();
        rewound.map_err(|error| Failure::usage(format!("cannot read the list {name}: {error}")))?;
        Ok(List::new(BufReader::with_capacity(1 << 16, &self.file), self.format))
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
