//! The page `/status`: the state of the policy store, the settings and the process, as JSON.

use std::time::SystemTime;

use serde::Serialize;

use super::state::AdminState;
use crate::api::decision::admission::OverloadState;
use crate::engine::cache::CacheMetrics;
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::snapshot::Counts;
use crate::pip::{IssuerKeyMetrics, Tokens};
use crate::policy_store::{LoadedSnapshot, RejectedReload, ReloadCounts, StoreStatus};

/// The page. Its field names are an interface for operators.
#[derive(Debug, Serialize)]
pub(super) struct StatusPage<'a> {
    version: &'static str,
    started_at: String,
    uptime_seconds: u64,
    ready: bool,
    not_ready: Vec<String>,
    /// `null` until something is loaded.
    loaded: Option<LoadedPart>,
    /// `null` if the content of the directory is loaded.
    refused: Option<RejectedPart>,
    warnings: Vec<Finding>,
    reloads: ReloadCounts,
    /// `null` if the cache is off.
    cache: Option<CacheMetrics>,
    overload: OverloadPart,
    issuers: Vec<IssuerPart>,
    log: String,
    settings: &'a serde_json::Value,
}

#[derive(Debug, Serialize)]
struct LoadedPart {
    revision: String,
    at: String,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Debug, Serialize)]
struct RejectedPart {
    at: String,
    diagnostics: Vec<Finding>,
    total: usize,
}

/// The position of a diagnostic. Its text is left out, because it may quote attributes of entities,
/// and the page needs no authentication. The log and `GetStatus` have the text.
#[derive(Debug, Serialize)]
struct Finding {
    file: String,
    line: Option<u32>,
    column: Option<u32>,
}

/// The keys of one issuer of tokens.
#[derive(Debug, Serialize)]
struct IssuerPart {
    issuer: String,
    keys: u64,
    /// `null` before the first successful fetch.
    keys_age_seconds: Option<u64>,
    taken: u64,
    failed: u64,
}

/// The state of load shedding.
#[derive(Debug, Serialize)]
struct OverloadPart {
    /// `null` while no calls are shed.
    shedding_since: Option<String>,
    queue_delay_seconds: f64,
    shed: u64,
}

/// Returns the page with the current values.
pub(super) fn read(state: &AdminState) -> StatusPage<'_> {
    let status = state.status.load();
    let StoreStatus {
        loaded,
        rejected,
        warnings,
        reloads,
    } = &*status;
    let not_ready = state.readiness.reasons();
    let uptime = state.started_at.elapsed();
    let tokens = state.tokens.as_deref().map(Tokens::metrics);
    StatusPage {
        version: env!("CARGO_PKG_VERSION"),
        started_at: time(state.started_at),
        // A clock that was set back yields 0.
        uptime_seconds: uptime.unwrap_or_default().as_secs(),
        ready: not_ready.is_empty(),
        not_ready: not_ready.iter().map(ToString::to_string).collect(),
        loaded: loaded.as_ref().map(loaded_part),
        refused: rejected.as_ref().map(rejected_part),
        warnings: warnings.iter().map(finding).collect(),
        reloads: *reloads,
        cache: state.engine.cache_metrics(),
        overload: overload_part(state.admission.state()),
        issuers: tokens
            .iter()
            .flat_map(|tokens| &tokens.keys)
            .map(issuer_part)
            .collect(),
        log: state.log.text(),
        settings: &state.settings,
    }
}

fn loaded_part(loaded: &LoadedSnapshot) -> LoadedPart {
    LoadedPart {
        revision: loaded.revision.to_string(),
        at: time(loaded.at),
        counts: loaded.counts,
    }
}

fn rejected_part(rejected: &RejectedReload) -> RejectedPart {
    RejectedPart {
        at: time(rejected.at),
        diagnostics: rejected.diagnostics.iter().map(finding).collect(),
        total: rejected.total,
    }
}

fn finding(diagnostic: &Diagnostic) -> Finding {
    let position = diagnostic.position;
    Finding {
        file: diagnostic.file.clone(),
        line: position.map(|Position { line, .. }| line),
        column: position.map(|Position { column, .. }| column),
    }
}

fn overload_part(state: OverloadState) -> OverloadPart {
    OverloadPart {
        shedding_since: state.shedding_since.map(time),
        queue_delay_seconds: state.queue_delay.as_secs_f64(),
        shed: state.shed,
    }
}

fn issuer_part(metrics: &IssuerKeyMetrics) -> IssuerPart {
    IssuerPart {
        issuer: metrics.issuer.to_string(),
        keys: metrics.keys,
        keys_age_seconds: metrics.age.map(|age| age.as_secs()),
        taken: metrics.accepted,
        failed: metrics.failed,
    }
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::diagnostic::Severity;

    #[test]
    fn finding_holds_position_without_text() {
        let finding = finding(&Diagnostic {
            file: "users.json".to_owned(),
            position: Some(Position { line: 3, column: 7 }),
            message: r#"`User::"ann"` has the attribute `salary`: 12000"#.to_owned(),
            severity: Severity::Error,
            help: None,
            excerpt: None,
        });
        let json = serde_json::to_value(&finding).unwrap();
        let wanted = serde_json::json!({"file": "users.json", "line": 3, "column": 7});
        assert_eq!(json, wanted);
    }
}
