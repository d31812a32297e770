//! The public interface, as its source has it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every function of the crate that a caller can wait for and drop, as `Type::function`: those that are
/// `async`, or give a future. Helpers of tests are not among them, nor the traits of the store, which
/// nobody but the crate calls.
pub(crate) fn asynchronous() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeSet::new();
    for file in files(&root) {
        if !file.starts_with(root.join("testing")) {
            let code = fs::read_to_string(file).unwrap();
            found.extend(functions_of(&code));
        }
    }
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let below = folders.iter().flat_map(|folder| self::files(folder));
    files.into_iter().chain(below).collect()
}

/// As `rustfmt` leaves the code: a function of a type is indented once, and its signature ends with `{`.
fn functions_of(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut of = "";
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("mod tests {") {
            break;
        }
        if let Some(header) = line.strip_prefix("impl") {
            of = type_of(header);
        }
        let public = line.strip_prefix("    pub ");
        let Some(public) = public.filter(|public| public.contains("fn ")) else {
            continue;
        };
        let mut signature = public.to_owned();
        while !signature.ends_with('{') {
            signature += lines.next().unwrap_or("{");
        }
        let waits = ["async fn ", "-> impl Future", "-> Invalidation"];
        if waits.iter().any(|wait| signature.contains(wait))
            && let Some((_, rest)) = signature.split_once("fn ")
            && let Some(name) = rest.split(['(', '<']).next()
        {
            found.insert(format!("{of}::{name}"));
        }
    }
    found
}

/// `Live` of `<F: FnMut() -> Fut, Fut> Live<F, Fut>`, or of `<F> Stream for Live<F>`.
fn type_of(header: &str) -> &str {
    let mut depth = 0;
    let mut before = ' ';
    let begins = header.char_indices().find(|&(_, c)| {
        depth += i32::from(c == '<') - i32::from(c == '>' && before != '-');
        before = c;
        depth == 0 && c == ' '
    });
    let rest = begins.map_or("", |(at, _)| &header[at + 1..]);
    let rest = rest.split_once(" for ").map_or(rest, |(_, of)| of);
    rest.split(['<', ' ']).next().unwrap_or_default()
}

#[test]
fn functions_that_can_be_waited_for_are_found() {
    let code = "impl<F: Fn() -> Fut, Fut> Live<F, Fut>\nwhere\n    F: Send,\n{\n    pub async fn next(&mut self) {\n    \
        pub fn call<'k>(\n        &self,\n        key: &'k str,\n    ) -> impl Future<Output = ()> {\n    \
        pub fn name(&self) -> &str {\n    pub(crate) async fn hidden(&self) {\n}\n\
        impl<F> Stream for Other<F> {\n    pub fn clear(&self) -> Invalidation {\n";
    let found: Vec<_> = functions_of(code).into_iter().collect();
    assert_eq!(found, ["Live::call", "Live::next", "Other::clear"]);
}
