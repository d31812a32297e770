//! `docs/architecture.md` is true to the tree, and each file says what it is for.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    fs::read_to_string(root().join("docs/architecture.md")).expect("the page is there")
}

/// Files and folders that the page names: in backticks, below `src/`, or from the root on.
fn named(page: &str) -> Vec<&str> {
    let fenced = |text: &str| text.contains('\n');
    let spans = page.split('`').skip(1).step_by(2).filter(|s| !fenced(s));
    let is_path = |span: &&str| {
        span.ends_with('/') || span.ends_with(".rs") || span.ends_with(".lua") || is_of_tests(span)
    };
    spans.filter(is_path).collect()
}

fn is_of_tests(span: &str) -> bool {
    span.starts_with("tests/")
}

#[test]
fn every_file_that_the_page_names_exists() {
    let page = page();
    let named = named(&page);
    assert!(named.len() > 60, "only {} paths found", named.len());
    let exists = |path: &str| match is_of_tests(path) {
        true => root().join(path).exists(),
        false => root().join("src").join(path).exists(),
    };
    let missing: Vec<_> = named.iter().filter(|path| !exists(path)).collect();
    assert!(missing.is_empty(), "not in the tree: {missing:?}");
}

#[test]
fn every_room_is_named() {
    let page = page();
    let named = named(&page);
    let rooms = fs::read_dir(root().join("src")).expect("it can be read");
    for room in rooms {
        let room = room.expect("it can be read");
        let name = room.file_name().into_string().expect("names are text");
        let is_folder = room.path().is_dir();
        // A folder beside a file of its name is part of that.
        let file = root().join("src").join(&name).with_extension("rs");
        let known = match is_folder {
            true => named.contains(&&*format!("{name}/")) || file.exists(),
            false => named.contains(&&*name),
        };
        assert!(known, "{name} is not on the page");
    }
}

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    assert!(files.len() > 300, "only {} files found", files.len());
    let silent = files.iter().filter(|file| {
        let code = fs::read_to_string(file).expect("it can be read");
        !code.starts_with("//! ")
    });
    let silent: Vec<_> = silent.collect();
    assert!(silent.is_empty(), "without a word: {silent:#?}");
}
