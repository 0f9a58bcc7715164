//! Counts modules of a folder, lines of a file, and lines of a function.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Token, end_of_group, is_at, is_word, production};

/// The maximum number of modules in a folder. `foo.rs` with `foo/` is one; tests are not counted.
const FOLDER: usize = 13;
/// Folders that are read like a list of chapters may have more.
const LARGE_FOLDERS: &[(&str, usize)] = &[("src", 20), ("src/pdp", 20)];

/// The maximum number of lines, comments and blank lines included.
const FILE: Limits = Limits {
    median: 180,
    p90: 400,
    most: 650,
};
/// The maximum number of lines from `fn` to the closing brace.
const FUNCTION: Limits = Limits {
    median: usize::MAX,
    p90: 30,
    most: 100,
};

struct Limits {
    median: usize,
    p90: usize,
    most: usize,
}

/// A file or a function with its length.
pub(crate) struct Length {
    pub(crate) name: String,
    pub(crate) lines: usize,
    /// Lines with a token; for a function, the same as `lines`.
    pub(crate) code_lines: usize,
    /// The function is mostly one `match` with short arms.
    pub(crate) is_flat: bool,
}

/// Returns the value that `percent` of the sorted `items` do not exceed.
pub(crate) fn percentile(items: &[Length], percent: usize) -> usize {
    let mut lines: Vec<usize> = items.iter().map(|item| item.lines).collect();
    lines.sort_unstable();
    let rank = (lines.len() * percent).div_ceil(100);
    lines.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

pub(crate) fn files() -> Vec<Length> {
    let sized = production().map(|source| {
        let code = source.code();
        Length {
            name: source.path.clone(),
            lines: code.lines,
            code_lines: code.code_lines,
            is_flat: false,
        }
    });
    sized.collect()
}

pub(crate) fn functions() -> Vec<Length> {
    let mut found = Vec::new();
    for source in production() {
        let tokens = &source.code().tokens;
        for at in 0..tokens.len() {
            let Some(body) = body_of_function(tokens, at) else {
                continue;
            };
            let end = end_of_group(tokens, body);
            let lines = tokens[end - 1].line - tokens[at].line + 1;
            found.push(Length {
                name: format!(
                    "{}:{} {}",
                    source.path,
                    tokens[at].line,
                    tokens[at + 1].text
                ),
                lines,
                code_lines: lines,
                is_flat: is_flat_match(&tokens[body..end], lines),
            });
        }
    }
    found
}

/// Returns the index of the brace that opens the body of the function at `at`, if one is there.
fn body_of_function(tokens: &[Token], at: usize) -> Option<usize> {
    if tokens[at].text != "fn" || !is_word(&tokens.get(at + 1)?.text) {
        return None;
    }
    let mut at = at + 2;
    loop {
        match tokens.get(at)?.text.as_str() {
            "{" => return Some(at),
            ";" => return None,
            "(" | "[" => at = end_of_group(tokens, at),
            _ => at += 1,
        }
    }
}

/// Returns whether a `match` with arms of at most eight lines is three quarters of a function.
fn is_flat_match(body: &[Token], lines: usize) -> bool {
    (0..body.len())
        .filter(|at| body[*at].text == "match")
        .any(|at| {
            let mut open = at;
            while !matches!(body[open].text.as_str(), "{") {
                let is_group = matches!(body[open].text.as_str(), "(" | "[");
                open = if is_group {
                    end_of_group(body, open)
                } else {
                    open + 1
                };
            }
            let end = end_of_group(body, open);
            let height = body[end - 1].line - body[open].line + 1;
            height * 4 >= lines * 3 && longest_arm(&body[open..end]) <= 8
        })
}

/// Returns the number of lines of the longest arm between the braces of a `match`.
fn longest_arm(arms: &[Token]) -> usize {
    let mut longest = 0;
    let mut at = 1;
    while at < arms.len() - 1 {
        let begin = arms[at].line;
        while at < arms.len() - 1 && !is_at(arms, at, &["=", ">"]) {
            let is_group = matches!(arms[at].text.as_str(), "(" | "[" | "{");
            at = if is_group {
                end_of_group(arms, at)
            } else {
                at + 1
            };
        }
        at += 2;
        let is_block = is_at(arms, at, &["{"]);
        while at < arms.len() - 1 && arms[at].text != "," {
            let is_group = matches!(arms[at].text.as_str(), "(" | "[" | "{");
            at = if is_group {
                end_of_group(arms, at)
            } else {
                at + 1
            };
            if is_block {
                break;
            }
        }
        longest = longest.max(arms[at - 1].line + 1 - begin);
        if is_at(arms, at, &[","]) {
            at += 1;
        }
    }
    longest
}

/// Returns the modules of each folder.
pub(crate) fn folders() -> BTreeMap<String, BTreeSet<String>> {
    let mut folders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in production() {
        let mut child = source.path.strip_suffix(".rs").unwrap();
        while let Some((folder, module)) = child.rsplit_once('/') {
            folders
                .entry(folder.to_owned())
                .or_default()
                .insert(module.to_owned());
            child = folder;
        }
    }
    folders
}

/// Returns a line for each folder with too many modules.
pub(crate) fn large_folders() -> Vec<String> {
    let mut found = Vec::new();
    for (folder, modules) in folders() {
        let exception = LARGE_FOLDERS.iter().find(|(large, _)| *large == folder);
        let most = exception.map_or(FOLDER, |(_, most)| *most);
        if modules.len() > most {
            found.push(format!(
                "{folder}: {} modules, at most {most}",
                modules.len()
            ));
        }
    }
    found
}

impl Limits {
    /// Returns a line for each limit that `items` exceed.
    fn exceeded(&self, items: &[Length]) -> Vec<String> {
        let mut found = Vec::new();
        for (percent, most) in [(50, self.median), (90, self.p90)] {
            let lines = percentile(items, percent);
            if lines > most {
                found.push(format!("p{percent} is {lines} lines, at most {most}"));
            }
        }
        for item in items.iter().filter(|item| !item.is_flat) {
            if item.lines > self.most {
                let most = self.most;
                found.push(format!(
                    "{}: {} lines, at most {most}",
                    item.name, item.lines
                ));
            }
        }
        found
    }
}

/// Prints all figures, of another checkout if `CEDAR_PDP_SOURCES` names its `src` folder:
/// `cargo test --test architecture figures -- --nocapture`.
#[test]
fn figures_of_the_source() {
    let files = files();
    let lines: usize = files.iter().map(|file| file.lines).sum();
    let code: usize = files.iter().map(|file| file.code_lines).sum();
    println!("production lines {lines}, without comments and blank lines {code}");
    for (what, items) in [("files", &files), ("functions", &functions())] {
        let [median, p90, most] = [50, 90, 100].map(|percent| percentile(items, percent));
        println!(
            "{what} {}: median {median}, p90 {p90}, most {most}",
            items.len()
        );
    }
    for found in large_folders() {
        println!("folder {found}");
    }
    let imports = crate::imports::Imports::read();
    println!("upward imports {}", imports.upward().len());
    let strict = imports.cycles().len();
    let cycles = imports.without_parents().cycles().len();
    println!("import cycles {cycles}, with what parts import of their whole {strict}");
    println!("{}", crate::prose::summary());
}

#[test]
fn folders_hold_few_modules() {
    let found = large_folders();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_are_short() {
    let found = FILE.exceeded(&files());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn functions_are_short() {
    let found = FUNCTION.exceeded(&functions());
    assert!(found.is_empty(), "{}", found.join("\n"));
}
