//! The layers of the library: a file imports from its own layer and from lower ones only.
//!
//! Unit tests are exempt: `mod tests` at the end of a file, `tests.rs` and `mock.rs` may use everything,
//! since they run whole requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of `src`, lowest first. `base` stands for the files in [`BASE`].
const LAYERS: [&str; 9] = [
    "base", "os", "shared", "heap", "state", "thread", "run", "api", "capi",
];

/// Files beside `lib.rs` that everything may use.
const BASE: [&str; 3] = ["error", "failure", "sync"];

/// An import: line number, and the path from the crate's root, at least its first name.
type Import = (usize, Vec<String>);

/// Names that `lib.rs` exports, with the module that each comes from.
type Exports = BTreeMap<String, String>;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All files to check, by their path in `src`.
fn files() -> BTreeMap<String, String> {
    fn collect(folder: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
                continue;
            }
            let name = path.strip_prefix(source()).unwrap().to_str().unwrap();
            let is_test = ["tests.rs", "mock.rs"].contains(&name.rsplit('/').next().unwrap());
            if name != "lib.rs" && !is_test {
                found.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(&source(), &mut found);
    found
}

fn exports() -> Exports {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    parse_exports(&text)
}

fn parse_exports(text: &str) -> Exports {
    let mut exports = Exports::new();
    for statement in text.split(';') {
        let Some((_, path)) = statement.split_once("pub use ") else {
            continue;
        };
        let module = path.split("::").next().unwrap().trim();
        let names = path.rsplit("::").next().unwrap();
        for name in names.trim_matches(['{', '}']).split(',') {
            exports.insert(name.trim().to_owned(), module.to_owned());
        }
    }
    exports
}

/// The module of a file: `thread/mod.rs` is `thread`, `thread/landing.rs` is `thread::landing`.
fn module(file: &str) -> Vec<String> {
    let path = file.strip_suffix(".rs").unwrap();
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// Place of a module in [`LAYERS`]; `path` is from the crate's root.
fn layer(path: &[String], exports: &Exports) -> Option<usize> {
    let first = path.first()?.as_str();
    let first = exports.get(first).map_or(first, String::as_str);
    let name = if BASE.contains(&first) { "base" } else { first };
    LAYERS.iter().position(|&layer| layer == name)
}

/// The code of a file: no comments, no unit tests. Lines keep their numbers.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.starts_with("mod ")) {
            break;
        }
        code += line.split("//").next().unwrap_or_default();
        code.push('\n');
    }
    code
}

/// Everything that a file names by `crate::` or `super::`.
fn imports(file: &str, text: &str) -> Vec<Import> {
    let code = code(text);
    let mut found = Vec::new();
    for keyword in ["crate::", "super::"] {
        for (at, _) in code.match_indices(keyword) {
            let before = &code[..at];
            let before = before.strip_suffix("self::").unwrap_or(before);
            let continues = |end: char| end.is_alphanumeric() || "_:".contains(end);
            if before.ends_with(continues) {
                // A longer name, or the second part of `super::super::`.
                continue;
            }
            let line = before.matches('\n').count() + 1;
            let (mut base, mut rest) = (module(file), &code[at..]);
            if let Some(from_root) = rest.strip_prefix("crate::") {
                (base, rest) = (Vec::new(), from_root);
            }
            while let Some(up) = rest.strip_prefix("super::") {
                base.pop();
                rest = up;
            }
            found.extend(paths(rest).into_iter().map(|path| {
                let path = base.iter().cloned().chain(path).collect();
                (line, path)
            }));
        }
    }
    found
}

/// The paths at the beginning of `text`, with groups in braces spelt out to their second name.
fn paths(text: &str) -> Vec<Vec<String>> {
    let name = |text: &str| {
        let end = text.find(|end: char| !end.is_alphanumeric() && end != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    if let Some(group) = text.strip_prefix('{') {
        let mut depth = 0;
        let end = group.find(|found: char| {
            depth += i32::from(found == '{') - i32::from(found == '}');
            depth < 0
        });
        let mut depth = 0;
        return group[..end.unwrap_or(group.len())]
            .split(|found: char| {
                depth += i32::from(found == '{') - i32::from(found == '}');
                found == ',' && depth == 0
            })
            .flat_map(|item| paths(item.trim()))
            .collect();
    }
    if text.starts_with('*') {
        return vec![Vec::new()];
    }
    let first = name(text);
    if first.is_empty() {
        return Vec::new();
    }
    match text[first.len()..].strip_prefix("::") {
        None => vec![vec![first]],
        Some(rest) => {
            let rest = paths(rest);
            let joined = rest.into_iter().map(|path| {
                let mut joined = vec![first.clone()];
                joined.extend(path);
                joined
            });
            joined.collect()
        }
    }
}

/// What is wrong with the imports of a file.
fn violations(file: &str, text: &str, exports: &Exports) -> Vec<String> {
    let Some(own) = layer(&module(file), exports) else {
        return vec![format!("{file}: in no layer")];
    };
    let mut wrong = Vec::new();
    for (line, path) in imports(file, text) {
        let imported = path.join("::");
        match layer(&path, exports) {
            None => wrong.push(format!("{file}:{line}: {imported} is in no layer")),
            Some(other) if other > own => wrong.push(format!(
                "{file}:{line}: {} imports {imported} of {}",
                LAYERS[own], LAYERS[other]
            )),
            Some(_) => {}
        }
    }
    wrong
}

/// A circle of files of one folder that import each other. Its `mod.rs` is left out: it has the type that the others
/// extend, and may use them.
fn circle(files: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in files {
        let from = module(file);
        let siblings = imports(file, text).into_iter().filter_map(|(_, path)| {
            let to = path.get(..2)?.to_vec();
            let is_file = files.contains_key(&format!("{}.rs", to.join("/")));
            (is_file && to[0] == from[0] && to != from).then(|| to.join("/"))
        });
        if from.len() == 2 {
            edges.insert(from.join("/"), siblings.collect());
        }
    }
    // A file that imports nothing that is left is in no circle.
    loop {
        let left: BTreeSet<String> = edges.keys().cloned().collect();
        edges.retain(|_, imported| !imported.is_disjoint(&left));
        if edges.len() == left.len() {
            return (!left.is_empty()).then(|| left.into_iter().collect());
        }
    }
}

#[test]
fn no_layer_imports_a_higher_one() {
    let (files, exports) = (files(), exports());
    assert!(files.len() > 50, "{} files found", files.len());
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|(file, text)| violations(file, text, &exports))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_circle_inside_a_layer() {
    assert_eq!(circle(&files()), None);
}

#[test]
fn the_check_finds_upward_imports() {
    let exports = parse_exports("pub use api::task::{Step, Task};\npub use error::Error;");
    let text = "\
use super::super::run;
use crate::api::*;
use self::super::super::{thread::*, error::*};
use crate::error::Error;
use crate::os::{clock, region::Region};
use crate::state::{
    domain::Domain,
    State,
};
// crate::api::app is only mentioned.
use crate::{Error, Task, thread::{self, Thread}};
fn code() { crate::capi::codes::code(&crate::unknown::X) }
#[cfg(test)]
mod tests {
    use crate::api::app;
}
";
    let mut wrong = violations("shared/device.rs", text, &exports);
    wrong.sort();
    assert_eq!(
        wrong,
        [
            "shared/device.rs:11: shared imports Task of api",
            "shared/device.rs:11: shared imports thread::Thread of thread",
            "shared/device.rs:11: shared imports thread::self of thread",
            "shared/device.rs:12: shared imports capi::codes::code of capi",
            "shared/device.rs:12: unknown::X is in no layer",
            "shared/device.rs:1: shared imports run of run",
            "shared/device.rs:2: shared imports api of api",
            "shared/device.rs:3: shared imports thread of thread",
            "shared/device.rs:6: shared imports state::State of state",
            "shared/device.rs:6: shared imports state::domain::Domain of state",
        ]
    );
    assert!(violations("run/trial.rs", "use crate::thread::Phase;", &exports).is_empty());
    assert_eq!(
        violations("os/clock.rs", "use crate::*;", &exports).len(),
        1
    );
    assert_eq!(
        violations("new/file.rs", "", &exports),
        ["new/file.rs: in no layer"]
    );
}

#[test]
fn the_check_finds_circles() {
    let files = |b: &str| {
        let files = [
            ("os/a.rs", "use super::b;"),
            ("os/b.rs", b),
            ("os/c.rs", ""),
        ];
        files
            .map(|(file, text)| (file.to_owned(), text.to_owned()))
            .into()
    };
    assert_eq!(circle(&files("use crate::os::c::C;")), None);
    let found = circle(&files("use crate::os::a::A;"));
    assert_eq!(found, Some(vec!["os/a".to_owned(), "os/b".to_owned()]));
}
