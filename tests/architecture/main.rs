//! Tests of the source itself: imports, sizes, and the words of names and comments.
//!
//! They count production code only, except for the names of tests. `figures` prints all figures,
//! also of another checkout: see `figures_of_the_source`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and should say where"
)]

mod imports;
mod names;
mod prose;
mod sizes;
mod source;

use names::Names;
use source::{production, sources};

/// (place, names that its code may not use, exceptions). Lower layers never import higher ones.
type LayerRule = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const LAYER_RULES: &[LayerRule] = &[
    // Takes values and returns values: no task, wire, disk or clock, and no other part of this
    // crate.
    (
        "src/pdp",
        &[
            "crate",
            "tokio",
            "tokio_stream",
            "futures_util",
            "tonic",
            "hyper",
            "http",
            "prost",
            "moka",
            "notify",
            "rustix",
            "tracing",
            "std::fs",
            "std::env",
            "std::net",
            "std::time",
            "std::io",
            "std::process",
            "std::os",
        ],
        &["crate::pdp"],
    ),
    (
        "src/policy_store",
        &["crate", "tonic", "hyper", "http", "prost", "moka", "notify"],
        // `watch` reports changes.
        &[
            "crate::policy_store",
            "crate::config::StoreSettings",
            "crate::config::SourceLimits",
            "crate::counters",
            "crate::pdp",
            "crate::watch",
        ],
    ),
    (
        "src/engine",
        &[
            "crate", "tonic", "hyper", "http", "prost", "notify", "std::fs",
        ],
        // The policy store gives the engine its `Reader`.
        &[
            "crate::engine",
            "crate::config::CacheSettings",
            "crate::counters",
            "crate::pdp",
            "crate::policy_store::Reader",
            "crate::policy_store::snapshots",
            // The engine logs every decision.
            "crate::decision_log",
        ],
    ),
    (
        "src/decision_log",
        &["crate", "tonic", "hyper", "http", "prost", "moka", "notify"],
        &[
            "crate::decision_log",
            "crate::counters",
            "crate::pdp",
            "crate::config::decision_log",
        ],
    ),
    // Verifies tokens. It returns plain values, and knows no wire but that of key servers.
    (
        "src/pip",
        &["crate", "tonic", "prost", "notify"],
        &[
            "crate::pip",
            "crate::config::TokenSettings",
            "crate::counters",
            "crate::versioned",
            "crate::pdp::query",
            "crate::pdp::is_type_name",
            "crate::pdp::json_object",
            "crate::watch",
        ],
    ),
    (
        "src/api",
        &["crate", "moka", "notify"],
        &[
            "crate::api",
            "crate::engine",
            "crate::pdp",
            "crate::pip",
            "crate::readiness",
            // The origin of a logged decision, and its id in the response.
            "crate::decision_log",
            // Checked addresses and settings.
            "crate::config::listen",
            "crate::config::api",
            // Certificates and the list of callers are reloaded when they change.
            "crate::watch",
            // `PolicyStoreService` reports the store's status, and reloads on demand.
            "crate::policy_store::StatusReader",
            "crate::policy_store::ReloadHandle",
            "crate::policy_store::ReloadOutcome",
            "crate::policy_store::ReloadCounts",
            "crate::policy_store::StoreStatus",
            "crate::policy_store::status",
            // The list of all metrics.
            "crate::counters",
            "crate::policy_store::metrics",
            "crate::telemetry::traces::metrics",
            "crate::versioned",
            // The admin server changes the log filter.
            "crate::telemetry::log::LogFilter",
            // A traced call carries its span.
            "crate::telemetry::traces",
        ],
    ),
    // Settings hold the core's and the watcher's own types.
    (
        "src/config",
        &["crate"],
        &[
            "crate::config",
            "crate::pdp",
            "crate::watch::Mode",
            "crate::watch::WatchSettings",
        ],
    ),
    (
        "src/authoring",
        &["crate", "std::fs", "std::io", "tokio"],
        &["crate::authoring", "crate::pdp"],
    ),
    ("src/watch", &["crate"], &["crate::watch"]),
    (
        "src/readiness",
        &["crate"],
        &["crate::readiness", "crate::counters"],
    ),
    ("src/counters", &["crate"], &["crate::counters"]),
    ("src/versioned", &["crate"], &["crate::versioned"]),
    (
        "src/telemetry",
        &["crate"],
        &[
            "crate::telemetry",
            "crate::config",
            "crate::counters",
            // Attributes of spans.
            "crate::engine::Source",
            "crate::pdp::answer::Decision",
            // The decision log's records are sent to a collector.
            "crate::decision_log::Collector",
            "crate::decision_log::Rejected",
            "crate::decision_log::SendError",
            "crate::decision_log::WriteResult",
        ],
    ),
    ("src/app", &["crate::cli"], &[]),
    (
        "src/cli",
        &["crate", "tonic", "hyper", "http", "prost", "moka", "notify"],
        &[
            "crate::cli",
            "crate::authoring",
            "crate::pdp",
            "crate::config",
            "crate::policy_store::cores",
            "crate::policy_store::directory",
            "crate::policy_store::SourceLimits",
            "crate::policy_store::losses",
            // `serve` runs the service, and rereads the policies on SIGHUP.
            "crate::app",
            "crate::telemetry",
            "crate::policy_store::ReloadHandle",
            // `authorize --connect` and `healthcheck` call a running service.
            "crate::api::grpc::client",
        ],
    ),
];

/// (names, the only places that may use them).
const ONLY: &[(&[&str], &[&str])] = &[
    (&["cedar_policy", "cedar_policy_core"], &["src/pdp"]),
    (
        &[
            "tonic",
            "tonic_health",
            "tonic_prost",
            "tonic_reflection",
            "tonic_types",
            "prost",
            "prost_types",
            "tower",
            "crate::api::grpc::pb",
        ],
        // The client of collectors speaks gRPC too.
        &["src/api", "src/telemetry/collector"],
    ),
    // The API, and the clients of key servers and collectors.
    (
        &["hyper", "hyper_util"],
        &["src/api", "src/pip/keys/fetch", "src/telemetry/collector"],
    ),
    (
        &["http"],
        &[
            "src/api",
            "src/pip/keys/fetch",
            "src/telemetry/collector",
            // Headers sent to a collector.
            "src/config/otel",
        ],
    ),
    (
        &["hyper_rustls"],
        &["src/pip/keys/fetch", "src/telemetry/collector/client"],
    ),
    (&["jsonwebtoken"], &["src/pip"]),
    (
        &["rustls"],
        &[
            "src/api",
            "src/pip/keys/fetch",
            "src/telemetry/collector/client",
        ],
    ),
    (&["tokio_rustls", "x509_parser"], &["src/api"]),
    (&["notify"], &["src/watch"]),
    (&["moka"], &["src/engine/cache", "src/pip/token_cache"]),
    (&["prometheus_client"], &["src/counters/page"]),
    (
        &["opentelemetry", "opentelemetry_sdk", "opentelemetry_proto"],
        &[
            "src/telemetry/collector",
            "src/telemetry/traces",
            "src/telemetry/otlp_logs",
        ],
    ),
    // A benchmark names the fast path that `main` switches off.
    (&["std::env"], &["src/config", "src/main"]),
    (
        &["std::fs", "std::os::unix::fs", "rustix::fs", "tokio::fs"],
        &[
            // Policy files.
            "src/policy_store/directory",
            // Directories and links on the way to a file, and certificates and the like.
            "src/watch",
            // The configuration file.
            "src/config/sources",
            // The decision log's files.
            "src/decision_log/sink",
            // Files of sockets.
            "src/api/transport/listener",
            // Resources of this process, from `/proc`.
            "src/api/admin/process",
            // CA certificates that verify a collector.
            "src/telemetry/collector",
            // Files that arguments and test cases name.
            "src/cli/authorize",
            "src/cli/target",
            "src/cli/test",
            "src/cli/directory",
            // Files that the command writes.
            "src/cli/fmt",
            "src/cli/init",
        ],
    ),
];

/// Returns whether `name` is `prefix`, or inside it.
fn is_of(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn lower_layers_import_no_higher_ones() {
    let mut wrong = Vec::new();
    for source in production() {
        for (place, forbidden, allowed) in LAYER_RULES {
            if !source.is_in(place) {
                continue;
            }
            for name in Names::of(source).absolute_paths() {
                let is_forbidden = forbidden.iter().any(|what| is_of(&name, what));
                if is_forbidden && !allowed.iter().any(|what| is_of(&name, what)) {
                    wrong.push(format!("{} names {name}", source.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn restricted_names_stay_in_their_places() {
    let mut wrong = Vec::new();
    for source in production() {
        for (named, places) in ONLY {
            if places.iter().any(|place| source.is_in(place)) {
                continue;
            }
            for name in Names::of(source).absolute_paths() {
                if named.iter().any(|what| is_of(&name, what)) {
                    wrong.push(format!("{} names {name}", source.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn places_in_the_rules_exist() {
    let sources = sources();
    let places = LAYER_RULES.iter().map(|(place, ..)| place);
    for place in places.chain(ONLY.iter().flat_map(|(_, places)| *places)) {
        assert!(sources.iter().any(|source| source.is_in(place)), "{place}");
    }
}

#[test]
fn files_begin_with_their_purpose() {
    for source in sources() {
        let first = source.text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//! ") && first.len() > 15,
            "{}: {first}",
            source.path
        );
    }
}

#[test]
fn modules_are_files_of_their_own_name() {
    for source in sources() {
        assert!(!source.path.ends_with("/mod.rs"), "{}", source.path);
    }
}
