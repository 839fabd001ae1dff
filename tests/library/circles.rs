//! No file of the library imports, straight or through others, a file that imports it.
//!
//! An import is a path to another file's item, in a `use` or where it is used; one that leads through re-exports
//! counts for the file that defines the item. A part of a folder may know the folder's own `mod.rs`, which knows its
//! parts: together they are one module. Tests inside of files are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module by its path from the crate's root.
type Module = Vec<String>;

struct Source {
    file: String,
    tokens: Vec<String>,
    /// What each imported name stands for; `*` for all of a module.
    uses: Vec<(String, Vec<String>)>,
}

fn sources() -> BTreeMap<Module, Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let file = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            let Some(name) = file.strip_suffix(".rs").filter(|name| *name != "main") else { continue };
            let mut module: Module = name.split('/').map(str::to_owned).collect();
            if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
                module.pop();
            }
            let text = fs::read_to_string(&path).unwrap();
            let tokens = tokens(text.split("#[cfg(test)]\nmod ").next().unwrap());
            let uses = uses(&tokens);
            sources.insert(module, Source { file, tokens, uses });
        }
    }
    sources
}

/// Words, `::` and single signs; comments, texts and characters are left out.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if c == '\'' {
            // A character, or the start of a lifetime.
            let close =
                if rest[1..].starts_with('\\') { rest[3..].find('\'').map(|at| at + 3) } else { None };
            let second = rest[1..].chars().next().map_or(0, char::len_utf8);
            match close {
                Some(close) => close + 1,
                None if rest[1 + second..].starts_with('\'') => second + 2,
                None => 1,
            }
        } else if is_word(c) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            c.len_utf8()
        };
        if (is_word(c) || !(c.is_whitespace() || "\"'".contains(c))) && !rest.starts_with("//") {
            tokens.push(rest[..length].to_owned());
        }
        rest = &rest[length..];
    }
    tokens
}

/// Each name that a `use` brings in, with its path.
fn uses(tokens: &[String]) -> Vec<(String, Vec<String>)> {
    let mut uses = Vec::new();
    // One before a `<` says what a type captures.
    for (at, _) in tokens.windows(2).enumerate().filter(|(_, pair)| pair[0] == "use" && pair[1] != "<") {
        tree(&tokens[at + 1..], &mut Vec::new(), &mut uses);
    }
    uses
}

/// Reads one tree of a `use` and returns what follows it.
fn tree<'a>(
    mut tokens: &'a [String],
    path: &mut Vec<String>,
    uses: &mut Vec<(String, Vec<String>)>,
) -> &'a [String] {
    let length = path.len();
    let mut grouped = false;
    loop {
        match tokens.first().map(String::as_str) {
            Some("::") => tokens = &tokens[1..],
            Some("{") => {
                grouped = true;
                tokens = &tokens[1..];
                while tokens.first().is_some_and(|token| token != "}") {
                    tokens = tree(tokens, path, uses);
                    tokens = tokens.strip_prefix(&[",".to_owned()]).unwrap_or(tokens);
                }
                tokens = tokens.get(1..).unwrap_or_default();
            }
            Some(";" | "," | "}") | None => break,
            Some("as") => {
                uses.push((tokens[1].clone(), path.clone()));
                grouped = true;
                tokens = &tokens[2..];
            }
            Some(name) => {
                path.push(name.to_owned());
                tokens = &tokens[1..];
            }
        }
    }
    if !grouped && let Some(name) = path.last() {
        let of_self = name == "self";
        let path = if of_self { path[..path.len() - 1].to_vec() } else { path.clone() };
        uses.push((path.last().cloned().unwrap_or_default(), path));
    }
    path.truncate(length);
    tokens
}

/// The module whose file defines what `path` means in `module`; none when it is of another crate.
fn target(
    sources: &BTreeMap<Module, Source>,
    module: &Module,
    path: &[String],
    depth: usize,
) -> Option<Module> {
    let (first, mut rest) = path.split_first()?;
    let mut at = match first.as_str() {
        "crate" => Module::new(),
        "self" => module.clone(),
        "super" => module[..module.len() - 1].to_vec(),
        name => {
            let child = [module.as_slice(), &[name.to_owned()]].concat();
            if sources.contains_key(&child) {
                child
            } else {
                let (_, used) =
                    sources[module].uses.iter().find(|(used, path)| used == name && path != &[name])?;
                let whole = [used.as_slice(), rest].concat();
                return (depth > 0).then(|| target(sources, module, &whole, depth - 1))?;
            }
        }
    };
    while let Some((name, more)) = rest.split_first() {
        let child = match name.as_str() {
            "super" => at[..at.len() - 1].to_vec(),
            _ => [at.as_slice(), std::slice::from_ref(name)].concat(),
        };
        if sources.contains_key(&child) {
            (at, rest) = (child, more);
            continue;
        }
        // An item of this file, unless it only passes it on.
        let uses = &sources[&at].uses;
        let passed_on = uses.iter().find(|(used, _)| used == name).map(|(_, path)| path.clone());
        return match passed_on.filter(|_| depth > 0) {
            Some(path) => target(sources, &at, &path, depth - 1),
            None => Some(at),
        };
    }
    Some(at)
}

/// The files that each file imports.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let mut imports = BTreeMap::new();
    for (module, source) in &sources {
        let mut paths: Vec<Vec<String>> = Vec::new();
        for (at, token) in source.tokens.iter().enumerate() {
            let starts = at == 0 || !matches!(source.tokens[at - 1].as_str(), "::" | "." | "use");
            if !starts || source.tokens.get(at + 1).map(String::as_str) != Some("::") {
                continue;
            }
            let mut path = vec![token.clone()];
            let mut next = at + 1;
            while source.tokens.get(next).map(String::as_str) == Some("::")
                && source.tokens.get(next + 1).is_some_and(|word| word.starts_with(char::is_alphabetic))
            {
                path.push(source.tokens[next + 1].clone());
                next += 2;
            }
            paths.push(path);
        }
        // What is passed on is imported by whoever uses it.
        let mut public = BTreeSet::new();
        for (at, _) in source.tokens.iter().enumerate().filter(|(_, token)| *token == "use") {
            if at > 0 && matches!(source.tokens[at - 1].as_str(), "pub" | ")") {
                let mut passed = Vec::new();
                tree(&source.tokens[at + 1..], &mut Vec::new(), &mut passed);
                public.extend(passed);
            }
        }
        paths.extend(source.uses.iter().filter(|used| !public.contains(*used)).map(|(_, path)| path.clone()));
        let targets = paths.iter().filter_map(|path| target(&sources, module, path, 8));
        let is_own_folder = |target: &Module| module.starts_with(target) && sources[target].file != "lib.rs";
        let files = targets
            .filter(|target| target != module && !is_own_folder(target))
            .map(|target| sources[&target].file.clone());
        imports.insert(source.file.clone(), files.collect());
    }
    imports
}

/// Every set of files that reach each other.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reached = |start: &String| {
        let mut reached = BTreeSet::new();
        let mut open = vec![start];
        while let Some(file) = open.pop() {
            open.extend(imports[file].iter().filter(|next| reached.insert((*next).clone())));
        }
        reached
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        imports.keys().map(|file| (file, reached(file))).collect();
    let mut circles: Vec<BTreeSet<String>> = Vec::new();
    for (file, others) in &reached {
        let circle: BTreeSet<String> =
            others.iter().filter(|other| reached[other].contains(*file)).cloned().collect();
        if !circle.is_empty() && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

#[test]
fn no_files_import_each_other() {
    let imports = imports();
    let told: Vec<String> = circles(&imports)
        .iter()
        .map(|circle| {
            let ties = circle.iter().map(|file| {
                let others: Vec<&str> = imports[file].intersection(circle).map(String::as_str).collect();
                format!("  {file} imports {}", others.join(", "))
            });
            ties.collect::<Vec<_>>().join("\n")
        })
        .collect();
    assert!(told.is_empty(), "{} circles:\n{}", told.len(), told.join("\nand\n"));
}

#[test]
fn imports_are_followed_to_the_file_that_defines_them() {
    let imports = imports();
    let has = |file: &str, other: &str| imports[file].contains(other);
    // `use crate::request::Request` leads through a re-export.
    assert!(has("prompt/reading.rs", "request/table.rs") && !has("prompt/reading.rs", "request/mod.rs"));
    // A path in the code, without a `use` of its own.
    assert!(has("cli/mod.rs", "cli/generate.rs"));
    let circle = |pairs: &[(&str, &str)]| {
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in pairs {
            imports.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            imports.entry((*to).to_owned()).or_default();
        }
        circles(&imports).len()
    };
    assert_eq!(circle(&[("a", "b"), ("b", "c"), ("c", "d")]), 0);
    assert_eq!(circle(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "d")]), 2);
}
