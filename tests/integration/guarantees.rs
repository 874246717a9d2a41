//! The guarantees and their tests: each test that `tests/guarantees.md` names exists, and the number of sentences
//! without one does not grow.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::{Attribute, Expr, ExprLit, Item, ItemMacro, ItemMod, Lit, Meta};

const GUARANTEES: &str = include_str!("../guarantees.md");

/// Sentences without a test. The number may only shrink.
const UNTESTED_MAX: usize = 3;

/// A sentence, and the tests that would fail if it did not hold.
struct Guarantee {
    sentence: String,
    tests: Vec<String>,
}

/// The sentences of the document, each of which begins with `- ` and may continue in indented lines.
fn guarantees() -> Vec<Guarantee> {
    let mut rows: Vec<String> = Vec::new();
    for line in GUARANTEES.lines() {
        if let Some(begun) = line.strip_prefix("- ") {
            rows.push(begun.to_owned());
        } else if let (Some(more), Some(row)) = (line.strip_prefix("  "), rows.last_mut()) {
            row.push(' ');
            row.push_str(more);
        }
    }
    let read = |row: String| {
        let (sentence, names) = row.rsplit_once(" → ").unwrap_or_else(|| panic!("no tests: {row}"));
        let name = |name: &str| {
            let bare = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'));
            bare.unwrap_or_else(|| panic!("no name of a test: {name} in {row}")).to_owned()
        };
        let tests = if names == "none yet" { Vec::new() } else { names.split(", ").map(name).collect() };
        Guarantee { sentence: sentence.to_owned(), tests }
    };
    rows.into_iter().map(read).collect()
}

/// The tests of a crate, by full name.
#[derive(Default)]
struct Tests(BTreeSet<String>);

impl Tests {
    /// Reads those of a file, whose modules' files are in `folder` unless they specify another path.
    fn read(&mut self, file: &Path, folder: &Path, module: &str) {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.add(&syn::parse_file(&text).unwrap().items, (file, folder), module);
    }

    fn add(&mut self, items: &[Item], place: (&Path, &Path), module: &str) {
        for item in items {
            match item {
                Item::Fn(item) if item.attrs.iter().any(|attribute| attribute.path().is_ident("test")) => {
                    self.0.insert(format!("{module}{}", item.sig.ident));
                }
                Item::Mod(item) => self.add_module(item, place, module),
                Item::Macro(item) => self.add_generated(item, module),
                _ => {}
            }
        }
    }

    fn add_module(&mut self, item: &ItemMod, (file, folder): (&Path, &Path), module: &str) {
        let name = item.ident.to_string();
        let (inner, below) = (format!("{module}{name}::"), folder.join(&name));
        if let Some((_, items)) = &item.content {
            return self.add(items, (file, &below), &inner);
        }
        let explicit = path_of(&item.attrs).map(|path| file.with_file_name(path));
        let candidates = [folder.join(format!("{name}.rs")), below.join("mod.rs")];
        let found: Option<PathBuf> = explicit.or_else(|| candidates.into_iter().find(|path| path.exists()));
        self.read(&found.unwrap_or_else(|| panic!("no file of {inner}")), &below, &inner);
    }

    /// Tests created by macros: those written within `proptest!`, and those named in `cases!`.
    fn add_generated(&mut self, item: &ItemMacro, module: &str) {
        let tokens = item.mac.tokens.to_string();
        let names: Vec<&str> = if item.mac.path.is_ident("cases") {
            tokens.split_whitespace().collect()
        } else if item.mac.path.is_ident("proptest") {
            let functions = tokens.split("[test]").skip(1).filter_map(|rest| rest.split("fn ").nth(1));
            functions.filter_map(|rest| rest.split([' ', '(']).next()).collect()
        } else {
            Vec::new()
        };
        self.0.extend(names.into_iter().map(|name| format!("{module}{name}")));
    }
}

/// The path in `#[path = "…"]`.
fn path_of(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(path), .. }) => Some(path.value()),
            _ => None,
        },
        _ => None,
    })
}

#[test]
fn every_named_test_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = Tests::default();
    for folder in ["src", "tests/integration"] {
        let (folder, file) = (root.join(folder), if folder == "src" { "lib.rs" } else { "main.rs" });
        tests.read(&folder.join(file), &folder, "");
    }
    let guarantees = guarantees();
    let named = guarantees.iter().flat_map(|row| row.tests.iter().map(move |test| (&row.sentence, test)));
    let gone: Vec<_> = named.filter(|(_, test)| !tests.0.contains(*test)).collect();
    assert!(gone.is_empty(), "there are no such tests: {gone:#?}");
    let sentences: BTreeSet<&str> = guarantees.iter().map(|row| row.sentence.as_str()).collect();
    assert_eq!(sentences.len(), guarantees.len(), "a sentence stands there twice");
}

#[test]
fn sentences_without_a_test_become_fewer() {
    let guarantees = guarantees();
    assert!(guarantees.len() > 100, "only {} sentences were found", guarantees.len());
    let untested: Vec<&str> =
        guarantees.iter().filter(|row| row.tests.is_empty()).map(|row| row.sentence.as_str()).collect();
    assert!(untested.len() <= UNTESTED_MAX, "more than {UNTESTED_MAX} have no test: {untested:#?}");
    assert!(untested.len() == UNTESTED_MAX, "lower UNTESTED_MAX to {}", untested.len());
}
