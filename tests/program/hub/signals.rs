//! Pulls that a signal ends: while they wait, and while what they fetched becomes an int8 file.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pochade::checkpoint::{Checkpoint, FloatType, Storage};

use super::server::{COMMIT, Hub, ID};
use super::{command, not_pulled, run, snapshot};
use crate::support::sandbox::Sandbox;

/// Pulls and sends `signal` as soon as the int8 file is being written; the answer is how it ended.
fn ended_while_quantizing(sandbox: &Sandbox, hub: &Hub, signal: &str) -> Option<i32> {
    let made = sandbox.cache().join(format!("models--org--small/{COMMIT}"));
    for _ in 0..50 {
        let mut command = command(sandbox, hub, &["models", "pull", ID, "-t", "1"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("quantizing to int8")));
        while !made.join(".unfinished/model.safetensors").exists()
            && !fs::read_dir(made.join(".unfinished")).is_ok_and(|mut entries| entries.next().is_some())
            && child.try_wait().unwrap().is_none()
        {
            thread::sleep(Duration::from_micros(100));
        }
        Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        let said: String = lines.collect();
        let status = child.wait().unwrap();
        if !status.success() {
            assert!(signal == "KILL" || said.contains("what was fetched is kept"), "{said}");
            return status.code().or(status.signal().map(|signal| 128 + signal));
        }
        // The signal came too late.
        fs::remove_dir_all(&made).unwrap();
    }
    panic!("the pull was never caught while it quantized");
}

#[test]
fn a_signal_while_a_pulled_model_is_quantized_leaves_what_was_fetched_alone() {
    let sandbox = Sandbox::new();
    let floats = sandbox.join("floats.safetensors");
    Checkpoint::built_in().unwrap().write_native(&floats, Storage::Float(FloatType::F32)).unwrap();
    let hub = Hub::with(BTreeMap::from([("floats.safetensors".to_owned(), fs::read(&floats).unwrap())]));
    let made = sandbox.cache().join(format!("models--org--small/{COMMIT}"));
    for (signal, code) in [("INT", 130), ("TERM", 143), ("KILL", 137)] {
        assert_eq!(ended_while_quantizing(&sandbox, &hub, signal), Some(code));
        let left: Vec<_> = fs::read_dir(&made).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty() || signal == "KILL" && left == [".unfinished"], "{signal}: {left:?}");
        assert!(snapshot(&sandbox).join("floats.safetensors").exists());
        // Nothing is fetched again, and nothing of the killed run stays.
        hub.change(|state| state.log.clear());
        run(&sandbox, &hub, &["models", "pull", ID]).done();
        assert!(hub.log().iter().all(|request| request.host == "hub" && request.path.starts_with("/api/")));
        assert!(!made.join(".unfinished").exists() && made.join("floats-int8.safetensors").exists());
        run(&sandbox, &hub, &["models", "verify", ID]).done();
        fs::remove_dir_all(&made).unwrap();
    }
}

#[test]
fn a_signal_ends_a_pull_that_waits_for_an_answer() {
    let sandbox = Sandbox::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let hub = Hub { endpoint, ..Hub::with(BTreeMap::new()) };
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut command = command(&sandbox, &hub, &["models", "pull", ID]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let connection = silent.accept().unwrap();
        let started = Instant::now();
        Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code().or(status.signal().map(|signal| 128 + signal)), Some(code));
        assert!(started.elapsed() < Duration::from_secs(2));
        drop(connection);
    }
    not_pulled(&sandbox);
}
