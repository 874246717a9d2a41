//! The house rules, as far as a program can check them.

use std::fs;
use std::path::{Path, PathBuf};

/// The longest file of the crate, in lines. It may be lowered.
const LINES_MAX: usize = 590;

/// Strings that must not be left in the code.
const LEFTOVERS: [&str; 5] = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "FIXME"];

/// Everything in the top folder, except hidden files.
const TOP_LEVEL: [&str; 12] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "conf",
    "rustfmt.toml",
    "src",
    "systemd",
    "target",
    "tests",
];

/// Where lines may be logged without a limit, and how many such places each file has: events that happen once in the
/// life of a thread or process, requests of the operator, and the limit itself.
const UNLIMITED_LOGS: [(&str, usize); 14] = [
    ("cli/produce/feed.rs", 2),
    ("daemon/limits.rs", 2),
    ("daemon/listeners.rs", 1),
    ("daemon/mod.rs", 6),
    ("daemon/systemd.rs", 1),
    ("ingest/reader.rs", 1),
    ("log_limit.rs", 2),
    ("observe/stats_socket.rs", 1),
    ("produce/writer.rs", 1),
    ("recorder/mod.rs", 3),
    ("relay/worker.rs", 1),
    ("thread.rs", 2),
    ("watcher/fatal.rs", 1),
    ("watcher/mod.rs", 2),
];

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
fn nothing_strays_into_the_top_folder() {
    let names = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let stray: Vec<String> =
        names.filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str())).collect();
    assert!(stray.is_empty(), "{stray:?}: a server's dump, or something that belongs in a folder");
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
fn every_file_has_a_header() {
    for (path, text) in ["src", "tests", "benches"].iter().flat_map(|folder| sources(folder)) {
        let is_apart = path.to_string_lossy().ends_with("tests.rs");
        assert!(is_apart || text.starts_with("//! "), "{} has no header", path.display());
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

/// Input and outages must not fill the log: see `src/log_limit.rs`.
#[test]
fn lines_of_log_are_limited_where_they_can_be_caused_from_outside() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let is_unlimited = |line: &str| {
        let levels = ["warn!(", "error!(", "info!(", "$log!("];
        levels.iter().any(|level| line.contains(&format!("tracing::{level}")))
    };
    for (path, text) in sources("src") {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
        let count =
            text.lines().filter(|line| !line.trim_start().starts_with("//") && is_unlimited(line)).count();
        let allowed =
            UNLIMITED_LOGS.iter().find(|(listed, _)| *listed == file).map_or(0, |(_, count)| *count);
        assert!(
            count <= allowed,
            "{file} logs in {count} places without a limit, and {allowed} are allowed: use warn_limited!, error_limited! \
             or info_limited!, or list the place in UNLIMITED_LOGS if neither input nor an outage can repeat it"
        );
        let imports = text
            .lines()
            .any(|line| line.starts_with("use tracing::{") || line.starts_with("use tracing::warn"));
        assert!(!imports, "{file} imports the macros of tracing: write tracing::debug! in full");
    }
}

/// A comment is a plain sentence or a noun phrase, not a subject clause that has to be resolved first.
#[test]
fn no_comment_begins_with_a_subject_clause() {
    let words = ["What", "Who", "Whoever", "Whose", "Whatever"];
    for folder in ["src", "tests", "benches"] {
        for (path, text) in sources(folder) {
            for (at, line) in text.lines().enumerate() {
                let comment =
                    line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!']));
                let word = comment.and_then(|comment| comment.split_whitespace().next());
                assert!(!word.is_some_and(|word| words.contains(&word)), "{}:{}", path.display(), at + 1);
            }
        }
    }
}
