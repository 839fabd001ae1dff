//! The README's exit codes: every subcommand in every kind of trouble.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::model_files as files;
use crate::support::sandbox::{Left, Sandbox};

/// A folder with a list, stored pictures to be, a model that is damaged, and one whose UNet lacks a tensor.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("list.jsonl", b"{\"id\":\"a\",\"prompt\":\"x\",\"seed\":1,\"steps\":1}\n");
    sandbox.write("file", b"not a folder");
    sandbox.write("notes.txt", b"no model\n");
    sandbox.write("int8.safetensors", include_bytes!("../../models/pocket/pocket.safetensors"));
    fs::create_dir(sandbox.join("goldens")).unwrap();
    files::copy_small(&sandbox.join("model"));
    let unet = sandbox.join("model/unet/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&unet).unwrap();
    files::copy_small(&sandbox.join("cut"));
    let damaged = sandbox.join("cut/unet/diffusion_pytorch_model.safetensors");
    fs::write(damaged, &bytes[..bytes.len() / 2]).unwrap();
    files::copy_small(&sandbox.join("nan"));
    let nan = sandbox.join("nan/unet/diffusion_pytorch_model.safetensors");
    files::overwrite(&nan, "conv_in.weight", &0x7e00u16.to_le_bytes());
    sandbox
}

#[track_caller]
fn assert_code(left: &Left, code: i32, args: &[&str]) {
    assert_eq!(left.code, Some(code), "{args:?}: {left:?}");
    assert!(left.stderr.contains("error: ") && !left.stderr.contains("panicked"), "{args:?}: {left:?}");
}

#[track_caller]
fn assert_all(sandbox: &Sandbox, table: &[(i32, &str)]) {
    let before = sandbox.files();
    for (code, line) in table {
        let args: Vec<&str> = line.split(' ').collect();
        assert_code(&sandbox.run_in_time(&args), *code, &args);
        assert_eq!(sandbox.files(), before, "{line} left something");
    }
}

/// What is not there: a model (3), anything else that is asked for (2), or what only the network has (4).
const MISSING: &[(i32, &str)] = &[
    (3, "x -s 1 -m gone -o x.png"),
    (3, "x -s 1 -m a/b -o x.png"),
    (3, "x -s 1 -m model --vae gone -o x.png"),
    (2, "x --init gone.png"),
    (2, "x --lora gone.safetensors"),
    (2, "x --from gone.png"),
    (3, "batch list.jsonl -m gone"),
    (2, "batch gone.jsonl"),
    (3, "verify list.jsonl -m gone --against goldens -o {id}.png"),
    (2, "verify gone.jsonl --against goldens -o {id}.png"),
    (2, "verify list.jsonl --against gone -o {id}.png"),
    (3, "sweep list.jsonl --vary steps=1 -m gone"),
    (2, "sweep gone.jsonl --vary steps=1"),
    (3, "tokens x -m gone"),
    (2, "tokens x --embedding gone.safetensors"),
    (2, "info gone.png"),
    (3, "convert gone new.safetensors"),
    (3, "quantize gone new.safetensors"),
    (3, "prepack gone"),
    (2, "convert model new.safetensors --lora gone.safetensors"),
    (2, "quantize model new.safetensors --lora gone.safetensors"),
    (3, "bench -m gone"),
    (4, "models pull sd15 --offline"),
    (3, "models show gone"),
    (3, "models show a/b"),
    (3, "models path sd15"),
    (3, "models verify sd15"),
    (3, "models remove sd15 --yes"),
];

/// What reads `BAD`: text, half a UNet, a weight that is no number.
const BAD_MODEL: &[(i32, &str)] = &[
    (3, "x -s 1 --steps 1 --size 64x64 -o x.png -m BAD"),
    (3, "batch list.jsonl --size 64x64 -m BAD"),
    (3, "verify list.jsonl --size 64x64 --against goldens -o {id}.png --update -m BAD"),
    (3, "sweep list.jsonl --size 64x64 --vary steps=1 --out-dir goldens -m BAD"),
    (3, "bench --size 64x64 --steps 1 --repeats 1 -m BAD"),
    (3, "quantize BAD new.safetensors"),
    (3, "prepack BAD"),
    (3, "convert BAD new.safetensors"),
    (3, "convert BAD new --format diffusers"),
    (3, "tokens x -m BAD"),
    (3, "models show BAD"),
];

const BAD_INPUT: &[(i32, &str)] = &[
    (2, "x --steps 0"),
    (2, "x --size 7x7"),
    (2, "x --nonsense"),
    (2, "x --init file"),
    (2, "x --lora notes.txt"),
    (2, "x --from file"),
    (2, "batch odd.jsonl"),
    (2, "batch list.jsonl --shard 3/2"),
    (2, "verify odd.jsonl --against goldens -o {id}.png"),
    (2, "verify unseeded.jsonl --against goldens -o {id}.png"),
    (2, "sweep odd.jsonl --vary steps=1"),
    (2, "sweep list.jsonl --vary stpes=1"),
    (2, "sweep list.jsonl"),
    (2, "tokens x --prompt-syntax nonsense"),
    (2, "tokens x --embedding notes.txt"),
    (2, "info file"),
    (2, "bench --steps 0"),
    (2, "quantize model new.safetensors --keep nothing.*"),
    (2, "quantize model new.safetensors --size 1KB --report-steps 1 --report-size 64"),
    (2, "quantize model new.safetensors --size 9MB --measured notes.txt --report-size 64"),
    (2, "quantize model file"),
    (2, "prepack model"),
    (2, "convert model file"),
    (2, "convert model new.safetensors --lora notes.txt"),
    (2, "convert model goldens/.. --format diffusers"),
    (2, "models pull a/b/c"),
    (2, "models pull a/b --revision ../x"),
    (2, "models show"),
    (2, "models path a/b/c"),
    (2, "models verify a/b/c"),
    (2, "models remove a/b/c --yes"),
    (2, "models list --nonsense"),
    (2, "completions nonsense"),
    (2, "doctor --nonsense"),
    (2, "man --nonsense"),
];

/// Said before any work, but for the Hub's cache, which nobody names on the command line.
const UNWRITABLE: &[(i32, &str)] = &[
    (2, "x -s 1 -o no/such/x.png"),
    (2, "x -s 1 -o x.png --preview=no/such.png"),
    (2, "x -s 1 -o x.png --steps-dir file/steps"),
    (2, "batch list.jsonl --out-dir file/out"),
    (2, "batch list.jsonl --results no/such/results.jsonl"),
    (2, "verify list.jsonl --against file/goldens -o {id}.png --update"),
    (2, "sweep list.jsonl --vary steps=1 --out-dir file/out"),
    (2, "quantize model no/such/new.safetensors"),
    (2, "quantize model new.safetensors --report no/such/report.json"),
    (2, "convert model no/such/new.safetensors"),
    (2, "convert model no/such/folder --format diffusers"),
    (2, "convert model file/new.safetensors"),
];

/// Runs whose stdout is a full disk.
const FULL_STDOUT: &[(i32, &str)] = &[
    (1, "x -q -s 1 --steps 1 -m pocket -o -"),
    (1, "x -q -s 1 --steps 1 -m pocket -o x.png --json --force"),
    (1, "batch list.jsonl -q -m pocket --out-dir out --force"),
    (1, "batch list.jsonl -m pocket --dry-run --force"),
    (1, "verify list.jsonl -q -m pocket --against goldens -o {id}.png --update"),
    (1, "sweep list.jsonl -q -m pocket --vary steps=1,2 --out-dir out -o {index}.png"),
    (1, "quantize model new.safetensors --force --report r.json --report-steps 1 --report-size 64"),
    (1, "quantize model new.safetensors --force --json"),
    (1, "prepack int8.safetensors"),
    (1, "tokens x -m pocket"),
    (1, "info model"),
    (1, "bench -m pocket --steps 1 --repeats 1"),
    (1, "doctor"),
    (1, "completions bash"),
    (1, "man"),
    (1, "models list"),
    (1, "models show pocket"),
];

/// Runs whose files find no room, and that leave nothing.
const FULL_DISK: &[(i32, &str)] = &[
    (1, "x -q -s 1 --steps 1 -m pocket -o new.png"),
    (1, "batch list.jsonl -q -m pocket --out-dir new"),
    (1, "verify list.jsonl -q -m pocket --against new -o {id}.png --update"),
    (1, "sweep list.jsonl -q -m pocket --vary steps=1 --out-dir new"),
    (1, "convert model new.safetensors"),
    (1, "quantize model new.safetensors"),
    (1, "prepack int8.safetensors"),
    (1, "convert model new --format diffusers"),
];

/// Runs of minutes.
const LONG: &[&str] = &[
    "x -s 1 --steps 1000 -m pocket -o new.png",
    "batch long.jsonl -m pocket --out-dir new",
    "verify long.jsonl -m pocket --against new -o {id}.png --update",
    "sweep long.jsonl -m pocket --vary cfg=2,3 --out-dir new",
    "bench -m pocket --steps 1000 --repeats 9",
];

/// What the tables leave out: the test that has it, or why there is nothing to try.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("doctor", "missing bad_model unwritable", "it tells what is there"),
    ("models list", "missing bad_model unwritable", "it lists what is there"),
    ("completions", "missing bad_model unwritable", "it reads and writes no files"),
    ("man", "missing bad_model unwritable", "it reads and writes no files"),
    ("tokens", "unwritable", "it writes to stdout only"),
    ("info", "unwritable", "it writes to stdout only"),
    ("bench", "unwritable", "it writes to stdout only"),
    ("models show", "unwritable", "it writes to stdout only"),
    ("models path", "unwritable", "it writes to stdout only"),
    ("models verify", "unwritable", "it writes to stderr only"),
    ("info", "bad_model", "the_inspected_model_may_be_bad"),
    ("models path", "bad_model", "it opens no model"),
    ("models remove", "bad_model", "it opens no model"),
    ("models verify", "bad_model", "hub: a_pulled_model_is_found_shown_checked_and_drawn_with"),
    ("models pull", "bad_model", "hub: wrong_bytes_are_deleted, a_single_file_is_chosen_by_name"),
    ("models pull", "unwritable full", "hub: a_cache_that_takes_no_files_is_the_disks_fault"),
    ("models path", "full", "hub: a_cache_that_takes_no_files_is_the_disks_fault"),
    ("models verify", "full", "it writes to stderr only"),
    ("models remove", "unwritable full", "it writes nothing"),
    ("convert", "interrupted", "hostile_files: a_signal_leaves_nothing_of_a_model_and_a_kill_is_swept"),
    ("quantize", "interrupted", "hostile_files: a_signal_leaves_nothing_of_a_model_and_a_kill_is_swept"),
    ("prepack", "unwritable", "prepack: pictures_are_the_same_and_what_does_not_fit_is_noted"),
    ("prepack", "interrupted", "hostile_files: a_signal_leaves_nothing_of_a_model_and_a_kill_is_swept"),
    ("models pull", "interrupted", "hub::signals"),
    ("tokens, info, doctor, completions, man", "interrupted", "over before a signal can come"),
    ("models list", "interrupted", "over before a signal can come"),
    ("models show", "interrupted", "over before a signal can come"),
    ("models path", "interrupted", "over before a signal can come"),
    ("models verify", "interrupted", "it leaves signals to the system, and writes nothing"),
    ("models remove", "interrupted", "it leaves signals to the system: what it has removed stays so"),
];

/// The subcommands that help tells of.
fn subcommands(sandbox: &Sandbox) -> Vec<String> {
    let of = |args: &[&str]| -> Vec<String> {
        let help = sandbox.run(args);
        let lines = help.done().lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = lines.take_while(|line| !line.is_empty());
        let names = lines.map(|line| line.split_whitespace().next().unwrap().to_owned());
        names.filter(|name| name != "help").collect()
    };
    let mut names = of(&["--help"]);
    assert!(names.len() > 9, "{names:?}");
    names.retain(|name| name != "models");
    names.extend(of(&["models", "--help"]).iter().map(|name| format!("models {name}")));
    names
}

#[test]
fn every_subcommand_is_tried_in_every_trouble() {
    let subcommands = subcommands(&Sandbox::new());
    let lines = |table: &[(i32, &'static str)]| table.iter().map(|(_, line)| *line).collect::<Vec<_>>();
    let tables = [
        ("missing", lines(MISSING)),
        ("bad_model", lines(BAD_MODEL)),
        ("bad_input", lines(BAD_INPUT)),
        ("unwritable", lines(UNWRITABLE)),
        ("full", [lines(FULL_STDOUT), lines(FULL_DISK)].concat()),
        ("interrupted", LONG.to_vec()),
    ];
    for subcommand in &subcommands {
        for (trouble, table) in &tables {
            // A bare prompt is `generate`.
            let begins = |line: &&str| match subcommand.as_str() {
                "generate" => line.starts_with("x "),
                name => line.starts_with(name),
            };
            let is_elsewhere = ELSEWHERE.iter().any(|(names, troubles, _)| {
                let named = names.split(", ").any(|name| name == subcommand);
                named && troubles.split(' ').any(|name| name == *trouble)
            });
            let is_here = table.iter().any(begins);
            assert!(is_here != is_elsewhere, "{subcommand}: {trouble}: {is_here}, {is_elsewhere}");
        }
    }
}

#[test]
fn what_is_missing_is_3_2_or_4() {
    assert_all(&sandbox(), MISSING);
}

#[test]
fn a_bad_model_is_3() {
    let sandbox = sandbox();
    for model in ["notes.txt", "cut", "nan"] {
        for (code, line) in BAD_MODEL {
            // What is not loaded can't be seen to be no number.
            let looks_only = ["tokens", "models show", "prepack"].iter().any(|name| line.starts_with(name));
            if model != "nan" || !looks_only {
                assert_all(&sandbox, &[(*code, &line.replace("BAD", model))]);
            }
        }
        assert!(fs::read_dir(sandbox.join("goldens")).unwrap().next().is_none());
    }
}

#[test]
fn the_inspected_model_may_be_bad() {
    // A file that is neither a picture nor a model is bad input, a broken model a bad model.
    assert_all(&sandbox(), &[(3, "info cut"), (2, "info notes.txt")]);
}

#[test]
fn bad_input_is_2() {
    let sandbox = sandbox();
    sandbox.write("odd.jsonl", b"{\"prompt\":\"x\",\"seeed\":1}\n");
    sandbox.write("unseeded.jsonl", b"{\"prompt\":\"x\",\"id\":\"a\"}\n");
    assert_all(&sandbox, BAD_INPUT);
}

#[test]
fn a_place_that_can_not_be_written_is_2_before_any_work() {
    assert_all(&sandbox(), UNWRITABLE);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_1() {
    let sandbox = sandbox();
    for (code, line) in FULL_STDOUT {
        let args: Vec<&str> = line.split(' ').collect();
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let left: Left = sandbox.command(&args).stdout(full).output().unwrap().into();
        assert_code(&left, *code, &args);
    }
    fs::remove_file(sandbox.join("new.safetensors")).unwrap();
    for (code, line) in FULL_DISK {
        let args: Vec<&str> = line.split(' ').collect();
        let before = sandbox.files();
        // Blocks of 512 or of 1024 bytes: 10 or 20 kB, less than any picture here.
        let left = sandbox.run_limited("trap '' XFSZ; ulimit -f 20", &args);
        assert_code(&left, *code, &args);
        let _ = fs::remove_dir(sandbox.join("new"));
        assert_eq!(sandbox.files(), before, "{line} left something");
    }
}

/// Whether these tests run in a shell's background, whose programs inherit that SIGINT is ignored: what does not catch
/// it then runs to its end.
#[cfg(unix)]
fn interrupts_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|signals| signals & 1 << (2 - 1) != 0)
}

#[cfg(unix)]
#[test]
fn a_signal_is_130_or_143() {
    use std::os::unix::process::ExitStatusExt;

    let sandbox = sandbox();
    let lines = "{\"prompt\":\"x\",\"seed\":1,\"steps\":1000,\"id\":\"a\"}\n";
    sandbox.write("long.jsonl", lines.as_bytes());
    let before = sandbox.files();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        for line in LONG {
            if line.starts_with("bench") && signal == "INT" && interrupts_are_ignored() {
                continue;
            }
            let args: Vec<&str> = line.split(' ').collect();
            let mut command = sandbox.command(&args);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(700));
            Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
            let status = child.wait().unwrap();
            // What catches no signal is ended by it, which a shell reports in the same way.
            assert_eq!(status.code().or(status.signal().map(|signal| 128 + signal)), Some(code), "{line}");
            let _ = fs::remove_dir(sandbox.join("new"));
            assert_eq!(sandbox.files(), before, "{line} left something");
        }
    }
}
