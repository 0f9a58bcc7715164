//! Tests of the source itself: who may import whom, sizes, and the words of names and comments.
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

/// (place, what its code may not name, what of that it may). Lower floors never look up.
type Floor = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const FLOORS: &[Floor] = &[
    // Takes values and gives values: no task, no wire, no disk, no clock, and nothing else of ours.
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
        // Change reports come from `watch`, which stands beside both lanes.
        &[
            "crate::policy_store",
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
        // Where the lanes meet: the store hands the engine its `Reader`.
        &[
            "crate::engine",
            "crate::config::CacheSettings",
            "crate::counters",
            "crate::pdp",
            "crate::policy_store::Reader",
            "crate::policy_store::snapshots",
            // What is decided is told here.
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
    // Who is asking. It hands on plain values, and knows no wire but the one to a server of keys.
    (
        "src/pip",
        &["crate", "tonic", "prost", "notify"],
        &[
            "crate::pip",
            "crate::counters",
            "crate::versioned",
            "crate::pdp::query",
            "crate::pdp::is_type_name",
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
            // What a door knows of a call that the log tells, and the id that a caller is told.
            "crate::decision_log",
            // An address is a value that `config` has checked; a door is opened on it.
            "crate::config::listen",
            "crate::config::api",
            // Certificates and lists of callers are the doors' own, and may change.
            "crate::watch",
            // `PolicyStoreService` is a door to the store: its status, and reloads on demand.
            "crate::policy_store::StatusReader",
            "crate::policy_store::ReloadHandle",
            "crate::policy_store::ReloadOutcome",
            "crate::policy_store::ReloadCounts",
            "crate::policy_store::StoreStatus",
            "crate::policy_store::status",
            // What it has done stands on the operators' page of it.
            "crate::policy_store::LoadedSnapshot",
            "crate::policy_store::RejectedReload",
            // The list of all metrics.
            "crate::counters",
            "crate::policy_store::metrics",
            "crate::telemetry::traces::metrics",
            "crate::versioned",
            // The operators' door is where the log's filter is changed.
            "crate::telemetry::log::LogFilter",
            // A call that is traced takes its span along.
            "crate::telemetry::traces",
        ],
    ),
    // Parsed settings hold the types that the core is set by.
    (
        "src/config",
        &["crate"],
        &[
            "crate::config",
            "crate::pdp",
            "crate::watch::Mode",
            "crate::followed::FollowSettings",
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
            // Where its lines go, if they go to a collector.
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
            // `serve` runs the house, and has it reread at SIGHUP.
            "crate::app",
            "crate::telemetry",
            "crate::policy_store::ReloadHandle",
            // `authorize --connect` and `healthcheck` are callers.
            "crate::api::client",
        ],
    ),
];

/// (what is named, the only places that name it).
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
            "crate::api::pb",
        ],
        // A collector is called, too.
        &["src/api", "src/telemetry/collector"],
    ),
    // The doors, and what is asked of others: the keys of issuers, and to take spans and records.
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
            // Headers that a collector is sent.
            "src/config/otel",
        ],
    ),
    (
        &["hyper_rustls"],
        &["src/pip/keys/fetch", "src/telemetry/collector/http_client"],
    ),
    (&["jsonwebtoken"], &["src/pip"]),
    (
        &["rustls"],
        &[
            "src/api",
            "src/pip/keys/fetch",
            "src/telemetry/collector/http_client",
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
    (&["std::env"], &["src/config"]),
    (
        &["std::fs", "std::os::unix::fs", "rustix::fs", "tokio::fs"],
        &[
            // Policy files.
            "src/policy_store/directory",
            // Directories and links on the way to a file, and certificates and the like.
            "src/watch",
            // The configuration file.
            "src/config/layers",
            // The decision log's files.
            "src/decision_log/sink",
            // Files of sockets.
            "src/api/listen",
            // What the kernel tells of this process.
            "src/api/admin/process",
            // Authorities that a collector is verified by.
            "src/telemetry/collector",
            // What is part of one request or one test, a report, and whether the directory is there.
            "src/cli/authorize",
            "src/cli/target",
            "src/cli/test",
            "src/cli/directory",
        ],
    ),
];

/// Returns whether `name` is `what`, or in it.
fn is_of(name: &str, what: &str) -> bool {
    name.strip_prefix(what)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn lower_floors_never_look_up() {
    let mut wrong = Vec::new();
    for source in production() {
        for (place, forbidden, allowed) in FLOORS {
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
    let floors = FLOORS.iter().map(|(place, ..)| place);
    for place in floors.chain(ONLY.iter().flat_map(|(_, places)| *places)) {
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
