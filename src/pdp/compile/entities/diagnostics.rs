//! Diagnostics about stored entities, at their positions in the files.

use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::entities::hierarchy::{HierarchyError, MAX_ANCESTORS};
use crate::pdp::entities::store::{DuplicateUid, EntityStore, Location};
use crate::pdp::sources::SourceFile;

/// The files of a store: segment number `n` is the `n`th file.
#[derive(Clone, Copy)]
pub(super) struct StoreFiles<'a> {
    pub(super) files: &'a [&'a SourceFile],
    pub(super) store: &'a EntityStore,
}

impl StoreFiles<'_> {
    /// Returns an error about the entity at `location`.
    pub(super) fn error_at(self, location: Option<Location>, message: String) -> Diagnostic {
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
    pub(super) fn duplicate(self, DuplicateUid { first, second }: DuplicateUid) -> Diagnostic {
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
    pub(super) fn invalid_hierarchy(self, error: &HierarchyError) -> Diagnostic {
        let (HierarchyError::Cycle(uid) | HierarchyError::TooManyAncestors(uid)) = error;
        let uid = self.store.interner.find_uid(uid);
        let location = uid.and_then(|uid| self.store.location(uid));
        self.error_at(location, hierarchy_message(error))
    }
}

/// Returns the message for an invalid hierarchy.
pub(super) fn hierarchy_message(error: &HierarchyError) -> String {
    match error {
        HierarchyError::Cycle(uid) => format!("entity `{uid}` is its own ancestor"),
        HierarchyError::TooManyAncestors(uid) => {
            format!("entity `{uid}` has more than {MAX_ANCESTORS} ancestors")
        }
    }
}
