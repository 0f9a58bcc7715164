//! Reads the stored entities of all their files into one store.
//!
//! Each file becomes a segment by itself, so that files can be read in parallel and an unchanged
//! file need not be read again. Checks that concern all files follow: the hierarchy, and uids that
//! are defined twice.

mod diagnostics;

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID};
use cedar_policy_core::entities::conformance::EntitySchemaConformanceChecker;
use cedar_policy_core::entities::{EntityJsonParser, Schema as _, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::{CoreSchema, ValidatorSchema};
use serde_json::value::RawValue;

use super::entity_json::{ParsedTypeNames, PlainEntityParser};
use super::findings::{DiagnosticSink, read_files};
use super::json_text::{offset_in, parse_json};
use super::reuse::{ByFile, Reusable};
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::entities::hierarchy::HierarchyError;
use crate::pdp::entities::interner::UidInterner;
use crate::pdp::entities::segment::{Draft, Segment, TooLarge};
use crate::pdp::entities::store::{DuplicateUid, EntityStore, Location};
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::values::with_causes;
use crate::pdp::workers::Workers;
use diagnostics::{StoreFiles, hierarchy_message};

/// Reads entities under a schema, or without one.
pub(super) struct EntityReader<'a> {
    schema: Option<CoreSchema<'a>>,
    plain: PlainEntityParser,
}

/// An entity file that was read.
pub(super) enum EntityFile {
    /// Entities that were read now, with uids that are not interned yet.
    Draft(Box<Draft>),
    /// The segment of an unchanged file.
    Reused(Arc<Segment>),
}

impl<'a> EntityReader<'a> {
    pub(super) fn new(schema: Option<&'a ValidatorSchema>) -> Self {
        Self {
            schema: schema.map(CoreSchema::new),
            plain: PlainEntityParser::new(schema),
        }
    }

    /// Reads all entity files, and reuses the segments of unchanged ones.
    ///
    /// Returns `None` when there are errors, which are in `diagnostics`.
    pub(super) fn read_all(
        &self,
        sources: &Sources,
        (previous, reusable): (Option<&EntityStore>, Option<&Reusable>),
        mut interner: Arc<UidInterner>,
        workers: Workers,
        diagnostics: &mut DiagnosticSink,
    ) -> Option<(EntityStore, ByFile<Segment>)> {
        let files: Vec<&SourceFile> = sources.of_kind(FileKind::Entities).collect();
        let unchanged = |file: &SourceFile| reusable?.segment(file);
        let changed: Vec<&SourceFile> = files
            .iter()
            .copied()
            .filter(|file| unchanged(file).is_none())
            .collect();
        let mut drafts = read_files(&changed, workers, diagnostics, |file, diagnostics| {
            self.read(file, diagnostics)
        })
        .into_iter();
        let mut entity_files = Vec::with_capacity(files.len());
        for file in &files {
            let entity_file = match unchanged(file) {
                Some(segment) => match reinterned(segment, previous, &mut interner) {
                    Ok(segment) => Some(EntityFile::Reused(segment)),
                    Err(error) => {
                        diagnostics.add(Diagnostic::error(&file.path, error.to_string()));
                        None
                    }
                },
                None => drafts
                    .next()
                    .flatten()
                    .map(|draft| EntityFile::Draft(Box::new(draft))),
            };
            entity_files.extend(entity_file);
        }
        if entity_files.len() < files.len() {
            return None;
        }
        let previous = (previous, workers);
        let (store, segments) =
            self.assemble(&files, entity_files, interner, previous, diagnostics)?;
        let by_file = files
            .iter()
            .zip(segments)
            .map(|(file, segment)| (file.path.clone(), (file.digest, segment)))
            .collect();
        Some((store, by_file))
    }

    /// Reads one file; returns `None` when there are errors, which are in `diagnostics`.
    pub(super) fn read(
        &self,
        file: &SourceFile,
        diagnostics: &mut DiagnosticSink,
    ) -> Option<Draft> {
        let text = match file.text() {
            Ok(text) => text,
            Err(error) => {
                diagnostics.add(Diagnostic::error(&file.path, error.to_string()));
                return None;
            }
        };
        let entities = parse_json::<Vec<&RawValue>>(&file.path, &text, diagnostics)?;
        // Entities are parsed one at a time, so the parser has no hierarchy to close.
        let parser = EntityJsonParser::new(
            self.schema.as_ref(),
            Extensions::all_available(),
            TCComputation::AssumeAlreadyComputed,
        );
        let mut draft = Draft::default();
        let mut types = ParsedTypeNames::default();
        let mut is_valid = true;
        for json in entities {
            let json = json.get();
            let origin = offset_in(&text, json);
            let plain = self.plain.read(json, origin, &mut draft, &mut types);
            if plain.is_ok() {
                continue;
            }
            let added = self.read_by_cedar(json, &parser).and_then(|entity| {
                let added = draft.add(&entity, origin);
                added.map_err(|error| error.to_string())
            });
            if let Err(message) = added {
                let diagnostic = Diagnostic::error(&file.path, message);
                diagnostics.add(diagnostic.at(&text, origin..origin));
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
            // With a schema, Cedar compares an action and all its ancestors with the declaration.
            // The hierarchy is not closed yet, so actions are read without a schema and compared
            // once it is closed.
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
        if let Some(checker) = self.checker()
            && !entity.uid().is_action()
        {
            checker
                .validate_entity(&entity)
                .map_err(|error| with_causes(&error))?;
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

    /// Combines the files' segments to one store, with uids interned in `interner`.
    ///
    /// Returns `None` when there are errors, which are in `diagnostics`.
    pub(super) fn assemble(
        &self,
        files: &[&SourceFile],
        entity_files: Vec<EntityFile>,
        mut interner: Arc<UidInterner>,
        (previous, workers): (Option<&EntityStore>, Workers),
        diagnostics: &mut DiagnosticSink,
    ) -> Option<(EntityStore, Vec<Arc<Segment>>)> {
        let mut segments = Vec::with_capacity(entity_files.len());
        for (file, entity_file) in files.iter().zip(entity_files) {
            segments.push(match entity_file {
                EntityFile::Reused(segment) => segment,
                EntityFile::Draft(draft) => {
                    let segment = draft.finish(&mut interner);
                    Arc::new(ok_or_report(segment, &file.path, diagnostics)?)
                }
            });
        }
        let schema_actions = self.schema_actions(&mut interner);
        let schema_actions = ok_or_report(schema_actions, "", diagnostics)?;
        let (mut store, duplicates) =
            EntityStore::new(interner, segments.clone(), schema_actions, workers.pause);
        if !duplicates.is_empty() {
            let store = &store;
            for duplicate in duplicates {
                diagnostics.add(StoreFiles { files, store }.duplicate(duplicate));
            }
            return None;
        }
        // The same hierarchy under the same uid ids has been checked before.
        let is_checked = previous.is_some_and(|previous| {
            previous.interner.is_ancestor_of(&store.interner) && store.reuse_hierarchy(previous)
        });
        if !is_checked {
            if let Err(error) = store.check_hierarchy() {
                let store = &store;
                diagnostics.add(StoreFiles { files, store }.invalid_hierarchy(&error));
                return None;
            }
            store.close_hierarchy();
        }
        let store_files = StoreFiles {
            files,
            store: &store,
        };
        self.check_actions(store_files, diagnostics)
            .then_some((store, segments))
    }

    /// Returns the actions that the schema declares.
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

    /// Returns whether the actions in files are declared in the schema as they are written.
    fn check_actions(&self, files: StoreFiles<'_>, diagnostics: &mut DiagnosticSink) -> bool {
        let Some(checker) = self.checker() else {
            return true;
        };
        let mut actions = files.store.stored_actions();
        actions.retain(|(location, _)| (location.segment as usize) < files.files.len());
        let mut locations: HashMap<EntityUID, Location> = HashMap::new();
        for (second, action) in &actions {
            let second = *second;
            if let Some(first) = locations.insert(action.uid().clone(), second) {
                diagnostics.add(files.duplicate(DuplicateUid { first, second }));
                return false;
            }
        }
        let action_store = action_store(actions.iter().map(|(_, action)| action));
        let Some(action_store) = ok_or_report(action_store, "", diagnostics) else {
            return false;
        };
        if let Err(error) = action_store.check_hierarchy() {
            let (HierarchyError::Cycle(uid) | HierarchyError::TooManyAncestors(uid)) = &error;
            let location = locations.get(uid).copied();
            diagnostics.add(files.error_at(location, hierarchy_message(&error)));
            return false;
        }
        let mut is_valid = true;
        for (location, action) in actions {
            if let Some(action) = with_ancestors(&action_store, action.uid())
                && let Err(error) = checker.validate_action(&action)
            {
                diagnostics.add(files.error_at(Some(location), with_causes(&error)));
                is_valid = false;
            }
        }
        is_valid
    }
}

/// Returns `segment` with the uid ids of `interner`, if the previous store had other ids.
fn reinterned(
    segment: &Arc<Segment>,
    previous: Option<&EntityStore>,
    interner: &mut Arc<UidInterner>,
) -> Result<Arc<Segment>, TooLarge> {
    match previous.map(|previous| &previous.interner) {
        Some(old) if !old.is_ancestor_of(interner) => {
            segment.reinterned(old, interner).map(Arc::new)
        }
        Some(_) | None => Ok(Arc::clone(segment)),
    }
}

/// Returns the value of `result`, or reports its error for the file at `path`.
fn ok_or_report<T, E: ToString>(
    result: Result<T, E>,
    path: &str,
    diagnostics: &mut DiagnosticSink,
) -> Option<T> {
    result
        .map_err(|error| diagnostics.add(Diagnostic::error(path, error.to_string())))
        .ok()
}

/// Stores `actions` apart from those of the schema, with which they are compared.
fn action_store<'e>(actions: impl Iterator<Item = &'e Entity>) -> Result<EntityStore, TooLarge> {
    let mut draft = Draft::default();
    for action in actions {
        draft.add(action, 0)?;
    }
    let mut interner = Arc::default();
    let segment = draft.finish(&mut interner)?;
    let (store, _) = EntityStore::new(interner, vec![Arc::new(segment)], None, || {});
    Ok(store)
}

/// Returns the entity with this uid and all its ancestors.
fn with_ancestors(store: &EntityStore, uid: &EntityUID) -> Option<Entity> {
    let uid = store.interner.find_uid(uid)?;
    let ancestors = store.ancestors(uid).into_iter();
    let ancestors = ancestors
        .map(|ancestor| store.interner.uid(ancestor))
        .collect();
    store.entity(uid, ancestors)
}

/// Reports the errors of `file` that do not depend on a schema.
pub(super) fn check_syntax(file: &SourceFile, diagnostics: &mut DiagnosticSink) {
    match file.text() {
        Ok(text) => {
            let _: Option<Vec<&RawValue>> = parse_json(&file.path, &text, diagnostics);
        }
        Err(error) => diagnostics.add(Diagnostic::error(&file.path, error.to_string())),
    }
}
