//! Every claim of docs/detection.md names a test, and the test exists.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Minimum length of a name in the table that is taken for a test.
const NAME_MIN: usize = 15;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate is two folders below the project")
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    text.len() >= NAME_MIN && text.contains('_') && text.bytes().all(allowed)
}

/// Code spans that look like names of tests.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| is_name(name))
}

/// Names of tests in a source: functions with `#[test]`, and the strings that name behaviours.
fn collect(source: &str, found: &mut HashSet<String>) {
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") {
            is_test = true;
        }
        if let Some(rest) = line.strip_prefix("fn ") {
            if is_test {
                let name = rest.split('(').next().unwrap_or_default();
                found.insert(name.to_owned());
            }
            is_test = false;
        }
        let named = line.starts_with("name: \"") || line.starts_with("const NAME: &str = \"");
        if let (true, Some(name)) = (named, line.split('"').nth(1)) {
            found.insert(name.to_owned());
        }
    }
}

fn collect_folder(folder: &Path, found: &mut HashSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_folder(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            collect(&fs::read_to_string(&path).unwrap(), found);
        }
    }
}

fn tests() -> HashSet<String> {
    let mut found = HashSet::new();
    for folder in ["protocol", "host-backend", "guest-lib", "tests"] {
        collect_folder(&root().join(folder), &mut found);
    }
    found
}

/// Rows of tables without their headings.
fn rows(page: &str) -> Vec<&str> {
    let lines: Vec<_> = page.lines().collect();
    let heading = |at: usize| {
        lines
            .get(at + 1)
            .is_some_and(|next| next.starts_with("|---"))
    };
    let rows = lines
        .iter()
        .enumerate()
        .filter(|&(at, line)| line.starts_with('|') && !line.starts_with("|---") && !heading(at));
    rows.map(|(_, line)| *line).collect()
}

#[test]
fn every_claim_of_the_page_has_a_test_that_exists() {
    let page = fs::read_to_string(root().join("docs/detection.md")).unwrap();
    let tests = tests();
    let rows = rows(&page);
    assert!(rows.len() > 30, "{} rows", rows.len());
    for row in rows {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap();
        assert!(names(last).next().is_some(), "no test in the row: {row}");
    }
    let missing: Vec<_> = names(&page).filter(|name| !tests.contains(*name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

#[test]
fn mentioned_names_and_plain_functions_are_not_tests() {
    let source = "#[test]\nfn a_test_that_is_there() {}\nfn a_function_that_is_none() {}\n\
                  // `a_test_that_is_mentioned`\n    name: \"a_behaviour_with_a_name\",\n";
    let mut found = HashSet::new();
    collect(source, &mut found);
    let mut found: Vec<_> = found.iter().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, ["a_behaviour_with_a_name", "a_test_that_is_there"]);
    let table = "| error | tests |\n|---|---|\n| claim | `a_test_that_is_there` |\n";
    assert_eq!(rows(table), ["| claim | `a_test_that_is_there` |"]);
}
