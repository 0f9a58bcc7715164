//! The page `/status`: what `GetStatus` tells, the settings, and the process, as JSON.

use std::time::SystemTime;

use serde::Serialize;

use super::AdminState;
use crate::api::OverloadState;
use crate::engine::cache::CacheMetrics;
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pip::IssuerKeyMetrics;
use crate::policy_store::{LoadedSnapshot, RejectedReload, ReloadCounts, StoreStatus};

/// The page.
#[derive(Debug, Serialize)]
pub(crate) struct StatusPage<'a> {
    version: &'static str,
    started_at: String,
    uptime_seconds: u64,
    ready: bool,
    /// Why not.
    not_ready: Vec<String>,
    /// `null` when nothing has been loaded yet.
    loaded: Option<LoadedPart>,
    /// `null` when what the directory holds is in force.
    refused: Option<RefusedPart>,
    warnings: Vec<Finding>,
    reloads: ReloadsPart,
    /// `null` when nothing is remembered.
    cache: Option<CachePart>,
    overload: OverloadPart,
    /// The keys of each issuer of tokens.
    issuers: Vec<IssuerPart>,
    log: String,
    settings: &'a serde_json::Value,
}

#[derive(Debug, Serialize)]
struct LoadedPart {
    revision: String,
    at: String,
    policies: usize,
    templates: usize,
    links: usize,
    entities: usize,
}

#[derive(Debug, Serialize)]
struct RefusedPart {
    at: String,
    diagnostics: Vec<Finding>,
    total: usize,
}

/// A place where something is wrong. What it is is not told here, for it may quote what an entity
/// holds, and whoever reaches the page may read it: the log tells it, and `GetStatus`.
#[derive(Debug, Serialize)]
struct Finding {
    file: String,
    line: Option<u32>,
    column: Option<u32>,
}

#[derive(Debug, Serialize)]
struct ReloadsPart {
    reloaded: u64,
    unchanged: u64,
    refused: u64,
    held_back: u64,
}

#[derive(Debug, Serialize)]
struct IssuerPart {
    issuer: String,
    keys: u64,
    /// `null` when there never were any.
    keys_age_seconds: Option<u64>,
    taken: u64,
    failed: u64,
}

#[derive(Debug, Serialize)]
struct CachePart {
    hits: u64,
    misses: u64,
    evictions: u64,
    entries: u64,
    bytes: u64,
    capacity_bytes: u64,
}

/// The state of load shedding.
#[derive(Debug, Serialize)]
struct OverloadPart {
    /// `null` while no calls are shed.
    shedding_since: Option<String>,
    queue_delay_seconds: f64,
    /// Since the start.
    shed: u64,
}

/// The page as it is now.
pub(crate) fn of(admin_state: &AdminState) -> StatusPage<'_> {
    let status = admin_state.status.load();
    let StoreStatus {
        loaded,
        rejected: refused,
        warnings,
        reloads,
    } = &*status;
    let unready = admin_state.readiness.reasons();
    StatusPage {
        version: env!("CARGO_PKG_VERSION"),
        started_at: time(admin_state.started_at),
        // A clock that was set back makes it no younger than new.
        uptime_seconds: admin_state
            .started_at
            .elapsed()
            .unwrap_or_default()
            .as_secs(),
        ready: unready.is_empty(),
        not_ready: unready.iter().map(ToString::to_string).collect(),
        loaded: loaded.as_ref().map(self::loaded),
        refused: refused.as_ref().map(self::refused),
        warnings: warnings.iter().map(finding).collect(),
        reloads: self::reloads(*reloads),
        cache: admin_state.engine.cache_metrics().map(cache),
        overload: overload((admin_state.overload)()),
        issuers: (admin_state.tokens)()
            .iter()
            .flat_map(|figures| &figures.keys)
            .map(issuer)
            .collect(),
        log: admin_state.log.text(),
        settings: &admin_state.settings,
    }
}

fn loaded(loaded: &LoadedSnapshot) -> LoadedPart {
    let LoadedSnapshot {
        revision,
        at,
        counts,
    } = loaded;
    LoadedPart {
        revision: revision.to_string(),
        at: time(*at),
        policies: counts.policies,
        templates: counts.templates,
        links: counts.links,
        entities: counts.entities,
    }
}

fn refused(refused: &RejectedReload) -> RefusedPart {
    let RejectedReload {
        at,
        diagnostics,
        total,
    } = refused;
    RefusedPart {
        at: time(*at),
        diagnostics: diagnostics.iter().map(finding).collect(),
        total: *total,
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

fn reloads(counts: ReloadCounts) -> ReloadsPart {
    let ReloadCounts {
        reloaded,
        unchanged,
        rejected: refused,
        held_back,
    } = counts;
    ReloadsPart {
        reloaded,
        unchanged,
        refused,
        held_back,
    }
}

fn cache(figures: CacheMetrics) -> CachePart {
    let CacheMetrics {
        hits,
        misses,
        evictions,
        entries,
        bytes,
        capacity_bytes,
    } = figures;
    CachePart {
        hits,
        misses,
        evictions,
        entries,
        bytes,
        capacity_bytes,
    }
}

fn overload(state: OverloadState) -> OverloadPart {
    let OverloadState {
        shedding_since,
        queue_delay,
        shed,
    } = state;
    OverloadPart {
        shedding_since: shedding_since.map(time),
        queue_delay_seconds: queue_delay.as_secs_f64(),
        shed,
    }
}

fn issuer(figures: &IssuerKeyMetrics) -> IssuerPart {
    let IssuerKeyMetrics {
        issuer,
        keys,
        age,
        accepted,
        failed,
    } = figures;
    IssuerPart {
        issuer: issuer.to_string(),
        keys: *keys,
        keys_age_seconds: age.map(|age| age.as_secs()),
        taken: *accepted,
        failed: *failed,
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
    fn a_finding_tells_where_it_is_and_not_what_an_entity_holds() {
        let told = finding(&Diagnostic {
            file: "users.json".to_owned(),
            position: Some(Position { line: 3, column: 7 }),
            message: r#"`User::"ann"` has the attribute `salary`: 12000"#.to_owned(),
            severity: Severity::Error,
            help: None,
            excerpt: None,
        });
        let json = serde_json::to_value(&told).unwrap();
        let wanted = serde_json::json!({"file": "users.json", "line": 3, "column": 7});
        assert_eq!(json, wanted);
    }
}
