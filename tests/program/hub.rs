//! Pulling from a Hub on this machine: the cache it leaves, cuts, refusals, damage, and two pulls at once.

mod server;
#[cfg(unix)]
mod signals;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pochade::checkpoint::{Checkpoint, FloatType, Storage};
use serde_json::Value;
use server::{COMMIT, Hub, ID, etag, is_large};

use crate::support::models::data;
#[cfg(unix)]
use crate::support::sandbox::limited;
use crate::support::sandbox::{Left, Sandbox};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn command(sandbox: &Sandbox, hub: &Hub, args: &[&str]) -> Command {
    let mut command = sandbox.command(args);
    command.env("HF_ENDPOINT", &hub.endpoint);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

fn run(sandbox: &Sandbox, hub: &Hub, args: &[&str]) -> Left {
    command(sandbox, hub, args).output().unwrap().into()
}

fn pull(sandbox: &Sandbox, hub: &Hub) -> Left {
    run(sandbox, hub, &["models", "pull", ID, "--no-quantize"])
}

fn snapshot(sandbox: &Sandbox) -> PathBuf {
    sandbox.join("hub/models--org--small/snapshots").join(COMMIT)
}

fn blob(sandbox: &Sandbox, hash: &str) -> PathBuf {
    sandbox.join("hub/models--org--small/blobs").join(hash)
}

fn small_file(name: &str) -> Vec<u8> {
    fs::read(data("small").join(name)).unwrap()
}

/// Nothing that looks pulled is left.
#[track_caller]
fn not_pulled(sandbox: &Sandbox) {
    assert!(!snapshot(sandbox).exists());
    assert!(!sandbox.join("hub/models--org--small/refs/main").exists());
    run(sandbox, &Hub::with(BTreeMap::new()), &["models", "path", ID]).refused(3, &["has not been pulled"]);
}

#[test]
fn a_pulled_model_is_found_shown_checked_and_drawn_with() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    let left = run(&sandbox, &hub, &["models", "pull", ID]);
    let native = sandbox.cache().join(format!("models--org--small/{COMMIT}/small-int8.safetensors"));
    assert_eq!(left.done().trim(), native.to_str().unwrap());
    for part in ["licence: creativeml-openrail-m", "to fetch", UNET, "quantizing to int8"] {
        assert!(left.stderr.contains(part), "no '{part}' in {}", left.stderr);
    }
    // Only what is needed, each a relative link to a blob named by its hash, as Python's tools have it.
    let unet = small_file(UNET);
    let linked = fs::read_link(snapshot(&sandbox).join(UNET)).unwrap();
    assert_eq!(linked, Path::new("../../../blobs").join(etag(&unet)));
    assert_eq!(fs::read(snapshot(&sandbox).join(UNET)).unwrap(), unet);
    assert_eq!(
        fs::read_link(snapshot(&sandbox).join("model_index.json")).unwrap(),
        Path::new("../../blobs").join(etag(&small_file("model_index.json")))
    );
    assert!(!snapshot(&sandbox).join("taesd").exists());
    assert_eq!(fs::read_to_string(sandbox.join("hub/models--org--small/refs/main")).unwrap(), COMMIT);
    let blobs = fs::read_dir(sandbox.join("hub/models--org--small/blobs")).unwrap();
    assert!(blobs.flatten().all(|blob| !blob.file_name().to_string_lossy().contains("incomplete")));

    // From here on nothing connects.
    let requests = hub.log().len();
    let offline = |args: &[&str]| -> Left {
        command(&sandbox, &hub, args).env("HF_HUB_OFFLINE", "1").output().unwrap().into()
    };
    assert_eq!(offline(&["models", "path", ID]).done().trim(), native.to_str().unwrap());
    assert_eq!(
        offline(&["models", "path", ID, "--source"]).done().trim(),
        snapshot(&sandbox).to_str().unwrap()
    );
    let list: Value = serde_json::from_str(offline(&["models", "list", "--json"]).done()).unwrap();
    assert_eq!(list[0]["id"], "pocket");
    assert_eq!(list[0]["types"], serde_json::json!(["f16", "i4", "i8"]));
    assert_eq!((&list[1]["id"], &list[1]["kind"]), (&ID.into(), &"int8 file".into()));
    let show: Value = serde_json::from_str(offline(&["models", "show", ID, "--json"]).done()).unwrap();
    assert_eq!((&show["name"], &show["commit"]), (&"small".into(), &COMMIT.into()));
    assert!(show["components"][0]["parameters"].as_u64().unwrap() > 1000);
    let verified = offline(&["models", "verify"]);
    verified.done();
    assert!(
        verified.stderr.contains("all right") && !verified.stderr.contains("without"),
        "{}",
        verified.stderr
    );
    let draw = ["-m", ID, "x", "-s", "1", "--steps", "1", "--size", "64x64", "--json"];
    let picture: Value = serde_json::from_str(offline(&draw).done()).unwrap();
    assert_eq!(picture["model"], "small");
    let again = offline(&["models", "pull", ID]);
    assert_eq!(again.done().trim(), native.to_str().unwrap());
    assert_eq!(hub.log().len(), requests);

    // A second pull asks what there is, and fetches nothing.
    run(&sandbox, &hub, &["models", "pull", ID]).done();
    assert_eq!(hub.log().len(), requests + 1);

    // One bit is enough for verify.
    let mut damaged = fs::read(&native).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&native, damaged).unwrap();
    offline(&["models", "verify", ID]).refused(3, &["damaged", "small-int8.safetensors"]);

    offline(&["models", "remove", ID]).refused(2, &["--yes"]);
    offline(&["models", "remove", ID, "--yes"]).done();
    not_pulled(&sandbox);
    assert!(!sandbox.join("hub/models--org--small").exists());
    assert!(!sandbox.cache().join("models--org--small").exists());
    offline(&["-m", ID, "x"]).refused(3, &["has not been pulled", "`pochade models pull org/small`"]);
}

#[test]
fn a_cut_is_continued_where_it_happened() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    hub.change(|state| state.cuts = vec![1_000_000, 2_000_000]);
    pull(&sandbox, &hub).done();
    let resumed: Vec<String> =
        hub.log().into_iter().filter(|r| r.host == "cdn").filter_map(|r| r.range).collect();
    assert_eq!(resumed, ["bytes=1000000-", "bytes=3000000-"]);
    run(&sandbox, &hub, &["models", "verify", ID]).done();
}

#[test]
fn a_later_pull_continues_what_an_earlier_one_left() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    let unet = small_file(UNET);
    let partial = blob(&sandbox, &format!("{}.incomplete", etag(&unet)));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &unet[..5_000_000]).unwrap();
    pull(&sandbox, &hub).done();
    assert!(hub.log().iter().any(|request| request.range.as_deref() == Some("bytes=5000000-")));

    // What is left may also be wrong, or longer than the file.
    for left in [vec![7; 5_000_000], vec![7; unet.len()], vec![7; unet.len() + 1]] {
        fs::remove_file(blob(&sandbox, &etag(&unet))).unwrap();
        fs::write(&partial, left).unwrap();
        pull(&sandbox, &hub).done();
        assert_eq!(fs::read(blob(&sandbox, &etag(&unet))).unwrap(), unet);
    }
}

#[test]
fn a_server_that_cannot_continue_sends_all_of_it_again() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    hub.change(|state| (state.no_ranges, state.cuts) = (true, vec![1_000_000]));
    pull(&sandbox, &hub).done();
    let sandbox = Sandbox::new();
    hub.change(|state| {
        (state.no_ranges, state.cuts) = (false, vec![1_000_000]);
        state.cdn_failures = vec![];
    });
    hub.change(|state| state.log.clear());
    // The second request for the rest is answered with 416: begin anew.
    let unet = small_file(UNET);
    let partial = blob(&sandbox, &format!("{}.incomplete", etag(&unet)));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &unet[..10]).unwrap();
    hub.change(|state| state.cdn_failures = vec![(416, "")]);
    pull(&sandbox, &hub).done();
    assert_eq!(fs::read(blob(&sandbox, &etag(&unet))).unwrap(), unet);
}

#[test]
fn passing_trouble_is_waited_out() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    hub.change(|state| {
        state.failures = vec![(429, "Retry-After: 0\r\n"), (503, "Retry-After: 0\r\n")];
        state.cdn_failures = vec![(500, "Retry-After: 0\r\n"), (502, "Retry-After: 0\r\n")];
    });
    pull(&sandbox, &hub).done();
    let sandbox = Sandbox::new();
    hub.change(|state| state.failures = vec![(503, "Retry-After: 0\r\n"); 9]);
    pull(&sandbox, &hub).refused(4, &["503", "gave up after 5 attempts"]);
    not_pulled(&sandbox);
}

#[test]
fn refusals_are_one_line_that_says_what_to_do() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    for (status, headers, parts) in [
        (401, "X-Error-Code: GatedRepo\r\n", ["restricted", "HF_TOKEN"]),
        (403, "", ["restricted", "accept the model's terms"]),
        (401, "X-Error-Code: RepoNotFound\r\n", ["no such model", "private"]),
        (404, "", ["no such model", "404"]),
    ] {
        hub.change(|state| state.failures = vec![(status, headers)]);
        let left = pull(&sandbox, &hub);
        left.refused(3, &parts);
        assert_eq!(left.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1);
    }
    run(&sandbox, &hub, &["models", "pull", ID, "--revision", "gone"]).refused(3, &["no such revision"]);
    run(&sandbox, &hub, &["models", "pull", "org/small/x"]).refused(2, &["'org/small/x'", "sd15"]);
    run(&sandbox, &hub, &["models", "pull", ID, "--revision", "../x"]).refused(2, &["'../x'"]);
    let nobody = Hub { endpoint: "http://127.0.0.1:1".to_owned(), ..hub.clone() };
    let mut unreachable = command(&sandbox, &nobody, &["models", "pull", ID]);
    let left: Left = unreachable.output().unwrap().into();
    left.refused(4, &["127.0.0.1:1", "gave up"]);
    not_pulled(&sandbox);
}

#[test]
fn connections_can_be_forbidden() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    run(&sandbox, &hub, &["models", "pull", ID, "--offline"]).refused(4, &["--offline", "not in the cache"]);
    let left: Left =
        command(&sandbox, &hub, &["models", "pull", ID]).env("HF_HUB_OFFLINE", "1").output().unwrap().into();
    left.refused(4, &["HF_HUB_OFFLINE"]);
    assert!(hub.log().is_empty());
}

#[test]
fn the_token_goes_to_the_endpoint_only() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    hub.change(|state| state.token = Some("hf_secret"));
    pull(&sandbox, &hub).refused(3, &["restricted", "HF_TOKEN"]);
    sandbox.write("token", b"hf_secret\n");
    pull(&sandbox, &hub).done();
    let log = hub.log();
    assert!(log.iter().any(|request| request.host == "cdn"));
    assert!(
        log.iter().filter(|request| request.host == "cdn").all(|request| request.authorization.is_none())
    );
}

#[test]
fn wrong_bytes_are_deleted() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    hub.change(|state| state.corrupt = Some(1000));
    pull(&sandbox, &hub).refused(4, &["do not have the hash", "deleted"]);
    not_pulled(&sandbox);
    let left = fs::read_dir(sandbox.join("hub/models--org--small/blobs")).unwrap().flatten();
    assert!(left.into_iter().all(|blob| !is_large(&fs::read(blob.path()).unwrap())));
    hub.change(|state| state.corrupt = None);
    pull(&sandbox, &hub).done();
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    for hostile in ["../x", "/tmp/x", "unet/../../../x", "unet\\..\\x"] {
        hub.change(|state| {
            let names = state.files.keys().cloned().chain([hostile.to_owned()]);
            state.listed = Some(names.collect());
        });
        pull(&sandbox, &hub).refused(3, &[&hostile.escape_debug().to_string(), "outside"]);
    }
    assert!(sandbox.files().is_empty());
}

#[test]
fn a_mirror_may_tell_sizes_and_hashes_with_the_files() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    hub.change(|state| state.terse = true);
    pull(&sandbox, &hub).done();
    run(&sandbox, &hub, &["models", "verify", ID]).done();
}

#[test]
fn a_single_file_is_chosen_by_name() {
    let sandbox = Sandbox::new();
    let native = {
        let path = sandbox.join("float.safetensors");
        Checkpoint::built_in().unwrap().write_native(&path, Storage::Float(FloatType::F16)).unwrap();
        fs::read(path).unwrap()
    };
    let file = |name: &str| (name.to_owned(), native.clone());
    let card = ("README.md".to_owned(), b"---\nlicense: mit\n---\nA model.\n".to_vec());
    let hub = Hub::with(BTreeMap::from([file("a v1.safetensors"), file("b.safetensors"), card]));
    pull(&sandbox, &hub).refused(3, &["2 single files", "--file", "b.safetensors"]);
    // Spaces in names are escaped on the way; the server here does not unescape.
    let left = run(&sandbox, &hub, &["models", "pull", ID, "--file", "b.safetensors", "--json"]);
    let json: Value = serde_json::from_str(left.done()).unwrap();
    assert_eq!((&json["name"], &json["licence"]), (&"b".into(), &"mit".into()));
    assert!(json["int8"].as_str().unwrap().ends_with("b-int8.safetensors"));
    let shown = run(&sandbox, &hub, &["models", "show", ID]);
    assert!(shown.done().contains("licence       mit"), "{}", shown.done());

    // Pickles are not fetched.
    let hub = Hub::with(BTreeMap::from([("x.ckpt".to_owned(), vec![0; 9])]));
    pull(&Sandbox::new(), &hub).refused(3, &["pickles"]);
}

#[test]
fn two_pulls_at_once_both_succeed() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    let start = || {
        let mut command = command(&sandbox, &hub, &["models", "pull", ID, "-t", "1"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start(), start()];
    let paths = both.map(|child| Left::from(child.wait_with_output().unwrap()).done().to_owned());
    assert_eq!(paths[0], paths[1]);
    run(&sandbox, &hub, &["models", "verify", ID]).done();
    // Each large file came over the network once.
    let fetched = hub.log().into_iter().filter(|request| request.host == "cdn").count();
    assert_eq!(fetched, 3);
}

#[cfg(unix)]
#[test]
fn what_other_tools_fetched_is_used_and_shared_content_stays() {
    let (sandbox, hub) = (Sandbox::new(), Hub::with(BTreeMap::new()));
    let other = "f".repeat(40);
    let repository = sandbox.join("hub/models--org--small");
    let mut files = BTreeMap::new();
    for name in [
        "unet/config.json",
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ] {
        files.insert(name, small_file(name));
    }
    for (name, bytes) in &files {
        let path = blob(&sandbox, &etag(bytes));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        for commit in [COMMIT, &other] {
            let link = repository.join("snapshots").join(commit).join(name);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(Path::new("../../../blobs").join(etag(bytes)), link).unwrap();
        }
    }
    let own = snapshot(&sandbox).join("model_index.json");
    fs::write(blob(&sandbox, "own"), b"{}").unwrap();
    std::os::unix::fs::symlink("../../blobs/own", own).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    // A language model in the same cache is none of ours.
    let stranger = sandbox.join(&format!("hub/models--org--words/snapshots/{COMMIT}"));
    fs::create_dir_all(&stranger).unwrap();
    fs::write(stranger.join("model.safetensors"), b"no model").unwrap();

    let list: Value =
        serde_json::from_str(run(&sandbox, &hub, &["models", "list", "--json"]).done()).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 3, "{list}");
    let draw = ["-q", "-m", ID, "x", "-s", "1", "--steps", "1", "--size", "64x64"];
    assert_eq!(run(&sandbox, &hub, &draw).done(), "x-1.png\n");
    let quantized = run(&sandbox, &hub, &["models", "pull", ID, "--offline"]);
    assert!(quantized.done().contains("small-int8.safetensors"));
    run(&sandbox, &hub, &["models", "remove", ID, "--yes"]).done();
    assert!(!snapshot(&sandbox).exists() && !blob(&sandbox, "own").exists());
    assert_eq!(fs::read(repository.join("snapshots").join(&other).join(UNET)).unwrap(), files[UNET]);
    run(&sandbox, &hub, &["models", "verify", &format!("{ID}@{other}")]).done();
    assert!(hub.log().is_empty());
}

#[test]
fn stable_diffusion_is_the_default_once_it_is_there() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    pull(&sandbox, &hub).done();
    let name = "models--stable-diffusion-v1-5--stable-diffusion-v1-5";
    fs::rename(sandbox.join("hub/models--org--small"), sandbox.join("hub").join(name)).unwrap();
    let draw = ["x", "-s", "1", "--steps", "1", "--size", "64x64"];
    let left = run(&sandbox, &hub, &draw);
    left.done();
    assert!(left.stderr.contains("using stable-diffusion-v1-5, which has been pulled"), "{}", left.stderr);
    let doctor = run(&sandbox, &hub, &["doctor"]);
    assert!(doctor.done().contains("because it has been pulled"), "{}", doctor.done());
    let built_in = run(&sandbox, &hub, &["-m", "pocket", "--json", "x", "-s", "2", "--steps", "1"]);
    assert!(built_in.done().contains("\"model\":\"pocket\""));
}

#[test]
fn one_file_of_the_program_can_connect() {
    let mut files = BTreeMap::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    server::collect(&source, &source, &mut files);
    let connects = |text: &str| ["ureq", "std::net", "TcpStream"].iter().any(|word| text.contains(word));
    let found: Vec<&String> = files
        .iter()
        .filter(|(_, bytes)| connects(&String::from_utf8_lossy(bytes)))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(found, ["hub/transfer.rs"]);
}

#[test]
fn a_part_is_pulled_by_its_name_and_found_by_its_recipe() {
    let sandbox = Sandbox::new();
    let model = data("small").display().to_string();
    let settings = ["-m", &model, "a cat", "-s", "1", "--size", "64x64", "--precision", "f32", "--json"];
    let draw = |args: &[&str]| sandbox.run(&[&settings[..], args].concat());
    draw(&["--fast", "hyper-4"]).refused(3, &["needs the LoRA 'hyper-4-lora'", "models pull hyper-4-lora"]);
    assert!(sandbox.files().is_empty());
    sandbox.run(&["models", "path", "hyper-4-lora"]).refused(3, &["models pull hyper-4-lora"]);
    let lora = fs::read(data("reference/lora_peft.safetensors")).unwrap();
    let files = ["Hyper-SD15-4steps-lora.safetensors", "Hyper-SDXL-4steps-lora.safetensors", "LICENSE.md"];
    let hub = Hub::with(files.map(|name| (name.to_owned(), lora.clone())).into());
    hub.change(|state| state.repository = Some("ByteDance/Hyper-SD"));
    let left = run(&sandbox, &hub, &["models", "pull", "hyper-4-lora"]);
    assert!(left.done().trim().ends_with(files[0]), "{left:?}");
    assert_eq!(sandbox.run(&["models", "path", "hyper-4-lora"]).done(), left.done());
    assert!(left.stderr.contains("licence: creativeml-openrail-m"), "{}", left.stderr);
    assert!(!hub.log().iter().any(|request| request.path.contains("SDXL-4steps-lora.safetensors")));

    let report = |left: Left| -> Value { serde_json::from_str(left.done()).unwrap() };
    let fast = report(draw(&["--fast", "hyper-4", "-o", "fast.png"]));
    assert_eq!((&fast["fast"], &fast["sampler"]), (&"hyper-4".into(), &"ddim".into()));
    assert_eq!((&fast["schedule"], &fast["steps"]), (&"trailing".into(), &4.into()));
    assert_eq!((&fast["guidance_scale"], &fast["unet"]["whole"]), (&1.0.into(), &4.into()));
    let info = sandbox.run(&["info", "fast.png"]);
    assert!(info.done().contains("hyper-4") && info.done().contains(files[0]), "{info:?}");
    // Each setting can be said otherwise, and the picture repeats itself.
    let other = report(draw(&["--fast", "hyper-4", "--steps", "2", "-o", "other.png"]));
    assert_eq!((&other["steps"], &other["schedule"]), (&2.into(), &"trailing".into()));
    sandbox.run(&["--from", "fast.png", "-m", &model, "-o", "again.png", "-q"]).done();
    assert_eq!(fs::read(sandbox.join("again.png")).unwrap(), fs::read(sandbox.join("fast.png")).unwrap());
    // A list has it too.
    sandbox.write("list.jsonl", br#"{"prompt": "a cat", "seed": 1, "size": "64x64", "fast": "hyper-4"}"#);
    let batch = ["batch", "list.jsonl", "-m", &model, "--precision", "f32", "-o", "listed.png", "-q"];
    sandbox.run(&batch).done();
    assert_eq!(fs::read(sandbox.join("listed.png")).unwrap(), fs::read(sandbox.join("fast.png")).unwrap());
    sandbox.write("list.jsonl", br#"{"prompt": "a cat", "seed": 1, "fast": "hyper-8"}"#);
    sandbox.run(&batch).refused(2, &["line 1", "hyper-8-lora"]);
}

/// Plants something where the UNet is to be fetched to, pulls, and looks at what became of `victim`.
#[cfg(unix)]
fn planted(plant: impl Fn(&Sandbox, &Path)) {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    let victim = sandbox.write("victim", b"mine");
    let hash = etag(&small_file(UNET));
    let partial = blob(&sandbox, &format!("{hash}.incomplete"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    plant(&sandbox, &partial);
    let left = sandbox_pull_in_time(&sandbox, &hub);
    left.done();
    assert_eq!(fs::read(victim).unwrap(), b"mine");
    assert!(!partial.exists());
    assert_eq!(fs::read(blob(&sandbox, &hash)).unwrap(), small_file(UNET));
    run(&sandbox, &hub, &["models", "verify", ID]).done();
}

/// A pull that is ended when it hangs.
#[cfg(unix)]
fn sandbox_pull_in_time(sandbox: &Sandbox, hub: &Hub) -> Left {
    let mut child = command(sandbox, hub, &["models", "pull", ID, "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > std::time::Duration::from_secs(60) {
            child.kill().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.wait_with_output().unwrap().into()
}

#[cfg(unix)]
#[test]
fn nothing_is_written_through_what_others_planted_in_the_cache() {
    use std::os::unix::fs::symlink;

    planted(|sandbox, partial| symlink(sandbox.join("victim"), partial).unwrap());
    planted(|sandbox, partial| fs::hard_link(sandbox.join("victim"), partial).unwrap());
    planted(|sandbox, partial| symlink(sandbox.join("nowhere"), partial).unwrap());
    planted(|sandbox, partial| {
        let name = partial.strip_prefix(sandbox.path()).unwrap();
        sandbox.pipe(name.to_str().unwrap());
    });
    // The lock beside it, and the note of the commit.
    planted(|sandbox, partial| {
        let locks = sandbox.join("hub/.locks/models--org--small");
        fs::create_dir_all(&locks).unwrap();
        let hash = partial.file_stem().unwrap().to_str().unwrap();
        sandbox.pipe(&format!("hub/.locks/models--org--small/{hash}.lock"));
        fs::create_dir_all(sandbox.join("hub/models--org--small/refs")).unwrap();
        symlink(sandbox.join("victim"), sandbox.join("hub/models--org--small/refs/main")).unwrap();
    });
}

#[cfg(unix)]
#[test]
fn no_folder_of_the_cache_may_lead_elsewhere() {
    for (place, victim) in [
        (format!("hub/models--org--small/snapshots/{COMMIT}/unet"), "config.json"),
        (format!("hub/models--org--small/snapshots/{COMMIT}"), "model_index.json"),
        ("hub/models--org--small/refs".to_owned(), "main"),
        ("hub/models--org--small/blobs".to_owned(), "main"),
        ("hub/.locks".to_owned(), "main"),
        ("int8/models--org--small".to_owned(), "main"),
    ] {
        let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
        let (path, place) = match place.strip_prefix("int8/") {
            Some(place) => (sandbox.cache().join(place), place),
            None => (sandbox.join(&place), place.as_str()),
        };
        fs::create_dir(sandbox.join("elsewhere")).unwrap();
        fs::write(sandbox.join("elsewhere").join(victim), b"mine").unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(sandbox.join("elsewhere"), &path).unwrap();
        pull(&sandbox, &hub).refused(1, &[place, "leads elsewhere"]);
        assert_eq!(fs::read(sandbox.join("elsewhere").join(victim)).unwrap(), b"mine", "{place}");
        assert_eq!(fs::read_dir(sandbox.join("elsewhere")).unwrap().count(), 1, "{place}");
    }
    // The cache as a whole may lie on another disk.
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    fs::create_dir(sandbox.join("disk")).unwrap();
    std::os::unix::fs::symlink(sandbox.join("disk"), sandbox.join("hub")).unwrap();
    pull(&sandbox, &hub).done();
}

#[test]
fn a_blob_of_the_right_size_is_used_only_with_the_right_hash() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    let (unet, config) = (small_file(UNET), small_file("unet/config.json"));
    for file in [&unet, &config] {
        let path = blob(&sandbox, &etag(file));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![b' '; file.len()]).unwrap();
    }
    let left = pull(&sandbox, &hub);
    left.done();
    assert!(left.stderr.contains("is damaged; fetching it anew"), "{}", left.stderr);
    for file in [&unet, &config] {
        assert_eq!(fs::read(blob(&sandbox, &etag(file))).unwrap(), *file);
    }
    run(&sandbox, &hub, &["models", "verify", ID]).done();
    // A right one is taken as it is.
    hub.change(|state| state.log.clear());
    pull(&sandbox, &hub).done();
    assert_eq!(hub.log().len(), 1);
}

#[test]
fn addresses_and_tokens_that_can_not_be_right_are_wrong_usage_at_once() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    let started = std::time::Instant::now();
    for (name, value) in [
        ("HF_ENDPOINT", "hub.example"),
        ("HF_ENDPOINT", "ftp://me:secret@hub.example"),
        ("HF_ENDPOINT", "https://me:secret@"),
        ("HF_ENDPOINT", "http://me:secret@hub example"),
        ("HF_ENDPOINT", "http://hub.example:port"),
        ("HF_TOKEN", "secret words"),
        ("HF_TOKEN", "secret\nlines"),
        ("HF_TOKEN", "s\u{e9}cret"),
    ] {
        let left: Left =
            command(&sandbox, &hub, &["models", "pull", ID]).env(name, value).output().unwrap().into();
        left.refused(2, &[name]);
        assert!(!left.stderr.contains("cret"), "{}", left.stderr);
    }
    sandbox.write("token", b"secret words");
    let left = pull(&sandbox, &hub);
    left.refused(2, &["token"]);
    assert!(!left.stderr.contains("secret"), "{}", left.stderr);
    assert!(started.elapsed() < std::time::Duration::from_secs(4));
    assert!(hub.log().is_empty());
}

#[test]
fn passwords_and_signatures_are_never_told() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    let with_password = hub.endpoint.replace("http://", "http://me:secret@");
    let pull_from = |endpoint: &str| {
        let mut command = command(&sandbox, &hub, &["models", "pull", ID]);
        command.env("HF_ENDPOINT", endpoint).env("HF_TOKEN", "hf_token");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let left = |child: std::process::Child| Left::from(child.wait_with_output().unwrap());
    // It tries for seconds, meanwhile there is more to try.
    let nobody = pull_from("http://me:secret@127.0.0.1:1");
    let no_secret = |left: &Left| {
        let text = format!("{left:?}");
        assert!(!text.contains("secret") && !text.contains("hf_token") && !text.contains("me:"), "{text}");
    };
    for failure in [
        (404, ""),
        (401, ""),
        (500, "Retry-After: 0\r\n"),
        (302, "Location: ftp://me:secret@elsewhere/x\r\n"),
        (302, "Location: http://127.0.0.1:1/x?signature=secret\r\n"),
        (302, "Location: /loop?signature=secret\r\n"),
    ] {
        hub.change(|state| state.failures = vec![failure; 12]);
        let left = left(pull_from(&with_password));
        assert!(matches!(left.code, Some(3 | 4)), "{left:?}");
        no_secret(&left);
    }
    hub.change(|state| state.failures.clear());
    let pulled = left(pull_from(&with_password));
    pulled.done();
    no_secret(&pulled);
    let nobody = left(nobody);
    nobody.refused(4, &["127.0.0.1:1", "gave up"]);
    no_secret(&nobody);
}

#[cfg(unix)]
#[test]
fn a_cache_that_takes_no_files_is_the_disks_fault() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    // Blocks of 512 or of 1024 bytes: room for the configs, not for the UNet.
    let pull_all = || command(&sandbox, &hub, &["models", "pull", ID]);
    let left: Left = limited("trap '' XFSZ; ulimit -f 2000", &pull_all()).output().unwrap().into();
    left.refused(1, &["can't write"]);
    not_pulled(&sandbox);
    // With room again, the next one goes on.
    pull_all().output().map(Left::from).unwrap().done();
    assert!(hub.log().iter().any(|request| request.range.is_some()));
    #[cfg(target_os = "linux")]
    for args in [&["models", "path", ID][..], &["models", "pull", ID]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let left: Left = command(&sandbox, &hub, args).stdout(full).output().unwrap().into();
        left.refused(1, &["stdout"]);
    }

    let sandbox = Sandbox::new();
    sandbox.write("file", b"no folder");
    for variable in ["HF_HUB_CACHE", "POCHADE_CACHE"] {
        let mut command = command(&sandbox, &hub, &["models", "pull", ID]);
        let left: Left = command.env(variable, sandbox.join("file")).output().unwrap().into();
        left.refused(1, &["file"]);
        assert_eq!(fs::read(sandbox.join("file")).unwrap(), b"no folder");
    }
}

#[test]
fn what_the_hub_says_does_not_steer_the_terminal() {
    let (sandbox, hub) = (Sandbox::new(), Hub::new(&data("small")));
    hub.change(|state| {
        state.licence = Some("mit\u{1b}[2J\u{9b}31m\u{202e}");
        let card = "---\nlicense: mit\u{1b}[2J\n---\n".as_bytes().to_vec();
        state.files.insert("README.md".to_owned(), card);
    });
    let left = pull(&sandbox, &hub);
    left.done();
    assert!(left.stderr.contains(r"mit\u001b[2J\u009b31m\u202e"), "{}", left.stderr);
    let shown = run(&sandbox, &hub, &["models", "show", ID]);
    assert!(shown.done().contains(r"mit\u001b[2J"), "{}", shown.done());
    for text in [&left.stderr, shown.done()] {
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text:?}");
    }
}
