//! Runs the built binary in a folder of its own and looks at what it leaves.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A folder that goes away with the test, and one for what is kept from one run to another.
pub struct Sandbox(TempDir, TempDir);

/// What a run left.
#[derive(Debug)]
pub struct Left {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Sandbox {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The cache folder, outside of the others.
    pub fn cache(&self) -> &Path {
        self.1.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Every file in the folder, hidden ones too.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The binary, ready to run here and without the user's settings.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pochade"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        for name in ["POCHADE_MODEL", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        // Models that the user has pulled are none of a test's business.
        command.env("HF_HUB_CACHE", self.join("hub")).env("POCHADE_CACHE", self.cache());
        command.env("HF_TOKEN_PATH", self.join("token"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Left {
        self.command(args).output().unwrap().into()
    }

    /// Runs what could hang; after a minute it is ended, and has no exit code.
    pub fn run_in_time(&self, args: &[&str]) -> Left {
        let mut command = self.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > Duration::from_secs(60) {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.wait_with_output().unwrap().into()
    }

    /// Runs under limits of the shell's `ulimit`.
    #[cfg(unix)]
    pub fn run_limited(&self, limits: &str, args: &[&str]) -> Left {
        limited(limits, &self.command(args)).output().unwrap().into()
    }

    /// Makes a pipe that nobody writes to.
    #[cfg(unix)]
    pub fn pipe(&self, name: &str) {
        assert!(Command::new("mkfifo").arg(self.join(name)).status().unwrap().success());
    }

    pub fn run_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Left {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A run that refuses its arguments may be gone before it reads.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap().into()
    }
}

/// `command` under limits of the shell's `ulimit`.
#[cfg(unix)]
pub fn limited(limits: &str, command: &Command) -> Command {
    through(&["sh", "-c", &format!("{limits}; exec \"$0\" \"$@\"")], command)
}

/// `command`, run by the program that `words` begin with.
#[cfg(unix)]
pub fn through(words: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(words[0]);
    outer.args(&words[1..]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    if let Some(folder) = command.get_current_dir() {
        outer.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

impl From<Output> for Left {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Left {
    /// Asserts the exit code and that stderr, as one error, says each of `parts`.
    #[track_caller]
    pub fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        assert!(self.stderr.contains("error: "), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "no '{part}' in {}", self.stderr);
        }
    }

    /// Asserts success and returns stdout.
    #[track_caller]
    pub fn done(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        std::str::from_utf8(&self.stdout).unwrap()
    }
}
