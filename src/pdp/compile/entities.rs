//! Reads the stored entities of all their files into one store.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID};
use cedar_policy_core::entities::conformance::EntitySchemaConformanceChecker;
use cedar_policy_core::entities::{EntityJsonParser, Schema as _, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::{CoreSchema, ValidatorSchema};
use serde_json::value::RawValue;

use super::Findings;
use super::policies::{offset_in, parse_json};
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::entities::{EntityStore, HierarchyError, MAX_ANCESTORS};
use crate::pdp::nesting::Language;
use crate::pdp::sources::SourceFile;
use crate::pdp::values::with_causes;

/// Where a stored entity stands.
#[derive(Clone, Copy)]
struct Origin<'a> {
    file: &'a SourceFile,
    text: &'a Arc<str>,
    start: usize,
}

impl Origin<'_> {
    fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.file.path, message).at(self.text, self.start..self.start)
    }
}

/// Finds what is wrong with `files` whatever the schema says.
pub(super) fn check_syntax<'a>(
    files: impl Iterator<Item = &'a SourceFile>,
    findings: &mut Findings,
) {
    for file in files {
        if let Some(text) = findings.bounded(file, Language::Json) {
            let _: Option<Vec<&RawValue>> = parse_json(file, &text, findings);
        }
    }
}

/// Reads all of `files`; `None` when the findings say why there is no store.
pub(super) fn read<'a>(
    files: impl Iterator<Item = &'a SourceFile>,
    schema: Option<&ValidatorSchema>,
    findings: &mut Findings,
) -> Option<EntityStore> {
    let core_schema = schema.map(CoreSchema::new);
    // The parser would also close the hierarchy; taking one entity at a time, it has none.
    let parser = EntityJsonParser::new(
        core_schema.as_ref(),
        Extensions::all_available(),
        TCComputation::AssumeAlreadyComputed,
    );
    let untyped = EntityJsonParser::new(
        None::<&CoreSchema<'_>>,
        Extensions::all_available(),
        TCComputation::AssumeAlreadyComputed,
    );
    let checker = core_schema
        .as_ref()
        .map(|schema| EntitySchemaConformanceChecker::new(schema, Extensions::all_available()));

    let mut complete = true;
    let texts: Vec<(&SourceFile, Arc<str>)> = files
        .filter_map(|file| {
            let text = findings.bounded(file, Language::Json);
            complete &= text.is_some();
            Some((file, text?))
        })
        .collect();
    let mut origins: HashMap<EntityUID, Origin<'_>> = HashMap::new();
    let mut entities: Vec<Entity> = Vec::new();
    for (file, text) in &texts {
        let Some(list) = parse_json::<Vec<&RawValue>>(file, text, findings) else {
            complete = false;
            continue;
        };
        for raw in list {
            let origin = Origin {
                file,
                text,
                start: offset_in(text, raw.get()),
            };
            let entity = read_one(raw.get(), &parser, &untyped, checker.as_ref());
            match entity {
                Err(message) => {
                    findings.add(origin.error(message));
                    complete = false;
                }
                Ok(entity) => match origins.get(entity.uid()) {
                    Some(first) => {
                        let Position { line, column } = Position::of(first.text, first.start);
                        findings.add(origin.error(format!(
                            "entity `{}` is defined twice, here and at {}:{line}:{column}",
                            entity.uid(),
                            first.file.path,
                        )));
                        complete = false;
                    }
                    None => {
                        origins.insert(entity.uid().clone(), origin);
                        entities.push(entity);
                    }
                },
            }
        }
    }
    if !complete {
        return None;
    }
    let store = match EntityStore::close(entities) {
        Ok(store) => store,
        Err(error) => {
            let (uid, message) = match error {
                HierarchyError::Cycle(uid) => {
                    let message = format!("entity `{uid}` is its own ancestor");
                    (uid, message)
                }
                HierarchyError::TooManyAncestors(uid) => {
                    let message = format!("entity `{uid}` has more than {MAX_ANCESTORS} ancestors");
                    (uid, message)
                }
            };
            findings.add(match origins.get(&uid) {
                Some(origin) => origin.error(message),
                None => Diagnostic::error("", message),
            });
            return None;
        }
    };
    let (Some(schema), Some(checker)) = (&core_schema, &checker) else {
        return Some(store);
    };
    for action in store.iter().filter(|entity| entity.uid().is_action()) {
        if let Err(error) = checker.validate_action(action) {
            let message = with_causes(&error);
            findings.add(match origins.get(action.uid()) {
                Some(origin) => origin.error(message),
                None => Diagnostic::error("", message),
            });
            complete = false;
        }
    }
    complete.then(|| store.with_closed(schema.action_entities()))
}

/// Reads one entity, and checks it against the schema unless it is an action.
fn read_one(
    json: &str,
    parser: &EntityJsonParser<'_, '_, CoreSchema<'_>>,
    untyped: &EntityJsonParser<'_, '_, CoreSchema<'_>>,
    checker: Option<&EntitySchemaConformanceChecker<'_, CoreSchema<'_>>>,
) -> Result<Entity, String> {
    let entity = parser.single_from_json_str(json).or_else(|error| {
        // With the schema, Cedar compares an action with its declaration, which holds its whole
        // ancestry, before there is a hierarchy to close. So actions are read without, and are
        // compared once theirs is closed.
        match untyped.single_from_json_str(json) {
            Ok(action) if action.uid().is_action() => Ok(action),
            Ok(_) | Err(_) => Err(with_causes(&error)),
        }
    })?;
    match checker {
        Some(checker) if !entity.uid().is_action() => {
            checker
                .validate_entity(&entity)
                .map_err(|error| with_causes(&error))?;
        }
        Some(_) | None => {}
    }
    Ok(entity)
}
