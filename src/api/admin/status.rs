//! The page `/status`: the state of the policy store, the settings and the process, as JSON.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::AdminState;
use crate::pdp::diagnostic::Diagnostic;
use crate::pip::Tokens;
use crate::policy_store::StoreStatus;

/// Returns the page with the current values. Its field names are an interface for operators.
pub(super) fn read(state: &AdminState) -> Value {
    let status = state.status.load();
    let StoreStatus {
        loaded,
        rejected,
        warnings,
        left_out,
        reloads,
    } = &*status;
    let loaded = loaded.as_ref().map(|loaded| {
        json!({
            "revision": loaded.revision.to_string(),
            "at": time(loaded.at),
            "policies": loaded.counts.policies,
            "templates": loaded.counts.templates,
            "links": loaded.counts.links,
            "entities": loaded.counts.entities,
        })
    });
    let refused = rejected.as_ref().map(|rejected| {
        json!({
            "at": time(rejected.at),
            "diagnostics": findings(&rejected.diagnostics),
            "total": rejected.total,
        })
    });
    let overload = state.admission.state();
    let tokens = state.tokens.as_deref().map(Tokens::metrics);
    let keys = tokens.iter().flat_map(|tokens| &tokens.keys);
    let issuers = keys.map(|keys| {
        json!({
            "issuer": keys.issuer.to_string(),
            "keys": keys.keys,
            // Null before the first successful fetch.
            "keys_age_seconds": keys.age.map(|age| age.as_secs()),
            "taken": keys.accepted,
            "failed": keys.failed,
        })
    });
    let not_ready = state.readiness.reasons();
    let not_ready: Vec<_> = not_ready.iter().map(ToString::to_string).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": time(state.started_at),
        // A clock that was set back yields 0.
        "uptime_seconds": state.started_at.elapsed().unwrap_or_default().as_secs(),
        "ready": not_ready.is_empty(),
        "not_ready": not_ready,
        // Null until something is loaded.
        "loaded": loaded,
        // Null if the content of the directory is loaded.
        "refused": refused,
        "warnings": findings(warnings),
        // Files that `.cedarignore` leaves out.
        "left_out": left_out,
        "reloads": reloads,
        // Null if the cache is off.
        "cache": state.engine.cache_metrics(),
        "overload": {
            // Null while no calls are shed.
            "shedding_since": overload.shedding_since.map(time),
            "queue_delay_seconds": overload.queue_delay.as_secs_f64(),
            "shed": overload.shed,
        },
        "issuers": issuers.collect::<Vec<_>>(),
        "log": state.log.text(),
        "settings": state.settings,
    })
}

/// Returns the positions of diagnostics. Their texts are left out, because they may quote attributes
/// of entities, and the page needs no authentication. The log and `GetStatus` have the texts.
fn findings(diagnostics: &[Diagnostic]) -> Vec<Value> {
    let positions = diagnostics.iter().map(|diagnostic| {
        json!({
            "file": diagnostic.file,
            "line": diagnostic.position.map(|position| position.line),
            "column": diagnostic.position.map(|position| position.column),
        })
    });
    positions.collect()
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::diagnostic::{Position, Severity};

    #[test]
    fn finding_holds_position_without_text() {
        let finding = findings(&[Diagnostic {
            file: "users.json".to_owned(),
            position: Some(Position { line: 3, column: 7 }),
            message: r#"`User::"ann"` has the attribute `salary`: 12000"#.to_owned(),
            severity: Severity::Error,
            help: None,
            excerpt: None,
        }]);
        assert_eq!(
            finding,
            [json!({"file": "users.json", "line": 3, "column": 7})]
        );
    }
}
