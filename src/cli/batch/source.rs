//! The file a list is read from, twice: once to check it whole, once to draw it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use crate::cli::exit::{Exit, Failure, OrExit};
use crate::request::list::{Format, List};

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
            spool(&mut io::stdin().lock()).map_err(unreadable)?
        } else {
            let mut file = File::open(path).map_err(unreadable)?;
            let kind = file.metadata().map_err(unreadable)?;
            if kind.is_dir() {
                return Err(Failure::usage(format!("the list {name} is a folder")));
            }
            if kind.is_file() { file } else { spool(&mut file).map_err(unreadable)? }
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

fn spool(source: &mut impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(source, &mut file)?;
    Ok(file)
}
