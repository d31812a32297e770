//! The pages that name tests are true to them: each promise names one, each that is named exists, and what
//! an entity does is tested on both stores.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Pages whose tables name tests.
const PAGES: [&str; 2] = ["docs/guarantees.md", SEMANTICS];
const SEMANTICS: &str = "docs/semantics.md";
/// What a row says that is not for both stores.
const EXEMPT: [&str; 2] = ["in the pod alone", "On Redis."];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect("the page is there")
}

/// Every `path::test` in backticks.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let spans = text.split('`').skip(1).step_by(2);
    let tests = spans.filter(|span| span.starts_with("tests/") || span.starts_with("src/"));
    tests.filter_map(|test| test.rsplit_once("::")).collect()
}

/// Rows of tables whose last column names tests.
fn rows(page: &str) -> Vec<&str> {
    let mut guarded = false;
    let mut rows = Vec::new();
    for line in page.lines() {
        if !line.starts_with('|') {
            guarded = false;
        } else if line.ends_with("| guarded by |") {
            guarded = true;
        } else if guarded && !line.starts_with("|---") {
            rows.push(line);
        }
    }
    assert!(
        rows.len() > 20,
        "only {} promises found: has the form changed?",
        rows.len()
    );
    rows
}

/// The tests that a row names in its last cell.
fn tests_of(row: &str) -> Vec<(&str, &str)> {
    let cell = row.trim_end_matches('|').rsplit('|').next();
    named_tests(cell.unwrap_or_default())
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

fn read(file: &Path) -> String {
    fs::read_to_string(file).expect("files can be read")
}

fn has_function(path: &str, name: &str) -> bool {
    files(path).iter().any(|file| {
        let code = read(file);
        [format!("fn {name}("), format!("fn {name}<")]
            .iter()
            .any(|function| code.contains(function))
    })
}

/// Tests that run on the embedded store and on Redis: those that `on_both_stores!` names, and the suite
/// that every store runs.
fn on_both_stores() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files("tests") {
        let code = read(&file);
        for listed in code.split("on_both_stores!(").skip(1) {
            let list = listed.split(");").next().unwrap_or_default();
            names.extend(list.split(',').map(|name| name.trim().to_owned()));
        }
    }
    for file in files("src/testing/conformance") {
        let code = read(&file);
        let functions = code.split("fn ").skip(1);
        names.extend(functions.filter_map(|rest| rest.split(['(', '<']).next().map(str::to_owned)));
    }
    names
}

#[test]
fn every_test_that_is_named_exists() {
    for path in PAGES {
        let page = page(path);
        let named = named_tests(&page);
        assert!(
            named.len() > 20,
            "only {} tests found in {path}: has the form changed?",
            named.len()
        );
        let missing: Vec<_> = named
            .iter()
            .filter(|(path, name)| !has_function(path, name))
            .map(|(path, name)| format!("{path}::{name}"))
            .collect();
        assert!(
            missing.is_empty(),
            "in {path}, not in the tree: {missing:#?}"
        );
    }
}

#[test]
fn every_promise_names_a_test() {
    for path in PAGES {
        for row in rows(&page(path)) {
            assert!(!tests_of(row).is_empty(), "{path} names no test: {row}");
        }
    }
}

#[test]
fn what_an_entity_does_is_tested_on_both_stores() {
    let page = page(SEMANTICS);
    let both = on_both_stores();
    assert!(both.len() > 200, "only {} found", both.len());
    for row in rows(&page) {
        let exempt = EXEMPT.iter().any(|why| row.contains(why));
        let tests = tests_of(row);
        let on_both = tests.iter().any(|(_, name)| both.contains(*name));
        assert!(exempt || on_both, "on one store alone: {row}");
    }
}
