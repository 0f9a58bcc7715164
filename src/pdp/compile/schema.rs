//! Reads the schema files, both syntaxes, and makes them one schema.

use std::sync::Arc;

use cedar_policy::{Schema, SchemaFragment};
use cedar_policy_core::validator::ValidatorSchema;
use cedar_policy_core::validator::types::Type;
use miette::Diagnostic as _;

use super::Findings;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::scanner::Language;
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::values::with_causes;

/// What the schema files came to.
pub(super) enum Read {
    /// There is no schema file.
    None,
    /// They make a schema.
    Schema(Arc<Schema>),
    /// They do not; the findings say why.
    Broken,
}

/// Reads all schema files.
pub(super) fn read(sources: &Sources, findings: &mut Findings) -> Read {
    let files: Vec<&SourceFile> = sources
        .of_kind(FileKind::Schema)
        .chain(sources.of_kind(FileKind::SchemaJson))
        .collect();
    if files.is_empty() {
        return Read::None;
    }
    let fragments: Vec<SchemaFragment> = files
        .iter()
        .filter_map(|file| fragment(file, findings))
        .collect();
    if fragments.len() < files.len() {
        return Read::Broken;
    }
    match Schema::from_schema_fragments(fragments) {
        Ok(schema) => match too_large(schema.as_ref()) {
            None => Read::Schema(Arc::new(schema)),
            Some(message) => {
                findings.add(Diagnostic::error(
                    files.first().map_or("", |file| &file.path),
                    message,
                ));
                Read::Broken
            }
        },
        Err(error) => {
            findings.add(whole(&files, &error));
            Read::Broken
        }
    }
}

/// The most records and sets within one another in the type of an attribute, tag or context.
const MAX_TYPE_DEPTH: usize = 64;

/// The most parts that such a type may have, all common types written out.
const MAX_TYPE_PARTS: usize = 10_000;

/// What is wrong with a schema whose types cost too much to check values by.
///
/// Each text is bounded, but common types that name one another make types as deep as they are
/// many, and twice as large with each.
fn too_large(schema: &ValidatorSchema) -> Option<String> {
    let of_entities = schema.entity_types().flat_map(|ty| {
        let attributes = ty
            .attributes()
            .iter()
            .map(|(_, attribute)| attribute.attr_type.as_ref());
        attributes
            .chain(ty.tag_type())
            .map(|found| (ty.name().to_string(), found))
    });
    let of_actions = schema.action_ids().filter_map(|action| {
        action
            .context_type()
            .map(|found| (action.name().to_string(), found))
    });
    of_entities.chain(of_actions).find_map(|(owner, found)| {
        let mut parts = 0;
        let mut open = vec![(found, 1)];
        while let Some((part, depth)) = open.pop() {
            parts += 1;
            if depth > MAX_TYPE_DEPTH {
                return Some(format!(
                    "a type of `{owner}` is nested deeper than {MAX_TYPE_DEPTH} levels"
                ));
            }
            if parts > MAX_TYPE_PARTS {
                return Some(format!(
                    "a type of `{owner}` has more than {MAX_TYPE_PARTS} parts"
                ));
            }
            match part {
                Type::Record {
                    attrs,
                    open_attributes: _,
                } => {
                    open.extend(
                        attrs
                            .iter()
                            .map(|(_, attribute)| (attribute.attr_type.as_ref(), depth + 1)),
                    );
                }
                Type::Set { element_type } => {
                    open.extend(
                        element_type
                            .iter()
                            .map(|element| (element.as_ref(), depth + 1)),
                    );
                }
                Type::Never
                | Type::Bool(_)
                | Type::Long
                | Type::String
                | Type::Entity(_)
                | Type::ExtensionType { .. } => {}
            }
        }
        None
    })
}

fn fragment(file: &SourceFile, findings: &mut Findings) -> Option<SchemaFragment> {
    let language = match file.kind {
        FileKind::SchemaJson => Language::Json,
        FileKind::Policies
        | FileKind::PoliciesJson
        | FileKind::Schema
        | FileKind::Entities
        | FileKind::Links
        | FileKind::Tests => Language::Schema,
    };
    let text = file.held_text()?;
    if !findings.bounded(&file.path, text, language) {
        return None;
    }
    if language == Language::Json {
        return SchemaFragment::from_json_str(text)
            .map_err(|error| {
                let finding = Diagnostic::error(&file.path, with_causes(&error));
                findings.add(
                    json_position(&error, text)
                        .map_or(finding.clone(), |at| finding.at(text, at..at)),
                );
            })
            .ok();
    }
    match SchemaFragment::from_cedarschema_str(text) {
        Ok((fragment, warnings)) => {
            for warning in warnings {
                findings.add(located(
                    Diagnostic::warning(&file.path, warning.to_string()),
                    &warning,
                    text,
                ));
            }
            Some(fragment)
        }
        Err(error) => {
            // A syntax error comes as a list in which each item has its own place.
            let related: Vec<Diagnostic> = related(&error)
                .map(|error| {
                    located(
                        Diagnostic::error(&file.path, error.to_string()),
                        error,
                        text,
                    )
                })
                .collect();
            if related.is_empty() {
                findings.add(located(
                    Diagnostic::error(&file.path, with_causes(&error)),
                    &error,
                    text,
                ));
            }
            for finding in related {
                findings.add(finding);
            }
            None
        }
    }
}

fn related(error: &dyn miette::Diagnostic) -> impl Iterator<Item = &dyn miette::Diagnostic> {
    error.related().into_iter().flatten()
}

/// The finding for an error of the files together: at the file whose text it points into.
fn whole(files: &[&SourceFile], error: &cedar_policy::SchemaError) -> Diagnostic {
    let message = with_causes(error);
    let label = error.labels().and_then(|mut labels| labels.next());
    if let (Some(label), Some(code)) = (&label, error.source_code())
        && let Ok(contents) = code.read_span(label.inner(), 0, 0)
    {
        let span = label.offset()..label.offset() + label.len();
        let pointed = files.iter().filter(|file| {
            file.held_text()
                .map(|text| text.as_bytes())
                .unwrap_or_default()
                .get(contents.span().offset()..contents.span().offset() + contents.span().len())
                == Some(contents.data())
        });
        if let Some((file, text)) = pointed
            .clone()
            .find_map(|file| Some((file, file.held_text()?)))
        {
            return with_help(Diagnostic::error(&file.path, message), error).at(text, span);
        }
    }
    match files {
        [only] => with_help(Diagnostic::error(&only.path, message), error),
        files => {
            // Cedar does not say where: name the files that mention what it names in backticks.
            let named = message.split('`').nth(1).unwrap_or_default();
            let base = named
                .rsplit("::")
                .next()
                .unwrap_or_default()
                .trim_matches('"');
            let mentioning: Vec<&str> = files
                .iter()
                .filter(|file| {
                    !base.is_empty() && file.held_text().is_some_and(|text| text.contains(base))
                })
                .map(|file| file.path.as_str())
                .collect();
            let finding = match mentioning.as_slice() {
                [] => Diagnostic::error("", message),
                [file] => Diagnostic::error(*file, message),
                [first, ..] => {
                    Diagnostic::error(*first, format!("{message} (see {})", mentioning.join(", ")))
                }
            };
            with_help(finding, error)
        }
    }
}

/// Adds the place and the help that Cedar gives with an error.
pub(super) fn located(
    finding: Diagnostic,
    error: &dyn miette::Diagnostic,
    text: &Arc<str>,
) -> Diagnostic {
    let finding = with_help(finding, error);
    match error.labels().and_then(|mut labels| labels.next()) {
        Some(label) => finding.at(text, label.offset()..label.offset() + label.len()),
        None => finding,
    }
}

fn with_help(finding: Diagnostic, error: &dyn miette::Diagnostic) -> Diagnostic {
    match error.help() {
        Some(help) => finding.with_help(help.to_string()),
        None => finding,
    }
}

/// The byte at which serde_json gave up, when one of the causes is its.
pub(super) fn json_position(
    error: &(dyn std::error::Error + 'static),
    text: &str,
) -> Option<usize> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<serde_json::Error>() {
            return json_offset(error, text);
        }
        cause = error.source();
    }
    None
}

/// The byte that serde_json's line and column mean.
pub(super) fn json_offset(error: &serde_json::Error, text: &str) -> Option<usize> {
    let line = error.line().checked_sub(1)?;
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    Some((start + error.column().saturating_sub(1)).min(text.len()))
}
