//! Checks settings: turns the text of each key into its value.
//!
//! Reading one value is the work of [`value`]; here stand the bounds of each key, and the rules
//! between keys.

use std::path::PathBuf;
use std::time::Duration;

use super::api::{
    AdmissionLimits, ApiSettings, AuthorizationRules, ClientCertificates, ConnectionLimits,
    LifetimeLimits, RequestRules, Services, TlsSettings,
};
use super::decision_log::{DecisionLogConfig, WhenFull};
use super::raw::RawConfig;
use super::value::{self, InvalidValue, Problem};
use super::{
    CacheSettings, Config, LogConfig, LogFormat, ShutdownSettings, SourceLimits, StoreSettings,
    TokenSettings,
};
use crate::pdp::settings::{OnPolicyError, Settings, Validation};
use crate::watch::{Mode, WatchSettings};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const MILLION: i64 = 1_000_000;
const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;

const VALIDATION: &[(&str, Validation)] = &[
    ("strict", Validation::Strict),
    ("warn", Validation::Warn),
    ("off", Validation::Off),
];
const ON_POLICY_ERROR: &[(&str, OnPolicyError)] =
    &[("skip", OnPolicyError::Skip), ("deny", OnPolicyError::Deny)];
const CLIENT_AUTH: &[(&str, Option<ClientRule>)] = &[
    ("none", None),
    ("optional", Some(ClientCertificates::Optional)),
    ("required", Some(ClientCertificates::Required)),
];
const ON_OFF: &[(&str, bool)] = &[("on", true), ("off", false)];
const WATCH: &[(&str, Mode)] = &[("events", Mode::Events), ("poll", Mode::Poll)];
const WHEN_FULL: &[(&str, WhenFull)] = &[("drop", WhenFull::Drop), ("block", WhenFull::Block)];
const LOG_FORMAT: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Reads the value of a key: `None` if the key is not set.
macro_rules! read_optional {
    ($raw:ident.$key:ident: $kind:ident $(, $bounds:expr)?) => {
        $raw.$key
            .clone()
            .map(|written| value::$kind(written $(, $bounds)?))
            .transpose()
            .map_err(|problem| InvalidValue { key: stringify!($key), problem })?
    };
}

/// Reads the value of a key that has a default, and so is always set.
macro_rules! read {
    ($raw:ident.$key:ident: $kind:ident $(, $bounds:expr)?) => {
        read_optional!($raw.$key: $kind $(, $bounds)?)
            .ok_or(InvalidValue { key: stringify!($key), problem: Problem::Empty })?
    };
}

type Checked<T> = Result<T, InvalidValue>;

/// A constructor of the rule for client certificates, from the file of their CA certificates.
type ClientRule = fn(PathBuf) -> ClientCertificates;

impl RawConfig {
    /// Returns the configuration that this text means, with defaults for keys that are not set.
    pub fn check(&self) -> Result<Config, InvalidValue> {
        let mut raw = self.with_defaults();
        if self.max_reload_delay.is_none() {
            raw.max_reload_delay = default_reload_delay(&raw)?;
        }
        let follow = WatchSettings {
            mode: read!(raw.watch: word, WATCH),
            poll: read!(raw.poll_interval: duration, ms(10)..=HOUR),
        };
        Ok(Config {
            listen: read!(raw.listen: listen),
            api: api(&raw, follow)?,
            admin_listen: read!(raw.admin_listen: listen_or_off),
            store: store(&raw, follow)?,
            tokens: tokens(&raw, follow)?,
            cache: CacheSettings {
                capacity_bytes: read!(raw.cache_bytes: number_or_none, 0..=64 * GIB),
            },
            decision_log: decision_log(&raw)?,
            shutdown: ShutdownSettings {
                delay: read!(raw.shutdown_delay: duration, Duration::ZERO..=HOUR),
                drain_timeout: read!(raw.drain_timeout: duration, ms(1)..=HOUR),
            },
            log: LogConfig {
                filter: read!(raw.log: log_filter),
                format: read!(raw.log_format: word, LOG_FORMAT),
            },
            in_force: raw,
        })
    }
}

/// Returns the delay after which a reload counts as held back, where no delay is set.
///
/// It is no shorter than the quiet period, or every ordinary change would be reported.
fn default_reload_delay(raw: &RawConfig) -> Checked<Option<String>> {
    let quiet = read!(raw.quiet_period: duration, ms(1)..=ms(60_000));
    let delay = read!(raw.max_reload_delay: duration, ms(1)..=HOUR);
    Ok(match quiet > delay {
        true => raw.quiet_period.clone(),
        false => raw.max_reload_delay.clone(),
    })
}

fn api(raw: &RawConfig, follow: WatchSettings) -> Checked<ApiSettings> {
    Ok(ApiSettings {
        tls: tls(raw)?,
        callers: read_optional!(raw.callers: path),
        services: Services {
            reflection: read!(raw.reflection: word, ON_OFF),
            policy_store: read!(raw.policy_store_service: word, ON_OFF),
        },
        insecure: read!(raw.insecure: switch),
        unix_socket_mode: read!(raw.unix_socket_mode: file_mode),
        follow,
        authorization: AuthorizationRules {
            request: RequestRules {
                anonymous_principal: read_optional!(raw.anonymous_principal: uid),
                max_request_entities: read!(raw.max_request_entities: number, 1..=MILLION),
                max_values: read!(raw.max_request_values: number, 1..=100 * MILLION),
                // The protobuf decoder and Cedar both handle values as deep as this.
                max_value_depth: read!(raw.max_value_depth: number, 1..=32),
            },
            max_batch_items: read!(raw.max_batch_items: number, 1..=MILLION),
            explain: read!(raw.explanations: word, ON_OFF),
        },
        connection: connection(raw)?,
        admission: AdmissionLimits {
            delay: read!(raw.overload_delay: duration_or_none, ms(1)..=ms(10_000)),
            calls: read!(raw.max_concurrent_calls: number, 1..=MILLION),
        },
        max_message_bytes: read!(raw.max_message_bytes: number, 1024..=GIB),
        max_pending_bytes: read!(raw.max_pending_bytes: number, 1024..=64 * GIB),
    })
}

/// Reads the keys of TLS. Half of them would be less protection than the operator expects.
fn tls(raw: &RawConfig) -> Checked<Option<TlsSettings>> {
    let needs = |key, other| {
        let problem = Problem::Needs(other);
        Err(InvalidValue { key, problem })
    };
    let client_auth = read!(raw.tls_client_auth: word, CLIENT_AUTH);
    let clients = match (client_auth, read_optional!(raw.tls_client_ca: path)) {
        (None, None) => ClientCertificates::None,
        (Some(rule), Some(file)) => rule(file),
        (None, Some(_)) => return needs("tls_client_ca", "tls_client_auth"),
        (Some(_), None) => return needs("tls_client_auth", "tls_client_ca"),
    };
    match (
        read_optional!(raw.tls_cert: path),
        read_optional!(raw.tls_key: path),
    ) {
        (Some(certificate), Some(key)) => Ok(Some(TlsSettings {
            certificate,
            key,
            clients,
        })),
        (Some(_), None) => needs("tls_cert", "tls_key"),
        (None, Some(_)) => needs("tls_key", "tls_cert"),
        (None, None) if clients != ClientCertificates::None => needs("tls_client_ca", "tls_cert"),
        (None, None) => Ok(None),
    }
}

fn connection(raw: &RawConfig) -> Checked<ConnectionLimits> {
    let max_call_time = read!(raw.max_call_time: duration_or_none, ms(1)..=HOUR);
    Ok(ConnectionLimits {
        max_concurrent_streams: read!(raw.max_concurrent_streams: number, 1..=MILLION),
        keepalive_interval: read!(raw.keepalive_interval: duration, ms(100)..=HOUR),
        keepalive_timeout: read!(raw.keepalive_timeout: duration, ms(100)..=HOUR),
        handshake_timeout: read!(raw.handshake_timeout: duration, ms(100)..=HOUR),
        max_connections: read!(raw.max_connections: number, 1..=MILLION),
        lifetime: LifetimeLimits {
            age: read!(raw.max_connection_age: duration_or_none, ms(100)..=MONTH),
            age_grace: read!(raw.max_connection_age_grace: duration, ms(1)..=DAY),
            idle: read!(raw.max_connection_idle: duration_or_none, ms(100)..=MONTH),
            // The time in which a caller reads the response is part of the call.
            unread: max_call_time,
        },
        max_header_bytes: read!(raw.max_header_bytes: number, 1024..=MIB),
        max_call_time,
    })
}

fn store(raw: &RawConfig, follow: WatchSettings) -> Checked<StoreSettings> {
    let quiet = read!(raw.quiet_period: duration, ms(1)..=ms(60_000));
    Ok(StoreSettings {
        directory: read!(raw.policies: path),
        limits: SourceLimits {
            file_bytes: read!(raw.max_file_bytes: number, 1..=4 * GIB),
            total_bytes: read!(raw.max_total_bytes: number, 1..=64 * GIB),
            files: 100_000,
            depth: 32,
        },
        pdp: Settings {
            validation: read!(raw.validation: word, VALIDATION),
            on_policy_error: read!(raw.on_policy_error: word, ON_POLICY_ERROR),
            request_entity_types: read_optional!(raw.request_entity_types: entity_types),
            require_known: read_optional!(raw.require_known: known_types),
            max_candidates: read!(raw.max_candidates: number, 1..=MILLION),
            max_store_bytes: read!(raw.max_store_bytes: number, 1..=64 * GIB),
        },
        watch: follow,
        quiet_period: quiet,
        max_reload_delay: read!(raw.max_reload_delay: duration, quiet..=HOUR),
        allow_empty: read!(raw.allow_empty: switch),
        start_unready: read!(raw.start_unready: switch),
    })
}

fn tokens(raw: &RawConfig, following: WatchSettings) -> Checked<Option<TokenSettings>> {
    let issuers = read_optional!(raw.tokens: path);
    let revocations = read_optional!(raw.revocations: path);
    let cache_bytes = read!(raw.token_cache_bytes: number_or_none, 0..=64 * GIB);
    match (issuers, revocations) {
        (Some(issuers), revocations) => Ok(Some(TokenSettings {
            issuers,
            revocations,
            cache_bytes,
            following,
        })),
        (None, Some(_)) => Err(InvalidValue {
            key: "revocations",
            problem: Problem::Needs("tokens"),
        }),
        (None, None) => Ok(None),
    }
}

fn decision_log(raw: &RawConfig) -> Checked<DecisionLogConfig> {
    Ok(DecisionLogConfig {
        destination: read!(raw.decision_log: destination),
        allow_sample: read!(raw.decision_log_allow_sample: share),
        when_full: read!(raw.decision_log_when_full: word, WHEN_FULL),
        queue_bytes: read!(raw.decision_log_queue_bytes: number, MIB..=64 * GIB),
        max_file_bytes: read!(raw.decision_log_max_file_bytes: number, 0..=1024 * GIB),
        max_files: read!(raw.decision_log_max_files: number, 1..=1000),
        attributes: read_optional!(raw.decision_log_attributes: attribute_paths)
            .unwrap_or_default(),
    })
}
