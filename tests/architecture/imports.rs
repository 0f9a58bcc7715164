//! Finds import cycles between files, and imports of a higher module.
//!
//! File A imports file B if A's production code names an item that B defines. A re-export is
//! followed to the file that defines the item. It is no import itself, unless the file also uses
//! the name. A `mod child;` is no import.
//!
//! An import of `foo.rs` by `foo/bar.rs` makes no cycle: a private part uses the types of its
//! whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::names::Names;
use crate::source::production;

/// (folder, its modules from the bottom to the top). A module may import those to its left.
///
/// Modules in one string are peers: the test for cycles keeps order among them.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "src",
        &[
            "counters versioned readiness",
            "pdp watch",
            "config",
            "policy_store decision_log pip",
            "engine",
            "telemetry",
            "api authoring",
            "app",
            "cli",
            "main",
        ],
    ),
    (
        "src/api",
        &[
            "metrics auth",
            "decision",
            "transport",
            "grpc envoy http admin",
            "server",
        ],
    ),
    (
        "src/pdp",
        &[
            "query query_ref answer explanation diagnostic id json_object settings switches workers",
            "sources",
            "values",
            "schema entities policies",
            "snapshot",
            "compile evaluate",
            "analysis request_json",
        ],
    ),
];

/// The imports of each file, and the imported names.
pub(crate) struct Imports {
    by_file: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

/// The names in each file, by module.
struct Crate {
    files: BTreeMap<Vec<String>, (String, Names)>,
}

impl Imports {
    pub(crate) fn read() -> Self {
        let mut files = BTreeMap::new();
        let mut main = None;
        for source in production() {
            let names = Names::of(source);
            if source.path == "src/main.rs" {
                main = Some((source.path.clone(), names));
            } else {
                files.insert(source.module(), (source.path.clone(), names));
            }
        }
        let all = Crate { files };
        let by_file = all.files.values().chain(&main);
        let by_file = by_file.map(|(path, names)| (path.clone(), all.imports(path, names)));
        Self {
            by_file: by_file.collect(),
        }
    }

    /// Removes imports of the file whose folder contains the importing file.
    pub(crate) fn without_parents(mut self) -> Self {
        for (file, imported) in &mut self.by_file {
            imported.retain(|other, _| {
                let folder = other.strip_suffix(".rs").unwrap_or(other);
                let rest = file.strip_prefix(folder);
                !rest.is_some_and(|rest| rest.starts_with('/'))
            });
        }
        self
    }

    /// Returns the groups of files that import each other, directly or through others.
    pub(crate) fn cycles(&self) -> Vec<Vec<&str>> {
        let reach: BTreeMap<&str, BTreeSet<&str>> = self
            .by_file
            .keys()
            .map(|file| (file.as_str(), self.reachable(file)))
            .collect();
        let mut cycles = BTreeSet::new();
        for (file, reached) in &reach {
            if reached.contains(file) {
                let group = reached.iter().filter(|other| reach[*other].contains(file));
                cycles.insert(group.copied().collect::<Vec<_>>());
            }
        }
        cycles.into_iter().collect()
    }

    fn reachable(&self, file: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut ahead = vec![file];
        while let Some(file) = ahead.pop() {
            for imported in self.by_file[file].keys() {
                if reached.insert(imported.as_str()) {
                    ahead.push(imported);
                }
            }
        }
        reached
    }

    /// Describes each cycle: a line for each import between its files.
    pub(crate) fn describe_cycles(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (number, cycle) in self.cycles().into_iter().enumerate() {
            lines.push(format!("cycle {} of {} files:", number + 1, cycle.len()));
            for file in &cycle {
                for (imported, names) in &self.by_file[*file] {
                    if cycle.contains(&imported.as_str()) {
                        lines.push(format!("    {file} -> {imported}: {names:?}"));
                    }
                }
            }
        }
        lines
    }

    /// Returns a line for each import of a module that [`LAYERS`] has above the importing one.
    pub(crate) fn upward(&self) -> Vec<String> {
        let mut lines = BTreeSet::new();
        for (folder, layers) in LAYERS {
            let rank = |module: &str| {
                let mut layers = layers.iter();
                layers.position(|layer| layer.split(' ').any(|name| name == module))
            };
            for (file, imported) in &self.by_file {
                let Some(from) = module_in(folder, file) else {
                    continue;
                };
                let Some(own) = rank(from) else {
                    lines.insert(format!("{folder}/{from} has no layer"));
                    continue;
                };
                for (other, names) in imported {
                    let to = module_in(folder, other).filter(|to| *to != from);
                    if to.and_then(rank).is_some_and(|rank| rank > own) {
                        lines.insert(format!("{file} -> {other}: {names:?}"));
                    }
                }
            }
        }
        lines.into_iter().collect()
    }
}

/// Returns the module of `folder` that `file` is, or is in.
fn module_in<'a>(folder: &str, file: &'a str) -> Option<&'a str> {
    let rest = file.strip_prefix(folder)?.strip_prefix('/')?;
    let module = rest.split('/').next()?;
    let module = module.strip_suffix(".rs").unwrap_or(module);
    (module != "lib").then_some(module)
}

impl Crate {
    /// Returns the files that the file at `path` imports, and the names by which it does.
    fn imports(&self, path: &str, names: &Names) -> BTreeMap<String, BTreeSet<String>> {
        let mut imported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let uses = names.uses.iter();
        let uses = uses.filter(|found| !found.is_public || names.words.contains(&found.alias));
        let uses = uses.map(|found| &found.path);
        for named in uses.chain(&names.in_passing) {
            let target = self.absolute(names, named, 0);
            let target = target.and_then(|target| self.defining_file(&target, 0));
            if let Some(target) = target.filter(|target| target != path) {
                imported.entry(target).or_default().insert(named.join("::"));
            }
        }
        imported
    }

    /// Returns `path` from the root of the crate; `None` if it leads out of the crate.
    fn absolute(&self, names: &Names, path: &[String], depth: usize) -> Option<Vec<String>> {
        if let Some(path) = names.absolute(path) {
            return Some(path);
        }
        let (first, rest) = path.split_first()?;
        if names.defined.contains(first) || depth > 8 {
            return None;
        }
        // A `use` of another crate's root, as `use http;`, would be its own alias.
        let alias = names.aliases.get(first);
        if let Some(alias) = alias.filter(|alias| alias.first() != Some(first)) {
            let whole: Vec<String> = alias.iter().chain(rest).cloned().collect();
            return self.absolute(names, &whole, depth + 1);
        }
        let here = ["self".to_owned()];
        let child: Vec<String> = here.iter().chain(path).cloned().collect();
        let child = names.absolute(&child)?;
        let module = &child[..child.len() - rest.len()];
        self.files.contains_key(module).then_some(child)
    }

    /// Returns the file that defines the item at `path`; `None` if that is a module, not an item.
    fn defining_file(&self, path: &[String], depth: usize) -> Option<String> {
        let prefixes = (0..=path.len()).rev();
        let length = prefixes
            .into_iter()
            .find(|length| self.files.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(length);
        let (file, names) = &self.files[module];
        let (item, members) = rest.split_first()?;
        if depth > 8 || names.defined.contains(item) {
            return Some(file.clone());
        }
        if let Some(alias) = names.aliases.get(item) {
            let path: Vec<String> = alias.iter().chain(members).cloned().collect();
            // An item of another crate counts as defined in the file that re-exports it.
            let Some(path) = self.absolute(names, &path, 0) else {
                return Some(file.clone());
            };
            return self.defining_file(&path, depth + 1);
        }
        let everything = names.uses.iter().filter(|found| found.alias == "*");
        for found in everything {
            let from = self.absolute(names, &found.path[..found.path.len() - 1], 0);
            let other = from.and_then(|from| self.files.get(&from));
            if let Some((other, _)) = other.filter(|(_, names)| names.defined.contains(item)) {
                return Some(other.clone());
            }
        }
        Some(file.clone())
    }
}

fn assert_no_cycle(imports: &Imports) {
    let cycles = imports.cycles().len();
    let described = imports.describe_cycles().join("\n");
    assert!(cycles == 0, "{cycles} cycles:\n{described}");
}

#[test]
fn files_import_each_other_in_no_cycle() {
    assert_no_cycle(&Imports::read().without_parents());
}

#[test]
fn modules_import_nothing_above_them() {
    let upward = Imports::read().upward();
    assert!(
        upward.is_empty(),
        "{} imports:\n{}",
        upward.len(),
        upward.join("\n")
    );
}
