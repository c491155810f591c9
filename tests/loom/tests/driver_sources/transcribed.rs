//! The functions that a model has in Rust, with the hash of the text that the model was compared with.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::source;

/// Set to renew the list.
const UPDATE: &str = "UPDATE_DRIVER_HASHES";

/// A line of the list.
struct Entry {
    file: String,
    function: String,
    model: String,
    hash: String,
}

fn list() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver_sources/transcribed.txt")
}

fn entries(text: &str) -> Vec<Entry> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            let mut word = || words.next().unwrap_or_default();
            Entry {
                file: word(),
                function: word(),
                model: word(),
                hash: word(),
            }
        })
        .collect()
}

/// What is wrong with the entry, or the hash of the function's text.
fn check(entry: &Entry) -> Result<String, String> {
    let Entry {
        file,
        function,
        model,
        ..
    } = entry;
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/driver")
        .join(model);
    let text = fs::read_to_string(&path).map_err(|error| format!("{model}: {error}"))?;
    if !text.contains(&format!("`{function}`")) {
        return Err(format!("src/driver/{model} does not name `{function}`"));
    }
    let Some(found) = source::function(file, function) else {
        return Err(format!(
            "guest-kmod/{file} has no {function}(), which src/driver/{model} models"
        ));
    };
    Ok(format!("{:08x}", crc32fast::hash(found.text.as_bytes())))
}

#[test]
fn transcribed_functions_are_unchanged() {
    let text = fs::read_to_string(list()).expect("the list is readable");
    let update = std::env::var_os(UPDATE).is_some();
    let mut renewed: String = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut wrong = Vec::new();
    for entry in entries(&text) {
        let Entry {
            file,
            function,
            model,
            hash,
        } = &entry;
        match check(&entry) {
            Err(error) => wrong.push(error),
            Ok(now) => {
                let _ = writeln!(renewed, "{file} {function} {model} {now}");
                if now != *hash && !update {
                    wrong.push(format!(
                        "guest-kmod/{file}: {function}() has changed since src/driver/{model} was compared with it"
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\n\nBring the models in line, then renew the list:\n\
         {UPDATE}=1 cargo test -p vmsrs-loom --test driver_sources",
        wrong.join("\n")
    );
    if update {
        fs::write(list(), renewed).expect("the list is writable");
    }
}
