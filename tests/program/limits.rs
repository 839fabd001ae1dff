//! What the system limits: memory, for the pictures a run starts from too, disk for lists from pipes, and threads.

use std::fs;
use std::process::Command;

use image::{ExtendedColorType, ImageEncoder};
use pochade::checkpoint::{Checkpoint, FloatType, Storage};

use crate::support::model_files as files;
use crate::support::sandbox::{Left, Sandbox, limited, through};

fn draw<'a>(size: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let few = ["-m", "pocket", "x", "-s", "1", "--steps", "2", "-t", "1", "-o", "out.png", "--size", size];
    [&few[..], more].concat()
}

/// A PNG of gray pixels, small as a file.
fn write_gray(sandbox: &Sandbox, name: &str, width: u32, height: u32) {
    let mut bytes = Vec::new();
    let pixels = vec![128; (width * height) as usize];
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.write_image(&pixels, width, height, ExtendedColorType::L8).unwrap();
    assert!(bytes.len() < 1 << 20);
    sandbox.write(name, &bytes);
}

#[test]
fn pictures_to_start_from_are_part_of_the_memory_guard() {
    let sandbox = Sandbox::new();
    // As RGB these are 113 MB, beside 38 MB of gray.
    write_gray(&sandbox, "large.png", 6144, 6144);
    // Small to decode, but its rows become floats before they are shortened.
    write_gray(&sandbox, "wide.png", 32_000, 600);
    write_gray(&sandbox, "small.png", 512, 512);
    sandbox.write(
        "list.jsonl",
        b"{\"prompt\":\"x\",\"seed\":1,\"id\":\"a\"}\n{\"prompt\":\"x\",\"seed\":1,\"id\":\"b\",\"init\":\"large.png\"}\n",
    );
    fs::create_dir(sandbox.join("goldens")).unwrap();
    let before = sandbox.files();
    let list = ["list.jsonl", "-m", "pocket", "--steps", "2", "--size", "64x64", "-t", "1", "-o", "{id}.png"];
    for (args, parts) in [
        (draw("64x64", &["--init", "large.png"]), ["large.png", "MB of memory"]),
        (draw("64x64", &["--init", "small.png", "--mask", "large.png"]), ["large.png", "MB of memory"]),
        (draw("64x1024", &["--init", "wide.png", "--resize", "stretch"]), ["wide.png", "MB of memory"]),
        ([&["batch"], &list[..]].concat(), ["line 2: ", "large.png"]),
        ([&["verify"], &list[..], &["--against", "goldens"]].concat(), ["line 2: ", "large.png"]),
    ] {
        // A small picture takes a third of that.
        sandbox.run_limited("ulimit -v 230000", &args).refused(2, &parts);
        assert_eq!(sandbox.files(), before, "{args:?}");
    }
    // Nothing but the limit is in the way.
    sandbox.run(&draw("64x64", &["--init", "large.png"])).done();
}

/// The megabytes before `what` in a message.
fn megabytes(message: &str, what: &str) -> u64 {
    let before = message.split(&format!(" MB {what}")).next().unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("no '{what}' in: {message}"))
}

#[test]
fn with_little_memory_weights_stay_in_their_file_and_pictures_the_same() {
    let sandbox = Sandbox::new();
    files::built_in_in_bytes(&sandbox.join("bytes.safetensors"));
    let draw = |name: &str, memory: &str| {
        let picture = ["x", "-m", "bytes.safetensors", "-s", "1", "--steps", "2", "--size", "64x64"];
        let flags = [&picture[..], &["-o", name, "--json", "--memory", memory]].concat();
        sandbox.run(&flags)
    };
    let refused = draw("none.png", "1MB");
    refused.refused(1, &["--memory ", "MB would fit"]);
    let loaded = megabytes(&refused.stderr, "of memory");
    let least = megabytes(&refused.stderr, "with its weights left in their file");
    assert!(least + 5 < loaded, "{}", refused.stderr);
    let peak = |left: &Left| -> Option<u64> {
        let report: serde_json::Value = serde_json::from_slice(&left.stdout).unwrap();
        report["peak_rss_bytes"].as_u64()
    };
    let whole = draw("whole.png", &format!("{}MB", loaded + 1));
    whole.done();
    assert!(!whole.stderr.contains("stay in their file"), "{}", whole.stderr);
    let streamed = draw("streamed.png", &format!("{}MB", least + 1));
    streamed.done();
    assert!(streamed.stderr.contains("stay in their file"), "{}", streamed.stderr);
    let pixels = |name: &str| image::open(sandbox.join(name)).unwrap().to_rgb8();
    assert!(pixels("whole.png") == pixels("streamed.png"));
    if let (Some(whole), Some(streamed)) = (peak(&whole), peak(&streamed)) {
        assert!(
            streamed <= (least + 1) * 1_000_000 && whole <= (loaded + 1) * 1_000_000,
            "{streamed} {whole}"
        );
        assert!(streamed < whole, "{streamed} {whole}");
    }
    for (flags, part) in [
        (&["--memory", "600"][..], "600MB or 1.5GB"),
        (&["--memory", "1GB", "--ignore-memory"], "cannot be used"),
    ] {
        sandbox.run(&[&["x", "-m", "pocket", "-o", "no.png"][..], flags].concat()).refused(2, &[part]);
    }
}

#[test]
fn the_address_space_is_part_of_the_memory_guard() {
    let sandbox = Sandbox::new();
    sandbox.write("list.jsonl", b"{\"prompt\":\"x\",\"seed\":1,\"id\":\"a\"}\n");
    fs::create_dir(sandbox.join("goldens")).unwrap();
    let before = sandbox.files();
    let large = ["-m", "pocket", "--steps", "1", "--size", "2048x2048", "-t", "1"];
    for (args, part) in [
        (&["x", "-s", "1", "-o", "out.png"][..], "a picture of"),
        (&["x", "-s", "1", "-o", "out.png", "--precision", "f32"], "a picture of"),
        (&["batch", "list.jsonl", "-o", "{id}.png"], "line 1: "),
        (&["verify", "list.jsonl", "-o", "{id}.png", "--against", "goldens", "--update"], "line 1: "),
        (&["bench", "--repeats", "1"], "a picture of"),
    ] {
        let left = sandbox.run_limited("ulimit -v 400000", &[args, &large].concat());
        left.refused(1, &[part, "of memory", "would fit"]);
        assert_eq!(sandbox.files(), before, "{args:?}");
    }
    let floats = sandbox.join("floats.safetensors");
    Checkpoint::built_in().unwrap().write_native(&floats, Storage::Float(FloatType::F32)).unwrap();
    let report =
        ["quantize", "floats.safetensors", "new.safetensors", "--report", "r.json", "--report-size", "1024"];
    let left = sandbox.run_limited("ulimit -v 230000", &report);
    left.refused(1, &["of memory", "a smaller --report-size", "--ignore-memory"]);
    assert!(!sandbox.join("new.safetensors").exists());
    let learn =
        ["quantize", "floats.safetensors", "new.safetensors", "--method", "gptq", "--calibrate-size", "1024"];
    let left = sandbox.run_limited("ulimit -v 230000", &learn);
    left.refused(1, &["of memory", "a smaller --calibrate-size", "--ignore-memory"]);
    assert!(!sandbox.join("new.safetensors").exists());
    // It runs into the limit, but later.
    let tried = [&report[..], &["--ignore-memory"]].concat();
    let left = sandbox.run_limited("ulimit -v 230000", &tried);
    assert!(left.stderr.contains("trying all the same"), "{left:?}");
    assert!(sandbox.join("new.safetensors").exists());
}

/// Runs `args` where `out` is a disk of so many bytes; none where no disk can be mounted.
fn on_small_disk(sandbox: &Sandbox, bytes: &str, args: &[&str]) -> Option<Left> {
    let mount = format!("mount -t tmpfs -o size={bytes} none out 2>/dev/null || exit 99; exec \"$0\" \"$@\"");
    let words = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c", &mount];
    let left: Left = through(&words, &sandbox.command(args)).output().unwrap().into();
    if left.code == Some(99) || left.stderr.contains("unshare") {
        eprintln!("not tried: no disk can be mounted here: {}", left.stderr);
        return None;
    }
    Some(left)
}

#[test]
fn a_full_disk_ends_the_run_instead_of_failing_picture_by_picture() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.join("out")).unwrap();
    let lines: String =
        (0..9).map(|seed| format!("{{\"prompt\":\"x\",\"seed\":{seed},\"id\":\"{seed}\"}}\n")).collect();
    sandbox.write("list.jsonl", lines.as_bytes());
    let few = ["-m", "pocket", "--steps", "1", "--size", "64x64"];
    for args in [
        &["x", "-s", "1", "-c", "9", "-o", "out/"][..],
        &["batch", "list.jsonl", "--out-dir", "out", "-o", "{id}.png"],
        &["verify", "list.jsonl", "--against", "out", "-o", "{id}.png", "--update"],
    ] {
        // Room for two or three pictures.
        let Some(left) = on_small_disk(&sandbox, "32k", &[args, &few].concat()) else { return };
        assert_eq!(left.code, Some(1), "{args:?}: {left:?}");
        assert_eq!(left.stderr.matches("error: ").count(), 1, "{args:?}: {left:?}");
        assert!(left.stderr.contains("No space left"), "{args:?}: {left:?}");
    }
}

#[test]
fn a_list_that_can_be_read_but_once_is_copied_within_bounds() {
    let sandbox = Sandbox::new();
    let zeros = || fs::File::open("/dev/zero").unwrap();
    for args in [
        &["batch", "/dev/zero"][..],
        &["batch", "-", "--dry-run"],
        &["verify", "-", "--against", ".", "-o", "{id}.png"],
    ] {
        let left: Left = sandbox.command(args).stdin(zeros()).output().unwrap().into();
        left.refused(2, &["longer than 256 MiB", "put it into a file"]);
        // Blocks of 512 or of 1024 bytes: a disk that holds 10 or 20 kB.
        let mut limited = limited("trap '' XFSZ; ulimit -f 20", &sandbox.command(args));
        let left: Left = limited.stdin(zeros()).output().unwrap().into();
        left.refused(1, &["can't copy the list"]);
    }
    sandbox.pipe("pipe");
    let mut writer = Command::new("sh");
    writer.args(["-c", "echo a cat >pipe"]).current_dir(sandbox.path());
    let mut writer = writer.spawn().unwrap();
    let plan = sandbox.run(&["batch", "pipe", "--dry-run", "--seed", "4", "-o", "{seed}.png"]);
    assert_eq!(plan.done(), "./4.png\n");
    writer.wait().unwrap();
}

/// Runs `args` as a user who may have so many processes, threads among them; none where that can't be arranged.
fn with_few_threads(sandbox: &Sandbox, count: u32, args: &[&str]) -> Option<Left> {
    let limit = format!("--nproc={count}");
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    // No limit holds for root. For others all of their processes count, and there are some already.
    let run_as: &[&str] = match is_root {
        true => &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "prlimit", &limit],
        false => &["prlimit", &limit],
    };
    if !Command::new(run_as[0]).args(&run_as[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("not tried: {run_as:?} doesn't run here");
        return None;
    }
    Some(through(run_as, &sandbox.command(args)).output().unwrap().into())
}

#[test]
fn where_no_thread_can_be_started_that_is_an_error() {
    use std::os::unix::fs::PermissionsExt;

    let sandbox = Sandbox::new();
    files::copy_small(&sandbox.join("model"));
    sandbox.write("list.jsonl", b"{\"prompt\":\"x\",\"seed\":1,\"id\":\"a\"}\n");
    fs::create_dir(sandbox.join("goldens")).unwrap();
    for folder in ["", "goldens"] {
        fs::set_permissions(sandbox.join(folder), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let before = sandbox.files();
    // The second limit is one that some of several threads can be started under.
    for count in [1, 2] {
        for line in [
            "x -m pocket -s 1 -o out.png",
            "batch list.jsonl -m model -o {id}.png",
            "verify list.jsonl -m model --against goldens -o {id}.png --update",
            "quantize model new.safetensors",
            "convert model new.safetensors",
            "bench -m pocket --steps 1 --repeats 1",
            "models pull a/b",
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            let Some(left) = with_few_threads(&sandbox, count, &args) else { return };
            if left.code == Some(0) || !left.stderr.contains("can't start") {
                // On one processor two threads are enough.
                assert!(
                    count == 2 && std::thread::available_parallelism().unwrap().get() == 1,
                    "{line}: {left:?}"
                );
                continue;
            }
            left.refused(1, &["can't start", "threads"]);
            assert!(!left.stderr.contains("panicked"), "{line}: {left:?}");
            assert_eq!(sandbox.files(), before, "{line} left something");
        }
        // What computes nothing needs no threads.
        for line in [
            "tokens x -m model",
            "tokens x -m pocket",
            "info model",
            "models show pocket",
            "models list",
            "doctor",
            "completions bash",
            "man",
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            with_few_threads(&sandbox, count, &args).unwrap().done();
        }
    }
}
