//! A policy directory as the commands see it: read and compiled as `serve` would.

use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::config::Config;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::Sources;
use crate::pdp::{CompileError, Snapshot, Workers, compile_from};
use crate::policy_store::{SourceLimits, cores, directory};

/// How often to look at a directory that changes while it is looked at.
const LOOKS: usize = 5;

/// What a directory came to.
pub(super) struct Directory {
    /// What was read.
    pub(super) sources: Sources,
    /// What it compiles to, or why it does not.
    pub(super) compiled: Result<Arc<Snapshot>, CompileError>,
}

/// Reads and compiles the directory that `config` names.
///
/// Without waiting for it to come to rest: who runs a command has done writing. But what changes
/// in that very moment is looked at again.
pub(super) fn load(config: &Config) -> anyhow::Result<Directory> {
    let limits = SourceLimits {
        file_bytes: config.store.max_file_bytes,
        total_bytes: config.store.max_total_bytes,
        ..SourceLimits::default()
    };
    std::fs::metadata(&config.policies).with_context(|| {
        format!(
            "cannot read the policy directory `{}`",
            config.policies.display()
        )
    })?;
    let workers = Workers {
        threads: cores(),
        ..Workers::default()
    };
    for _ in 0..LOOKS {
        let reading = directory::scan(&config.policies, &limits, None, &workers);
        let compiled = compile_from(None, reading.sources(), &config.pdp, &workers)
            .map(|compiled| compiled.snapshot);
        if !reading.is_inconsistent() {
            let sources = reading.into_sources();
            return Ok(Directory { sources, compiled });
        }
    }
    bail!(
        "the policy directory `{}` is being written",
        config.policies.display()
    )
}

/// The findings as people read them, one after the other with a blank line between.
pub(super) fn render(findings: &[Diagnostic], color: bool) -> String {
    let drawn: Vec<String> = findings
        .iter()
        .map(|finding| finding.render(color))
        .collect();
    drawn.join("\n\n")
}

/// A finding as machines read it; line and column are absent where they are not known.
pub(super) fn finding_json(finding: &Diagnostic) -> serde_json::Value {
    serde_json::json!({
        "severity": finding.severity.to_string(),
        "file": finding.file,
        "line": finding.position.map(|position| position.line),
        "column": finding.position.map(|position| position.column),
        "message": finding.message,
        "help": finding.help,
    })
}
