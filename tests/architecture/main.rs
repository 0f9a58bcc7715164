//! Who may look at whom, read from the source: what ARCHITECTURE.md says of it, as tests.
//!
//! Production code only: a file called `tests.rs`, what stands below a folder `tests`, and an
//! inline `mod tests` may name what they need.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and should say where"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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
        // Ticks come from `watch`, which stands beside both lanes.
        &["crate::policy_store", "crate::pdp", "crate::watch"],
    ),
    (
        "src/engine",
        &[
            "crate", "tonic", "hyper", "http", "prost", "notify", "std::fs",
        ],
        // Where the lanes meet: the store hands the engine its `Reader`.
        &[
            "crate::engine",
            "crate::figures",
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
            "crate::pdp",
            // What was asked, as the engine has it.
            "crate::engine::query_ref",
            "crate::config::decision_log",
        ],
    ),
    // Who is asking. It hands on plain values, and knows no wire but the one to a server of keys.
    (
        "src/pip",
        &["crate", "tonic", "prost", "moka", "notify"],
        &[
            "crate::pip",
            "crate::pdp::query",
            "crate::pdp::is_type_name",
            "crate::followed",
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
            // Certificates and lists of callers are the doors' own, and may change.
            "crate::followed",
            // `PolicyStoreService` is a door to the store: its status, and reloads on demand.
            "crate::policy_store::StatusReader",
            "crate::policy_store::Reloads",
            "crate::policy_store::ReloadOutcome",
            "crate::policy_store::ReloadCounts",
            "crate::policy_store::StoreStatus",
            "crate::policy_store::status",
            // What it has done stands on the operators' page of it.
            "crate::policy_store::Loaded",
            "crate::policy_store::RefusedReload",
            "crate::figures",
            // The operators' door is where the log's filter is changed.
            "crate::telemetry::log::LogFilter",
            // A call that is traced takes its span along.
            "crate::telemetry::traces",
        ],
    ),
    // Parsed settings hold the types that the core is set by.
    ("src/config", &["crate"], &["crate::config", "crate::pdp"]),
    ("src/watch", &["crate"], &["crate::watch"]),
    (
        "src/followed",
        &["crate"],
        &["crate::followed", "crate::watch"],
    ),
    ("src/readiness", &["crate"], &["crate::readiness"]),
    ("src/figures", &["crate"], &["crate::figures"]),
    (
        "src/telemetry",
        &["crate"],
        &[
            "crate::telemetry",
            "crate::config",
            // What others have counted, for the page of metrics.
            "crate::figures",
            "crate::decision_log::DecisionLog",
            "crate::decision_log::DecisionLogFigures",
            // Where its lines go, if they go to a collector.
            "crate::decision_log::Collector",
            "crate::decision_log::Receipt",
            "crate::decision_log::Refusal",
            "crate::decision_log::SendError",
            "crate::engine::Source",
            "crate::engine::cache::CacheFigures",
            "crate::engine::figures",
            "crate::api::figures",
            "crate::api::CallersFigures",
            "crate::api::TlsFigures",
            "crate::pip::KeyFigures",
            "crate::pip::TokenFigures",
            "crate::decision_log::DecisionLogFigures",
            "crate::policy_store::StatusReader",
            "crate::policy_store::ReloadCounts",
            "crate::readiness",
            "crate::pdp::answer::Decision",
        ],
    ),
    ("src/app", &["crate::cli"], &[]),
    (
        "src/cli",
        &["crate", "tonic", "hyper", "http", "prost", "moka", "notify"],
        &[
            "crate::cli",
            "crate::pdp",
            "crate::config",
            "crate::policy_store::source",
            "crate::policy_store::SourceLimits",
            // `serve` runs the house, and has it reread at SIGHUP.
            "crate::app",
            "crate::telemetry",
            "crate::policy_store::Reloads",
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
        &["http", "hyper", "hyper_util"],
        &["src/api", "src/pip/keys/fetch", "src/telemetry/collector"],
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
    (&["moka"], &["src/engine/cache"]),
    (&["prometheus_client"], &["src/telemetry/metrics"]),
    (
        &[
            "opentelemetry",
            "opentelemetry_sdk",
            "opentelemetry_otlp",
            "opentelemetry_http",
            "opentelemetry_proto",
        ],
        &[
            "src/telemetry/collector",
            "src/telemetry/traces",
            "src/telemetry/decisions",
        ],
    ),
    (&["std::env"], &["src/config"]),
    (
        &["std::fs", "std::os::unix::fs", "rustix::fs", "tokio::fs"],
        &[
            // Policy files.
            "src/policy_store/source",
            // Which directory stands behind a path; no file is opened.
            "src/watch",
            // The configuration file.
            "src/config/layers",
            // Certificates and the like.
            "src/followed",
            // The decision log's files.
            "src/decision_log/lines",
            // Files of sockets.
            "src/api/listen",
            // What the kernel tells of this process.
            "src/telemetry/process",
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

/// A source file: its path from the root of the crate, and its text.
struct Source {
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut ahead = vec![root.join("src")];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                ahead.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path
                    .strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(found.len() > 20, "the source is somewhere else");
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// The sources that go into the program.
fn production() -> impl Iterator<Item = Source> {
    let is_test = |path: &str| path.ends_with("/tests.rs") || path.contains("/tests/");
    sources()
        .into_iter()
        .filter(move |source| !is_test(&source.path))
}

impl Source {
    /// Whether this is `place`, or lies below it.
    fn is_in(&self, place: &str) -> bool {
        self.path
            .strip_prefix(place)
            .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }

    /// The module that this file is, from the root of the crate.
    fn module(&self) -> Vec<String> {
        let path = self
            .path
            .strip_prefix("src/")
            .unwrap()
            .strip_suffix(".rs")
            .unwrap();
        let mut module: Vec<String> = path.split('/').map(ToOwned::to_owned).collect();
        if matches!(path, "lib" | "main") {
            module.clear();
        }
        module
    }

    /// Every path that this file names in `use` or in passing, made absolute.
    fn names(&self) -> BTreeSet<String> {
        let production = self.text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let tokens = tokens(production);
        let mut names = BTreeSet::new();
        let mut at = 0;
        while at < tokens.len() {
            if tokens[at] == "use" {
                at += 1;
                use_tree(&tokens, &mut at, &mut Vec::new(), &mut names);
            } else {
                let mut path = Vec::new();
                while tokens.get(at).is_some_and(|token| is_word(token)) {
                    path.push(tokens[at].clone());
                    at += 1;
                    if tokens.get(at).is_some_and(|token| token == "::")
                        && tokens.get(at + 1).is_some_and(|token| is_word(token))
                    {
                        at += 1;
                    } else {
                        break;
                    }
                }
                if path.is_empty() {
                    at += 1;
                } else if path.len() > 1 {
                    names.insert(path.join("::"));
                }
            }
        }
        names.into_iter().map(|name| self.absolute(&name)).collect()
    }

    fn absolute(&self, name: &str) -> String {
        let mut module = self.module();
        let mut parts = name.split("::").peekable();
        match parts.peek() {
            Some(&"self") => {
                parts.next();
            }
            Some(&"super") => {
                while parts.next_if_eq(&"super").is_some() {
                    module.pop();
                }
            }
            Some(&"cedar_pdp") => {
                parts.next();
                module.clear();
            }
            _ => return name.to_owned(),
        }
        let rest = parts.map(ToOwned::to_owned);
        let path: Vec<String> = std::iter::once("crate".to_owned())
            .chain(module)
            .chain(rest)
            .collect();
        path.join("::")
    }
}

/// Words, `::` and single characters; comments, texts and characters are left out.
fn tokens(text: &str) -> Vec<String> {
    let text: Vec<char> = text.chars().collect();
    let starts = |at: usize, what: &str| {
        what.chars()
            .enumerate()
            .all(|(n, c)| text.get(at + n) == Some(&c))
    };
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if starts(at, "//") {
            while at < text.len() && text[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "r#\"") {
            at += 3;
            while at < text.len() && !starts(at, "\"#") {
                at += 1;
            }
            at += 2;
        } else if text[at] == '"' {
            at += 1;
            while at < text.len() && text[at] != '"' {
                at += if text[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if starts(at, "'\\") {
            at += 3;
            while at < text.len() && text[at] != '\'' {
                at += 1;
            }
            at += 1;
        } else if text[at] == '\'' && text.get(at + 2) == Some(&'\'') {
            at += 3;
        } else if starts(at, "::") {
            tokens.push("::".to_owned());
            at += 2;
        } else if text[at].is_alphanumeric() || text[at] == '_' {
            let begin = at;
            while at < text.len() && (text[at].is_alphanumeric() || text[at] == '_') {
                at += 1;
            }
            tokens.push(text[begin..at].iter().collect());
        } else {
            if !text[at].is_whitespace() {
                tokens.push(text[at].to_string());
            }
            at += 1;
        }
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphanumeric() || first == '_')
}

/// Adds every path of the tree of a `use` that begins at `at`.
fn use_tree(
    tokens: &[String],
    at: &mut usize,
    prefix: &mut Vec<String>,
    names: &mut BTreeSet<String>,
) {
    let depth = prefix.len();
    while let Some(token) = tokens.get(*at) {
        match token.as_str() {
            "::" => *at += 1,
            "{" => {
                *at += 1;
                while tokens[*at] != "}" {
                    use_tree(tokens, at, prefix, names);
                    if tokens[*at] == "," {
                        *at += 1;
                    }
                }
                *at += 1;
                break;
            }
            "as" => {
                *at += 2;
                names.insert(prefix.join("::"));
                break;
            }
            "self" if depth > 0 || !prefix.is_empty() => {
                *at += 1;
                names.insert(prefix.join("::"));
                // `self as name`
                if tokens[*at] == "as" {
                    *at += 2;
                }
                break;
            }
            "*" => {
                *at += 1;
                names.insert(prefix.join("::"));
                break;
            }
            word if is_word(word) => {
                prefix.push(word.to_owned());
                *at += 1;
                if matches!(tokens[*at].as_str(), "," | "}" | ";") {
                    names.insert(prefix.join("::"));
                    break;
                }
            }
            // The `+ use<'a>` of a return type.
            _ => {
                *at += 1;
                break;
            }
        }
    }
    prefix.truncate(depth);
}

/// Whether `name` is `what`, or in it.
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
            for name in source.names() {
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
fn what_has_one_place_is_named_nowhere_else() {
    let mut wrong = Vec::new();
    for source in production() {
        for (named, places) in ONLY {
            if places.iter().any(|place| source.is_in(place)) {
                continue;
            }
            for name in source.names() {
                if named.iter().any(|what| is_of(&name, what)) {
                    wrong.push(format!("{} names {name}", source.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_place_in_the_rules_exists() {
    let sources = sources();
    let floors = FLOORS.iter().map(|(place, ..)| place);
    for place in floors.chain(ONLY.iter().flat_map(|(_, places)| *places)) {
        assert!(sources.iter().any(|source| source.is_in(place)), "{place}");
    }
}

#[test]
fn every_file_says_first_what_it_is_for() {
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
fn a_module_is_a_file_of_its_own_name() {
    for source in sources() {
        assert!(!source.path.ends_with("/mod.rs"), "{}", source.path);
    }
}

#[test]
fn the_reader_of_sources_sees_every_way_of_naming() {
    let source = Source {
        path: "src/policy_store/reload.rs".to_owned(),
        text: r##"//! Text: std::fs.
use std::{env, io::{self, Read as _}};
use super::{source, super::engine::*};
use self::inner as other;
fn f() -> impl Sized + use<> { let _ = ("std::net", 'x', '\'', r#"a::b"#); crate::api::pb::X::new(); tonic::Status }
#[cfg(test)]
mod tests { use std::time; }
"##
        .to_owned(),
    };
    let names: Vec<String> = source.names().into_iter().collect();
    assert_eq!(
        names,
        [
            "crate::api::pb::X::new",
            "crate::engine",
            "crate::policy_store::reload::inner",
            "crate::policy_store::source",
            "std::env",
            "std::io",
            "std::io::Read",
            "tonic::Status",
        ]
    );
}
