//! Settings as text: one field for each key.
//!
//! This is the one list of keys. The help, the names of environment variables and the table of the
//! documentation are derived from it. Values are checked in `check`.

use serde::{Deserialize, Serialize};
use toml::Table;

/// The heading of the settings in the help.
pub const HEADING: &str = "Configuration";

/// Declares the keys: the help text, the name, the type, and the name of the value in the help.
macro_rules! keys {
    ($($(#[$attribute:meta])+ $key:ident: $type:ty, $value_name:literal;)+) => {
        /// The settings as an operator wrote them, unchecked; `None` is a key that is not set.
        ///
        /// A key is a line of the configuration file, a flag (`--poll-interval`) and an environment
        /// variable (`CEDAR_PDP_POLL_INTERVAL`). Durations are text such as `5s` or `50ms`.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::Args)]
        #[serde(deny_unknown_fields)]
        #[command(next_help_heading = HEADING)]
        pub struct RawConfig {
            $($(#[$attribute])+ #[arg(long, value_name = $value_name)] pub $key: Option<$type>,)+
        }
    };
}

keys! {
    /// Directory of policies, schemas and entities
    policies: String, "DIR";
    /// Address to listen on, HOST:PORT or unix:PATH; may be repeated
    listen: Vec<String>, "ADDR";
    /// TLS certificate chain, PEM, watched
    tls_cert: String, "FILE";
    /// Private key of the TLS certificate, PEM, watched
    tls_key: String, "FILE";
    /// CA certificates that verify client certificates, PEM, watched
    tls_client_ca: String, "FILE";
    /// Client certificates: none, optional (verified if sent) or required
    tls_client_auth: String, "none|optional|required";
    /// File mode of Unix sockets, octal
    unix_socket_mode: String, "MODE";
    /// Callers and their rights, TOML, watched; unset: every caller has every right
    callers: String, "FILE";
    /// Serve gRPC server reflection
    reflection: String, "on|off";
    /// Explain decisions to callers that request it
    explanations: String, "on|off";
    /// Serve PolicyStoreService
    policy_store_service: String, "on|off";
    /// Allow plaintext on non-loopback addresses
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure: bool, "BOOL";
    /// Address of metrics, readiness and status over HTTP; reads need no authentication
    admin_listen: String, "ADDR|off";
    /// Schema validation: strict rejects, warn reports, off checks no requests either
    validation: String, "strict|warn|off";
    /// Effect of a forbid whose evaluation fails: skip (Cedar's rule) or deny
    on_policy_error: String, "skip|deny";
    /// Entity types that callers may send, comma-separated; empty: none, unset: any
    #[arg(value_delimiter = ',')]
    request_entity_types: Vec<String>, "T,…";
    /// Types whose principals and resources must be known, else an error; `*`: all
    #[arg(value_delimiter = ',')]
    require_known: Vec<String>, "T,…";
    /// Principal of requests that name none; unset: such requests are rejected
    anonymous_principal: String, "UID";
    /// Issuers of accepted principal tokens, TOML; unset: no token is accepted
    tokens: String, "FILE";
    /// Revoked tokens, subjects and keys, TOML or JSON, watched
    revocations: String, "FILE";
    /// Memory for verified tokens, in bytes; 0 disables the cache
    token_cache_bytes: i64, "BYTES";
    /// Start unready, instead of failing, while the policy directory is invalid
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    start_unready: bool, "BOOL";
    /// Load a directory, schema or policy file that has become empty
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_empty: bool, "BOOL";
    /// Detection of changed files: events (and polling), or poll (polling only)
    watch: String, "events|poll";
    /// Interval between rereads of the directory without an event
    poll_interval: String, "DURATION";
    /// Time without writes after which a change is loaded
    quiet_period: String, "DURATION";
    /// Time after which constant writes are reported; at least the quiet period
    max_reload_delay: String, "DURATION";
    /// Largest file read from the directory, in bytes
    max_file_bytes: i64, "BYTES";
    /// Most bytes read from the directory, all files together
    max_total_bytes: i64, "BYTES";
    /// Memory for policies and stored entities, in bytes; larger loads are rejected
    max_store_bytes: i64, "BYTES";
    /// Most policies whose scope may match one request
    max_candidates: i64, "COUNT";
    /// Memory for cached decisions, in bytes; 0 disables the cache
    cache_bytes: i64, "BYTES";
    /// Largest request message, in bytes
    max_message_bytes: i64, "BYTES";
    /// Memory for partial and waiting requests and large unread responses, in bytes
    max_pending_bytes: i64, "BYTES";
    /// Most requests in one batch
    max_batch_items: i64, "COUNT";
    /// Most entities in one request
    max_request_entities: i64, "COUNT";
    /// Most attributes, set members, entities and parents of one request, in total
    max_request_values: i64, "COUNT";
    /// Deepest nesting of values in a request
    max_value_depth: i64, "LEVELS";
    /// Most concurrent calls on one connection
    max_concurrent_streams: i64, "COUNT";
    /// Most concurrent calls not answered at once, streams and watches included
    max_concurrent_calls: i64, "COUNT";
    /// Time limit of a unary call, also if its deadline is later; 0s: no limit
    max_call_time: String, "DURATION";
    /// Target queueing delay. After 100 ms above it, calls that waited longer are shed; 0s disables
    overload_delay: String, "DURATION";
    /// Largest header list of a call, in bytes; each header counts 32 bytes more
    max_header_bytes: i64, "BYTES";
    /// Most connections; further ones are closed at once
    max_connections: i64, "COUNT";
    /// Age (± 10 %) at which clients are sent to a new connection; 0s: no limit
    max_connection_age: String, "DURATION";
    /// Time for calls to finish on a connection that reached its maximum age
    max_connection_age_grace: String, "DURATION";
    /// Time without a call after which a connection is closed; 0s: no limit
    max_connection_idle: String, "DURATION";
    /// Time limit for the TLS handshake and HTTP/2 preface
    handshake_timeout: String, "DURATION";
    /// Interval between HTTP/2 pings on a silent connection
    keepalive_interval: String, "DURATION";
    /// Time limit for the reply to a ping before the connection is closed
    keepalive_timeout: String, "DURATION";
    /// Time between NOT_SERVING and draining at shutdown, for load balancers to notice
    shutdown_delay: String, "DURATION";
    /// Time limit for calls in flight at shutdown, after the shutdown delay
    drain_timeout: String, "DURATION";
    /// Destination of the decision log: off, stdout, file:PATH or otlp
    decision_log: String, "off|stdout|file:PATH|otlp";
    /// Share of ALLOWs that are logged, such as 0.1 or 10%; every DENY is logged
    decision_log_allow_sample: String, "SHARE";
    /// Values logged unmasked: context.NAME, TYPE.NAME, errors.message; NAME or all: *
    #[arg(value_delimiter = ',')]
    decision_log_attributes: Vec<String>, "PATH,…";
    /// Effect of a full decision log queue: drop (and count) records, or block calls
    decision_log_when_full: String, "drop|block";
    /// Memory for decision log records that wait to be written, in bytes
    decision_log_queue_bytes: i64, "BYTES";
    /// Size at which the decision log file is rotated, in bytes; 0 disables rotation
    decision_log_max_file_bytes: i64, "BYTES";
    /// Most decision log files kept, the current one included
    decision_log_max_files: i64, "COUNT";
    /// Log filter in the syntax of tracing's EnvFilter, such as info or cedar_pdp=debug
    log: String, "FILTER";
    /// Format of log lines: text or json
    log_format: String, "text|json";
}

/// The defaults, as a configuration file. Keys without a default are unset.
const DEFAULTS: &str = include_str!("defaults.toml");

impl RawConfig {
    /// Returns the default of every key that has one.
    #[must_use]
    pub fn defaults() -> Self {
        #[expect(clippy::expect_used, reason = "a test reads this constant")]
        toml::from_str(DEFAULTS).expect("defaults are valid TOML with known keys")
    }

    /// Returns these settings, with defaults for the keys that are not set.
    #[must_use]
    pub fn with_defaults(&self) -> Self {
        let mut values = Self::defaults().to_table();
        values.extend(self.to_table());
        Self::from_table(values)
    }

    /// Returns the keys that are set, as TOML.
    pub(super) fn to_table(&self) -> Table {
        #[expect(
            clippy::expect_used,
            reason = "text, lists of text, switches and i64 numbers are all TOML values"
        )]
        Table::try_from(self).expect("raw settings are valid TOML")
    }

    /// Returns the settings of `values`, which come from [`to_table`](Self::to_table).
    pub(super) fn from_table(values: Table) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the caller's tables hold known keys, each with a value of its type"
        )]
        Self::deserialize(values).expect("known keys with values of their types")
    }
}
