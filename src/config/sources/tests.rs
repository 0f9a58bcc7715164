//! Tests of precedence, of invalid sources, and of the printed configuration.

use std::io::Write as _;

use super::*;

/// A command line with settings alone.
#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: ConfigArgs,
}

fn try_merge(
    file: Option<&str>,
    variables: &[(&str, &str)],
    flags: &[&str],
) -> Result<MergedConfig, ConfigError> {
    let line = std::iter::once(&"cedar-pdp").chain(flags);
    let mut args = <Line as clap::Parser>::try_parse_from(line).unwrap().args;
    let written = file.map(|toml| {
        let mut written = tempfile::NamedTempFile::new().unwrap();
        written.write_all(toml.as_bytes()).unwrap();
        args.config = Some(written.path().to_owned());
        written
    });
    let variables = variables
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let merged = merge_with(args, variables);
    drop(written);
    merged
}

fn merge(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> MergedConfig {
    try_merge(Some(file), variables, flags).unwrap()
}

#[track_caller]
fn rejected(file: Option<&str>, variables: &[(&str, &str)], message: &str) {
    let error = try_merge(file, variables, &[]).unwrap_err().to_string();
    assert!(error.ends_with(message), "{error}");
}

#[test]
fn flags_override_environment_overrides_file_overrides_defaults() {
    let merged = merge(
        "policies = 'file'\nwatch = 'poll'\nlog = 'warn'",
        &[
            ("CEDAR_PDP_POLICIES", "environment"),
            ("CEDAR_PDP_LOG", "error"),
        ],
        &["--policies", "flag"],
    );
    let config = merged.check().unwrap();
    assert_eq!(config.store.directory, PathBuf::from("flag"));
    assert_eq!(config.log.filter, "error");
    assert_eq!(config.store.watch.mode, crate::watch::Mode::Poll);
    let printed = merged.to_toml().unwrap();
    for line in [
        "policies = \"flag\" # flag",
        "log = \"error\" # environment",
        "watch = \"poll\" # file",
        "drain_timeout = \"25s\" # default",
        "# anonymous_principal is not set # default",
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line} in\n{printed}"
        );
    }
}

#[test]
fn option_means_the_same_in_every_source() {
    let keys = [
        ("listen", "a:1,unix:b", "['a:1', 'unix:b']"),
        (
            "request_entity_types",
            "User,Shop::Order",
            "['User', 'Shop::Order']",
        ),
        (
            "anonymous_principal",
            "User::\"it's\"",
            "'''User::\"it's\"'''",
        ),
        ("start_unready", "true", "true"),
        ("cache_bytes", "0", "0"),
        ("quiet_period", "1s", "'1s'"),
    ];
    let file: String = keys
        .iter()
        .map(|(key, _, toml)| format!("{key} = {toml}\n"))
        .collect();
    let named = |key: &str| {
        options()
            .into_iter()
            .find(|option| option.key == key)
            .unwrap()
    };
    let variables: Vec<_> = keys
        .iter()
        .map(|(key, text, _)| (named(key).variable, *text))
        .collect();
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, text)| (name.as_str(), *text))
        .collect();
    let flags: Vec<_> = keys
        .iter()
        .flat_map(|(key, text, _)| match *key {
            "listen" => text
                .split(',')
                .map(|text| format!("--listen={text}"))
                .collect(),
            key => vec![format!("{}={text}", named(key).flag)],
        })
        .collect();
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();

    let from_file = merge(&file, &[], &[]).raw;
    assert_eq!(merge("", &variables, &[]).raw, from_file);
    assert_eq!(merge("", &[], &flags).raw, from_file);
    from_file.check().unwrap();
}

#[test]
fn flag_turns_off_switch_of_file() {
    let on = merge("", &[], &["--allow-empty"]);
    assert_eq!(on.raw.allow_empty, Some(true));
    let off = merge("allow_empty = true", &[], &["--allow-empty=false"]);
    assert_eq!(off.raw.allow_empty, Some(false));
}

#[test]
fn printed_configuration_gives_the_same_configuration() {
    let all: &[&[&str]] = &[
        &[],
        &[
            "--listen=[::1]:0",
            "--listen=unix:/a'b\"c",
            "--anonymous-principal=User::\"it's \u{1F600} \\0 \\\"\"",
        ],
        &[
            "--request-entity-types=",
            "--quiet-period=1s 500ms",
            "--cache-bytes=0",
        ],
    ];
    for flags in all {
        let first = merge("", &[], flags);
        let again = merge(&first.to_toml().unwrap(), &[], &[]);
        assert_eq!(again.check().unwrap(), first.check().unwrap());
    }
}

#[test]
fn flag_overrides_file_named_by_environment() {
    let named = [("CEDAR_PDP_CONFIG", "/nonexistent/pdp.toml")];
    rejected(
        None,
        &named,
        "`/nonexistent/pdp.toml`: No such file or directory (os error 2)",
    );
    assert_eq!(
        merge("log = 'warn'", &named, &[]).raw.log.as_deref(),
        Some("warn")
    );
}

#[test]
fn unknown_key_is_reported_with_nearest() {
    rejected(
        Some("# ours\nlog = 'info'\npoll_intervall = '5s'"),
        &[],
        ", line 3: unknown key `poll_intervall`; the nearest known one is `poll_interval`",
    );
    rejected(
        Some("[listen_on]\nport = 1"),
        &[],
        ", line 1: unknown key `listen_on`; the nearest known one is `listen`",
    );
}

#[test]
fn syntax_and_type_errors_name_their_line() {
    rejected(
        Some("log = 'info'\nlog = 'warn'"),
        &[],
        ", line 2: duplicate key",
    );
    rejected(
        Some("log = 'info'\ncache_bytes = '64 MiB'"),
        &[],
        ", line 2: `cache_bytes`: invalid type: string \"64 MiB\", expected i64",
    );
    rejected(
        Some("\nlisten = [\n'a:1',\n2]"),
        &[],
        ", line 4: `listen`: invalid type: integer `2`, expected a string",
    );
}

#[test]
fn unknown_variable_is_reported_with_nearest() {
    rejected(
        None,
        &[("CEDAR_PDP_POLICY", "x")],
        "unknown environment variable `CEDAR_PDP_POLICY`; the nearest known one is `CEDAR_PDP_POLICIES`",
    );
    rejected(
        None,
        &[("CEDAR_PDP_log", "x")],
        "unknown environment variable `CEDAR_PDP_log`; the nearest known one is `CEDAR_PDP_LOG`",
    );
    rejected(
        None,
        &[("CEDAR_PDP_", "x")],
        "unknown environment variable `CEDAR_PDP_`; the nearest known one is `CEDAR_PDP_LOG`",
    );
}

#[test]
fn variable_of_wrong_type_is_rejected() {
    rejected(
        None,
        &[("CEDAR_PDP_ALLOW_EMPTY", "yes")],
        "environment variable `CEDAR_PDP_ALLOW_EMPTY`: `yes` is not `true` or `false`",
    );
    rejected(
        None,
        &[("CEDAR_PDP_CACHE_BYTES", "")],
        "environment variable `CEDAR_PDP_CACHE_BYTES`: `` is not a whole number",
    );
}

#[test]
fn invalid_value_is_reported_with_its_source() {
    let merged = merge("", &[("CEDAR_PDP_WATCH", "on")], &[]);
    assert_eq!(
        merged.check().unwrap_err().to_string(),
        "`watch` is `on`; allowed: events, poll (from: environment)",
    );
}

#[test]
fn variables_set_by_kubernetes_are_ignored() {
    let variables = [
        ("CEDAR_PDP_SERVICE_HOST", "10.0.0.1"),
        ("CEDAR_PDP_SERVICE_PORT", "50051"),
        ("CEDAR_PDP_SERVICE_PORT_GRPC", "50051"),
        ("CEDAR_PDP_PORT", "tcp://10.0.0.1:50051"),
        ("CEDAR_PDP_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("CEDAR_PDP_PORT_50051_TCP_PROTO", "tcp"),
        ("CEDAR_PDP_PORT_50051_TCP_PORT", "50051"),
        ("CEDAR_PDP_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("CEDAR_PDP_PORT_53_UDP_ADDR", "10.0.0.1"),
        ("CEDAR_PDP_METRICS_SERVICE_HOST", "10.0.0.2"),
        ("CEDAR_PDP_METRICS_PORT_9090_TCP_PORT", "9090"),
        ("CEDAR_PDPX", "not ours"),
    ];
    assert_eq!(merge("", &variables, &[]).raw, RawConfig::default());
    for typo in [
        "CEDAR_PDP_PORT",
        "CEDAR_PDP_LISTEN_PORT",
        "CEDAR_PDP_PORTS",
        "CEDAR_PDP_PORT_X_TCP",
        "CEDAR_PDP_PORT_1",
        "CEDAR_PDP_SERVICE",
    ] {
        assert!(try_merge(None, &[(typo, "1")], &[]).is_err(), "{typo}");
    }
    for option in options() {
        let name = option.variable.strip_prefix(PREFIX).unwrap();
        assert!(!is_from_kubernetes(name, "tcp://".as_ref()), "{name}");
    }
}

#[test]
fn every_option_has_description_and_most_defaults() {
    let options = options();
    assert!(options.len() > 27, "keys are missing");
    for option in &options {
        assert!(!option.meaning.is_empty(), "{option:?}");
    }
    let without: Vec<_> = options
        .iter()
        .filter(|option| option.default.is_none())
        .collect();
    assert_eq!(
        without
            .iter()
            .map(|option| option.key.as_str())
            .collect::<Vec<_>>(),
        [
            "tls_cert",
            "tls_key",
            "tls_client_ca",
            "callers",
            "request_entity_types",
            "require_known",
            "anonymous_principal",
            "tokens",
            "revocations",
            "decision_log_attributes",
        ],
    );
}
