//! Loads a policy directory for a command, as `serve` would.

use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::config::StoreSettings;
use crate::pdp::sources::Sources;
use crate::pdp::{CompileError, Snapshot, Workers, compile_from};
use crate::policy_store::{cores, directory, losses};

/// Most attempts to read a directory that changes while it is read.
const MAX_ATTEMPTS: usize = 5;

pub(super) struct Directory {
    pub(super) sources: Sources,
    pub(super) compiled: Result<Arc<Snapshot>, CompileError>,
}

/// Reads and compiles the policy directory.
///
/// Does not wait for the quiet period: a user who runs a command has finished writing. A directory
/// that changes during the read is read again.
pub(super) fn load(settings: &StoreSettings) -> anyhow::Result<Directory> {
    let path = &settings.directory;
    std::fs::metadata(path)
        .with_context(|| format!("cannot read the policy directory `{}`", path.display()))?;
    let workers = Workers {
        threads: cores(),
        ..Workers::default()
    };
    for _ in 0..MAX_ATTEMPTS {
        let reading = directory::scan(path, &settings.limits, None, &workers);
        let compiled = compile_from(None, &reading.sources, &settings.pdp, &workers);
        if !reading.is_inconsistent() {
            let sources = reading.sources;
            let compiled = compiled.and_then(|compiled| {
                let snapshot = compiled.snapshot;
                match losses::by_patterns(&snapshot, &sources) {
                    errors if errors.is_empty() || settings.allow_empty => Ok(snapshot),
                    errors => Err(CompileError {
                        errors,
                        warnings: snapshot.warnings().to_vec(),
                    }),
                }
            });
            return Ok(Directory { sources, compiled });
        }
    }
    bail!(
        "the policy directory `{}` keeps changing during the read",
        path.display()
    )
}
