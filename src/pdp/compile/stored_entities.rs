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

/// Entities that stand in for a snapshot's stored ones: a policy test brings its own.
#[derive(Debug)]
pub struct StoredEntities(EntityStore);

impl StoredEntities {
    pub(in crate::pdp) fn store(&self) -> &EntityStore {
        &self.0
    }
}

/// Reads `file` as stored entities under the snapshot's schema, or says what is wrong with it.
pub(in crate::pdp) fn stored_entities(
    file: &SourceFile,
    snapshot: &Snapshot,
) -> Result<StoredEntities, Vec<Diagnostic>> {
    let mut findings = DiagnosticSink::default();
    let reader = EntityReader::new(snapshot.schema.as_ref());
    let store = stacker::grow(COMPILE_STACK_BYTES, || {
        let draft = reader.read(file, &mut findings)?;
        // Numbered on top of the snapshot's, so that its index means the same uids.
        let interner = Arc::clone(&snapshot.entities.interner);
        let read = vec![EntityFile::Draft(Box::new(draft))];
        let beside = (None, Workers::default());
        let (store, _) = reader.assemble(&[file], read, interner, beside, &mut findings)?;
        Some(store)
    });
    store.map(StoredEntities).ok_or(findings.0)
}
