//! What a run writes beside its pictures replaces nothing of others, and work ends when its pictures have no place.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::sandbox::Sandbox;

const DRAW: [&str; 9] = ["-m", "pocket", "x", "-s", "1", "--steps", "2", "--size", "64x64"];

fn draw<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&DRAW[..], more].concat()
}

#[test]
fn previews_replace_previews_and_nothing_else() {
    let sandbox = Sandbox::new();
    sandbox.run(&draw(&["-o", "init.png"])).done();
    let init = fs::read(sandbox.join("init.png")).unwrap();
    sandbox.write("notes.png", b"mine");
    for (preview, force, why) in [
        ("--preview=notes.png", false, "exists"),
        ("--preview=init.png", false, "the picture to start from"),
        ("--preview=init.png", true, "the picture to start from"),
        ("--preview=./init.png", true, "the picture to start from"),
        ("--preview=out.png", false, "the picture to be made"),
        ("--preview=out.png", true, "the picture to be made"),
        ("--preview=/dev/null", true, "not a regular file"),
        ("--preview=no/such.png", false, "does not exist"),
    ] {
        let mut args = draw(&["--init", "init.png", "-o", "out.png", preview]);
        args.extend(force.then_some("--force"));
        sandbox.run(&args).refused(2, &[why]);
        assert!(!sandbox.join("out.png").exists());
    }
    assert_eq!(fs::read(sandbox.join("notes.png")).unwrap(), b"mine");
    assert_eq!(fs::read(sandbox.join("init.png")).unwrap(), init);
    // A second run needs no leave to replace the first one's preview.
    for output in ["a.png", "b.png"] {
        sandbox.run(&draw(&["-o", output, "--preview=now.png"])).done();
    }
    sandbox.run(&draw(&["-o", "c.png", "--preview=notes.png", "--force"])).done();
    assert!(fs::read(sandbox.join("notes.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn steps_replace_steps_and_nothing_else() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.join("photos")).unwrap();
    for taken in ["photos/001.png", "photos/002.png"] {
        sandbox.write("photos/001.png", b"a photo");
        fs::rename(sandbox.join("photos/001.png"), sandbox.join(taken)).unwrap();
        if taken.ends_with("002.png") {
            sandbox.run(&draw(&["-o", "kept.png", "--steps-dir", "steps"])).done();
            fs::copy(sandbox.join("steps/001.png"), sandbox.join("photos/001.png")).unwrap();
        }
        sandbox.run(&draw(&["-o", "out.png", "--steps-dir", "photos"])).refused(2, &[taken, "exists"]);
        assert_eq!(fs::read(sandbox.join(taken)).unwrap(), b"a photo");
        fs::remove_file(sandbox.join(taken)).unwrap();
    }
    sandbox.run(&draw(&["-o", "again.png", "--steps-dir", "steps"])).done();
    assert!(!sandbox.join("out.png").exists());
}

#[test]
fn differences_spare_the_stored_pictures() {
    let sandbox = Sandbox::new();
    let list = sandbox.write("list.jsonl", b"{\"prompt\":\"x\",\"id\":\"a\",\"seed\":1,\"steps\":2}\n");
    let list = list.to_str().unwrap();
    let verify = |against: &str, differences: &str, more: &[&str]| {
        let args =
            ["verify", list, "-m", "pocket", "-o", "{id}.png", "--size", "64x64", "--against", against];
        sandbox.run(&[&args[..], &["--diff-dir", differences], more].concat())
    };
    verify("golden", "differences", &["--update"]).done();
    let stored = fs::read(sandbox.join("golden/a.png")).unwrap();
    for folder in ["golden", "golden/../golden", "./golden/"] {
        verify("golden", folder, &["--cfg", "1"]).refused(2, &["would replace the stored picture"]);
    }
    assert_eq!(fs::read(sandbox.join("golden/a.png")).unwrap(), stored);
    fs::create_dir(sandbox.join("mine")).unwrap();
    sandbox.write("mine/a.png", b"mine");
    let left = verify("golden", "mine", &["--cfg", "1"]);
    assert_eq!(left.code, Some(1), "{left:?}");
    assert_eq!(fs::read(sandbox.join("mine/a.png")).unwrap(), b"mine");
    // Its own differences are replaced.
    for _ in 0..2 {
        let left = verify("golden", "differences", &["--cfg", "1"]);
        assert_eq!(left.code, Some(1), "{left:?}");
        assert!(sandbox.join("differences/a.png").exists(), "{left:?}");
    }
}

#[test]
fn results_continue_results_and_nothing_else() {
    let sandbox = Sandbox::new();
    let list = b"{\"prompt\":\"x\",\"seed\":1}\n{\"prompt\":\"y\",\"seed\":2}";
    sandbox.write("list.jsonl", list);
    let batch = |results: &str| {
        sandbox.run(&[
            "batch",
            "list.jsonl",
            "-m",
            "pocket",
            "--steps",
            "1",
            "--size",
            "64x64",
            "--force",
            "--results",
            results,
        ])
    };
    sandbox.write("binary", b"\x7fELF\0\0\0");
    for (name, bytes) in [("list.jsonl", &list[..]), ("binary", b"\x7fELF\0\0\0")] {
        batch(name).refused(2, &[name, "something else than results"]);
        assert_eq!(fs::read(sandbox.join(name)).unwrap(), bytes);
    }
    batch("/dev/null").refused(2, &["not a regular file"]);
    for lines in [2, 4] {
        batch("results.jsonl").done();
        assert_eq!(fs::read_to_string(sandbox.join("results.jsonl")).unwrap().lines().count(), lines);
    }
}

#[test]
fn names_no_file_can_have_are_told_before_anything_is_drawn() {
    let sandbox = Sandbox::new();
    let long = "x".repeat(252);
    let lines = [
        ("{\"prompt\":\"x\",\"seed\":1}\n", "ok.png"),
        (&format!("{{\"prompt\":\"x\",\"seed\":1,\"output\":\"{long}.png\"}}\n"), "256 bytes"),
        (
            "{\"prompt\":\"x\",\"seed\":1,\"output\":\"a\"}\n{\"prompt\":\"x\",\"seed\":2,\"output\":\"a/b.png\"}\n",
            "needs a folder",
        ),
    ];
    for (list, why) in &lines[1..] {
        sandbox.write("list.jsonl", [lines[0].0, list].concat().as_bytes());
        let left = sandbox.run(&["batch", "list.jsonl", "-m", "pocket", "--steps", "1", "--out-dir", "out"]);
        left.refused(2, &[why]);
        assert!(!sandbox.join("out").exists());
    }
    sandbox.run(&draw(&["-o", &format!("{long}.png")])).refused(2, &["256 bytes"]);
    sandbox.run(&draw(&["-o", &format!("{long}/{{seed}}.png")])).refused(2, &["does not exist"]);
}

/// Starts `args`, takes the folder `out` away when its first picture is there, and returns what was said.
fn without_its_folder(sandbox: &Sandbox, args: &[&str]) -> (Option<i32>, String) {
    let mut command = sandbox.command(args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    let has_picture = |folder: &Path| {
        fs::read_dir(folder).is_ok_and(|mut entries| {
            entries.any(|entry| entry.unwrap().path().extension() == Some("png".as_ref()))
        })
    };
    while !has_picture(&sandbox.join("out")) && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    fs::rename(sandbox.join("out"), sandbox.join("moved")).unwrap();
    let left = child.wait_with_output().unwrap();
    fs::remove_dir_all(sandbox.join("moved")).unwrap();
    (left.status.code(), String::from_utf8(left.stderr).unwrap())
}

#[test]
fn work_ends_when_its_folder_is_gone() {
    let sandbox = Sandbox::new();
    let lines: String = (0..400).map(|seed| format!("{{\"prompt\":\"x\",\"seed\":{seed}}}\n")).collect();
    sandbox.write("list.jsonl", lines.as_bytes());
    fs::create_dir(sandbox.join("out")).unwrap();
    let batch = ["batch", "list.jsonl", "-m", "pocket", "--steps", "4", "--out-dir", "out"];
    let (code, said) = without_its_folder(&sandbox, &batch);
    assert_eq!((code, said.matches("error: ").count()), (Some(1), 1), "{said}");
    assert!(said.contains("resume with"), "{said}");
    fs::create_dir(sandbox.join("out")).unwrap();
    let (code, said) = without_its_folder(
        &sandbox,
        &["x", "-m", "pocket", "-s", "1", "--steps", "4", "-c", "400", "-o", "out/"],
    );
    assert_eq!((code, said.matches("error: ").count()), (Some(1), 1), "{said}");
    assert!(said.contains("further pictures are not drawn"), "{said}");
}

#[test]
fn more_threads_than_processors_are_not_started() {
    let sandbox = Sandbox::new();
    let left = sandbox.run(&draw(&["-o", "a.png", "-t", "1000"]));
    left.done();
    assert!(left.stderr.contains("note: --threads 1000: more than the "), "{left:?}");
    sandbox.run(&draw(&["-o", "b.png", "-t", "1"])).done();
    assert_eq!(fs::read(sandbox.join("a.png")).unwrap(), fs::read(sandbox.join("b.png")).unwrap());
}
