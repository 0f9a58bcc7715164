//! Loads a policy directory for a command, as `serve` would.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::Outcome;
use crate::config::StoreSettings;
use crate::config::sources::ConfigArgs;
use crate::pdp::sources::Sources;
use crate::pdp::{CompileError, Snapshot, Workers, compile_from};
use crate::policy_store::directory::{self, DirectoryScan};
use crate::policy_store::{cores, losses};

/// Most attempts to read a directory that changes while it is read.
const MAX_ATTEMPTS: usize = 5;

pub(super) struct Directory {
    pub(super) sources: Sources,
    pub(super) compiled: Result<Arc<Snapshot>, CompileError>,
}

/// Time from one look for changes to the next.
const POLL: Duration = Duration::from_millis(250);

/// Runs a command on the policy directory: once, or with `--watch` after every change, too.
///
/// While watching, an error is printed and does not end the command.
pub(super) fn run(
    settings: &StoreSettings,
    args: &ConfigArgs,
    mut command: impl FnMut() -> anyhow::Result<Outcome>,
) -> anyhow::Result<Outcome> {
    // The environment and the file choose how `serve` watches.
    if args.flags.watch.is_none() {
        return command();
    }
    let workers = Workers::default();
    let scan = |previous: Option<&DirectoryScan>| {
        directory::scan(&settings.directory, &settings.limits, previous, &workers)
    };
    let mut seen = scan(None);
    loop {
        if let Err(error) = command() {
            writeln!(io::stderr(), "error: {error:#}")?;
        }
        writeln!(io::stderr(), "waiting for a change; Ctrl-C ends")?;
        // Two equal readings: nobody is writing now.
        let mut last = scan(Some(&seen));
        seen = loop {
            thread::sleep(POLL);
            let now = scan(Some(&last));
            if now.same_as(&last) && !now.same_as(&seen) {
                break now;
            }
            last = now;
        };
    }
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
