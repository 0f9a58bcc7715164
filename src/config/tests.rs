//! Tests of the values that each key accepts.

use super::api::{
    AdmissionLimits, AuthorizationRules, ClientCertificates, ConnectionLimits, LifetimeLimits,
    RequestRules, Services, TlsSettings,
};
use super::decision_log::{AttributePath, Destination, Share, WhenFull};
use super::*;
use crate::pdp::query::Uid;
use crate::pdp::settings::{KnownTypes, OnPolicyError, Validation};
use crate::watch::Mode;

fn raw(toml: &str) -> RawConfig {
    toml::from_str(toml).unwrap()
}

#[track_caller]
fn rejected(toml: &str, message: &str) {
    let error = raw(toml).check().expect_err(toml);
    assert_eq!(error.to_string(), message, "for {toml}");
}

#[test]
fn unset_keys_have_defaults() {
    let config = RawConfig::default().check().unwrap();
    assert_eq!(config.in_force, RawConfig::defaults());
    assert_eq!(config.store.directory, PathBuf::from("./policies"));
    assert_eq!(config.listen, [Listen::Tcp("127.0.0.1".to_owned(), 50051)]);
    assert_eq!(config.store.pdp, Settings::default());
    assert_eq!(config.tokens, None);
    assert_eq!(config.shutdown.drain_timeout, Duration::from_secs(25));
    assert_eq!(config, Config::default());
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
require_known = ["Shop::Order"]
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
    let follow = WatchSettings {
        mode: Mode::Poll,
        poll: Duration::from_secs(60),
    };
    let expected = Config {
        listen: vec![
            Listen::Tcp("::1".to_owned(), 1),
            Listen::Unix("/run/pdp.sock".into()),
        ],
        api: ApiSettings {
            tls: Some(TlsSettings {
                certificate: "/tls/tls.crt".into(),
                key: "/tls/tls.key".into(),
                clients: ClientCertificates::Optional("/tls/ca.crt".into()),
            }),
            callers: Some("/etc/callers.toml".into()),
            services: Services {
                reflection: false,
                policy_store: false,
            },
            insecure: true,
            unix_socket_mode: 0o600,
            follow,
            authorization: AuthorizationRules {
                request: RequestRules {
                    anonymous_principal: Some(Uid::new("User", "nobody")),
                    max_request_entities: 7,
                    max_values: 70,
                    max_value_depth: 8,
                },
                max_batch_items: 6,
                explain: false,
            },
            connection: ConnectionLimits {
                max_concurrent_streams: 9,
                keepalive_interval: Duration::from_secs(10),
                keepalive_timeout: Duration::from_secs(11),
                handshake_timeout: Duration::from_secs(9),
                max_connections: 21,
                lifetime: LifetimeLimits {
                    age: Some(Duration::from_secs(22)),
                    age_grace: Duration::from_secs(23),
                    idle: Some(Duration::from_secs(24)),
                    unread: Some(Duration::from_secs(18)),
                },
                max_header_bytes: 2000,
                max_call_time: Some(Duration::from_secs(18)),
            },
            admission: AdmissionLimits {
                delay: Some(Duration::from_millis(19)),
                calls: 17,
            },
            max_message_bytes: 2048,
            max_pending_bytes: 4096,
        },
        admin_listen: Some(Listen::Tcp("0.0.0.0".to_owned(), 9)),
        store: StoreSettings {
            directory: "/etc/policies".into(),
            limits: SourceLimits {
                file_bytes: 2,
                total_bytes: 3,
                ..SourceLimits::default()
            },
            pdp: Settings {
                validation: Validation::Warn,
                on_policy_error: OnPolicyError::Deny,
                request_entity_types: Some(["Shop::Order", "User"].map(str::to_owned).into()),
                require_known: Some(KnownTypes::Named(["Shop::Order".to_owned()].into())),
                max_candidates: 13,
                max_store_bytes: 14,
            },
            watch: follow,
            quiet_period: Duration::from_millis(70),
            max_reload_delay: Duration::from_secs(8),
            allow_empty: true,
            start_unready: true,
        },
        tokens: Some(TokenSettings {
            issuers: "/etc/issuers.toml".into(),
            revocations: Some("/etc/revoked.toml".into()),
            cache_bytes: NonZeroU64::new(15),
            following: follow,
        }),
        cache: CacheSettings {
            capacity_bytes: NonZeroU64::new(4),
        },
        decision_log: DecisionLogConfig {
            destination: Destination::File("/var/log/decisions.jsonl".into()),
            allow_sample: Share::parse("0.25").unwrap(),
            when_full: WhenFull::Block,
            queue_bytes: 1_048_577,
            max_file_bytes: 15,
            max_files: 16,
            attributes: ["context.amount", "User.*"]
                .map(|path| AttributePath::parse(path).unwrap())
                .into(),
        },
        shutdown: ShutdownSettings {
            delay: Duration::from_secs(13),
            drain_timeout: Duration::from_secs(12),
        },
        log: LogConfig {
            filter: "cedar_pdp=debug".to_owned(),
            format: LogFormat::Json,
        },
        in_force: config.in_force.clone(),
    };
    assert_eq!(config, expected);
    let again = config.in_force.check().unwrap();
    assert_eq!(again, config, "its own text means the same");
}

#[test]
fn zero_duration_disables_optional_limits() {
    for key in [
        "max_call_time",
        "overload_delay",
        "max_connection_age",
        "max_connection_idle",
    ] {
        let config = raw(&format!("{key} = '0s'")).check().unwrap();
        let connection = config.api.connection;
        let limit = match key {
            "max_call_time" => connection.max_call_time,
            "overload_delay" => config.api.admission.delay,
            "max_connection_age" => connection.lifetime.age,
            _ => connection.lifetime.idle,
        };
        assert_eq!(limit, None, "{key}");
        assert!(raw(&format!("{key} = '1us'")).check().is_err(), "{key}");
        assert!(raw(&format!("{key} = '1year'")).check().is_err(), "{key}");
        assert!(raw(&format!("{key} = 'ever'")).check().is_err(), "{key}");
    }
}

#[test]
fn file_mode_is_octal() {
    for (text, mode) in [("0660", 0o660), ("600", 0o600), ("000", 0), ("0777", 0o777)] {
        let config = raw(&format!("unix_socket_mode = '{text}'"))
            .check()
            .unwrap();
        assert_eq!(config.api.unix_socket_mode, mode);
    }
    for text in ["", "66", "0888", "rw-rw----", "1777", "+660", "0x1b0"] {
        rejected(
            &format!("unix_socket_mode = '{text}'"),
            &format!("`unix_socket_mode` is `{text}`; expected an octal file mode such as `0660`"),
        );
    }
}

#[test]
fn incomplete_tls_settings_are_rejected() {
    let cert = r#"tls_cert = "c""#;
    let pair = "tls_cert = \"c\"\ntls_key = \"k\"\n";
    rejected(cert, "`tls_cert` needs `tls_key`");
    rejected(r#"tls_key = "k""#, "`tls_key` needs `tls_cert`");
    rejected(
        &format!("{pair}tls_client_ca = \"a\""),
        "`tls_client_ca` needs `tls_client_auth`",
    );
    for auth in ["optional", "required"] {
        rejected(
            &format!("{pair}tls_client_auth = \"{auth}\""),
            "`tls_client_auth` needs `tls_client_ca`",
        );
        rejected(
            &format!("tls_client_ca = \"a\"\ntls_client_auth = \"{auth}\""),
            "`tls_client_ca` needs `tls_cert`",
        );
    }
    let tls = raw(&format!(
        "{pair}tls_client_ca = \"a\"\ntls_client_auth = \"required\""
    ));
    let tls = tls.check().unwrap().api.tls.unwrap();
    assert_eq!(tls.clients, ClientCertificates::Required("a".into()));
}

#[test]
fn invalid_decision_log_settings_are_rejected() {
    rejected(
        r#"decision_log = "syslog""#,
        "`decision_log` is `syslog`; allowed: off, stdout, file:PATH, otlp",
    );
    rejected(
        r#"decision_log_allow_sample = "10""#,
        "`decision_log_allow_sample` is `10`; expected a share from 0 to 1 such as `0.1` or `10%`",
    );
    rejected(
        r#"decision_log_attributes = ["context.x", "amount"]"#,
        "`decision_log_attributes` contains `amount`; expected attributes such as `context.amount`, `Shop::Order.owner`, `User.*` or `errors.message`",
    );
    rejected(
        "decision_log_queue_bytes = 1000",
        "`decision_log_queue_bytes` is 1000; allowed: 1048576 to 68719476736",
    );
}

#[test]
fn unknown_word_is_rejected_with_allowed_ones() {
    rejected(
        r#"validation = "lax""#,
        "`validation` is `lax`; allowed: strict, warn, off",
    );
    rejected(
        r#"on_policy_error = "Deny""#,
        "`on_policy_error` is `Deny`; allowed: skip, deny",
    );
    rejected(
        r#"watch = "inotify""#,
        "`watch` is `inotify`; allowed: events, poll",
    );
    rejected(
        r#"log_format = """#,
        "`log_format` is ``; allowed: text, json",
    );
}

#[test]
fn numbers_out_of_range_are_rejected() {
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
            rejected(
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
fn durations_out_of_range_are_rejected() {
    for (key, lowest, highest) in [
        ("poll_interval", "10ms", "1h"),
        ("quiet_period", "1ms", "1m"),
        ("max_reload_delay", "50ms", "1h"),
        ("keepalive_interval", "100ms", "1h"),
        ("keepalive_timeout", "100ms", "1h"),
        ("drain_timeout", "1ms", "1h"),
    ] {
        for value in ["0s", "999us", "2h"] {
            rejected(
                &format!("{key} = '{value}'"),
                &format!("`{key}` is {value}; allowed: {lowest} to {highest}"),
            );
        }
        for value in [lowest, highest] {
            raw(&format!("{key} = '{value}'")).check().expect(key);
        }
    }
    rejected(
        "drain_timeout = '25'",
        "`drain_timeout` is `25`; expected a duration such as `5s` or `50ms`: \
         time unit needed, for example 25sec or 25ms",
    );
}

#[test]
fn reload_delay_is_at_least_quiet_period() {
    rejected(
        "quiet_period = '10s'\nmax_reload_delay = '9s'",
        "`max_reload_delay` is 9s; allowed: 10s to 1h",
    );
    let config = raw("quiet_period = '10s'").check().unwrap();
    assert_eq!(config.store.max_reload_delay, Duration::from_secs(10));
    assert_eq!(config.in_force.max_reload_delay.as_deref(), Some("10s"));
}

#[test]
fn zero_cache_bytes_disable_cache() {
    let config = raw("cache_bytes = 0").check().unwrap();
    assert_eq!(config.cache.capacity_bytes, None);
}

#[test]
fn admin_server_can_be_disabled() {
    let config = raw("admin_listen = 'off'").check().unwrap();
    assert_eq!(config.admin_listen, None);
    rejected(
        "admin_listen = 'on'",
        "`admin_listen` is not an address: `on` has no port; write HOST:PORT, [V6]:PORT or unix:PATH",
    );
}

#[test]
fn empty_request_entity_types_allow_none() {
    for toml in ["request_entity_types = []", "request_entity_types = ['']"] {
        let config = raw(toml).check().unwrap();
        assert_eq!(config.store.pdp.request_entity_types, Some([].into()));
    }
}

#[test]
fn known_types_are_named_or_all() {
    let required = |toml: &str| raw(toml).check().unwrap().store.pdp.require_known;
    assert_eq!(required(""), None);
    assert_eq!(required("require_known = ['*']"), Some(KnownTypes::All));
    let none = Some(KnownTypes::Named([].into()));
    assert_eq!(required("require_known = []"), none);
    rejected(
        "require_known = ['User', '*']",
        "`require_known` contains `*`; expected entity types such as `Shop::Order`",
    );
}

#[test]
fn unparsable_text_is_rejected() {
    rejected("policies = ''", "`policies` must not be empty");
    rejected("listen = []", "`listen` must not be empty");
    rejected(
        "listen = ['127.0.0.1:1', 'localhost']",
        "`listen` is not an address: `localhost` has no port; write HOST:PORT, [V6]:PORT or unix:PATH",
    );
    let error = raw("anonymous_principal = 'nobody'").check().unwrap_err();
    let prefix = "`anonymous_principal` is not an entity uid: `nobody`";
    assert!(error.to_string().starts_with(prefix), "{error}");
    rejected(
        "request_entity_types = ['User', 'Shop::']",
        "`request_entity_types` contains `Shop::`; expected entity types such as `Shop::Order`",
    );
    rejected("log = ' '", "`log` must not be empty");
    let error = raw("log = 'cedar_pdp=loud'").check().unwrap_err();
    assert!(error.to_string().starts_with("`log` is `cedar_pdp=loud`"));
}
