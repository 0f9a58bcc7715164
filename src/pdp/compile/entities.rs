//! Reads the stored entities of all their files into one store.
//!
//! Each file becomes a segment, by itself, so that files can be read at the same time and one that
//! has not changed need not be read again. The hierarchy and uids that stand twice concern all
//! files and come after.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID};
use cedar_policy_core::entities::conformance::EntitySchemaConformanceChecker;
use cedar_policy_core::entities::{EntityJsonParser, Schema as _, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::{CoreSchema, ValidatorSchema};
use serde_json::value::RawValue;

use super::entity_json::{ParsedTypeNames, PlainTypes};
use super::findings::DiagnosticSink;
use super::json_text::{offset_in, parse_json};
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::entities::hierarchy::{HierarchyError, MAX_ANCESTORS};
use crate::pdp::entities::interner::UidInterner;
use crate::pdp::entities::segment::{Draft, Segment, TooLarge};
use crate::pdp::entities::store::{DuplicateUid, EntityStore, Location};
use crate::pdp::sources::SourceFile;
use crate::pdp::values::with_causes;
use crate::pdp::workers::Workers;

/// Reads entities under one schema, or none.
pub(super) struct EntityReader<'a> {
    schema: Option<CoreSchema<'a>>,
    plain: PlainTypes,
}

/// An entity file that was read.
pub(super) enum EntityFile {
    /// It has become a draft of a segment.
    Draft(Box<Draft>),
    /// It is as it was.
    Reused(Arc<Segment>),
}

impl<'a> EntityReader<'a> {
    pub(super) fn new(schema: Option<&'a ValidatorSchema>) -> Self {
        Self {
            schema: schema.map(CoreSchema::new),
            plain: PlainTypes::of(schema),
        }
    }

    /// Reads one file; `None` when the findings say why it makes no segment.
    pub(super) fn read(&self, file: &SourceFile, findings: &mut DiagnosticSink) -> Option<Draft> {
        let text = match file.text() {
            Ok(text) => text,
            Err(error) => {
                findings.add(Diagnostic::error(&file.path, error.to_string()));
                return None;
            }
        };
        let list = parse_json::<Vec<&RawValue>>(&file.path, &text, findings)?;
        // The parser would also close the hierarchy; taking one entity at a time, it has none.
        let parser = EntityJsonParser::new(
            self.schema.as_ref(),
            Extensions::all_available(),
            TCComputation::AssumeAlreadyComputed,
        );
        let mut draft = Draft::default();
        let mut types = ParsedTypeNames::default();
        let mut is_valid = true;
        for raw in list {
            let origin = offset_in(&text, raw.get());
            if self
                .plain
                .read(raw.get(), origin, &mut draft, &mut types)
                .is_ok()
            {
                continue;
            }
            let read = self.read_by_cedar(raw.get(), &parser).and_then(|entity| {
                draft
                    .add(&entity, origin)
                    .map_err(|error| error.to_string())
            });
            if let Err(message) = read {
                let finding = Diagnostic::error(&file.path, message);
                findings.add(finding.at(&text, origin..origin));
                is_valid = false;
            }
        }
        is_valid.then_some(draft)
    }

    /// Reads one entity, and checks it against the schema unless it is an action.
    fn read_by_cedar(
        &self,
        json: &str,
        parser: &EntityJsonParser<'_, '_, CoreSchema<'_>>,
    ) -> Result<Entity, String> {
        let entity = parser.single_from_json_str(json).or_else(|error| {
            // With the schema, Cedar compares an action with its declaration, which holds its
            // whole ancestry, before there is a hierarchy to close. So actions are read without,
            // and are compared once theirs is closed.
            let untyped = EntityJsonParser::new(
                None::<&CoreSchema<'_>>,
                Extensions::all_available(),
                TCComputation::AssumeAlreadyComputed,
            );
            match untyped.single_from_json_str(json) {
                Ok(action) if action.uid().is_action() => Ok(action),
                Ok(_) | Err(_) => Err(with_causes(&error)),
            }
        })?;
        match self.checker() {
            Some(checker) if !entity.uid().is_action() => {
                checker
                    .validate_entity(&entity)
                    .map_err(|error| with_causes(&error))?;
            }
            Some(_) | None => {}
        }
        Ok(entity)
    }

    fn checker(&self) -> Option<EntitySchemaConformanceChecker<'_, CoreSchema<'a>>> {
        let schema = self.schema.as_ref()?;
        Some(EntitySchemaConformanceChecker::new(
            schema,
            Extensions::all_available(),
        ))
    }

    /// Makes the files' segments one store, whose uids are numbered in `interner`; `None` when the
    /// findings say why there is none.
    pub(super) fn assemble(
        &self,
        files: &[&SourceFile],
        read: Vec<EntityFile>,
        mut interner: Arc<UidInterner>,
        (previous, workers): (Option<&EntityStore>, Workers),
        findings: &mut DiagnosticSink,
    ) -> Option<(EntityStore, Vec<Arc<Segment>>)> {
        let mut segments = Vec::with_capacity(read.len());
        for (file, read) in files.iter().zip(read) {
            let segment = match read {
                EntityFile::Reused(segment) => segment,
                EntityFile::Draft(draft) => match draft.finish(&mut interner) {
                    Ok(segment) => Arc::new(segment),
                    Err(error) => {
                        findings.add(Diagnostic::error(&file.path, error.to_string()));
                        return None;
                    }
                },
            };
            segments.push(segment);
        }
        let schema_actions = match self.schema_actions(&mut interner) {
            Ok(schema_actions) => schema_actions,
            Err(error) => {
                findings.add(Diagnostic::error("", error.to_string()));
                return None;
            }
        };
        let (mut store, duplicate) =
            EntityStore::new(interner, segments.clone(), schema_actions, workers.pause);
        if !duplicate.is_empty() {
            for duplicate in duplicate {
                findings.add(self.duplicate(files, &store, duplicate));
            }
            return None;
        }
        // With the same hierarchy under the same numbers it was checked before.
        let is_checked = previous.is_some_and(|previous| {
            previous.interner.is_ancestor_of(&store.interner) && store.reuse_hierarchy(previous)
        });
        if !is_checked {
            if let Err(error) = store.check_hierarchy() {
                findings.add(hierarchy_error(files, &store, &error));
                return None;
            }
            store.close_hierarchy();
        }
        self.check_actions(files, &store, findings)
            .then_some((store, segments))
    }

    /// The schema's actions.
    fn schema_actions(&self, interner: &mut Arc<UidInterner>) -> Result<Option<Segment>, TooLarge> {
        let Some(schema) = &self.schema else {
            return Ok(None);
        };
        let mut draft = Draft::default();
        for action in schema.action_entities() {
            draft.add(&action, 0)?;
        }
        draft.finish(interner).map(Some)
    }

    /// Whether the actions that stand in files are as the schema says.
    fn check_actions(
        &self,
        files: &[&SourceFile],
        store: &EntityStore,
        findings: &mut DiagnosticSink,
    ) -> bool {
        let Some(checker) = self.checker() else {
            return true;
        };
        let mut in_files = store.stored_actions();
        in_files.retain(|(location, _)| (location.segment as usize) < files.len());
        let mut seen: HashMap<EntityUID, Location> = HashMap::new();
        for (second, action) in &in_files {
            if let Some(first) = seen.insert(action.uid().clone(), *second) {
                let duplicate = DuplicateUid {
                    first,
                    second: *second,
                };
                findings.add(self.duplicate(files, store, duplicate));
                return false;
            }
        }
        // Their hierarchy is closed apart from the schema's, with which it is compared.
        let mut draft = Draft::default();
        let mut interner = Arc::default();
        for (_, action) in &in_files {
            if let Err(error) = draft.add(action, 0) {
                findings.add(Diagnostic::error("", error.to_string()));
                return false;
            }
        }
        let segment = match draft.finish(&mut interner) {
            Ok(segment) => segment,
            Err(error) => {
                findings.add(Diagnostic::error("", error.to_string()));
                return false;
            }
        };
        let (closed, _) = EntityStore::new(interner, vec![Arc::new(segment)], None, || {});
        if let Err(error) = closed.check_hierarchy() {
            let (HierarchyError::Cycle(uid) | HierarchyError::TooManyAncestors(uid)) = &error;
            let location = seen.get(uid).copied();
            findings.add(at(files, store, location, hierarchy_message(&error)));
            return false;
        }
        let mut is_valid = true;
        for (location, action) in in_files {
            let Some(number) = closed.interner.find_uid(action.uid()) else {
                continue;
            };
            let ancestors = closed.ancestors(number).into_iter();
            let ancestors = ancestors
                .map(|ancestor| closed.interner.uid(ancestor))
                .collect();
            if let Some(action) = closed.entity(number, ancestors)
                && let Err(error) = checker.validate_action(&action)
            {
                findings.add(at(files, store, Some(location), with_causes(&error)));
                is_valid = false;
            }
        }
        is_valid
    }

    fn duplicate(
        &self,
        files: &[&SourceFile],
        store: &EntityStore,
        duplicate: DuplicateUid,
    ) -> Diagnostic {
        let DuplicateUid { first, second } = duplicate;
        let uid = store
            .uid_at(second)
            .map_or_else(String::new, |uid| store.interner.uid(uid).to_string());
        let place = files.get(first.segment as usize).map(|file| {
            let position = file
                .text()
                .map(|text| Position::of(&text, store.origin(first)));
            match position {
                Ok(Position { line, column }) => format!("{}:{line}:{column}", file.path),
                Err(_) => file.path.clone(),
            }
        });
        let message = format!(
            "entity `{uid}` is defined twice, here and at {}",
            place.unwrap_or_default()
        );
        at(files, store, Some(second), message)
    }
}

/// A finding about the entity whose parents make a hierarchy that is refused.
fn hierarchy_error(
    files: &[&SourceFile],
    store: &EntityStore,
    error: &HierarchyError,
) -> Diagnostic {
    let (HierarchyError::Cycle(uid) | HierarchyError::TooManyAncestors(uid)) = error;
    let number = store.interner.find_uid(uid);
    let location = number.and_then(|number| store.location(number));
    at(files, store, location, hierarchy_message(error))
}

fn hierarchy_message(error: &HierarchyError) -> String {
    match error {
        HierarchyError::Cycle(uid) => format!("entity `{uid}` is its own ancestor"),
        HierarchyError::TooManyAncestors(uid) => {
            format!("entity `{uid}` has more than {MAX_ANCESTORS} ancestors")
        }
    }
}

/// A finding about the entity that stands at `location`.
fn at(
    files: &[&SourceFile],
    store: &EntityStore,
    location: Option<Location>,
    message: String,
) -> Diagnostic {
    let Some((location, file)) =
        location.and_then(|found| Some((found, files.get(found.segment as usize)?)))
    else {
        return Diagnostic::error("", message);
    };
    let finding = Diagnostic::error(&file.path, message);
    match file.text() {
        Ok(text) => {
            let origin = store.origin(location);
            finding.at(&text, origin..origin)
        }
        Err(_) => finding,
    }
}

/// Finds what is wrong with `file` whatever the schema says.
pub(super) fn check_syntax(file: &SourceFile, findings: &mut DiagnosticSink) {
    match file.text() {
        Ok(text) => {
            let _: Option<Vec<&RawValue>> = parse_json(&file.path, &text, findings);
        }
        Err(error) => findings.add(Diagnostic::error(&file.path, error.to_string())),
    }
}
