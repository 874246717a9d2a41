//! The house's rules, as far as a program can look after them.

use std::fs;
use std::path::{Path, PathBuf};

/// The longest file of the crate, in lines. It may be lowered.
const LINES_MAX: usize = 590;

/// Modules that never import each other: they meet in `event`, `queue` and `daemon`.
const APART: [&str; 4] = ["ingest", "transform", "deliver", "watcher"];

/// What must not be left in the code.
const LEFTOVERS: [&str; 5] = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "FIXME"];

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

#[test]
fn files_stay_within_what_one_can_keep_in_mind() {
    let long: Vec<String> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(path, text)| format!("{} has {} lines", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines:\n{}", long.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in ["src", "tests", "benches"].iter().flat_map(|folder| sources(folder)) {
        let is_apart = path.to_string_lossy().ends_with("tests.rs");
        assert!(is_apart || text.starts_with("//! "), "{} has no header", path.display());
    }
}

#[test]
fn parts_that_are_apart_stay_apart() {
    for part in APART {
        for (path, text) in sources(&format!("src/{part}")) {
            for other in APART.iter().filter(|other| **other != part) {
                let import = format!("crate::{other}::");
                assert!(!text.contains(&import), "{} imports {import}", path.display());
            }
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for (path, text) in ["src", "benches"].iter().flat_map(|folder| sources(folder)) {
        for leftover in LEFTOVERS {
            assert!(!text.contains(leftover), "{} has {leftover}", path.display());
        }
    }
}
