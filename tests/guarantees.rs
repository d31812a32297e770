//! `docs/guarantees.md` is true to the tests: each promise names one, and each that is named exists.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    fs::read_to_string(root().join("docs/guarantees.md")).expect("the page is there")
}

/// Every `path::test` in backticks.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let spans = text.split('`').skip(1).step_by(2);
    let tests = spans.filter(|span| span.starts_with("tests/") || span.starts_with("src/"));
    tests.filter_map(|test| test.rsplit_once("::")).collect()
}

/// The Rust files that `path` means: a file, or everything in a folder and in the file of its name.
fn files(path: &str) -> Vec<PathBuf> {
    let path = root().join(path);
    let mut found = Vec::new();
    let mut folders = vec![path.clone()];
    for file in [path.clone(), path.with_extension("rs")] {
        if file.is_file() {
            found.push(file);
        }
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("folders can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn has_function(path: &str, name: &str) -> bool {
    files(path).iter().any(|file| {
        let code = fs::read_to_string(file).expect("files can be read");
        [format!("fn {name}("), format!("fn {name}<")]
            .iter()
            .any(|function| code.contains(function))
    })
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let page = page();
    let named = named_tests(&page);
    assert!(
        named.len() > 20,
        "only {} tests found: has the form changed?",
        named.len()
    );
    let missing: Vec<_> = named
        .iter()
        .filter(|(path, name)| !has_function(path, name))
        .map(|(path, name)| format!("{path}::{name}"))
        .collect();
    assert!(missing.is_empty(), "not in the tree: {missing:#?}");
}

#[test]
fn every_promise_names_a_test() {
    let page = page();
    let mut guarded = false;
    let mut rows = 0;
    for line in page.lines() {
        if !line.starts_with('|') {
            guarded = false;
        } else if line.ends_with("| guarded by |") {
            guarded = true;
        } else if guarded && !line.starts_with("|---") {
            let cell = line
                .trim_end_matches('|')
                .rsplit('|')
                .next()
                .unwrap_or_default();
            assert!(!named_tests(cell).is_empty(), "names no test: {line}");
            rows += 1;
        }
    }
    assert!(
        rows > 20,
        "only {rows} promises found: has the form changed?"
    );
}
