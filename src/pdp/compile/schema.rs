//! Reads the schema files, in both syntaxes, and combines them to one schema.

mod declarations;

use std::ops::Range;
use std::sync::Arc;

use cedar_policy::{Schema, SchemaFragment};
use cedar_policy_core::validator::ValidatorSchema;
use cedar_policy_core::validator::types::Type;
use miette::Diagnostic as _;

use super::findings::{DiagnosticSink, json_error, located, syntax_error, with_help};
use super::misplaced;
use super::stack::COMPILE_STACK_BYTES;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::scanner::Language;
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::values::with_causes;

/// The error that there is no valid schema; the diagnostics tell why.
#[derive(Clone, Copy, Debug)]
pub(super) struct InvalidSchema;

/// Reads all schema files; returns `None` if there are none.
pub(super) fn read(
    sources: &Sources,
    diagnostics: &mut DiagnosticSink,
) -> Result<Option<Arc<Schema>>, InvalidSchema> {
    let files: Vec<&SourceFile> = sources
        .of_kind(FileKind::Schema)
        .chain(sources.of_kind(FileKind::SchemaJson))
        .collect();
    let Some(first) = files.first() else {
        return Ok(None);
    };
    let fragments: Vec<SchemaFragment> = files
        .iter()
        .filter_map(|file| fragment(file, diagnostics))
        .collect();
    if fragments.len() < files.len() {
        return Err(InvalidSchema);
    }
    match Schema::from_schema_fragments(fragments) {
        Ok(schema) => match check_size(schema.as_ref()) {
            Ok(()) => return Ok(Some(Arc::new(schema))),
            Err(message) => diagnostics.add(Diagnostic::error(&first.path, message)),
        },
        Err(error) => match declarations::conflicts(&files) {
            conflicts if conflicts.is_empty() => {
                diagnostics.add(combination_error(&files, &error));
            }
            conflicts => diagnostics.0.extend(conflicts),
        },
    }
    Err(InvalidSchema)
}

/// The schema of a directory as one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedSchema {
    /// In Cedar's syntax.
    pub cedar: String,
    /// In the JSON syntax.
    pub json: serde_json::Value,
}

/// Joins all schema files to one schema; returns `None` if there are none. Comments are not kept.
///
/// # Errors
///
/// The diagnostics, if the files are not valid together.
pub fn joined_schema(sources: &Sources) -> Result<Option<JoinedSchema>, Vec<Diagnostic>> {
    if !sources.problems().is_empty() {
        return Err(sources.problems().to_vec());
    }
    let mut diagnostics = DiagnosticSink::default();
    let joined = stacker::grow(COMPILE_STACK_BYTES, || {
        let is_there = read(sources, &mut diagnostics).ok()?.is_some();
        let files = sources.of_kind(FileKind::Schema);
        let files = files.chain(sources.of_kind(FileKind::SchemaJson));
        let fragments = files.filter_map(|file| fragment(file, &mut DiagnosticSink::default()));
        let joined = join(fragments);
        Some(is_there.then(|| diagnostics.ok("", joined)).flatten())
    });
    let (errors, _) = diagnostics.sorted();
    match joined {
        Some(joined) if errors.is_empty() => Ok(joined),
        Some(_) | None => Err(errors),
    }
}

/// Joins fragments that declare nothing twice.
fn join(fragments: impl Iterator<Item = SchemaFragment>) -> Result<JoinedSchema, String> {
    let mut joined = serde_json::Map::new();
    for fragment in fragments {
        let json = fragment
            .to_json_value()
            .map_err(|error| with_causes(&error))?;
        merge(&mut joined, json);
    }
    let json = serde_json::Value::Object(joined);
    let fragment = SchemaFragment::from_json_value(json.clone());
    let fragment = fragment.map_err(|error| with_causes(&error))?;
    let cedar = fragment
        .to_cedarschema()
        .map_err(|error| with_causes(&error))?;
    Ok(JoinedSchema { cedar, json })
}

/// Adds the fields of `added` to `joined`; fields that both have are joined in the same way.
fn merge(joined: &mut serde_json::Map<String, serde_json::Value>, added: serde_json::Value) {
    let serde_json::Value::Object(fields) = added else {
        return;
    };
    for (name, value) in fields {
        match joined.get_mut(&name) {
            Some(serde_json::Value::Object(known)) => merge(known, value),
            Some(_) | None => {
                joined.insert(name, value);
            }
        }
    }
}

/// The maximum nesting of records and sets in the type of an attribute, tag or context.
const MAX_TYPE_DEPTH: usize = 64;

/// The maximum number of parts of such a type, with all common types written out.
const MAX_TYPE_PARTS: usize = 10_000;

/// Rejects a schema with a type against which values would be expensive to check.
///
/// The length of each text is bounded. But common types that refer to one another make types as
/// deep as they are many, and each can double the size.
fn check_size(schema: &ValidatorSchema) -> Result<(), String> {
    for ty in schema.entity_types() {
        let attributes = ty.attributes().iter();
        let attributes = attributes.map(|(_, attribute)| attribute.attr_type.as_ref());
        for value_type in attributes.chain(ty.tag_type()) {
            check_type_size(value_type, ty.name())?;
        }
    }
    for action in schema.action_ids() {
        if let Some(context) = action.context_type() {
            check_type_size(context, action.name())?;
        }
    }
    Ok(())
}

/// Rejects `ty` if it is too deep or has too many parts.
fn check_type_size(ty: &Type, owner: &impl std::fmt::Display) -> Result<(), String> {
    let mut parts = 0;
    let mut pending = vec![(ty, 1)];
    while let Some((part, depth)) = pending.pop() {
        parts += 1;
        if depth > MAX_TYPE_DEPTH {
            return Err(format!(
                "a type of `{owner}` is nested deeper than {MAX_TYPE_DEPTH} levels"
            ));
        }
        if parts > MAX_TYPE_PARTS {
            return Err(format!(
                "a type of `{owner}` has more than {MAX_TYPE_PARTS} parts"
            ));
        }
        match part {
            Type::Record {
                attrs,
                open_attributes: _,
            } => {
                let fields = attrs.iter();
                pending.extend(fields.map(|(_, field)| (field.attr_type.as_ref(), depth + 1)));
            }
            Type::Set { element_type } => {
                let element = element_type.iter();
                pending.extend(element.map(|element| (element.as_ref(), depth + 1)));
            }
            Type::Never
            | Type::Bool(_)
            | Type::Long
            | Type::String
            | Type::Entity(_)
            | Type::ExtensionType { .. } => {}
        }
    }
    Ok(())
}

/// Parses one schema file; returns `None` when there are errors, which are in `diagnostics`.
fn fragment(file: &SourceFile, diagnostics: &mut DiagnosticSink) -> Option<SchemaFragment> {
    let (is_json, path) = (file.kind == FileKind::SchemaJson, &file.path);
    let language = if is_json {
        Language::Json
    } else {
        Language::Schema
    };
    let text = file.text_in_memory()?;
    if !diagnostics.check_nesting(path, text, language) {
        return None;
    }
    if is_json {
        let parsed = SchemaFragment::from_json_str(text);
        return parsed
            .map_err(|error| {
                let diagnostic = json_error(path, text, text, &error);
                diagnostics.add(with_help(diagnostic, &error));
            })
            .ok();
    }
    match SchemaFragment::from_cedarschema_str(text) {
        Ok((fragment, warnings)) => {
            for warning in warnings {
                let diagnostic = Diagnostic::warning(path, warning.to_string());
                diagnostics.add(located(diagnostic, &warning, text));
            }
            Some(fragment)
        }
        Err(error) => {
            if let Some(misplaced) = misplaced::in_schema_file(path, text) {
                diagnostics.add(misplaced);
                return None;
            }
            // A syntax error is a list in which each item has its own position.
            let mut items = error.related().into_iter().flatten().peekable();
            if items.peek().is_none() {
                diagnostics.add(syntax_error(path, &error, (text, language)));
            }
            for item in items {
                diagnostics.add(syntax_error(path, item, (text, language)));
            }
            None
        }
    }
}

/// Returns the diagnostic for an error of all files together.
///
/// It is placed in the file that the error points into, or names the files that mention the
/// offending name.
fn combination_error(files: &[&SourceFile], error: &cedar_policy::SchemaError) -> Diagnostic {
    let message = with_causes(error);
    if let Some((file, span)) = labelled_file(files, error)
        && let Some(text) = file.text_in_memory()
    {
        return with_help(Diagnostic::error(&file.path, message), error).at(text, span);
    }
    let diagnostic = match files {
        [only] => Diagnostic::error(&only.path, message),
        files => match files_that_mention(&message, files).as_slice() {
            [] => Diagnostic::error("", message),
            [file] => Diagnostic::error(*file, message),
            all @ [first, ..] => {
                Diagnostic::error(*first, format!("{message} (see {})", all.join(", ")))
            }
        },
    };
    with_help(diagnostic, error)
}

/// Returns the file that the label of `error` points into, and the labelled bytes.
fn labelled_file<'a>(
    files: &[&'a SourceFile],
    error: &cedar_policy::SchemaError,
) -> Option<(&'a SourceFile, Range<usize>)> {
    let label = error.labels()?.next()?;
    let contents = error.source_code()?.read_span(label.inner(), 0, 0).ok()?;
    let span = label.offset()..label.offset() + label.len();
    let start = contents.span().offset();
    // Cedar does not name the file: it is the one with the same text at the same offset.
    let contains_label = |file: &&&SourceFile| {
        let text = file.text_in_memory().map(|text| text.as_bytes());
        text.and_then(|text| text.get(start..start + contents.span().len()))
            == Some(contents.data())
    };
    Some((files.iter().find(contains_label)?, span))
}

/// Returns the paths of the files that contain the first name in backticks in `message`.
fn files_that_mention<'a>(message: &str, files: &[&'a SourceFile]) -> Vec<&'a str> {
    let name = message.split('`').nth(1).unwrap_or_default();
    let base = name.rsplit("::").next().unwrap_or_default();
    let base = base.trim_matches('"');
    let mentions = |file: &&&SourceFile| {
        let text = file.text_in_memory();
        !base.is_empty() && text.is_some_and(|text| text.contains(base))
    };
    let files = files.iter().filter(mentions);
    files.map(|file| file.path.as_str()).collect()
}
