//! Reads the names that a file uses, in `use` items or in passing, and those that it defines.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, Token, is_word};

/// One path of a `use` item.
pub(crate) struct Use {
    /// As written, split at `::`. The last part is `*` where everything is imported.
    pub(crate) path: Vec<String>,
    /// The name that it has in this file.
    pub(crate) alias: String,
    /// Other files may import it from here.
    pub(crate) is_public: bool,
}

impl Use {
    fn new(path: &[String], alias: Option<&str>) -> Self {
        let last = path.last().map(String::as_str);
        Self {
            path: path.to_vec(),
            alias: alias.or(last).unwrap_or_default().to_owned(),
            is_public: false,
        }
    }
}

/// The names in the production code of one file.
pub(crate) struct Names {
    module: Vec<String>,
    pub(crate) uses: Vec<Use>,
    /// Paths of two parts and more outside `use`, as written.
    pub(crate) in_passing: BTreeSet<Vec<String>>,
    /// Every word outside `use`.
    pub(crate) words: BTreeSet<String>,
    /// The imported names and their paths.
    pub(crate) aliases: BTreeMap<String, Vec<String>>,
    /// Items that the file defines itself.
    pub(crate) defined: BTreeSet<String>,
}

impl Names {
    pub(crate) fn of(source: &Source) -> Self {
        let tokens = &source.code().tokens;
        let mut names = Self {
            module: source.module(),
            uses: Vec::new(),
            in_passing: BTreeSet::new(),
            words: BTreeSet::new(),
            aliases: BTreeMap::new(),
            defined: defined(tokens),
        };
        let text = |at: usize| tokens.get(at).map(|token| token.text.as_str());
        let mut at = 0;
        while at < tokens.len() {
            if tokens[at].text == "use" {
                let is_public = at > 0 && matches!(text(at - 1), Some("pub" | ")"));
                at += 1;
                let from = names.uses.len();
                use_tree(tokens, &mut at, &mut Vec::new(), &mut names.uses);
                for found in &mut names.uses[from..] {
                    found.is_public = is_public;
                }
                continue;
            }
            let mut path = Vec::new();
            while let Some(word) = text(at).filter(|word| is_word(word)) {
                path.push(word.to_owned());
                at += 1;
                if text(at) == Some("::") && text(at + 1).is_some_and(is_word) {
                    at += 1;
                } else {
                    break;
                }
            }
            names.words.extend(path.iter().cloned());
            match path.len() {
                0 => at += 1,
                1 => {}
                _ => {
                    names.in_passing.insert(path);
                }
            }
        }
        let named = names.uses.iter().filter(|found| found.alias != "*");
        names.aliases = named
            .map(|found| (found.alias.clone(), found.path.clone()))
            .collect();
        names
    }

    /// Returns every path, made absolute where it begins with `self`, `super` or the crate.
    pub(crate) fn absolute_paths(&self) -> BTreeSet<String> {
        let uses = self.uses.iter().map(|found| {
            let path = found.path.as_slice();
            path.strip_suffix(&["*".to_owned()]).unwrap_or(path)
        });
        let all = uses.chain(self.in_passing.iter().map(Vec::as_slice));
        all.map(|path| match self.absolute(path) {
            Some(path) if path.is_empty() => "crate".to_owned(),
            Some(path) => format!("crate::{}", path.join("::")),
            None => path.join("::"),
        })
        .collect()
    }

    /// Returns `path` from the root of the crate; `None` if it begins with another name.
    pub(crate) fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let mut module = self.module.clone();
        let mut rest = path;
        match rest.first().map(String::as_str) {
            Some("self") => rest = &rest[1..],
            Some("super") => {
                while let Some((_, after)) = rest.split_first().filter(|(part, _)| *part == "super")
                {
                    module.pop();
                    rest = after;
                }
            }
            Some("crate" | "cedar_pdp") => {
                module.clear();
                rest = &rest[1..];
            }
            _ => return None,
        }
        module.extend_from_slice(rest);
        Some(module)
    }
}

/// Adds every path of the tree of a `use` that begins at `at`.
fn use_tree(tokens: &[Token], at: &mut usize, prefix: &mut Vec<String>, found: &mut Vec<Use>) {
    let depth = prefix.len();
    while let Some(token) = tokens.get(*at) {
        match token.text.as_str() {
            "::" => *at += 1,
            "{" => {
                *at += 1;
                while tokens[*at].text != "}" {
                    use_tree(tokens, at, prefix, found);
                    if tokens[*at].text == "," {
                        *at += 1;
                    }
                }
                *at += 1;
                break;
            }
            "as" => {
                found.push(Use::new(prefix, Some(&tokens[*at + 1].text)));
                *at += 2;
                break;
            }
            "self" if !prefix.is_empty() => {
                *at += 1;
                if tokens[*at].text == "as" {
                    found.push(Use::new(prefix, Some(&tokens[*at + 1].text)));
                    *at += 2;
                } else {
                    found.push(Use::new(prefix, None));
                }
                break;
            }
            "*" => {
                *at += 1;
                prefix.push("*".to_owned());
                found.push(Use::new(prefix, None));
                break;
            }
            word if is_word(word) => {
                prefix.push(word.to_owned());
                *at += 1;
                if matches!(tokens[*at].text.as_str(), "," | "}" | ";") {
                    found.push(Use::new(prefix, None));
                    break;
                }
            }
            // The `+ use<'a>` of a return type.
            _ => {
                *at += 1;
                break;
            }
        }
    }
    prefix.truncate(depth);
}

/// Returns the names of the items outside any braces.
fn defined(tokens: &[Token]) -> BTreeSet<String> {
    let mut defined = BTreeSet::new();
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        let name = |ahead: usize| tokens.get(at + ahead).map(|token| token.text.clone());
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "struct" | "enum" | "union" | "trait" | "type" | "fn" | "const" | "static"
                if depth == 0 =>
            {
                defined.extend(name(1).filter(|name| name != "fn"));
            }
            // A child in a file of its own is no item of this file.
            "mod" if depth == 0 && name(2).as_deref() == Some("{") => defined.extend(name(1)),
            "macro_rules" if depth == 0 => defined.extend(name(2)),
            _ => {}
        }
    }
    defined
}

#[test]
fn names_are_read_in_every_form() {
    let text = r##"//! Text: std::fs.
use std::{env, io::{self, Read as _}};
use super::{source, super::engine::*};
use self::inner as other;
fn f() -> impl Sized + use<> { let _ = ("std::net", 'x', '\'', r#"a::b"#); crate::api::pb::X::new(); tonic::Status }
#[cfg(test)]
mod tests { use std::time; }
"##;
    let source = Source::new("src/policy_store/reload.rs", text.to_owned());
    let names: Vec<String> = Names::of(&source).absolute_paths().into_iter().collect();
    assert_eq!(
        names,
        [
            "crate::api::pb::X::new",
            "crate::engine",
            "crate::policy_store::reload::inner",
            "crate::policy_store::source",
            "std::env",
            "std::io",
            "std::io::Read",
            "tonic::Status",
        ]
    );
}
