//! What each key may hold.

use super::decision_log::Destination;
use super::*;

fn raw(toml: &str) -> RawConfig {
    toml::from_str(toml).unwrap()
}

#[track_caller]
fn refused(toml: &str, message: &str) {
    let error = raw(toml).check().expect_err(toml);
    assert_eq!(error.to_string(), message, "for {toml}");
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = RawConfig::default().check().unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.policies, PathBuf::from("./policies"));
    assert_eq!(config.listen, [Listen::Tcp("127.0.0.1".to_owned(), 50051)]);
    assert_eq!(config.pdp, Settings::default());
    assert_eq!(config.drain_timeout, Duration::from_secs(25));
}

#[test]
fn every_key_reaches_its_field() {
    let config = raw(r#"
policies = "/etc/policies"
listen = ["[::1]:1", "unix:///run/pdp.sock"]
tls_cert = "/tls/tls.crt"
tls_key = "/tls/tls.key"
tls_client_ca = "/tls/ca.crt"
tls_client_auth = "optional"
insecure = true
unix_socket_mode = "600"
callers = "/etc/callers.toml"
reflection = "off"
explanations = "off"
policy_store_service = "off"
shutdown_delay = "13s"
admin_listen = "0.0.0.0:9"
validation = "warn"
on_policy_error = "deny"
request_entity_types = ["Shop::Order", "User"]
anonymous_principal = 'User::"nobody"'
tokens = "/etc/issuers.toml"
revocations = "/etc/revoked.toml"
token_cache_bytes = 15
start_unready = true
allow_empty = true
watch = "poll"
poll_interval = "1m"
quiet_period = "70ms"
max_reload_delay = "8s"
max_file_bytes = 2
max_total_bytes = 3
cache_bytes = 4
max_message_bytes = 2048
max_pending_bytes = 4096
max_batch_items = 6
max_candidates = 13
max_store_bytes = 14
max_request_entities = 7
max_request_values = 70
max_value_depth = 8
max_concurrent_streams = 9
max_concurrent_calls = 17
max_call_time = "18s"
overload_delay = "19ms"
max_header_bytes = 2000
max_connections = 21
max_connection_age = "22s"
max_connection_age_grace = "23s"
max_connection_idle = "24s"
handshake_timeout = "9s"
keepalive_interval = "10s"
keepalive_timeout = "11s"
drain_timeout = "12s"
decision_log = "file:/var/log/decisions.jsonl"
decision_log_allow_sample = "25%"
decision_log_attributes = ["context.amount", "User.*"]
decision_log_when_full = "block"
decision_log_queue_bytes = 1048577
decision_log_max_file_bytes = 15
decision_log_max_files = 16
log = "cedar_pdp=debug"
log_format = "json"
"#)
    .check()
    .unwrap();
    let expected = Config {
        policies: "/etc/policies".into(),
        listen: vec![
            Listen::Tcp("::1".to_owned(), 1),
            Listen::Unix("/run/pdp.sock".into()),
        ],
        tls: Some(TlsConfig {
            certificate: "/tls/tls.crt".into(),
            key: "/tls/tls.key".into(),
            client_authorities: Some("/tls/ca.crt".into()),
            is_client_optional: true,
        }),
        insecure: true,
        unix_socket_mode: 0o600,
        callers: Some("/etc/callers.toml".into()),
        services: ServicesConfig {
            reflection: false,
            explanations: false,
            policy_store: false,
        },
        admin_listen: Some(Listen::Tcp("0.0.0.0".to_owned(), 9)),
        pdp: Settings {
            validation: Validation::Warn,
            on_policy_error: OnPolicyError::Deny,
            request_entity_types: Some(["Shop::Order", "User"].map(str::to_owned).into()),
            max_candidates: 13,
            max_store_bytes: 14,
        },
        anonymous_principal: Some(Uid::new("User", "nobody")),
        tokens: TokensConfig {
            issuers: Some("/etc/issuers.toml".into()),
            revocations: Some("/etc/revoked.toml".into()),
            cache_bytes: NonZeroU64::new(15),
        },
        store: StoreConfig {
            start_unready: true,
            allow_empty: true,
            watch: WatchMode::Poll,
            poll_interval: Duration::from_secs(60),
            quiet_period: Duration::from_millis(70),
            max_reload_delay: Duration::from_secs(8),
            max_file_bytes: 2,
            max_total_bytes: 3,
        },
        cache: CacheConfig {
            bytes: NonZeroU64::new(4),
        },
        limits: Limits {
            max_message_bytes: 2048,
            max_pending_bytes: 4096,
            max_batch_items: 6,
            max_request_entities: 7,
            max_request_values: 70,
            max_value_depth: 8,
            max_concurrent_streams: 9,
            max_concurrent_calls: 17,
            max_call_time: Some(Duration::from_secs(18)),
            overload_delay: Some(Duration::from_millis(19)),
            max_header_bytes: 2000,
            max_connections: 21,
            max_connection_age: Some(Duration::from_secs(22)),
            max_connection_age_grace: Duration::from_secs(23),
            max_connection_idle: Some(Duration::from_secs(24)),
            handshake_timeout: Duration::from_secs(9),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(11),
        },
        shutdown_delay: Duration::from_secs(13),
        drain_timeout: Duration::from_secs(12),
        decision_log: DecisionLogConfig {
            destination: Destination::File("/var/log/decisions.jsonl".into()),
            allow_sample: "0.25".parse().unwrap(),
            when_full: WhenFull::Block,
            queue_bytes: 1_048_577,
            max_file_bytes: 15,
            max_files: 16,
            attributes: ["context.amount", "User.*"]
                .map(|path| path.parse().unwrap())
                .into(),
        },
        log: LogConfig {
            filter: "cedar_pdp=debug".to_owned(),
            format: LogFormat::Json,
        },
    };
    assert_eq!(config, expected);
    let again = RawConfig::from(&config).check().unwrap();
    assert_eq!(again, config, "its own text means the same");
}

#[test]
fn of_a_time_that_may_be_without_bound_zero_is_none() {
    for key in [
        "max_call_time",
        "overload_delay",
        "max_connection_age",
        "max_connection_idle",
    ] {
        let config = raw(&format!("{key} = '0s'")).check().unwrap();
        let limits = config.limits;
        let none = match key {
            "max_call_time" => limits.max_call_time,
            "overload_delay" => limits.overload_delay,
            "max_connection_age" => limits.max_connection_age,
            _ => limits.max_connection_idle,
        };
        assert_eq!(none, None, "{key}");
        assert!(raw(&format!("{key} = '1us'")).check().is_err(), "{key}");
        assert!(raw(&format!("{key} = '1year'")).check().is_err(), "{key}");
        assert!(raw(&format!("{key} = 'ever'")).check().is_err(), "{key}");
    }
}

#[test]
fn a_mode_of_a_file_is_octal() {
    for (text, mode) in [("0660", 0o660), ("600", 0o600), ("000", 0), ("0777", 0o777)] {
        let config = raw(&format!("unix_socket_mode = '{text}'"))
            .check()
            .unwrap();
        assert_eq!(config.unix_socket_mode, mode);
    }
    for text in ["", "66", "0888", "rw-rw----", "1777", "+660", "0x1b0"] {
        refused(
            &format!("unix_socket_mode = '{text}'"),
            &format!("`unix_socket_mode` is `{text}`, which is no mode of a file such as `0660`"),
        );
    }
}

#[test]
fn half_of_tls_is_refused() {
    let cert = r#"tls_cert = "c""#;
    let pair = "tls_cert = \"c\"\ntls_key = \"k\"\n";
    refused(cert, "`tls_cert` needs `tls_key`");
    refused(r#"tls_key = "k""#, "`tls_key` needs `tls_cert`");
    refused(
        &format!("{pair}tls_client_ca = \"a\""),
        "`tls_client_ca` needs `tls_client_auth`",
    );
    for auth in ["optional", "required"] {
        refused(
            &format!("{pair}tls_client_auth = \"{auth}\""),
            "`tls_client_auth` needs `tls_client_ca`",
        );
        refused(
            &format!("tls_client_ca = \"a\"\ntls_client_auth = \"{auth}\""),
            "`tls_client_ca` needs `tls_cert`",
        );
    }
    let tls = raw(&format!(
        "{pair}tls_client_ca = \"a\"\ntls_client_auth = \"required\""
    ));
    let tls = tls.check().unwrap().tls.unwrap();
    assert!(!tls.is_client_optional && tls.client_authorities.is_some());
}

#[test]
fn what_the_decision_log_cannot_be_is_refused_with_what_it_can() {
    refused(
        r#"decision_log = "syslog""#,
        "`decision_log` is `syslog`; allowed: off, stdout, file:PATH, otlp",
    );
    refused(
        r#"decision_log_allow_sample = "10""#,
        "`decision_log_allow_sample` is `10`, which is no share from 0 to 1 such as `0.1` or `10%`",
    );
    refused(
        r#"decision_log_attributes = ["context.x", "amount"]"#,
        "`decision_log_attributes` names `amount`, which is no attribute such as `context.amount`, `Shop::Order.owner`, `User.*` or `errors.message`",
    );
    refused(
        "decision_log_queue_bytes = 1000",
        "`decision_log_queue_bytes` is 1000; allowed: 1048576 to 68719476736",
    );
}

#[test]
fn a_word_that_a_key_does_not_have_is_refused_with_those_it_has() {
    refused(
        r#"validation = "lax""#,
        "`validation` is `lax`; allowed: strict, warn, off",
    );
    refused(
        r#"on_policy_error = "Deny""#,
        "`on_policy_error` is `Deny`; allowed: skip, deny",
    );
    refused(
        r#"watch = "inotify""#,
        "`watch` is `inotify`; allowed: events, poll",
    );
    refused(
        r#"log_format = """#,
        "`log_format` is ``; allowed: text, json",
    );
}

#[test]
fn zero_and_absurd_numbers_are_refused_with_the_range() {
    for (key, lowest, highest) in [
        ("max_file_bytes", 1, 4_294_967_296_i64),
        ("max_total_bytes", 1, 68_719_476_736),
        ("max_store_bytes", 1, 68_719_476_736),
        ("max_candidates", 1, 1_000_000),
        ("cache_bytes", 0, 68_719_476_736),
        ("max_message_bytes", 1024, 1_073_741_824),
        ("max_pending_bytes", 1024, 68_719_476_736),
        ("max_batch_items", 1, 1_000_000),
        ("max_request_entities", 1, 1_000_000),
        ("max_request_values", 1, 100_000_000),
        ("max_value_depth", 1, 32),
        ("max_concurrent_streams", 1, 1_000_000),
        ("max_concurrent_calls", 1, 1_000_000),
        ("max_header_bytes", 1024, 1_048_576),
        ("max_connections", 1, 1_000_000),
    ] {
        for value in [-1, lowest - 1, highest + 1, i64::MAX] {
            refused(
                &format!("{key} = {value}"),
                &format!("`{key}` is {value}; allowed: {lowest} to {highest}"),
            );
        }
        for value in [lowest, highest] {
            raw(&format!("{key} = {value}")).check().expect(key);
        }
    }
}

#[test]
fn zero_and_absurd_durations_are_refused_with_the_range() {
    for (key, lowest, highest) in [
        ("poll_interval", "10ms", "1h"),
        ("quiet_period", "1ms", "1m"),
        ("max_reload_delay", "50ms", "1h"),
        ("keepalive_interval", "100ms", "1h"),
        ("keepalive_timeout", "100ms", "1h"),
        ("drain_timeout", "1ms", "1h"),
    ] {
        for value in ["0s", "999us", "2h"] {
            refused(
                &format!("{key} = '{value}'"),
                &format!("`{key}` is {value}; allowed: {lowest} to {highest}"),
            );
        }
        for value in [lowest, highest] {
            raw(&format!("{key} = '{value}'")).check().expect(key);
        }
    }
    refused(
        "drain_timeout = '25'",
        "`drain_timeout` is `25`, which is no duration such as `5s` or `50ms`: \
         time unit needed, for example 25sec or 25ms",
    );
}

#[test]
fn a_reload_may_be_held_back_no_shorter_than_the_quiet_period() {
    refused(
        "quiet_period = '10s'\nmax_reload_delay = '9s'",
        "`max_reload_delay` is 9s; allowed: 10s to 1h",
    );
    let config = raw("quiet_period = '10s'").check().unwrap();
    assert_eq!(config.store.max_reload_delay, Duration::from_secs(10));
}

#[test]
fn no_cache_bytes_turn_the_cache_off() {
    assert_eq!(raw("cache_bytes = 0").check().unwrap().cache.bytes, None);
}

#[test]
fn the_operators_door_may_be_left_out() {
    let config = raw("admin_listen = 'off'").check().unwrap();
    assert_eq!(config.admin_listen, None);
    let again = RawConfig::from(&config).check().unwrap();
    assert_eq!(again, config);
    refused(
        "admin_listen = 'on'",
        "`admin_listen` is wrong: `on` has no port; write HOST:PORT, [V6]:PORT or unix:PATH",
    );
}

#[test]
fn an_empty_list_of_request_entity_types_is_none_not_any() {
    for toml in ["request_entity_types = []", "request_entity_types = ['']"] {
        let config = raw(toml).check().unwrap();
        assert_eq!(config.pdp.request_entity_types, Some([].into()));
    }
}

#[test]
fn text_that_cannot_be_read_is_refused() {
    refused("policies = ''", "`policies` is empty");
    refused("listen = []", "`listen` is empty");
    refused(
        "listen = ['127.0.0.1:1', 'localhost']",
        "`listen` is wrong: `localhost` has no port; write HOST:PORT, [V6]:PORT or unix:PATH",
    );
    refused(
        "anonymous_principal = 'nobody'",
        "`anonymous_principal` is wrong: `nobody` is not a uid such as `User::\"alice\"`: \
         unexpected end of input",
    );
    refused(
        "request_entity_types = ['User', 'Shop::']",
        "`request_entity_types` names `Shop::`, which is no entity type such as `Shop::Order`",
    );
    refused("log = ' '", "`log` is empty");
    let error = raw("log = 'cedar_pdp=loud'").check().unwrap_err();
    assert!(error.to_string().starts_with("`log` is `cedar_pdp=loud`"));
}
