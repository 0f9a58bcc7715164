//! `validate`: whether `serve` would load a directory, and all that is wrong with it.

use std::io::{self, IsTerminal as _, Write as _};

use super::directory::{self, Directory};
use super::{Format, Outcome};
use crate::config::Config;
use crate::pdp::diagnostic::Diagnostic;

/// Reports on the directory that `config` names; [`Outcome::Good`] exactly when `serve` with the
/// same options would load it.
pub(super) fn run(config: &Config, format: Format) -> anyhow::Result<Outcome> {
    let Directory {
        sources: _,
        compiled,
    } = directory::load(config)?;
    let (errors, warnings): (&[Diagnostic], &[Diagnostic]) = match &compiled {
        Ok(snapshot) => (&[], snapshot.warnings()),
        Err(error) => (&error.errors, &error.warnings),
    };
    let mut stdout = io::stdout().lock();
    match format {
        Format::Text => {
            let color = stdout.is_terminal();
            for finding in errors.iter().chain(warnings) {
                writeln!(stdout, "{}\n", finding.render(color))?;
            }
            match &compiled {
                Ok(snapshot) => {
                    let counts = snapshot.counts();
                    writeln!(
                        stdout,
                        "{}: good: {} policies, {} templates, {} links, {} entities, {} warnings\nrevision {}",
                        config.policies.display(),
                        counts.policies,
                        counts.templates,
                        counts.links,
                        counts.entities,
                        warnings.len(),
                        snapshot.revision(),
                    )?;
                }
                Err(_) => writeln!(
                    stdout,
                    "{}: bad: {} errors, {} warnings",
                    config.policies.display(),
                    errors.len(),
                    warnings.len(),
                )?,
            }
        }
        Format::Json => {
            let findings: Vec<serde_json::Value> = errors
                .iter()
                .chain(warnings)
                .map(directory::finding_json)
                .collect();
            let snapshot = compiled.as_ref().ok();
            let counts = snapshot.map(|snapshot| {
                let counts = snapshot.counts();
                serde_json::json!({
                    "policies": counts.policies,
                    "templates": counts.templates,
                    "links": counts.links,
                    "entities": counts.entities,
                })
            });
            let report = serde_json::json!({
                "valid": compiled.is_ok(),
                "errors": errors.len(),
                "warnings": warnings.len(),
                "diagnostics": findings,
                "revision": snapshot.map(|snapshot| snapshot.revision().as_str()),
                "counts": counts,
            });
            writeln!(stdout, "{report:#}")?;
        }
    }
    Ok(if compiled.is_ok() {
        Outcome::Good
    } else {
        Outcome::No
    })
}
