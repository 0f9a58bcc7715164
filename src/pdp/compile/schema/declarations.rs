//! Finds what several schema files declare alike, with the place of each declaration.
//!
//! Cedar reports the first such conflict by name alone. This reads the declarations from the texts
//! again, and only after Cedar has rejected the files together.

use std::collections::BTreeMap;

use crate::pdp::compile::findings::{Entries, offset_in};
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::sources::scanner::Lexeme;
use crate::pdp::sources::{FileKind, SourceFile, scanner};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DeclarationKind {
    EntityType,
    Action,
    CommonType,
}

impl DeclarationKind {
    fn name(self) -> &'static str {
        match self {
            Self::EntityType => "entity type",
            Self::Action => "action",
            Self::CommonType => "common type",
        }
    }
}

/// Most conflicts that are reported.
const MAX_CONFLICTS: usize = 100;

/// Kind and full name of a declaration.
type Key = (DeclarationKind, String);

/// Returns an error for each declaration that repeats one of another file, naming both places.
pub(super) fn conflicts(files: &[&SourceFile]) -> Vec<Diagnostic> {
    let mut seen: BTreeMap<Key, (&SourceFile, usize)> = BTreeMap::new();
    let mut conflicts = Vec::new();
    for file in files {
        let Some(text) = file.text_in_memory() else {
            continue;
        };
        for (key, offset) in declarations(file.kind, text) {
            let Some((first, first_offset)) = seen.get(&key) else {
                seen.insert(key, (file, offset));
                continue;
            };
            let first_text = first.text_in_memory().map_or("", |text| text);
            let Position { line, column } = Position::of(first_text, *first_offset);
            let (kind, name, first) = (key.0.name(), &key.1, &first.path);
            let message =
                format!("{kind} `{name}` is declared twice, here and at {first}:{line}:{column}");
            conflicts.push(Diagnostic::error(&file.path, message).at(text, offset..offset));
            // Each position costs a scan of its file.
            if conflicts.len() == MAX_CONFLICTS {
                return conflicts;
            }
        }
    }
    conflicts
}

fn declarations(kind: FileKind, text: &str) -> Vec<(Key, usize)> {
    match kind == FileKind::SchemaJson {
        true => json_declarations(text).unwrap_or_default(),
        false => cedar_declarations(text),
    }
}

fn qualified(namespace: &str, name: &str) -> String {
    match namespace {
        "" => name.to_owned(),
        namespace => format!("{namespace}::{name}"),
    }
}

/// Reads the declarations of a JSON schema; the offset is that of the definition's value.
fn json_declarations(text: &str) -> Option<Vec<(Key, usize)>> {
    let mut found = Vec::new();
    let Entries(namespaces) = serde_json::from_str(text).ok()?;
    for (namespace, definition) in namespaces {
        let Entries(parts) = serde_json::from_str(definition.get()).ok()?;
        for (part, declared) in parts {
            let kind = match part.as_str() {
                "entityTypes" => DeclarationKind::EntityType,
                "actions" => DeclarationKind::Action,
                "commonTypes" => DeclarationKind::CommonType,
                _ => continue,
            };
            let Entries(declared) = serde_json::from_str(declared.get()).ok()?;
            for (name, value) in declared {
                let key = (kind, qualified(&namespace, &name));
                found.push((key, offset_in(text, value.get())));
            }
        }
    }
    Some(found)
}

/// Reads the declarations of a schema in Cedar's syntax that Cedar's parser accepts.
fn cedar_declarations(text: &str) -> Vec<(Key, usize)> {
    let mut found = Vec::new();
    let mut namespace = String::new();
    let mut is_statement_start = true;
    let mut depth = 0_usize;
    let mut lexemes = scanner::lexemes(text).peekable();
    while let Some(Lexeme { text: word, offset }) = lexemes.next() {
        if scanner::is_annotation(text, offset) {
            continue;
        }
        // Braces of a namespace do not count: its declarations are as those outside.
        let kind = match word {
            "{" | "[" | "(" | "<" => {
                depth += 1;
                continue;
            }
            "}" if depth == 0 => {
                namespace.clear();
                is_statement_start = true;
                continue;
            }
            "}" | "]" | ")" | ">" => {
                depth = depth.saturating_sub(1);
                // An annotation has brackets, and stands before its statement.
                is_statement_start |= word == ")" && depth == 0;
                continue;
            }
            ";" if depth == 0 => {
                is_statement_start = true;
                continue;
            }
            _ if depth > 0 || !is_statement_start => continue,
            "namespace" => {
                namespace.clear();
                while let Some(part) = lexemes.next_if(|next| next.text != "{") {
                    namespace.push_str(part.text);
                }
                lexemes.next();
                continue;
            }
            "entity" => DeclarationKind::EntityType,
            "action" => DeclarationKind::Action,
            "type" => DeclarationKind::CommonType,
            _ => continue,
        };
        is_statement_start = false;
        while let Some(name) = lexemes.next() {
            let plain = name.text.trim_matches('"');
            found.push(((kind, qualified(&namespace, plain)), name.offset));
            if lexemes.next_if(|next| next.text == ",").is_none() {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(kind: FileKind, text: &str) -> Vec<String> {
        let found = declarations(kind, text);
        let mut names: Vec<_> = found
            .into_iter()
            .map(|((kind, name), offset)| {
                format!("{} {name} {}", kind.name(), Position::of(text, offset).line)
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn declarations_of_both_formats_are_found() {
        let cedar = r#"
@entity("entity Not;") @type("x") entity A, B in [C] = { "type"?: String, type: Set<Long> } tags Long;
// entity Not;
namespace N::M {
  type T = { x: Long };
  entity E enum ["entity", "x"];
  @doc("a")
  action "read it", write in [Action::"all"] appliesTo { principal: [A], resource: E, context: { type: T } };
}
action last;
"#;
        assert_eq!(
            names(FileKind::Schema, cedar),
            [
                "action N::M::read it 8",
                "action N::M::write 8",
                "action last 10",
                "common type N::M::T 5",
                "entity type A 2",
                "entity type B 2",
                "entity type N::M::E 6",
            ]
        );
        let json = r#"{"": {"entityTypes": {"A": {}}, "actions": {"read it": {}}},
 "N": {"commonTypes": {"T": {"type": "Long"}}, "annotations": {"x": "y"}}}"#;
        assert_eq!(
            names(FileKind::SchemaJson, json),
            ["action read it 1", "common type N::T 2", "entity type A 1"]
        );
    }
}
