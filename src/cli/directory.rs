//! Loads a policy directory for a command, as `serve` would.

use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::config::store::StoreSettings;
use crate::pdp::sources::Sources;
use crate::pdp::{CompileError, Snapshot, Workers, compile_from};
use crate::policy_store::{cores, directory};

/// Most attempts to read a directory that changes while it is read.
const MAX_ATTEMPTS: usize = 5;

/// A policy directory, read and compiled.
pub(super) struct Directory {
    /// The files.
    pub(super) sources: Sources,
    /// The snapshot, or the errors.
    pub(super) compiled: Result<Arc<Snapshot>, CompileError>,
}

/// Reads and compiles the policy directory.
///
/// Does not wait for the quiet period: a user who runs a command has finished writing. A directory
/// that changes during the read is read again.
pub(super) fn load(settings: &StoreSettings) -> anyhow::Result<Directory> {
    let StoreSettings {
        directory: path,
        limits,
        pdp,
        ..
    } = settings;
    std::fs::metadata(path)
        .with_context(|| format!("cannot read the policy directory `{}`", path.display()))?;
    let workers = Workers {
        threads: cores(),
        ..Workers::default()
    };
    for _ in 0..MAX_ATTEMPTS {
        let reading = directory::scan(path, limits, None, &workers);
        let compiled =
            compile_from(None, reading.sources(), pdp, &workers).map(|compiled| compiled.snapshot);
        if !reading.is_inconsistent() {
            let sources = reading.into_sources();
            return Ok(Directory { sources, compiled });
        }
    }
    bail!(
        "the policy directory `{}` keeps changing while it is read",
        path.display()
    )
}
