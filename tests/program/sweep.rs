//! `pochade sweep`: every combination drawn, shown and counted; interrupted runs go on; choices in prompts.

use std::fs;

use serde_json::Value;

use crate::support::sandbox::Sandbox;

const SMALL: [&str; 6] = ["-m", "pocket", "--size", "64x64", "--out-dir", "out"];

fn sweep(sandbox: &Sandbox, args: &[&str]) -> crate::support::sandbox::Left {
    sandbox.run(&[&["sweep"], args, &SMALL[..]].concat())
}

#[test]
fn every_combination_is_drawn_shown_and_counted() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", b"a red apple\na fox\n");
    let args = ["list.txt", "--steps", "4", "--vary", "cache=1,2", "--vary", "cfg-range=0..1,0..0.5"];
    let table = sweep(&sandbox, &args).done().to_owned();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 5, "{table}");
    assert_eq!(
        rows[0],
        ["cache", "cfg-range", "PSNR/dB", "worst", "passes", "outer", "GMAC", "work", "seconds"]
    );
    // Of four steps the third one too is whole.
    assert_eq!(
        (rows[1][0], rows[1][2], rows[1][4], rows[1][5], rows[1][7]),
        ("1", "same", "8.0", "0.0", "1.00")
    );
    assert_eq!((rows[2][0], rows[2][4], rows[2][5]), ("2", "6.0", "2.0"));
    assert_eq!((rows[3][1], rows[3][4], rows[3][5]), ("0..0.5", "6.0", "0.0"));
    let work = |row: usize| rows[row][7].parse::<f64>().unwrap();
    assert!(work(4) < work(2).min(work(3)) && work(2) < 1.0 && work(3) < 1.0, "{table}");

    let json: Value = serde_json::from_slice(&fs::read(sandbox.join("out/sweep.json")).unwrap()).unwrap();
    assert_eq!(json["combinations"].as_array().unwrap().len(), 4);
    let pictures = json["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 8);
    // All of an item have its seed, and say in themselves what they were made with.
    assert_eq!((&pictures[3]["seed"], &pictures[4]["seed"]), (&0.into(), &1.into()));
    let path = pictures[7]["path"].as_str().unwrap();
    let info: Value = serde_json::from_str(sandbox.run(&["info", "--json", path]).done()).unwrap();
    assert_eq!(
        (&info["request"]["cache"], &info["request"]["guidance_range"]),
        (&2.into(), &"0..0.5".into())
    );
    assert_eq!(info["unet"]["macs"], pictures[7]["unet"]["macs"]);
    let sheet = image::open(sandbox.join("out/sheet.png")).unwrap().into_rgb8();
    assert!(sheet.width() > 2 * 256 && sheet.height() > 4 * 256, "{:?}", sheet.dimensions());
    assert!(sheet.pixels().any(|pixel| pixel.0 == [20; 3]), "labels");
}

#[test]
fn the_same_command_goes_on_and_others_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", b"a fox\n");
    let args = ["list.txt", "--steps", "2", "--vary", "cfg=2,3,4"];
    let first = sweep(&sandbox, &args);
    first.done();
    let whole = |name: &str| fs::read(sandbox.join("out").join(name)).unwrap();
    let (sheet, json) = (whole("sheet.png"), whole("sweep.json"));
    let pictures: Vec<Value> =
        serde_json::from_slice::<Value>(&json).unwrap()["pictures"].as_array().unwrap().clone();
    // As a killed run leaves it: a picture missing, its figures half-written, no sheet.
    let gone = pictures[2]["path"].as_str().unwrap();
    fs::remove_file(sandbox.join(gone)).unwrap();
    fs::remove_file(sandbox.join("out/sheet.png")).unwrap();
    let log = String::from_utf8(whole("figures.jsonl")).unwrap();
    let cut = log.trim_end().rfind('\n').unwrap() + 20;
    fs::write(sandbox.join("out/figures.jsonl"), &log[..cut]).unwrap();
    let left = sweep(&sandbox, &args);
    left.done();
    assert!(left.stderr.contains("1 to draw, 2 there already"), "{}", left.stderr);
    let again: Value = serde_json::from_slice(&whole("sweep.json")).unwrap();
    for at in [0, 1] {
        assert_eq!(again["pictures"][at], pictures[at]);
    }
    assert_eq!(again["pictures"][2]["psnr"], pictures[2]["psnr"]);
    assert_eq!(
        image::load_from_memory(&sheet).unwrap().width(),
        image::load_from_memory(&whole("sheet.png")).unwrap().width()
    );

    let other = ["list.txt", "--steps", "3", "--vary", "cfg=2,3,4"];
    sweep(&sandbox, &other).refused(2, &["was made from another request", "--force"]);
    sweep(&sandbox, &[&other[..], &["--force"]].concat()).done();
    sandbox.write("out/sweep.json", b"mine");
    sweep(&sandbox, &other).refused(2, &["holds no sweep's figures"]);
}

#[test]
fn wrong_variations_are_named() {
    let sandbox = Sandbox::new();
    sandbox.write("list.txt", b"a fox\n");
    for (vary, message) in [
        (&["--vary", "stpes=1,2"][..], "unknown setting 'stpes'"),
        (&["--vary", "steps=1,x"], "steps 'x'"),
        (&["--vary", "steps=1,0"], "steps 0 is out of range"),
        (&["--vary", "size=64x64", "--vary", "width=64"], "--vary size and --vary width set the same"),
        (&["--vary", "cache=2", "--vary", "cache-branch=0,99"], "cache branch 99 is out of range"),
    ] {
        let left = sweep(&sandbox, &[&["list.txt"], vary].concat());
        left.refused(2, &[message]);
        assert_eq!(sandbox.files(), ["list.txt"]);
    }
    let seeds: Vec<String> = (0..2000).map(|seed| seed.to_string()).collect();
    let many = format!("seed={}", seeds.join(","));
    sweep(&sandbox, &["list.txt", "--vary", &many]).refused(2, &["is too large", "--cell"]);
}

#[test]
fn choices_in_prompts_expand_when_they_are_asked_to() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.join("lists")).unwrap();
    sandbox.write(
        "lists/list.jsonl",
        br#"{"prompt": "a {red|green} apple, @things.txt", "id": "x", "seed": 3}"#,
    );
    sandbox.write("lists/things.txt", b"# words\nbig\n\nsmall\n");
    let plan = |args: &[&str]| {
        let args =
            [&["batch", "lists/list.jsonl", "-m", "pocket", "--dry-run", "--json", "-o", "{id}.png"], args];
        sandbox.run(&args.concat())
    };
    let prompts = |left: crate::support::sandbox::Left| -> Vec<(String, String)> {
        let lines = left.done().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        lines.map(|line| (text(&line["id"]), text(&line["request"]["prompt"]))).collect()
    };
    let expected = ["red apple, big", "red apple, small", "green apple, big", "green apple, small"];
    let expected: Vec<_> =
        expected.iter().zip(1..).map(|(text, at)| (format!("x-{at}"), format!("a {text}"))).collect();
    assert_eq!(prompts(plan(&["--expand"])), expected);
    assert_eq!(prompts(plan(&[])), [("x".to_owned(), "a {red|green} apple, @things.txt".to_owned())]);
    sandbox.write("lists/list.jsonl", br#"{"prompt": "a {red|green apple", "id": "x", "seed": 3}"#);
    plan(&["--expand"]).refused(2, &["line 1: no } closes '{red|green apple'"]);
    sandbox.write("lists/list.jsonl", br#"{"prompt": "@lost.txt", "id": "x", "seed": 3}"#);
    plan(&["--expand"]).refused(2, &["line 1", "lost.txt"]);
}
