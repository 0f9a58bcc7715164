//! What a page of metrics looks like, and that it holds no more than it says.

use std::collections::BTreeSet;

use super::*;
use crate::pip::RejectionReason;
use crate::policy_store::{StoreSettings, open};
use crate::readiness::Readiness;

async fn page(cache: Option<CacheMetrics>) -> (String, Arc<DecisionMetrics>, Arc<CallFigures>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("a.cedar"),
        "permit(principal, action, resource);",
    )
    .unwrap();
    let opened = open(StoreSettings {
        directory: dir.path().to_owned(),
        ..StoreSettings::default()
    })
    .await
    .unwrap();
    let decisions = Arc::<DecisionMetrics>::default();
    let calls = Arc::<CallFigures>::default();
    let page = Page::new(Sources {
        decisions: Arc::clone(&decisions),
        calls: Arc::clone(&calls),
        tls: Box::new(|| {
            Some(TlsMetrics {
                not_after_unix_seconds: 2_000_000_000,
                accepted: 1,
                rejected: 0,
            })
        }),
        overload: Box::new(|| OverloadState {
            shedding_since: None,
            queue_delay: Duration::from_millis(30),
            shed: 0,
        }),
        callers: Box::new(|| {
            Some(CallersFigures {
                callers: 3,
                taken: 1,
                refused: 2,
            })
        }),
        tokens: Box::new(|| {
            let key = |keys, age| IssuerKeyMetrics {
                issuer: "https://issuer.example".into(),
                keys,
                age: Some(Duration::from_secs(age)),
                accepted: 2,
                failed: 1,
            };
            Some(TokenMetrics {
                verified: 5,
                cached: 6,
                cache_entries: 1,
                rejected: RejectionReason::ALL.map(|reason| (reason, 1)).into(),
                keys: vec![key(3, 10), key(0, 20)],
                revocations: 4,
                revocations_rejected: 0,
                revocations_shrunk: 0,
            })
        }),
        spans: Arc::default(),
        store: opened.status,
        readiness: Readiness::new().reader(),
        cache: Box::new(move || cache),
        decision_log: None,
        started_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
    });
    (page.text(), decisions, calls)
}

/// The series of a page: everything but comments.
fn series(page: &str) -> Vec<&str> {
    page.lines().filter(|line| !line.starts_with('#')).collect()
}

#[tokio::test]
async fn every_metric_of_the_list_is_on_the_page_once_and_no_other() {
    let (page, ..) = page(None).await;
    let told: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let listed: Vec<String> = METRICS
        .iter()
        // No limit of descriptors is told where there is none.
        .filter(|metric| **metric != MAX_FDS || page.contains(MAX_FDS.name))
        .map(|metric| format!("{} {}", metric.name, metric.kind))
        .collect();
    assert_eq!(told, listed);
}

#[tokio::test]
async fn every_name_has_a_unit_or_counts_and_every_help_is_a_line() {
    for Metric {
        name, kind, help, ..
    } in METRICS
    {
        let is_ours = name.starts_with("cedar_pdp_") || name.starts_with("process_");
        assert!(is_ours, "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert!(
            !help.is_empty() && !help.contains('\n') && !help.ends_with('.'),
            "{name}"
        );
    }
    let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), METRICS.len());
}

#[tokio::test]
async fn bounds_and_times_are_written_in_seconds() {
    let (page, ..) = page(None).await;
    for line in [
        r#"cedar_pdp_decision_duration_seconds_bucket{source="cache",le="1e-05"} 0"#,
        r#"cedar_pdp_decision_duration_seconds_bucket{source="cache",le="2.5"} 0"#,
        r#"cedar_pdp_decision_duration_seconds_bucket{source="cache",le="+Inf"} 0"#,
        r#"cedar_pdp_decision_candidates_bucket{le="10000"} 0"#,
        "process_start_time_seconds 1.5",
        "cedar_pdp_policies 1.0",
        "cedar_pdp_queue_delay_seconds 0.03",
        "cedar_pdp_issuers_without_keys 1.0",
        "cedar_pdp_issuer_keys_age_seconds 20.0",
        r#"cedar_pdp_issuer_key_sets_total{result="failed"} 2"#,
        r#"cedar_pdp_tokens_refused_total{reason="TOKEN_EXPIRED"} 1"#,
        "cedar_pdp_tls_certificate_expiry_timestamp_seconds 2000000000.0",
    ] {
        assert!(
            page.lines().any(|it| it == line),
            "{line} is not in\n{page}"
        );
    }
}

#[tokio::test]
async fn a_page_on_which_everything_has_happened_has_no_more_series_than_it_may() {
    let (page, ..) = page(None).await;
    // What is not told from the start is every status but OK of every method.
    let more = crate::api::metrics::Method::ALL.len() * 16;
    assert!(
        series(&page).len() + more <= MOST_SERIES,
        "{}",
        series(&page).len() + more
    );
}
