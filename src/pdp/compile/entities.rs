//! Reads the stored entities of all their files into one store.
//!
//! Each file becomes a segment, by itself, so that files can be read at the same time and one that
//! has not changed need not be read again. The hierarchy and uids that stand twice concern all
//! files and come after.

mod plain;

use std::collections::HashSet;
use std::sync::Arc;

use cedar_policy_core::ast::Entity;
use cedar_policy_core::entities::conformance::EntitySchemaConformanceChecker;
use cedar_policy_core::entities::{EntityJsonParser, Schema as _, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::{CoreSchema, ValidatorSchema};
use serde_json::value::RawValue;

use super::Findings;
use super::policies::{offset_in, parse_json};
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::entities::segment::{Draft, Segment};
use crate::pdp::entities::{EntityStore, HierarchyError, Location, MAX_ANCESTORS, Twice};
use crate::pdp::sources::SourceFile;
use crate::pdp::uids::Uids;
use crate::pdp::values::with_causes;
use plain::{PlainTypes, TypeTexts};

/// Reads entities under one schema, or none.
pub(super) struct EntityReader<'a> {
    schema: Option<CoreSchema<'a>>,
    plain: PlainTypes,
}

/// An entity file that was read.
pub(super) enum Read {
    /// It has become a draft of a segment.
    Draft(Box<Draft>),
    /// It is as it was.
    Known(Arc<Segment>),
}

impl<'a> EntityReader<'a> {
    pub(super) fn new(schema: Option<&'a ValidatorSchema>) -> Self {
        Self {
            schema: schema.map(CoreSchema::new),
            plain: PlainTypes::of(schema),
        }
    }

    /// Reads one file; `None` when the findings say why it makes no segment.
    pub(super) fn read(&self, file: &SourceFile, findings: &mut Findings) -> Option<Draft> {
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
        let mut types = TypeTexts::default();
        let mut is_good = true;
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
                is_good = false;
            }
        }
        is_good.then_some(draft)
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

    /// Makes the files' segments one store, whose uids are numbered in `uids`; `None` when the
    /// findings say why there is none.
    pub(super) fn assemble(
        &self,
        files: &[&SourceFile],
        read: Vec<Read>,
        mut uids: Arc<Uids>,
        findings: &mut Findings,
    ) -> Option<(EntityStore, Vec<Arc<Segment>>)> {
        let mut segments = Vec::with_capacity(read.len());
        for (file, read) in files.iter().zip(read) {
            let segment = match read {
                Read::Known(segment) => segment,
                Read::Draft(draft) => match draft.finish(&mut uids) {
                    Ok(segment) => Arc::new(segment),
                    Err(error) => {
                        findings.add(Diagnostic::error(&file.path, error.to_string()));
                        return None;
                    }
                },
            };
            segments.push(segment);
        }
        let (store, twice) = EntityStore::new(uids, segments.clone());
        if !twice.is_empty() {
            for twice in twice {
                findings.add(self.twice(files, &store, twice));
            }
            return None;
        }
        if let Err(error) = store.check_hierarchy() {
            let (uid, message) = match &error {
                HierarchyError::Cycle(uid) => (uid, format!("entity `{uid}` is its own ancestor")),
                HierarchyError::TooManyAncestors(uid) => (
                    uid,
                    format!("entity `{uid}` has more than {MAX_ANCESTORS} ancestors"),
                ),
            };
            let location = store
                .uids
                .number_of_uid(uid)
                .and_then(|number| store.location(number));
            findings.add(at(files, &store, location, message));
            return None;
        }
        Some((self.with_actions(files, store, findings)?, segments))
    }

    /// The store with the schema's actions, which those in files must equal.
    fn with_actions(
        &self,
        files: &[&SourceFile],
        store: EntityStore,
        findings: &mut Findings,
    ) -> Option<EntityStore> {
        let (Some(schema), Some(checker)) = (&self.schema, self.checker()) else {
            return Some(store);
        };
        let mut is_good = true;
        let mut draft = Draft::default();
        for action in schema.action_entities() {
            if draft.add(&action, 0).is_err() {
                findings.add(Diagnostic::error(
                    "",
                    "the schema declares too many actions",
                ));
                return None;
            }
        }
        for number in store.numbers() {
            let (ty, _) = store.uids.parts(number);
            if !store.uids.entity_type(ty).is_action() {
                continue;
            }
            let ancestors: HashSet<_> = store
                .ancestors(number)
                .into_iter()
                .map(|ancestor| store.uids.uid(ancestor))
                .collect();
            if let Some(action) = store.entity(number, ancestors)
                && let Err(error) = checker.validate_action(&action)
            {
                let location = store.location(number);
                findings.add(at(files, &store, location, with_causes(&error)));
                is_good = false;
            }
        }
        if !is_good {
            return None;
        }
        let mut uids = Arc::clone(&store.uids);
        match draft.finish(&mut uids) {
            Ok(actions) => Some(store.with_replacing(uids, actions)),
            Err(error) => {
                findings.add(Diagnostic::error("", error.to_string()));
                None
            }
        }
    }

    fn twice(&self, files: &[&SourceFile], store: &EntityStore, twice: Twice) -> Diagnostic {
        let Twice { first, second } = twice;
        let uid = store
            .uid_at(second)
            .map_or_else(String::new, |uid| store.uids.uid(uid).to_string());
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
pub(super) fn check_syntax(file: &SourceFile, findings: &mut Findings) {
    match file.text() {
        Ok(text) => {
            let _: Option<Vec<&RawValue>> = parse_json(&file.path, &text, findings);
        }
        Err(error) => findings.add(Diagnostic::error(&file.path, error.to_string())),
    }
}
