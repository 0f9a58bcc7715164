//! `validate`: checks whether `serve` would load a directory, and prints all problems.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{Format, Outcome, config_of_directory, directory};
use crate::authoring::report;
use crate::config::sources::ConfigArgs;
use crate::pdp::advice;
use crate::pdp::analysis::advice::{Advice, CacheKeyReads, PolicyRef};
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::{CompileError, Snapshot};

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// Policy directory to check
    #[arg(value_name = "DIR", conflicts_with = "policies")]
    pub(super) dir: PathBuf,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Settings that change what serve would load.
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Reports on a directory; the outcome is good exactly if `serve` with the same settings would
/// load it.
pub(super) fn run(args: ValidateArgs) -> anyhow::Result<Outcome> {
    let store = config_of_directory(args.config, args.dir)?.store;
    let compiled = directory::load(&store)?.compiled;
    let mut stdout = io::stdout().lock();
    match args.format {
        Format::Text => {
            let color = stdout.is_terminal();
            let (errors, warnings) = diagnostics(&compiled);
            for diagnostic in errors.iter().chain(warnings) {
                writeln!(stdout, "{}\n", diagnostic.render(color))?;
            }
            write!(stdout, "{}: ", store.directory.display())?;
            write_summary(&mut stdout, &compiled)?;
        }
        Format::Json => writeln!(stdout, "{:#}", json(&compiled))?,
    }
    Ok(Outcome::of(compiled.is_ok()))
}

type Compiled = Result<Arc<Snapshot>, CompileError>;

/// Returns the errors, and the warnings.
fn diagnostics(compiled: &Compiled) -> (&[Diagnostic], &[Diagnostic]) {
    match compiled {
        Ok(snapshot) => (&[], snapshot.warnings()),
        Err(error) => (&error.errors, &error.warnings),
    }
}

fn write_summary(out: &mut impl io::Write, compiled: &Compiled) -> io::Result<()> {
    let (errors, warnings) = diagnostics(compiled);
    let (errors, warnings) = (errors.len(), warnings.len());
    let Ok(snapshot) = compiled else {
        return writeln!(out, "bad: {errors} errors, {warnings} warnings");
    };
    let counts = snapshot.counts();
    writeln!(
        out,
        "good: {} policies, {} templates, {} links, {} entities, {warnings} warnings\nrevision {}",
        counts.policies,
        counts.templates,
        counts.links,
        counts.entities,
        snapshot.revision(),
    )?;
    write_advice(out, &advice(snapshot))
}

fn json(compiled: &Compiled) -> serde_json::Value {
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
    let (errors, warnings) = diagnostics(compiled);
    let all = errors.iter().chain(warnings).map(report::diagnostic_json);
    serde_json::json!({
        "valid": compiled.is_ok(),
        "errors": errors.len(),
        "warnings": warnings.len(),
        "diagnostics": all.collect::<Vec<_>>(),
        "revision": snapshot.map(|snapshot| snapshot.revision().as_str()),
        "counts": counts,
        "advice": snapshot.map(|snapshot| advice_json(&advice(snapshot))),
    })
}

/// Most policies of one kind that the text lists; JSON lists all.
const MAX_LISTED: usize = 20;

/// Writes what slows decisions down or keeps answers from being cached.
fn write_advice(out: &mut impl io::Write, advice: &Advice) -> io::Result<()> {
    let count = advice.broad_policies.len();
    if count > 0 {
        writeln!(out, "\npolicies that every request must evaluate: {count}")?;
        for found in advice.broad_policies.iter().take(MAX_LISTED) {
            let why = match &found.begins_with {
                None => "no condition".to_owned(),
                Some(operand) => format!("open scope, and the condition begins with `{operand}`"),
            };
            writeln!(out, "  {}: {why}", name_and_place(&found.policy))?;
        }
        and_more(out, count)?;
    }
    let count = advice.whole_context.len();
    if count > 0 {
        writeln!(
            out,
            "\npolicies that use the whole context, so that every attribute in it is part of the \
             cache key: {count}"
        )?;
        for policy in advice.whole_context.iter().take(MAX_LISTED) {
            writeln!(out, "  {}", name_and_place(policy))?;
        }
        and_more(out, count)?;
    }
    write_cache_keys(out, &advice.cache_key_reads)
}

fn write_cache_keys(out: &mut impl io::Write, keys: &[CacheKeyReads]) -> io::Result<()> {
    let reads_context = |key: &&CacheKeyReads| {
        key.attributes
            .as_ref()
            .is_none_or(|names| !names.is_empty())
    };
    let count = keys.iter().filter(reads_context).count();
    if count == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "\nparts of the cache key, besides principal, action and resource"
    )?;
    for CacheKeyReads { action, attributes } in keys.iter().filter(reads_context).take(MAX_LISTED) {
        let attributes = match attributes {
            None => "the whole context".to_owned(),
            Some(names) => format!("context: {}", names.join(", ")),
        };
        writeln!(out, "  {action}: {attributes}")?;
    }
    and_more(out, count)
}

fn and_more(out: &mut impl io::Write, count: usize) -> io::Result<()> {
    match count.checked_sub(MAX_LISTED) {
        Some(more @ 1..) => writeln!(out, "  and {more} more (`--format json` lists all)"),
        Some(0) | None => Ok(()),
    }
}

fn name_and_place(PolicyRef { policy, place }: &PolicyRef) -> String {
    format!("`{policy}` ({})", report::at(place))
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
