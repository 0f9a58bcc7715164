//! The content of the metrics page, and the bound on its size.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::api::admin::process::ProcessMetrics;
use crate::api::decision::admission::Admission;
use crate::api::metrics::{CallMetrics, Method};
use crate::api::{CallersMetrics, TlsMetrics};
use crate::config::Config;
use crate::config::api::AdmissionLimits;
use crate::counters::page::{Export, Exporters, Kind};
use crate::decision_log::DecisionLogMetrics;
use crate::engine::cache::CacheMetrics;
use crate::engine::metrics::DecisionMetrics;
use crate::pip::{IssuerKeyMetrics, RejectionReason, TokenMetrics};
use crate::policy_store::{StoreSettings, open};
use crate::readiness::Readiness;
use crate::telemetry::traces::SpanMetrics;

fn token_metrics() -> TokenMetrics {
    let issuer = |keys, age| IssuerKeyMetrics {
        issuer: "https://issuer.example".into(),
        keys,
        age: Some(Duration::from_secs(age)),
        accepted: 2,
        failed: 1,
    };
    TokenMetrics {
        verified: 5,
        cached: 6,
        cache_entries: 1,
        rejected: RejectionReason::ALL.map(|reason| (reason, 1)).into(),
        keys: vec![issuer(3, 10), issuer(0, 20)],
        revocations: 4,
        revocations_rejected: 0,
        revocations_shrunk: 0,
    }
}

/// Returns a page on which every part has metrics.
async fn page() -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("a.cedar"),
        "permit(principal, action, resource);",
    )
    .unwrap();
    let opened = open(StoreSettings {
        directory: dir.path().to_owned(),
        ..Config::default().store
    })
    .await
    .unwrap();
    let parts: Vec<Arc<dyn Export>> = vec![
        Arc::new(ProcessMetrics {
            started_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
        }),
        Arc::new(Readiness::new().reader()),
        Arc::new(DecisionMetrics::default()),
        Arc::new(CacheMetrics::default()),
        Arc::new(CallMetrics::default()),
        Admission::new(&AdmissionLimits {
            delay: None,
            calls: 1,
        }),
        Arc::new(TlsMetrics {
            not_after_unix_seconds: 2_000_000_000,
            accepted: 1,
            rejected: 0,
        }),
        Arc::new(CallersMetrics {
            callers: 3,
            accepted: 1,
            rejected: 2,
        }),
        Arc::new(token_metrics()),
        Arc::new(SpanMetrics::default()),
        Arc::new(opened.status),
        Arc::new(DecisionLogMetrics::default()),
    ];
    Exporters::new(parts).text()
}

fn metrics() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().copied().flatten()
}

/// Returns the series of a page: all lines but comments.
fn series(page: &str) -> Vec<&str> {
    page.lines().filter(|line| !line.starts_with('#')).collect()
}

#[tokio::test]
async fn page_holds_each_listed_metric_once() {
    let page = page().await;
    let on_page: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let listed: Vec<String> = metrics()
        // Left out if the system does not limit descriptors.
        .filter(|metric| metric.name != "process_max_fds" || page.contains(metric.name))
        .map(|metric| format!("{} {}", metric.name, metric.kind))
        .collect();
    assert_eq!(on_page, listed);
}

#[tokio::test]
async fn names_and_help_texts_follow_conventions() {
    for Metric {
        name, kind, help, ..
    } in metrics()
    {
        let is_ours = name.starts_with("cedar_pdp_") || name.starts_with("process_");
        assert!(is_ours, "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert!(
            !help.is_empty() && !help.contains('\n') && !help.ends_with('.'),
            "{name}"
        );
    }
    let names: BTreeSet<_> = metrics().map(|metric| metric.name).collect();
    assert_eq!(names.len(), metrics().count());
}

#[tokio::test]
async fn bounds_and_times_are_in_seconds() {
    let page = page().await;
    for line in [
        r#"cedar_pdp_decision_duration_seconds_bucket{source="cache",le="1e-05"} 0"#,
        r#"cedar_pdp_decision_duration_seconds_bucket{source="cache",le="2.5"} 0"#,
        r#"cedar_pdp_decision_duration_seconds_bucket{source="cache",le="+Inf"} 0"#,
        r#"cedar_pdp_decision_candidates_bucket{le="10000"} 0"#,
        "process_start_time_seconds 1.5",
        "cedar_pdp_policies 1.0",
        "cedar_pdp_queue_delay_seconds 0.0",
        "cedar_pdp_issuers_without_keys 1.0",
        "cedar_pdp_issuer_keys_age_seconds 20.0",
        r#"cedar_pdp_issuer_key_sets_total{result="failed"} 2"#,
        r#"cedar_pdp_tokens_refused_total{reason="TOKEN_EXPIRED"} 1"#,
        r#"cedar_pdp_caller_lists_total{result="refused"} 2"#,
        "cedar_pdp_tls_certificate_expiry_timestamp_seconds 2000000000.0",
    ] {
        assert!(
            page.lines().any(|it| it == line),
            "{line} is not in\n{page}"
        );
    }
}

#[tokio::test]
async fn page_with_all_series_is_bounded() {
    let page = page().await;
    // Every status but OK of every method is left out until it occurs.
    let more = Method::ALL.len() * 16;
    assert!(
        series(&page).len() + more <= MAX_SERIES,
        "{}",
        series(&page).len() + more
    );
}
