//! Reads the schema files, both syntaxes, and makes them one schema.

use std::sync::Arc;

use cedar_policy::{Schema, SchemaFragment};
use cedar_policy_core::validator::ValidatorSchema;
use cedar_policy_core::validator::types::Type;
use miette::Diagnostic as _;

use super::findings::{DiagnosticSink, located, with_help};
use super::json_text::json_position;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::scanner::Language;
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::values::with_causes;

/// What the schema files came to.
pub(super) enum SchemaFiles {
    /// There is no schema file.
    None,
    /// They make a schema.
    Valid(Arc<Schema>),
    /// They do not; the findings say why.
    Invalid,
}

/// Reads all schema files.
pub(super) fn read(sources: &Sources, findings: &mut DiagnosticSink) -> SchemaFiles {
    let files: Vec<&SourceFile> = sources
        .of_kind(FileKind::Schema)
        .chain(sources.of_kind(FileKind::SchemaJson))
        .collect();
    if files.is_empty() {
        return SchemaFiles::None;
    }
    let fragments: Vec<SchemaFragment> = files
        .iter()
        .filter_map(|file| fragment(file, findings))
        .collect();
    if fragments.len() < files.len() {
        return SchemaFiles::Invalid;
    }
    match Schema::from_schema_fragments(fragments) {
        Ok(schema) => match too_large(schema.as_ref()) {
            None => SchemaFiles::Valid(Arc::new(schema)),
            Some(message) => {
                findings.add(Diagnostic::error(
                    files.first().map_or("", |file| &file.path),
                    message,
                ));
                SchemaFiles::Invalid
            }
        },
        Err(error) => {
            findings.add(whole(&files, &error));
            SchemaFiles::Invalid
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

fn fragment(file: &SourceFile, findings: &mut DiagnosticSink) -> Option<SchemaFragment> {
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
    if !findings.check_nesting(&file.path, text, language) {
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
