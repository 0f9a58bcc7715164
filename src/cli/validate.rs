//! `validate`: whether `serve` would load a directory, and all that is wrong with it.

use std::io::{self, IsTerminal as _, Write as _};

use super::directory::{self, Directory};
use super::{Format, Outcome};
use crate::config::Config;
use crate::pdp::advice;
use crate::pdp::analysis::advice::{Advice, BroadPolicy, CacheKeyReads, PolicyRef};
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
                    write_advice(&mut stdout, &advice(snapshot))?;
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
                "advice": snapshot.map(|snapshot| advice_json(&advice(snapshot))),
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

/// The most policies of one kind that people are told of; JSON holds all.
const MOST_TOLD: usize = 20;

/// What an author should know of how these policies are decided.
fn write_advice(out: &mut impl io::Write, advice: &Advice) -> io::Result<()> {
    let Advice {
        broad_policies,
        whole_context,
        cache_key_reads,
    } = advice;
    if !broad_policies.is_empty() {
        let count = broad_policies.len();
        writeln!(out, "\npolicies that every request must evaluate: {count}")?;
        for BroadPolicy {
            policy,
            begins_with,
        } in broad_policies.iter().take(MOST_TOLD)
        {
            let why = match begins_with {
                None => "no condition".to_owned(),
                Some(operand) => format!("open scope, and the condition begins with `{operand}`"),
            };
            writeln!(out, "  {}: {why}", shown(policy))?;
        }
        and_more(out, count)?;
    }
    if !whole_context.is_empty() {
        let count = whole_context.len();
        writeln!(
            out,
            "\npolicies that use the whole context, so that any attribute in it keeps an answer from \
             being remembered: {count}"
        )?;
        for policy in whole_context.iter().take(MOST_TOLD) {
            writeln!(out, "  {}", shown(policy))?;
        }
        and_more(out, count)?;
    }
    let reading =
        |by: &&CacheKeyReads| by.attributes.as_ref().is_none_or(|names| !names.is_empty());
    let count = cache_key_reads.iter().filter(reading).count();
    if count > 0 {
        writeln!(
            out,
            "\nwhat answers are remembered by, besides principal, action and resource"
        )?;
        for CacheKeyReads { action, attributes } in
            cache_key_reads.iter().filter(reading).take(MOST_TOLD)
        {
            let attributes = match attributes {
                None => "the whole context".to_owned(),
                Some(names) => format!("context: {}", names.join(", ")),
            };
            writeln!(out, "  {action}: {attributes}")?;
        }
        and_more(out, count)?;
    }
    Ok(())
}

fn and_more(out: &mut impl io::Write, count: usize) -> io::Result<()> {
    match count.checked_sub(MOST_TOLD) {
        Some(more @ 1..) => writeln!(out, "  and {more} more (`--format json` lists all)"),
        Some(0) | None => Ok(()),
    }
}

fn shown(PolicyRef { policy, place }: &PolicyRef) -> String {
    match place.position {
        Some(position) => format!(
            "`{policy}` ({}:{}:{})",
            place.file, position.line, position.column
        ),
        None => format!("`{policy}` ({})", place.file),
    }
}

fn advice_json(advice: &Advice) -> serde_json::Value {
    let named = |PolicyRef { policy, place }: &PolicyRef| {
        serde_json::json!({
            "policy": policy.as_str(),
            "file": place.file,
            "line": place.position.map(|position| position.line),
            "column": place.position.map(|position| position.column),
        })
    };
    serde_json::json!({
        "every_request": advice.broad_policies.iter().map(|found| serde_json::json!({
            "at": named(&found.policy),
            "begins_with": found.begins_with,
        })).collect::<Vec<_>>(),
        "whole_context": advice.whole_context.iter().map(named).collect::<Vec<_>>(),
        "remembered_by": advice.cache_key_reads.iter().map(|by| serde_json::json!({
            "action": by.action,
            "attributes": by.attributes,
        })).collect::<Vec<_>>(),
    })
}
