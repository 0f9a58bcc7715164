//! Entities that replace a snapshot's stored ones.

use std::sync::Arc;

use super::entities::{EntityFile, EntityReader};
use super::findings::DiagnosticSink;
use super::stack::COMPILE_STACK_BYTES;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::entities::store::EntityStore;
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::SourceFile;
use crate::pdp::workers::Workers;

/// Entities that replace a snapshot's stored ones, as in a policy test with its own entities.
#[derive(Debug)]
pub struct StoredEntities(EntityStore);

impl StoredEntities {
    pub(in crate::pdp) fn store(&self) -> &EntityStore {
        &self.0
    }
}

/// Reads `file` as stored entities under the snapshot's schema, or returns its diagnostics.
pub(in crate::pdp) fn stored_entities(
    file: &SourceFile,
    snapshot: &Snapshot,
) -> Result<StoredEntities, Vec<Diagnostic>> {
    let mut diagnostics = DiagnosticSink::default();
    let reader = EntityReader::new(snapshot.schema.as_ref());
    let store = stacker::grow(COMPILE_STACK_BYTES, || {
        let draft = reader.read(file, &mut diagnostics)?;
        // The snapshot's ids are kept, so that its index refers to the same uids.
        let interner = Arc::clone(&snapshot.entities.interner);
        let files = vec![EntityFile::Draft(Box::new(draft))];
        let previous = (None, Workers::default());
        let (store, _) = reader.assemble(&[file], files, interner, previous, &mut diagnostics)?;
        Some(store)
    });
    store.map(StoredEntities).ok_or(diagnostics.0)
}
