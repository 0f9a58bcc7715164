//! What an operator may set: first as text, then as values that cannot be wrong.
//!
//! [`RawConfig`] is what was written down, [`Config`] is what it means, and only
//! [`RawConfig::check`] leads from one to the other. Where the text comes from (file, environment,
//! flags) stands in [`layers`]. Nothing here opens a directory or binds an address.

pub mod decision_log;
pub mod layers;
pub mod listen;
pub mod otel;
pub mod value;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pdp::query::Uid;
use crate::pdp::settings::{OnPolicyError, Settings, Validation};
use decision_log::{AttributePath, DecisionLogConfig, WhenFull};
use listen::Listen;
use value::{InvalidValue, Problem};

/// What an operator wrote: every key may be left out, and nothing has been checked.
///
/// A key is a line of the configuration file, a flag (`--poll-interval`) and an environment
/// variable (`CEDAR_PDP_POLL_INTERVAL`). Durations are text such as `5s` or `50ms`.
// This is the one list of keys: the help, the environment's names and `layers::options` are read
// from it, so that a key cannot exist in one place and be missing in another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::Args)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Configuration")]
pub struct RawConfig {
    /// The directory of policies, schemas and entities
    #[arg(long, value_name = "DIR")]
    pub policies: Option<String>,
    /// Where to listen: HOST:PORT or unix:PATH; may be given several times
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<Vec<String>>,
    /// The certificate chain to serve TCP with, PEM, watched; `authorize --connect` shows it to the service
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Its private key, PEM, watched
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// The authorities that certificates of callers are verified by, PEM, watched
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<String>,
    /// Whether callers must show a certificate: optional verifies one that is shown, required closes a connection without
    #[arg(long, value_name = "none|optional|required")]
    pub tls_client_auth: Option<String>,
    /// The mode of the file of a Unix socket, in octal
    #[arg(long, value_name = "MODE")]
    pub unix_socket_mode: Option<String>,
    /// The list of programs that may call and what each may, TOML, watched; without it, whoever can connect may do everything
    #[arg(long, value_name = "FILE")]
    pub callers: Option<String>,
    /// Whether server reflection is served
    #[arg(long, value_name = "on|off")]
    pub reflection: Option<String>,
    /// Whether callers are told why, when they ask
    #[arg(long, value_name = "on|off")]
    pub explanations: Option<String>,
    /// Whether PolicyStoreService is served
    #[arg(long, value_name = "on|off")]
    pub policy_store_service: Option<String>,
    /// Serve other machines without TLS, which is otherwise refused at the start
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: Option<bool>,
    /// Where operators find metrics, readiness and status over HTTP: HOST:PORT, unix:PATH or off; open to whoever reaches it
    #[arg(long, value_name = "ADDR|off")]
    pub admin_listen: Option<String>,
    /// What a policy that the schema rejects does: strict refuses the load, warn reports it, off validates nothing, no requests either
    #[arg(long, value_name = "strict|warn|off")]
    pub validation: Option<String>,
    /// What a forbid does whose evaluation failed: skip, which is Cedar's rule, or deny
    #[arg(long, value_name = "skip|deny")]
    pub on_policy_error: Option<String>,
    /// The entity types that callers may send, separated by commas; an empty list is none, without this option any
    #[arg(long, value_name = "T,…", value_delimiter = ',')]
    pub request_entity_types: Option<Vec<String>>,
    /// Who a request without identity is
    #[arg(long, value_name = "UID")]
    pub anonymous_principal: Option<String>,
    /// The issuers file, TOML: whose tokens are believed as `principal_token`; without it none is
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<String>,
    /// The file of revoked tokens, subjects and keys, TOML or JSON; followed while it changes
    #[arg(long, value_name = "FILE")]
    pub revocations: Option<String>,
    /// The memory that verified tokens may take; 0 verifies each token anew
    #[arg(long, value_name = "BYTES")]
    pub token_cache_bytes: Option<i64>,
    /// Wait, not serving, for a directory that is bad at the start, where otherwise the start fails
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub start_unready: Option<bool>,
    /// Load a directory, a schema or a policy file that has become empty
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_empty: Option<bool>,
    /// How a change in the directory is noticed: by events, backed by polling, or by poll alone
    #[arg(long, value_name = "events|poll")]
    pub watch: Option<String>,
    /// How often the directory is reread even though no event came
    #[arg(long, value_name = "DURATION")]
    pub poll_interval: Option<String>,
    /// How long no file may have been written before a change is taken
    #[arg(long, value_name = "DURATION")]
    pub quiet_period: Option<String>,
    /// How long constant writing may hold back a reload; no less than the quiet period
    #[arg(long, value_name = "DURATION")]
    pub max_reload_delay: Option<String>,
    /// The largest file that is read from the directory
    #[arg(long, value_name = "BYTES")]
    pub max_file_bytes: Option<i64>,
    /// The most that is read from the directory, all files together
    #[arg(long, value_name = "BYTES")]
    pub max_total_bytes: Option<i64>,
    /// The memory that policies and stored entities may take; a load beyond it is refused
    #[arg(long, value_name = "BYTES")]
    pub max_store_bytes: Option<i64>,
    /// The most policies whose scope may match one request
    #[arg(long, value_name = "COUNT")]
    pub max_candidates: Option<i64>,
    /// The memory that remembered decisions may take; 0 turns the cache off
    #[arg(long, value_name = "BYTES")]
    pub cache_bytes: Option<i64>,
    /// The largest message that is taken from a caller
    #[arg(long, value_name = "BYTES")]
    pub max_message_bytes: Option<i64>,
    /// The most that is held of messages that come or wait, and of long answers that are not read, of
    /// all callers together
    #[arg(long, value_name = "BYTES")]
    pub max_pending_bytes: Option<i64>,
    /// The most requests in one batch
    #[arg(long, value_name = "COUNT")]
    pub max_batch_items: Option<i64>,
    /// The most entities in one request
    #[arg(long, value_name = "COUNT")]
    pub max_request_entities: Option<i64>,
    /// The most attributes, members of sets, entities and parents of one request, together
    #[arg(long, value_name = "COUNT")]
    pub max_request_values: Option<i64>,
    /// How deep values may be nested in a request
    #[arg(long, value_name = "LEVELS")]
    pub max_value_depth: Option<i64>,
    /// The most calls at a time on one connection
    #[arg(long, value_name = "COUNT")]
    pub max_concurrent_streams: Option<i64>,
    /// The most calls at a time in all that are not answered at once, streams and watches included
    #[arg(long, value_name = "COUNT")]
    pub max_concurrent_calls: Option<i64>,
    /// The longest that a unary call may take, whatever its caller says; 0s leaves it to the caller
    #[arg(long, value_name = "DURATION")]
    pub max_call_time: Option<String>,
    /// How long calls may wait to be begun; when there are some that have waited longer for a tenth of a second, such calls are shed; 0s sheds none
    #[arg(long, value_name = "DURATION")]
    pub overload_delay: Option<String>,
    /// The most that the headers of a call may take, 32 bytes for each beside its name and value
    #[arg(long, value_name = "BYTES")]
    pub max_header_bytes: Option<i64>,
    /// The most connections; new ones beyond are closed at once
    #[arg(long, value_name = "COUNT")]
    pub max_connections: Option<i64>,
    /// How old a connection may become before its caller is told to make another, give or take a tenth; 0s any age
    #[arg(long, value_name = "DURATION")]
    pub max_connection_age: Option<String>,
    /// How long calls may go on after that before they are cut off
    #[arg(long, value_name = "DURATION")]
    pub max_connection_age_grace: Option<String>,
    /// How long a connection may be without a call before it is closed; 0s for ever
    #[arg(long, value_name = "DURATION")]
    pub max_connection_idle: Option<String>,
    /// How long a new connection may take for its TLS handshake and its first words before it is closed
    #[arg(long, value_name = "DURATION")]
    pub handshake_timeout: Option<String>,
    /// How often a silent connection is asked whether its caller is still there
    #[arg(long, value_name = "DURATION")]
    pub keepalive_interval: Option<String>,
    /// How long the caller may take to say so before the connection is closed
    #[arg(long, value_name = "DURATION")]
    pub keepalive_timeout: Option<String>,
    /// How long calls are still taken, health saying NOT_SERVING, when the service is stopped: for load balancers to notice
    #[arg(long, value_name = "DURATION")]
    pub shutdown_delay: Option<String>,
    /// How long calls in flight may take to finish when the service is stopped, after the delay
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
    /// Where decisions are logged: off, stdout, file:PATH or otlp
    #[arg(long, value_name = "off|stdout|file:PATH|otlp")]
    pub decision_log: Option<String>,
    /// The share of ALLOWs that the decision log tells, such as 1, 0.1 or 10%; of DENYs it tells all
    #[arg(long, value_name = "SHARE")]
    pub decision_log_allow_sample: Option<String>,
    /// What leaves the process unmasked in the decision log, separated by commas: context.NAME, TYPE.NAME, errors.message; * is any NAME, and alone everything
    #[arg(long, value_name = "PATH,…", value_delimiter = ',')]
    pub decision_log_attributes: Option<Vec<String>>,
    /// What happens when the decision log does not keep up: drop leaves decisions out and counts them, block has calls wait
    #[arg(long, value_name = "drop|block")]
    pub decision_log_when_full: Option<String>,
    /// The memory that decisions may take which wait to be logged
    #[arg(long, value_name = "BYTES")]
    pub decision_log_queue_bytes: Option<i64>,
    /// The size from which the decision log's file makes room for a new one; 0 never
    #[arg(long, value_name = "BYTES")]
    pub decision_log_max_file_bytes: Option<i64>,
    /// How many files of the decision log are kept, the one that is written included
    #[arg(long, value_name = "COUNT")]
    pub decision_log_max_files: Option<i64>,
    /// What is logged, in the syntax of tracing's EnvFilter
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// How a log line is written: text or json
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<String>,
}

/// Everything an operator decided. Each part of the house takes its own field, none takes it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The policy directory.
    pub policies: PathBuf,
    /// Where to listen; at least one address.
    pub listen: Vec<Listen>,
    /// What is spoken on TCP; `None` is no TLS.
    pub tls: Option<TlsConfig>,
    /// Whether other machines may be served without TLS.
    pub insecure: bool,
    /// The mode of Unix sockets' files.
    pub unix_socket_mode: u32,
    /// The list of those who may call; `None` is whoever can connect.
    pub callers: Option<PathBuf>,
    /// What is served.
    pub services: ServicesConfig,
    /// Where operators find the service, if anywhere.
    pub admin_listen: Option<Listen>,
    /// How decisions are made.
    pub pdp: Settings,
    /// Who a request without identity is; without it such a request is an error.
    pub anonymous_principal: Option<Uid>,
    /// Whose tokens are believed.
    pub tokens: TokensConfig,
    /// How the policy directory is read and followed.
    pub store: StoreConfig,
    /// How many decisions are remembered.
    pub cache: CacheConfig,
    /// What a caller may ask for at most.
    pub limits: Limits,
    /// How long calls are still taken once the service is to stop.
    pub shutdown_delay: Duration,
    /// How long calls in flight may take to finish after that.
    pub drain_timeout: Duration,
    /// What is logged of decisions.
    pub decision_log: DecisionLogConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policies: PathBuf::from("./policies"),
            listen: vec![Listen::Tcp("127.0.0.1".to_owned(), 50051)],
            tls: None,
            insecure: false,
            unix_socket_mode: 0o660,
            callers: None,
            services: ServicesConfig::default(),
            // The port that OpenTelemetry gives to pages of metrics.
            admin_listen: Some(Listen::Tcp("127.0.0.1".to_owned(), 9464)),
            pdp: Settings::default(),
            anonymous_principal: None,
            tokens: TokensConfig::default(),
            store: StoreConfig::default(),
            cache: CacheConfig::default(),
            limits: Limits::default(),
            shutdown_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(25),
            decision_log: DecisionLogConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// What can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicesConfig {
    /// Server reflection.
    pub reflection: bool,
    /// Telling callers why.
    pub explanations: bool,
    /// `PolicyStoreService`.
    pub policy_store: bool,
}

impl Default for ServicesConfig {
    fn default() -> Self {
        Self {
            reflection: true,
            explanations: true,
            policy_store: true,
        }
    }
}

impl Config {
    /// Whether nothing asks a caller on TCP who it is.
    #[must_use]
    pub fn callers_are_unknown(&self) -> bool {
        self.callers.is_none()
            && !self
                .tls
                .as_ref()
                .is_some_and(|tls| tls.client_authorities.is_some() && !tls.is_client_optional)
    }
}

/// What TLS is spoken with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The file of the certificate chain.
    pub certificate: PathBuf,
    /// The file of its key.
    pub key: PathBuf,
    /// The file of the authorities that callers' certificates are verified by; `None` asks for none.
    pub client_authorities: Option<PathBuf>,
    /// Whether a caller may show none.
    pub is_client_optional: bool,
}

/// Whether callers show certificates, as an operator writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ClientAuth {
    #[default]
    None,
    Optional,
    Required,
}

/// Whose tokens are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokensConfig {
    /// The issuers file; without it no token is.
    pub issuers: Option<PathBuf>,
    /// The file of revocations.
    pub revocations: Option<PathBuf>,
    /// The memory that verified tokens may take, in bytes; `None` verifies each anew.
    pub cache_bytes: Option<NonZeroU64>,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            issuers: None,
            revocations: None,
            cache_bytes: NonZeroU64::new(16 << 20),
        }
    }
}

/// How the policy directory is read and followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Wait for a directory that is bad at the start, instead of failing.
    pub start_unready: bool,
    /// Load what has suspiciously become empty.
    pub allow_empty: bool,
    /// How a change is noticed.
    pub watch: WatchMode,
    /// How often the directory is reread without being told to.
    pub poll_interval: Duration,
    /// How long nothing may have been written before a change is taken.
    pub quiet_period: Duration,
    /// How long constant writing may delay a reload; never shorter than the quiet period.
    pub max_reload_delay: Duration,
    /// The largest file that is read, in bytes.
    pub max_file_bytes: u64,
    /// The most that is read in all, in bytes.
    pub max_total_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            start_unready: false,
            allow_empty: false,
            watch: WatchMode::default(),
            poll_interval: Duration::from_secs(5),
            quiet_period: Duration::from_millis(50),
            max_reload_delay: Duration::from_secs(5),
            max_file_bytes: 64 << 20,
            max_total_bytes: 1 << 30,
        }
    }
}

/// How a change in the policy directory is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchMode {
    /// By the file system's events, backed by polling.
    #[default]
    Events,
    /// By polling alone.
    Poll,
}

/// How many decisions are remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// The memory that remembered decisions may take, in bytes; `None` turns the cache off.
    pub bytes: Option<NonZeroU64>,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            bytes: NonZeroU64::new(64 << 20),
        }
    }
}

/// What a caller may ask for at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest message, in bytes.
    pub max_message_bytes: usize,
    /// The most that is held of messages that come or wait, and of long answers that are not read,
    /// in bytes.
    pub max_pending_bytes: usize,
    /// The most requests in one batch.
    pub max_batch_items: usize,
    /// The most entities in one request.
    pub max_request_entities: usize,
    /// The most attributes, members of sets, entities and parents of one request, counted together.
    pub max_request_values: usize,
    /// How deep values may be nested; at most 32, which the protobuf decoder and Cedar both bear.
    pub max_value_depth: usize,
    /// The most calls at a time on one connection.
    pub max_concurrent_streams: u32,
    /// The most calls at a time in all that are not answered at once.
    pub max_concurrent_calls: usize,
    /// The longest that a unary call may take.
    pub max_call_time: Option<Duration>,
    /// How long calls may wait to be begun.
    pub overload_delay: Option<Duration>,
    /// The most that the headers of a call may take, in bytes as HTTP/2 counts them.
    pub max_header_bytes: u32,
    /// The most connections.
    pub max_connections: usize,
    /// How old a connection may become.
    pub max_connection_age: Option<Duration>,
    /// How long calls may go on after that.
    pub max_connection_age_grace: Duration,
    /// How long a connection may be without a call.
    pub max_connection_idle: Option<Duration>,
    /// How long a new connection may take to say what it wants.
    pub handshake_timeout: Duration,
    /// How often a silent connection is asked whether its caller is still there.
    pub keepalive_interval: Duration,
    /// How long the caller may take to say so.
    pub keepalive_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 4 << 20,
            max_pending_bytes: 256 << 20,
            max_batch_items: 1000,
            max_request_entities: 1000,
            max_request_values: 100_000,
            max_value_depth: 32,
            max_concurrent_streams: 256,
            max_concurrent_calls: 32_768,
            max_call_time: Some(Duration::from_secs(10)),
            overload_delay: Some(Duration::from_millis(20)),
            max_header_bytes: 16 << 10,
            max_connections: 16_384,
            max_connection_age: None,
            max_connection_age_grace: Duration::from_secs(30),
            max_connection_idle: Some(Duration::from_secs(1_800)),
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A filter in the syntax of tracing's `EnvFilter`; known to parse.
    pub filter: String,
    /// How a line is written.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::default(),
        }
    }
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const MILLION: i64 = 1_000_000;
const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const VALIDATION: &[(&str, Validation)] = &[
    ("strict", Validation::Strict),
    ("warn", Validation::Warn),
    ("off", Validation::Off),
];
const ON_POLICY_ERROR: &[(&str, OnPolicyError)] =
    &[("skip", OnPolicyError::Skip), ("deny", OnPolicyError::Deny)];
const CLIENT_AUTH: &[(&str, ClientAuth)] = &[
    ("none", ClientAuth::None),
    ("optional", ClientAuth::Optional),
    ("required", ClientAuth::Required),
];
const ON_OFF: &[(&str, bool)] = &[("on", true), ("off", false)];
const WATCH: &[(&str, WatchMode)] = &[("events", WatchMode::Events), ("poll", WatchMode::Poll)];
const WHEN_FULL: &[(&str, WhenFull)] = &[("drop", WhenFull::Drop), ("block", WhenFull::Block)];
const LOG_FORMAT: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

impl RawConfig {
    /// The configuration that this text means; keys that are left out have their defaults.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`] for the first key whose value makes no sense, with what is allowed.
    pub fn check(self) -> Result<Config, InvalidValue> {
        /// Reads what was written under a key into the field of that name, or into the one named
        /// after `=>`. Where nothing was written the default stays.
        macro_rules! read {
            ($part:ident.$key:ident: $kind:ident $(, $bounds:expr)?) => {
                read!($key => $part.$key, $kind $(, $bounds)?)
            };
            ($key:ident => $place:expr, $kind:ident $(, $bounds:expr)?) => {
                if let Some(written) = self.$key {
                    let key = stringify!($key);
                    $place = value::$kind(written $(, $bounds)?)
                        .map_err(|problem| InvalidValue { key, problem })?;
                }
            };
        }
        let mut config = Config::default();
        read!(config.policies: path);
        read!(config.listen: listen);
        read!(config.insecure: switch);
        let mut files = TlsFiles::default();
        read!(tls_cert => files.certificate, some_path);
        read!(tls_key => files.key, some_path);
        read!(tls_client_ca => files.client_authorities, some_path);
        read!(tls_client_auth => files.client_auth, word, CLIENT_AUTH);
        config.tls = files.check()?;
        read!(config.admin_listen: listen_or_off);
        read!(config.anonymous_principal: uid);
        read!(config.unix_socket_mode: file_mode);
        read!(config.callers: some_path);
        let services = &mut config.services;
        read!(services.reflection: word, ON_OFF);
        read!(services.explanations: word, ON_OFF);
        read!(policy_store_service => services.policy_store, word, ON_OFF);
        read!(config.shutdown_delay: duration, Duration::ZERO..=HOUR);
        read!(config.drain_timeout: duration, ms(1)..=HOUR);

        let pdp = &mut config.pdp;
        read!(pdp.validation: word, VALIDATION);
        read!(pdp.on_policy_error: word, ON_POLICY_ERROR);
        read!(pdp.request_entity_types: entity_types);
        read!(pdp.max_store_bytes: number, 1..=64 * GIB);
        read!(pdp.max_candidates: number, 1..=MILLION);

        read!(tokens => config.tokens.issuers, some_path);
        read!(revocations => config.tokens.revocations, some_path);
        if config.tokens.revocations.is_some() && config.tokens.issuers.is_none() {
            let (key, problem) = ("revocations", Problem::Needs { other: "tokens" });
            return Err(InvalidValue { key, problem });
        }
        read!(token_cache_bytes => config.tokens.cache_bytes, number_or_none, 0..=64 * GIB);

        let store = &mut config.store;
        read!(store.start_unready: switch);
        read!(store.allow_empty: switch);
        read!(store.watch: word, WATCH);
        read!(store.poll_interval: duration, ms(10)..=HOUR);
        read!(store.quiet_period: duration, ms(1)..=ms(60_000));
        // Below the quiet period every ordinary change would be reported as held back.
        store.max_reload_delay = store.max_reload_delay.max(store.quiet_period);
        read!(store.max_reload_delay: duration, store.quiet_period..=HOUR);
        read!(store.max_file_bytes: number, 1..=4 * GIB);
        read!(store.max_total_bytes: number, 1..=64 * GIB);

        read!(cache_bytes => config.cache.bytes, number_or_none, 0..=64 * GIB);

        let limits = &mut config.limits;
        read!(limits.max_message_bytes: number, 1024..=GIB);
        read!(limits.max_pending_bytes: number, 1024..=64 * GIB);
        read!(limits.max_batch_items: number, 1..=MILLION);
        read!(limits.max_request_entities: number, 1..=MILLION);
        read!(limits.max_request_values: number, 1..=100 * MILLION);
        read!(limits.max_value_depth: number, 1..=32);
        read!(limits.max_concurrent_streams: number, 1..=MILLION);
        read!(limits.max_concurrent_calls: number, 1..=MILLION);
        read!(limits.max_call_time: duration_or_none, ms(1)..=HOUR);
        read!(limits.overload_delay: duration_or_none, ms(1)..=ms(10_000));
        read!(limits.max_header_bytes: number, 1024..=1 << 20);
        read!(limits.max_connections: number, 1..=MILLION);
        read!(limits.max_connection_age: duration_or_none, ms(100)..=MONTH);
        read!(limits.max_connection_age_grace: duration, ms(1)..=DAY);
        read!(limits.max_connection_idle: duration_or_none, ms(100)..=MONTH);
        read!(limits.handshake_timeout: duration, ms(100)..=HOUR);
        read!(limits.keepalive_interval: duration, ms(100)..=HOUR);
        read!(limits.keepalive_timeout: duration, ms(100)..=HOUR);

        let log = &mut config.decision_log;
        read!(decision_log => log.destination, destination);
        read!(decision_log_allow_sample => log.allow_sample, share);
        read!(decision_log_attributes => log.attributes, attribute_paths);
        read!(decision_log_when_full => log.when_full, word, WHEN_FULL);
        read!(decision_log_queue_bytes => log.queue_bytes, number, MIB..=64 * GIB);
        read!(decision_log_max_file_bytes => log.max_file_bytes, number, 0..=1024 * GIB);
        read!(decision_log_max_files => log.max_files, number, 1..=1000);

        read!(log => config.log.filter, log_filter);
        read!(log_format => config.log.format, word, LOG_FORMAT);
        Ok(config)
    }
}

/// What was written of TLS, key by key.
#[derive(Default)]
struct TlsFiles {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_authorities: Option<PathBuf>,
    client_auth: ClientAuth,
}

impl TlsFiles {
    /// What it means together: half of it would be a door that is not as closed as its owner thinks.
    fn check(self) -> Result<Option<TlsConfig>, InvalidValue> {
        let needs = |key, other| {
            let problem = Problem::Needs { other };
            Err(InvalidValue { key, problem })
        };
        let Self {
            certificate,
            key,
            client_authorities,
            client_auth,
        } = self;
        let is_client_optional = match (client_auth, &client_authorities) {
            (ClientAuth::None, Some(_)) => return needs("tls_client_ca", "tls_client_auth"),
            (ClientAuth::Optional | ClientAuth::Required, None) => {
                return needs("tls_client_auth", "tls_client_ca");
            }
            (ClientAuth::None, None) | (ClientAuth::Required, Some(_)) => false,
            (ClientAuth::Optional, Some(_)) => true,
        };
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(TlsConfig {
                certificate,
                key,
                client_authorities,
                is_client_optional,
            })),
            (Some(_), None) => needs("tls_cert", "tls_key"),
            (None, Some(_)) => needs("tls_key", "tls_cert"),
            (None, None) if client_authorities.is_some() => needs("tls_client_ca", "tls_cert"),
            (None, None) => Ok(None),
        }
    }
}

impl TlsConfig {
    fn client_auth(&self) -> ClientAuth {
        match (&self.client_authorities, self.is_client_optional) {
            (None, _) => ClientAuth::None,
            (Some(_), true) => ClientAuth::Optional,
            (Some(_), false) => ClientAuth::Required,
        }
    }
}

/// The text that means this configuration: checking it gives `config` again.
impl From<&Config> for RawConfig {
    fn from(config: &Config) -> Self {
        let Config {
            policies,
            listen,
            tls,
            insecure,
            unix_socket_mode,
            callers,
            services,
            admin_listen,
            pdp,
            anonymous_principal,
            tokens,
            store,
            cache,
            limits,
            shutdown_delay,
            drain_timeout,
            decision_log,
            log,
        } = config;
        let path = |path: &PathBuf| path.display().to_string();
        Self {
            policies: Some(path(policies)),
            listen: Some(listen.iter().map(Listen::to_string).collect()),
            tls_cert: tls.as_ref().map(|tls| path(&tls.certificate)),
            tls_key: tls.as_ref().map(|tls| path(&tls.key)),
            tls_client_ca: tls
                .as_ref()
                .and_then(|tls| tls.client_authorities.as_ref())
                .map(path),
            tls_client_auth: word(
                tls.as_ref().map(TlsConfig::client_auth).unwrap_or_default(),
                CLIENT_AUTH,
            ),
            insecure: Some(*insecure),
            unix_socket_mode: Some(format!("{unix_socket_mode:04o}")),
            callers: callers.as_ref().map(path),
            reflection: word(services.reflection, ON_OFF),
            explanations: word(services.explanations, ON_OFF),
            policy_store_service: word(services.policy_store, ON_OFF),
            admin_listen: Some(
                admin_listen
                    .as_ref()
                    .map_or_else(|| value::OFF.to_owned(), Listen::to_string),
            ),
            validation: word(pdp.validation, VALIDATION),
            on_policy_error: word(pdp.on_policy_error, ON_POLICY_ERROR),
            request_entity_types: pdp
                .request_entity_types
                .as_ref()
                .map(|types| types.iter().cloned().collect()),
            anonymous_principal: anonymous_principal.as_ref().map(Uid::to_string),
            tokens: tokens.issuers.as_ref().map(|it| it.display().to_string()),
            revocations: tokens
                .revocations
                .as_ref()
                .map(|it| it.display().to_string()),
            token_cache_bytes: number(tokens.cache_bytes.map_or(0, NonZeroU64::get)),
            start_unready: Some(store.start_unready),
            allow_empty: Some(store.allow_empty),
            watch: word(store.watch, WATCH),
            poll_interval: duration(store.poll_interval),
            quiet_period: duration(store.quiet_period),
            max_reload_delay: duration(store.max_reload_delay),
            max_file_bytes: number(store.max_file_bytes),
            max_total_bytes: number(store.max_total_bytes),
            max_store_bytes: number(pdp.max_store_bytes),
            max_candidates: number(pdp.max_candidates),
            cache_bytes: number(cache.bytes.map_or(0, NonZeroU64::get)),
            max_message_bytes: number(limits.max_message_bytes),
            max_pending_bytes: number(limits.max_pending_bytes as u64),
            max_batch_items: number(limits.max_batch_items),
            max_request_entities: number(limits.max_request_entities),
            max_request_values: number(limits.max_request_values),
            max_value_depth: number(limits.max_value_depth),
            max_concurrent_streams: number(limits.max_concurrent_streams),
            max_concurrent_calls: number(limits.max_concurrent_calls as u64),
            max_call_time: duration_or_zero(limits.max_call_time),
            overload_delay: duration_or_zero(limits.overload_delay),
            max_header_bytes: number(limits.max_header_bytes),
            max_connections: number(limits.max_connections as u64),
            max_connection_age: duration_or_zero(limits.max_connection_age),
            max_connection_age_grace: duration(limits.max_connection_age_grace),
            max_connection_idle: duration_or_zero(limits.max_connection_idle),
            handshake_timeout: duration(limits.handshake_timeout),
            keepalive_interval: duration(limits.keepalive_interval),
            keepalive_timeout: duration(limits.keepalive_timeout),
            shutdown_delay: duration(*shutdown_delay),
            drain_timeout: duration(*drain_timeout),
            decision_log: Some(decision_log.destination.to_text()),
            decision_log_allow_sample: Some(decision_log.allow_sample.to_text()),
            decision_log_attributes: match decision_log.attributes.as_slice() {
                [] => None,
                paths => Some(paths.iter().map(AttributePath::to_text).collect()),
            },
            decision_log_when_full: word(decision_log.when_full, WHEN_FULL),
            decision_log_queue_bytes: number(decision_log.queue_bytes as u64),
            decision_log_max_file_bytes: number(decision_log.max_file_bytes),
            decision_log_max_files: number(decision_log.max_files),
            log: Some(log.filter.clone()),
            log_format: word(log.format, LOG_FORMAT),
        }
    }
}

fn word<T: Copy + PartialEq>(value: T, words: &[(&str, T)]) -> Option<String> {
    words
        .iter()
        .find(|(_, meaning)| *meaning == value)
        .map(|(word, _)| (*word).to_owned())
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every key of the raw configuration is an option"
)]
fn duration(value: Duration) -> Option<String> {
    Some(humantime::format_duration(value).to_string())
}

fn duration_or_zero(value: Option<Duration>) -> Option<String> {
    duration(value.unwrap_or_default())
}

fn number(value: impl TryInto<i64>) -> Option<i64> {
    value.try_into().ok()
}

#[cfg(test)]
mod tests;
