//! Lists drawn by the binary: the same files whatever the parts, the interruptions and the company.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::sandbox::{Left, Sandbox};

/// As little work per picture as there can be.
const SMALL: [&str; 8] = ["--size", "16x16", "--steps", "1", "--cfg", "1", "--sampler", "euler"];

fn batch<'a>(args: &[&'a str]) -> Vec<&'a str> {
    ["batch"].iter().chain(args).chain(&SMALL).copied().collect()
}

/// Every file below `folder` with its bytes.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        // A run that was killed early has made no folder.
        for entry in std::fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

fn list(count: usize) -> String {
    (0..count).fold(String::new(), |list, index| list + &format!("apple number {}\n", index % 7))
}

fn results(sandbox: &Sandbox, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(sandbox.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn two_parts_side_by_side_give_the_files_of_one_run() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", list(9).as_bytes());
    let whole = sandbox.run(&batch(&["list.txt", "--out-dir", "whole", "--seed", "5"]));
    assert_eq!(whole.done().lines().count(), 9);
    let args = ["list.txt", "--out-dir", "parts", "--seed", "5", "--results", "results.jsonl"];
    let children: Vec<_> = ["1/2", "2/2"]
        .iter()
        .map(|part| {
            let args = [&args[..], &["--shard", part]].concat();
            let mut command = sandbox.command(&batch(&args));
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        Left::from(child.wait_with_output().unwrap()).done();
    }
    assert_eq!(tree(&sandbox.join("parts")), tree(&sandbox.join("whole")));
    assert_eq!(tree(&sandbox.join("whole")).len(), 9);
    let mut indexes: Vec<_> = results(&sandbox, "results.jsonl")
        .iter()
        .map(|line| (line["status"].as_str().unwrap().to_owned(), line["index"].as_u64().unwrap()))
        .collect();
    indexes.sort();
    assert_eq!(indexes, (1..=9).map(|index| ("drawn".to_owned(), index)).collect::<Vec<_>>());
}

#[test]
fn the_same_part_twice_at_once_disturbs_nobody() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", list(6).as_bytes());
    sandbox.run(&batch(&["list.txt", "--out-dir", "once", "--seed", "5"])).done();
    let args = batch(&["list.txt", "--out-dir", "twice", "--seed", "5", "--skip-existing"]);
    let children: Vec<_> = (0..2)
        .map(|_| {
            let mut command = sandbox.command(&args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        Left::from(child.wait_with_output().unwrap()).done();
    }
    assert_eq!(tree(&sandbox.join("twice")), tree(&sandbox.join("once")));
}

#[test]
fn a_batch_draws_what_generate_draws() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "list.jsonl",
        b"{\"prompt\":\"a red apple\",\"seed\":3,\"output\":\"x.png\"}\n{\"prompt\":\"a dog\"}\n",
    );
    sandbox.run(&batch(&["list.jsonl", "--seed", "1"])).done();
    let alone = [&["a red apple", "--seed", "3", "-o", "alone.png"], &SMALL[..]].concat();
    sandbox.run(&alone).done();
    let alone = [&["a dog", "--seed", "2", "-o", "dog.png"], &SMALL[..]].concat();
    sandbox.run(&alone).done();
    let files = tree(sandbox.path());
    assert_eq!(files["x.png"], files["alone.png"]);
    assert_eq!(files["00002-a-dog.png"], files["dog.png"]);
}

#[test]
fn killed_at_any_moment_a_batch_goes_on_to_the_same_files() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", list(12).as_bytes());
    let args = ["list.txt", "--seed", "9", "--results", "results.jsonl", "--skip-existing", "--out-dir"];
    let whole = [&["list.txt", "--seed", "9", "--out-dir", "whole"], &SMALL[..]].concat();
    sandbox.run(&[&["batch"], &whole[..]].concat()).done();
    let whole = tree(&sandbox.join("whole"));
    for round in 0..4u32 {
        let folder = format!("round-{round}");
        let args = batch(&[&args[..], &[&folder]].concat());
        // Moments from before the first picture to after the last, whatever this machine's pace.
        for kill in 0..6u32 {
            let mut child =
                sandbox.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            for _ in 0..kill % 3 {
                lines.next();
            }
            std::thread::sleep(Duration::from_micros(u64::from(round * 6 + kill) * 7919 % 40_000));
            child.kill().unwrap();
            child.wait().unwrap();
            for (name, bytes) in tree(&sandbox.join(&folder)) {
                if !name.starts_with(".pochade-") {
                    assert!(whole[&name] == bytes, "{name} differs after a kill");
                }
            }
        }
        sandbox.run(&args).done();
        let mut files = tree(&sandbox.join(&folder));
        files.retain(|name, _| !name.starts_with(".pochade-"));
        assert!(files == whole);
    }
    assert!(results(&sandbox, "results.jsonl").len() >= 4 * 12);
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_whole_files_and_says_how_to_go_on() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let sandbox = Sandbox::new();
        sandbox.write("list.txt", list(500).as_bytes());
        let args = batch(&["list.txt", "--out-dir", "o u t"]);
        let mut command = sandbox.command(&args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut drawn = String::new();
        for _ in 0..2 {
            stdout.read_line(&mut drawn).unwrap();
        }
        Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        std::io::Read::read_to_string(&mut stdout, &mut drawn).unwrap();
        let left = Left::from(child.wait_with_output().unwrap());
        assert_eq!(left.code, Some(code), "{left:?}");
        let resume = left.stderr.lines().find_map(|line| line.strip_prefix("resume with: ")).unwrap();
        assert!(resume.contains("--skip-existing") && resume.contains("--seed "), "{resume}");
        assert!(resume.contains("--out-dir 'o u t'"), "{resume}");
        let files = tree(&sandbox.join("o u t"));
        assert_eq!(files.len(), drawn.lines().count());
        assert!((2..500).contains(&files.len()) && files.keys().all(|name| name.ends_with(".png")));
        // The command is the shell's to read; a shorter list keeps the test short.
        sandbox.write("list.txt", list(files.len() + 2).as_bytes());
        let again = Command::new("sh").args(["-c", resume]).current_dir(sandbox.path()).output().unwrap();
        let again = Left::from(again);
        assert_eq!(again.done().lines().count(), 2, "{again:?}");
        assert!(again.stderr.contains(&format!("2 drawn, {} kept, 0 failed", files.len())));
    }
}

#[test]
fn one_failing_item_loses_only_itself() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", list(200).as_bytes());
    let args = batch(&[
        "list.txt",
        "--out-dir",
        "out",
        "-o",
        "{index:03}.png",
        "--seed",
        "1",
        "--results",
        "r.jsonl",
    ]);
    let mut command = sandbox.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut drawn = String::new();
    stdout.read_line(&mut drawn).unwrap();
    // What was free when the list was checked is taken when the picture is finished.
    std::fs::write(sandbox.join("out/200.png"), "mine").unwrap();
    std::io::Read::read_to_string(&mut stdout, &mut drawn).unwrap();
    let left = Left::from(child.wait_with_output().unwrap());
    assert_eq!(left.code, Some(1), "{left:?}");
    assert_eq!(drawn.lines().count(), 199);
    assert_eq!(left.stderr.matches("error: ").count(), 1, "{}", left.stderr);
    assert!(left.stderr.contains("error: item 200 (line 200): "));
    assert!(left.stderr.contains("199 drawn, 0 kept, 1 failed"));
    assert_eq!(std::fs::read(sandbox.join("out/200.png")).unwrap(), b"mine");
    assert_eq!(tree(&sandbox.join("out")).len(), 200);
    let failed: Vec<_> =
        results(&sandbox, "r.jsonl").into_iter().filter(|line| line["status"] == "failed").collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0]["error"].as_str().unwrap().contains("200.png"));
}

#[test]
fn what_exists_is_kept_refused_or_overwritten() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", b"a cat\na dog\n");
    let args = batch(&["list.txt", "-o", "{index}.png", "--seed", "1"]);
    sandbox.run(&args).done();
    let before = tree(sandbox.path());
    sandbox.run(&args).refused(2, &["2 lines", "line 1: ./1.png exists", "line 2: ", "--skip-existing"]);
    let skip = [&args[..], &["--skip-existing"]].concat();
    let kept = sandbox.run(&skip);
    assert_eq!(kept.done(), "");
    assert!(kept.stderr.contains("0 drawn, 2 kept, 0 failed"), "{}", kept.stderr);

    // Another request, a cut file, another model's numbers, another file.
    sandbox.write("list.txt", b"a cat\na bird\n");
    sandbox.run(&skip).refused(2, &["line 2: ./2.png was made from another request"]);
    sandbox.write("list.txt", b"a cat\na dog\n");
    sandbox.write("2.png", &before["2.png"][..before["2.png"].len() - 20]);
    sandbox.run(&skip).refused(2, &["line 2: ./2.png is no finished picture"]);
    sandbox.run(&[&skip[..], &["--precision", "f32"]].concat()).refused(2, &["line 1: ./1.png was made by"]);
    assert_eq!(tree(sandbox.path())["1.png"], before["1.png"]);
    let force = sandbox.run(&[&skip[..], &["--force"]].concat());
    assert_eq!(force.done(), "./2.png\n");
    assert_eq!(tree(sandbox.path()), before);
}

#[test]
fn a_wrong_list_is_refused_whole_before_anything_is_written() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "list.jsonl",
        b"{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"stpes\":1}\n{\"prompt\":\"c\",\"output\":\"../c.png\"}\n{\"prompt\":\"d\",\"width\":7}\n",
    );
    let refused = sandbox.run(&["batch", "list.jsonl", "--out-dir", "out"]);
    refused
        .refused(2, &["list.jsonl: 3 lines", "line 2: unknown key 'stpes'", "line 3: ", "line 4: width 7"]);
    assert_eq!(sandbox.files(), ["list.jsonl"]);
    sandbox.write("list.txt", b"a\n");
    for (args, parts) in [
        (&["none.txt"][..], &["cannot read the list none.txt"][..]),
        (&["."], &["is a folder"]),
        (&["list.txt", "--out-dir", "list.txt"], &["list.txt"]),
        (&["list.txt", "--results", "."], &["can't append to the results"]),
        (&["list.txt", "-o", "{ix}.png"], &["--output", "{ix}"]),
        (&["list.txt", "-o", "/x.png"], &["leads out of the output folder"]),
        (&["list.txt", "--shard", "3/2"], &["I/N"]),
        (&["list.txt", "--shard", "1/2"], &["line 1: it has no seed", "--seed N"]),
        (&["list.txt", "--skip-existing"], &["--seed N"]),
    ] {
        sandbox.run(&[&["batch"], args].concat()).refused(2, parts);
    }
    assert_eq!(sandbox.files(), ["list.jsonl", "list.txt"]);
}

#[test]
fn a_dry_run_prints_the_plan_and_draws_nothing() {
    let sandbox = Sandbox::new();
    let args = ["batch", "-", "--dry-run", "--seed", "4", "-o", "{thousand}/{index}-{seed}.png"];
    let plan = sandbox.run_with_stdin(&args, b"# two\na cat\n\na dog\n");
    assert_eq!(plan.done(), "./0/1-4.png\n./0/2-5.png\n");
    let json = [&args[..], &["--json", "--shard", "2/2"]].concat();
    let plan = sandbox.run_with_stdin(&json, b"{\"prompt\":\"a cat\"}\n{\"prompt\":\"a dog\"}\n");
    let item: Value = serde_json::from_str(plan.done()).unwrap();
    assert_eq!((&item["line"], &item["request"]["seed"]), (&2.into(), &5.into()));
    assert!(sandbox.files().is_empty());
}

#[test]
fn abandoned_temporary_files_go_and_young_ones_stay() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", b"a cat\n");
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    for name in [".pochade-old.tmp", ".pochade-live.tmp", ".other.tmp"] {
        let path = sandbox.write(name, b"half");
        std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    sandbox.write(".pochade-young.tmp", b"half");
    let live = std::fs::File::open(sandbox.join(".pochade-live.tmp")).unwrap();
    live.lock().unwrap();
    sandbox.run(&batch(&["list.txt", "-o", "cat.png"])).done();
    assert_eq!(
        sandbox.files(),
        [".other.tmp", ".pochade-live.tmp", ".pochade-young.tmp", "cat.png", "list.txt"]
    );
}

#[test]
fn verify_tells_what_differs() {
    let sandbox = Sandbox::new();
    sandbox.write("list.jsonl", b"{\"id\":\"cat\",\"prompt\":\"a cat\",\"seed\":1}\n{\"id\":\"dog\",\"prompt\":\"a dog\",\"seed\":2}\n");
    let args = [&["verify", "list.jsonl", "--against", "golden", "-o", "{id}.png"], &SMALL[..]].concat();
    sandbox.run(&args).refused(2, &["golden", "--update"]);
    sandbox.run(&[&args[..], &["--update"]].concat()).done();
    assert!(sandbox.run(&args).done().contains("dog"));
    let golden = tree(&sandbox.join("golden"));

    // A cat where a dog is expected, and nothing where the cat was.
    std::fs::rename(sandbox.join("golden/cat.png"), sandbox.join("golden/dog.png")).unwrap();
    let failed = sandbox.run(&args);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let table = String::from_utf8(failed.stdout.clone()).unwrap();
    assert!(table.contains("MISSING") && table.contains("DIFFERS"), "{table}");
    assert!(failed.stderr.contains("2 of 2 pictures fall short"), "{}", failed.stderr);
    let difference = image::open(sandbox.join("pochade-diff/dog.png")).unwrap();
    assert_eq!((difference.width(), difference.height()), (48, 16));

    let lax = sandbox.run(&[&args[..], &["--min-psnr", "0", "--json"]].concat());
    let rows: Vec<Value> = String::from_utf8_lossy(&lax.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((&rows[0]["verdict"], &rows[1]["verdict"]), (&"missing".into(), &"close".into()));
    assert!(rows[1]["psnr"].as_f64().unwrap() < 35.0);
    sandbox.run(&[&args[..], &["--update"]].concat()).done();
    assert_eq!(tree(&sandbox.join("golden")), golden);
}

#[test]
fn a_list_that_changes_while_it_is_drawn_ends_the_run() {
    // So long that the lines after it are not read while those before it are drawn.
    let comment = format!("# {}\n", "x".repeat(1 << 19));
    let whole = format!("{}{comment}{}", list(70), list(230));
    let (other, shorter) = (whole.replace("apple", "grape"), list(70));
    for changed in [other, shorter] {
        let sandbox = Sandbox::new();
        sandbox.write("list.txt", whole.as_bytes());
        let args = batch(&["list.txt", "--out-dir", "out", "--seed", "1"]);
        let mut command = sandbox.command(&args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut drawn = String::new();
        stdout.read_line(&mut drawn).unwrap();
        // In place, as an editor or a script might: the run has the file open.
        sandbox.write("list.txt", changed.as_bytes());
        std::io::Read::read_to_string(&mut stdout, &mut drawn).unwrap();
        let left = Left::from(child.wait_with_output().unwrap());
        assert_eq!(left.code, Some(2), "{left:?}");
        assert!(left.stderr.contains("the list list.txt has changed while it was drawn"), "{left:?}");
        let files = tree(&sandbox.join("out"));
        assert!((1..=70).contains(&files.len()) && files.len() == drawn.lines().count());
        assert!(files.keys().all(|name| name.ends_with(".png") && name.contains("apple")));
    }
}
