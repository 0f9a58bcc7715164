//! Loads a policy directory for a command, as `serve` would.

use anyhow::{Context as _, bail};

use crate::config::store::StoreSettings;
use crate::pdp::sources::Sources;
use crate::pdp::{CompileError, Snapshot, Workers, compile_from};
use crate::policy_store::source;

/// Most attempts to read a directory that changes while it is read.
const MAX_ATTEMPTS: usize = 5;

/// A policy directory, read and compiled.
pub(super) struct Directory {
    /// The files.
    pub(super) sources: Sources,
    /// The snapshot, or the errors.
    pub(super) compiled: Result<Snapshot, CompileError>,
}

/// Reads and compiles the policy directory.
///
/// Does not wait for the quiet period: a user who runs a command has finished writing. A directory
/// that changes during the read is read again.
pub(super) fn load(settings: &StoreSettings) -> anyhow::Result<Directory> {
    let StoreSettings {
        directory,
        limits,
        deciding,
        ..
    } = settings;
    std::fs::metadata(directory)
        .with_context(|| format!("cannot read the policy directory `{}`", directory.display()))?;
    let workers = Workers {
        threads: source::cores(),
        ..Workers::default()
    };
    for _ in 0..MAX_ATTEMPTS {
        let reading = source::read(directory, limits, None, &workers);
        let compiled = compile_from(None, reading.sources(), deciding, &workers);
        if !reading.is_torn() {
            let sources = reading.into_sources();
            return Ok(Directory { sources, compiled });
        }
    }
    bail!(
        "the policy directory `{}` keeps changing while it is read",
        directory.display()
    )
}
