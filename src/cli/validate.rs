//! `validate`: checks whether `serve` would load a directory, and prints all problems.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::Args;

use super::directory::{self, Directory};
use super::{Format, Outcome, config_of_directory};
use crate::authoring::report;
use crate::config::StoreSettings;
use crate::config::sources::ConfigArgs;
use crate::pdp::Snapshot;
use crate::pdp::advice;
use crate::pdp::analysis::advice::{Advice, CacheKeyReads, PolicyRef};
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::{LeftOutCounts, UnusedFiles};

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// Policy directory to check [default: that of the settings]
    #[arg(value_name = "DIR", conflicts_with = "policies")]
    pub(super) dir: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Exit with status 1 if there is a warning
    #[arg(long)]
    pub(super) deny_warnings: bool,
    /// List all ignored files, not only the first 20
    #[arg(long)]
    pub(super) verbose: bool,
    /// Settings that change what serve would load.
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Reports on a directory; the outcome is good exactly if `serve` with the same settings would
/// load it.
pub(super) fn run(args: ValidateArgs) -> anyhow::Result<Outcome> {
    let store = config_of_directory(args.config.clone(), args.dir.clone())?.store;
    directory::run(&store, &args.config, || check(&store, &args))
}

fn check(store: &StoreSettings, args: &ValidateArgs) -> anyhow::Result<Outcome> {
    let loaded = directory::load(store)?;
    let report = Report::new(&loaded);
    let mut stdout = io::stdout().lock();
    match args.format {
        Format::Text => {
            let color = stdout.is_terminal();
            for diagnostic in report.errors.iter().chain(&report.warnings) {
                writeln!(stdout, "{}\n", diagnostic.render(color))?;
            }
            write!(stdout, "{}: ", store.directory.display())?;
            write_summary(&mut stdout, &report)?;
            if args.verbose {
                write_ignored(&mut stdout, report.unused)?;
            }
        }
        Format::Json => writeln!(stdout, "{:#}", json(&report))?,
    }
    let is_denied = args.deny_warnings && !report.warnings.is_empty();
    Ok(Outcome::of(report.snapshot.is_some() && !is_denied))
}

/// The findings about a directory.
struct Report<'a> {
    /// The snapshot that `serve` would load, if any.
    snapshot: Option<&'a Snapshot>,
    errors: &'a [Diagnostic],
    warnings: Vec<Diagnostic>,
    unused: &'a UnusedFiles,
}

impl<'a> Report<'a> {
    fn new(directory: &'a Directory) -> Self {
        let (snapshot, errors, warnings) = match &directory.compiled {
            Ok(snapshot) => (Some(&**snapshot), [].as_slice(), snapshot.warnings()),
            Err(error) => (None, error.errors.as_slice(), error.warnings.as_slice()),
        };
        let unused = directory.sources.unused();
        Self {
            snapshot,
            errors,
            warnings: warnings.iter().cloned().chain(unused.warning()).collect(),
            unused,
        }
    }
}

fn write_summary(out: &mut impl io::Write, report: &Report<'_>) -> io::Result<()> {
    let (errors, warnings) = (report.errors.len(), report.warnings.len());
    let Some(snapshot) = report.snapshot else {
        writeln!(out, "bad: {errors} errors, {warnings} warnings")?;
        return write_left_out(out, report.unused.left_out);
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
    write_left_out(out, report.unused.left_out)?;
    write_advice(out, &advice(snapshot))
}

/// Writes how many files `.cedarignore` leaves out, by kind, if any.
fn write_left_out(out: &mut impl io::Write, left_out: LeftOutCounts) -> io::Result<()> {
    if left_out.is_empty() {
        return Ok(());
    }
    let LeftOutCounts {
        policies,
        schemas,
        entities,
        links,
        tests,
    } = left_out;
    writeln!(
        out,
        "files left out by .cedarignore: policies {policies}, schemas {schemas}, \
         entities {entities}, links {links}, tests {tests}"
    )
}

fn write_ignored(out: &mut impl io::Write, unused: &UnusedFiles) -> io::Result<()> {
    writeln!(out, "\nignored files: {}", unused.ignored.len())?;
    for name in &unused.ignored {
        writeln!(out, "  {name}")?;
    }
    Ok(())
}

fn json(report: &Report<'_>) -> serde_json::Value {
    let snapshot = report.snapshot;
    let counts = snapshot.map(|snapshot| {
        let counts = snapshot.counts();
        serde_json::json!({
            "policies": counts.policies,
            "templates": counts.templates,
            "links": counts.links,
            "entities": counts.entities,
        })
    });
    let all = report.errors.iter().chain(&report.warnings);
    let all = all.map(report::diagnostic_json);
    serde_json::json!({
        "valid": snapshot.is_some(),
        "errors": report.errors.len(),
        "warnings": report.warnings.len(),
        "diagnostics": all.collect::<Vec<_>>(),
        "revision": snapshot.map(|snapshot| snapshot.revision().as_str()),
        "counts": counts,
        "ignored": report.unused.ignored,
        "left_out": report.unused.left_out,
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
