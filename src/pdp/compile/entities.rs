//! Reads the stored entities of all their files into one store.
//!
//! Each file becomes a segment by itself, so that files can be read in parallel and an unchanged
//! file need not be read again. Checks that concern all files follow: the hierarchy, and uids that
//! are defined twice.

mod errors;

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID};
use cedar_policy_core::entities::conformance::EntitySchemaConformanceChecker;
use cedar_policy_core::entities::{EntityJsonParser, Schema as _, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::{CoreSchema, ValidatorSchema};
use serde_json::value::RawValue;

use super::entity_json::{ParsedTypeNames, PlainEntityParser};
use super::findings::{DiagnosticSink, offset_in, parse_json, read_files};
use super::reuse::{ByFile, Reusable};
use super::stack::COMPILE_STACK_BYTES;
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::entities::hierarchy::{HierarchyError, MAX_ANCESTORS};
use crate::pdp::entities::interner::UidInterner;
use crate::pdp::entities::segment::{Draft, Segment, TooLarge};
use crate::pdp::entities::store::{DuplicateUid, EntityStore, Location};
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::values::with_causes;
use crate::pdp::workers::Workers;

/// Reads entities under a schema, or without one.
pub(super) struct EntityReader<'a> {
    schema: Option<CoreSchema<'a>>,
    plain: PlainEntityParser,
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
        let mut segments = Vec::with_capacity(files.len());
        for file in &files {
            let segment = match unchanged(file) {
                Some(segment) => reinterned(segment, previous, &mut interner),
                None => match drafts.next().flatten() {
                    Some(draft) => draft.finish(&mut interner).map(Arc::new),
                    None => continue,
                },
            };
            segments.extend(diagnostics.ok(&file.path, segment));
        }
        if segments.len() < files.len() {
            return None;
        }
        let by_file = files.iter().zip(&segments);
        let by_file = by_file
            .map(|(file, segment)| (file.path.clone(), (file.digest, Arc::clone(segment))))
            .collect();
        let previous = (previous, workers);
        let store = self.assemble(&files, segments, interner, previous, diagnostics)?;
        Some((store, by_file))
    }

    /// Reads one file; returns `None` when there are errors, which are in `diagnostics`.
    fn read(&self, file: &SourceFile, diagnostics: &mut DiagnosticSink) -> Option<Draft> {
        let text = diagnostics.text(file)?;
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
                let explained = errors::explain(&file.path, &text, json);
                diagnostics.add(explained.unwrap_or_else(|| {
                    Diagnostic::error(&file.path, message).at(&text, origin..origin)
                }));
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

    /// Combines the files' segments to one store, with the uid ids of `interner`.
    ///
    /// Returns `None` when there are errors, which are in `diagnostics`.
    fn assemble(
        &self,
        files: &[&SourceFile],
        segments: Vec<Arc<Segment>>,
        mut interner: Arc<UidInterner>,
        (previous, workers): (Option<&EntityStore>, Workers),
        diagnostics: &mut DiagnosticSink,
    ) -> Option<EntityStore> {
        let schema_actions = self.schema_actions(&mut interner);
        let schema_actions = diagnostics.ok("", schema_actions)?;
        let (mut store, duplicates) =
            EntityStore::new(interner, segments, schema_actions, workers.pause);
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
            .then_some(store)
    }

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
        let Some(action_store) = diagnostics.ok("", action_store) else {
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

/// The files of a store: segment number `n` is the `n`th file.
#[derive(Clone, Copy)]
struct StoreFiles<'a> {
    files: &'a [&'a SourceFile],
    store: &'a EntityStore,
}

impl StoreFiles<'_> {
    /// Returns an error about the entity at `location`.
    fn error_at(self, location: Option<Location>, message: String) -> Diagnostic {
        let Some(location) = location else {
            return Diagnostic::error("", message);
        };
        let Some(file) = self.files.get(location.segment as usize) else {
            return Diagnostic::error("", message);
        };
        let diagnostic = Diagnostic::error(&file.path, message);
        match file.text() {
            Ok(text) => {
                let origin = self.store.origin(location);
                diagnostic.at(&text, origin..origin)
            }
            Err(_) => diagnostic,
        }
    }

    /// Returns the error for a uid that is defined twice.
    fn duplicate(self, DuplicateUid { first, second }: DuplicateUid) -> Diagnostic {
        let uid = self.store.uid_at(second);
        let uid = uid.map_or_else(String::new, |uid| self.store.interner.uid(uid).to_string());
        let first_place = self.file_and_position(first);
        let message = format!("entity `{uid}` is defined twice, here and at {first_place}");
        self.error_at(Some(second), message)
    }

    /// Returns file, line and column of `location` as text.
    fn file_and_position(self, location: Location) -> String {
        let Some(file) = self.files.get(location.segment as usize) else {
            return String::new();
        };
        let Ok(text) = file.text() else {
            return file.path.clone();
        };
        let Position { line, column } = Position::of(&text, self.store.origin(location));
        format!("{}:{line}:{column}", file.path)
    }

    /// Returns the error for an invalid hierarchy, at the entity that it names.
    fn invalid_hierarchy(self, error: &HierarchyError) -> Diagnostic {
        let (HierarchyError::Cycle(uid) | HierarchyError::TooManyAncestors(uid)) = error;
        let uid = self.store.interner.find_uid(uid);
        let location = uid.and_then(|uid| self.store.location(uid));
        self.error_at(location, hierarchy_message(error))
    }
}

/// Returns the message for an invalid hierarchy.
fn hierarchy_message(error: &HierarchyError) -> String {
    match error {
        HierarchyError::Cycle(uid) => format!("the parents of entity `{uid}` form a cycle"),
        HierarchyError::TooManyAncestors(uid) => {
            format!("entity `{uid}` has more than {MAX_ANCESTORS} ancestors")
        }
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
    if let Some(text) = diagnostics.text(file) {
        let _: Option<Vec<&RawValue>> = parse_json(&file.path, &text, diagnostics);
    }
}

/// Entities that replace a snapshot's stored ones, as in a policy test with its own entities.
#[derive(Debug)]
pub struct StoredEntities(pub(in crate::pdp) EntityStore);

/// Reads entities that replace a snapshot's stored ones, in Cedar's JSON entity format.
///
/// # Errors
///
/// All diagnostics about `file`.
pub fn stored_entities(
    file: &SourceFile,
    snapshot: &Snapshot,
) -> Result<StoredEntities, Vec<Diagnostic>> {
    let mut diagnostics = DiagnosticSink::default();
    let reader = EntityReader::new(snapshot.schema.as_ref());
    let store = stacker::grow(COMPILE_STACK_BYTES, || {
        let draft = reader.read(file, &mut diagnostics)?;
        // The snapshot's ids are kept, so that its index refers to the same uids.
        let mut interner = Arc::clone(&snapshot.entities.interner);
        let segment = diagnostics.ok(&file.path, draft.finish(&mut interner))?;
        let segments = vec![Arc::new(segment)];
        let previous = (None, Workers::default());
        reader.assemble(&[file], segments, interner, previous, &mut diagnostics)
    });
    store.map(StoredEntities).ok_or(diagnostics.0)
}
