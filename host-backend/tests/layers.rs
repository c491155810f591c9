//! The modules of the crate are layers: each uses those before it in this list, and none after it.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom to the top.
const LAYERS: [&str; 18] = [
    "sandbox",
    "output",
    "service",
    "vitals",
    "cgroup",
    "size",
    "tally",
    "host_memory",
    "broken_memory",
    "engine",
    "regions",
    "vmm",
    "engine_handle",
    "devices",
    "control",
    "symbols",
    "machine",
    "cli",
];

/// Modules, and folders of modules, that are compiled for tests alone; these may look upward.
const TEST_MODULES: [&str; 4] = ["tests", "mock", "model", "promises"];

fn is_test(inner: &Path) -> bool {
    inner.iter().any(|part| {
        let part = part.to_str().unwrap();
        TEST_MODULES.contains(&part.trim_end_matches(".rs"))
    })
}

fn level(module: &str) -> Option<usize> {
    LAYERS.iter().position(|&layer| layer == module)
}

/// The uses of higher layers in a file of the layer `module`: `crate::` paths, and `super::` paths that
/// lead to the crate's root from a module `depth` levels below it.
fn upward(module: &str, depth: usize, text: &str) -> Vec<String> {
    let tests = ["", "pub(crate) "].map(|public| format!("#[cfg(test)]\n{public}mod tests {{"));
    let end = tests.iter().find_map(|tests| text.find(tests));
    let product = &text[..end.unwrap_or(text.len())];
    let up = "super::".repeat(depth);
    let from_root = ["crate::", &up].map(|root| {
        product.match_indices(root).filter_map(move |(at, _)| {
            let path = &product[at + root.len()..];
            let end = path.find(|c: char| !c.is_alphanumeric() && c != '_');
            let used = &path[..end.unwrap_or(path.len())];
            // Anything else would be an item of the crate's root; there are none.
            (level(used) > level(module) || level(used).is_none()).then(|| used.to_owned())
        })
    });
    from_root.into_iter().flatten().collect()
}

/// How many levels the module of a file, below the folder of sources, is below the crate's root.
fn depth(file: &Path) -> usize {
    file.iter().count() - usize::from(file.ends_with("mod.rs"))
}

/// All source files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_layer_uses_a_higher_one() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut seen = [false; LAYERS.len()];
    for path in files(&source) {
        let inner = path.strip_prefix(&source).unwrap();
        let first = inner.iter().next().unwrap().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if is_test(inner) || matches!(module, "lib" | "main") {
            continue;
        }
        let level = level(module).unwrap_or_else(|| panic!("{module} is not in the list"));
        seen[level] = true;
        let text = fs::read_to_string(&path).unwrap();
        let uses = upward(module, depth(inner), &text);
        wrong.extend(
            uses.iter()
                .map(|used| format!("{}: {used}", path.display())),
        );
    }
    assert_eq!(seen, [true; LAYERS.len()], "a module of the list is gone");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_use_of_a_higher_layer_is_seen() {
    let text = "use crate::regions::Pool;\nfn f() { crate::cli::main() }\n";
    assert_eq!(upward("vmm", 1, text), ["cli"]);
    assert_eq!(upward("engine", 1, text), ["regions", "cli"]);
    let tests = "#[cfg(test)]\nmod tests {\n    use crate::cli::Exit;\n}\n";
    assert!(upward("vmm", 1, tests).is_empty());
    let tests = "#[cfg(test)]\npub(crate) mod tests {\n    use super::*;\n}\n";
    assert!(upward("vmm", 1, tests).is_empty());
}

#[test]
fn a_use_of_a_higher_layer_through_super_is_seen() {
    let text = "use super::super::cli::Exit;\nuse super::bus::Bus;\n";
    let file = Path::new("vmm/cpu.rs");
    assert_eq!(upward("vmm", depth(file), text), ["cli"]);
    let text = "use super::control::Client;\nuse super::size::Size;\n";
    for file in ["vmm.rs", "vmm/mod.rs"] {
        assert_eq!(upward("vmm", depth(Path::new(file)), text), ["control"]);
    }
    assert_eq!(depth(Path::new("vmm/mmio/mod.rs")), 2);
}

#[test]
fn folders_of_tests_may_look_upward() {
    assert!(is_test(Path::new("engine/tests/deletion.rs")));
    assert!(is_test(Path::new("engine/tests.rs")));
    assert!(!is_test(Path::new("engine/store.rs")));
}
