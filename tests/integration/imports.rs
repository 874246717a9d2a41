//! The imports of the library, parsed: which file uses names of which other file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, UseTree, Visibility};

/// Modules that never import each other: they share `model`, `message`, `queue` and `daemon`.
const APART: [&str; 5] = ["ingest", "transform", "deliver", "watcher", "recorder"];

/// The segments of a path: `["redis", "link"]`.
type Names = Vec<String>;

/// A file of the library: the names that it uses, by absolute path, and the names that it re-exports.
#[derive(Default)]
struct Source {
    module: Names,
    uses: Vec<Names>,
    exports: BTreeMap<String, Names>,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Self {
        let relative = path.strip_prefix(root).unwrap().with_extension("");
        let mut module: Names = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|name| name == "mod" || name == "lib") {
            module.pop();
        }
        let mut source = Self { module, ..Self::default() };
        let text = fs::read_to_string(path).unwrap();
        source.visit_file(&syn::parse_file(&text).unwrap());
        source
    }

    /// The absolute form of a path; a path that begins with neither `crate`, `self` nor `super` belongs to a child
    /// module, or is not ours.
    fn absolute(&self, path: &[String]) -> Names {
        let mut module = self.module.clone();
        match path.first().map(String::as_str) {
            Some("crate") => return path[1..].to_vec(),
            Some("self") => module.extend_from_slice(&path[1..]),
            Some("super") => {
                let ups = path.iter().take_while(|name| *name == "super").count();
                module.truncate(module.len().saturating_sub(ups));
                module.extend_from_slice(&path[ups..]);
            }
            _ => module.extend_from_slice(path),
        }
        module
    }

    fn add_use(&mut self, before: &[String], tree: &UseTree, is_export: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(part) => self.add_use(&with(&part.ident), &part.tree, is_export),
            UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.add_use(before, item, is_export))
            }
            UseTree::Glob(_) => self.uses.push(self.absolute(before)),
            UseTree::Name(name) => self.add_name(with(&name.ident), &name.ident.to_string(), is_export),
            UseTree::Rename(name) => self.add_name(with(&name.ident), &name.rename.to_string(), is_export),
        }
    }

    fn add_name(&mut self, mut path: Names, name: &str, is_export: bool) {
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let path = self.absolute(&path);
        if is_export {
            self.exports.insert(name.to_owned(), path);
        } else {
            self.uses.push(path);
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    let cfgs = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    cfgs.filter_map(|attribute| attribute.meta.require_list().ok())
        .any(|list| list.tokens.to_string().contains("test"))
}

impl<'ast> Visit<'ast> for Source {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        // A module within the file is a part of the file.
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_use(&[], &item.tree, !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            let path: Names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.uses.push(self.absolute(&path));
        }
        visit::visit_path(self, path);
    }
}

/// All files of the library except tests, by module.
fn sources() -> BTreeMap<Names, Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && name != "main.rs" {
                let source = Source::read(&root, &path);
                found.insert(source.module.clone(), source);
            }
        }
    }
    found
}

/// The module in whose file a path's name is defined, followed through re-exports.
fn home(sources: &BTreeMap<Names, Source>, path: &[String]) -> Option<Names> {
    let mut at = Names::new();
    for (place, name) in path.iter().enumerate() {
        let inner = [&at[..], std::slice::from_ref(name)].concat();
        if sources.contains_key(&inner) {
            at = inner;
        } else if let Some(handed_on) = sources.get(&at)?.exports.get(name) {
            let rest = [&handed_on[..], &path[place + 1..]].concat();
            // A name that is re-exported from another library has no home here.
            return if rest == path { None } else { home(sources, &rest) };
        } else {
            break;
        }
    }
    sources.contains_key(&at).then_some(at)
}

/// For each module those whose names it uses, except those around it: what is below `x/` is a part of `x.rs` or
/// `x/mod.rs`.
fn imports() -> BTreeMap<Names, BTreeSet<Names>> {
    let sources = sources();
    let used = |source: &Source| {
        let homes = source.uses.iter().filter_map(|path| home(&sources, path));
        homes.filter(|home| !source.module.starts_with(home)).collect()
    };
    sources.iter().map(|(module, source)| (module.clone(), used(source))).collect()
}

#[test]
fn parts_that_are_apart_stay_apart() {
    let imports = imports();
    for (module, used) in &imports {
        for name in used.iter().filter(|used| used[0] != module.first().map_or("", |first| first)) {
            let is_apart = |names: &Names| names.first().is_some_and(|name| APART.contains(&name.as_str()));
            assert!(!is_apart(module) || !is_apart(name), "{} imports {}", module.join("/"), name.join("/"));
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports();
    let reached = |from: &Names| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            next.extend(imports[module].iter().filter(|used| seen.insert((*used).clone())));
        }
        seen
    };
    let reached: BTreeMap<&Names, BTreeSet<Names>> =
        imports.keys().map(|from| (from, reached(from))).collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (from, to) in &reached {
        let circle = to.iter().filter(|other| to.contains(*from) && reached[*other].contains(*from));
        circles.insert(circle.map(|module| module.join("/")).collect());
    }
    circles.remove(&Vec::new());
    assert!(circles.is_empty(), "{circles:?}");
}
