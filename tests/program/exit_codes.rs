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
fn assert_all(sandbox: &Sandbox, code: i32, table: &[&str]) {
    let before = sandbox.files();
    for line in table {
        let args: Vec<&str> = line.split(' ').collect();
        assert_code(&sandbox.run_in_time(&args), code, &args);
        assert_eq!(sandbox.files(), before, "{line} left something");
    }
}

#[test]
fn a_model_that_is_missing_or_bad_is_3() {
    let sandbox = sandbox();
    for model in ["gone", "notes.txt", "cut", "nan"] {
        let lines = [
            "x -s 1 --steps 1 --size 64x64 -o x.png",
            "batch list.jsonl --size 64x64",
            "verify list.jsonl --size 64x64 --against goldens -o {id}.png --update",
            "bench --size 64x64 --steps 1 --repeats 1",
        ]
        .map(|line| format!("{line} -m {model}"));
        assert_all(&sandbox, 3, &lines.each_ref().map(String::as_str));
        let lines = [format!("quantize {model} new.safetensors"), format!("convert {model} new.safetensors")];
        assert_all(&sandbox, 3, &lines.each_ref().map(String::as_str));
        // What is not loaded can't be seen to be no number.
        if model != "nan" {
            let lines = [format!("tokens x -m {model}"), format!("models show {model}")];
            assert_all(&sandbox, 3, &lines.each_ref().map(String::as_str));
        }
        assert!(fs::read_dir(sandbox.join("goldens")).unwrap().next().is_none());
    }
    assert_all(
        &sandbox,
        3,
        &["info cut", "models path sd15", "models verify sd15", "models remove sd15 --yes"],
    );
    assert_all(&sandbox, 4, &["models pull sd15 --offline"]);
}

#[test]
fn bad_input_is_2() {
    let sandbox = sandbox();
    sandbox.write("odd.jsonl", b"{\"prompt\":\"x\",\"seeed\":1}\n");
    sandbox.write("unseeded.jsonl", b"{\"prompt\":\"x\",\"id\":\"a\"}\n");
    assert_all(
        &sandbox,
        2,
        &[
            "x --steps 0",
            "x --size 7x7",
            "x --nonsense",
            "x --init gone.png",
            "x --lora gone.safetensors",
            "x --from file",
            "batch odd.jsonl",
            "batch gone.jsonl",
            "batch list.jsonl --shard 3/2",
            "verify odd.jsonl --against goldens -o {id}.png",
            "verify unseeded.jsonl --against goldens -o {id}.png",
            "verify list.jsonl --against gone -o {id}.png",
            "tokens x --prompt-syntax nonsense",
            "tokens x --embedding gone.safetensors",
            "info gone.png",
            "info file",
            "bench --steps 0",
            "quantize model new.safetensors --keep nothing.*",
            "quantize model file",
            "convert model file",
            "convert model goldens/.. --format diffusers",
            "models pull a/b/c",
            "models pull a/b --revision ../x",
            "models show",
            "models verify a/b/c",
            "completions nonsense",
            "doctor --nonsense",
            "man --nonsense",
        ],
    );
}

#[test]
fn a_place_that_can_not_be_written_is_2_before_any_work() {
    let sandbox = sandbox();
    assert_all(
        &sandbox,
        2,
        &[
            "x -s 1 -o no/such/x.png",
            "x -s 1 -o x.png --steps-dir file/steps",
            "batch list.jsonl --out-dir file/out",
            "verify list.jsonl --against file/goldens -o {id}.png --update",
            "quantize model no/such/new.safetensors",
            "quantize model new.safetensors --report no/such/report.json",
            "convert model no/such/new.safetensors",
            "convert model no/such/folder --format diffusers",
            "convert model file/new.safetensors",
        ],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_1() {
    let sandbox = sandbox();
    for line in [
        "x -q -s 1 --steps 1 -m pocket -o -",
        "x -q -s 1 --steps 1 -m pocket -o x.png --json --force",
        "batch list.jsonl -q -m pocket --out-dir out --force",
        "batch list.jsonl -m pocket --dry-run --force",
        "verify list.jsonl -q -m pocket --against goldens -o {id}.png --update",
        "tokens x -m pocket",
        "info model",
        "bench -m pocket --steps 1 --repeats 1",
        "doctor",
        "completions bash",
        "man",
        "models list",
        "models show pocket",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let left: Left = sandbox.command(&args).stdout(full).output().unwrap().into();
        assert_code(&left, 1, &args);
    }
    for line in [
        "x -q -s 1 --steps 1 -m pocket -o new.png",
        "batch list.jsonl -q -m pocket --out-dir new",
        "verify list.jsonl -q -m pocket --against new -o {id}.png --update",
        "convert model new.safetensors",
        "quantize model new.safetensors",
        "convert model new --format diffusers",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let before = sandbox.files();
        // Blocks of 512 or of 1024 bytes: 10 or 20 kB, less than any picture here.
        let left = sandbox.run_limited("trap '' XFSZ; ulimit -f 20", &args);
        assert_code(&left, 1, &args);
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
        for line in [
            "x -s 1 --steps 1000 -m pocket -o new.png",
            "batch long.jsonl -m pocket --out-dir new",
            "verify long.jsonl -m pocket --against new -o {id}.png --update",
            "bench -m pocket --steps 1000 --repeats 9",
        ] {
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
