//! Settings as text: one field for each key.
//!
//! This is the one list of keys. The help, the names of environment variables and the table of the
//! README are derived from it. Values are checked in `check`.

use serde::{Deserialize, Serialize};
use toml::Table;

/// The settings as an operator wrote them, unchecked; `None` is a key that is not set.
///
/// A key is a line of the configuration file, a flag (`--poll-interval`) and an environment
/// variable (`CEDAR_PDP_POLL_INTERVAL`). Durations are text such as `5s` or `50ms`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::Args)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Configuration")]
pub struct RawConfig {
    /// Directory of policies, schemas and entities
    #[arg(long, value_name = "DIR")]
    pub policies: Option<String>,
    /// Address to listen on, HOST:PORT or unix:PATH; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<Vec<String>>,
    /// TLS certificate chain, PEM, watched; the client's in `authorize --connect`
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Private key of the TLS certificate, PEM, watched
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// CA certificates that verify client certificates, PEM, watched
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<String>,
    /// Client certificates: none, optional (verified if sent) or required
    #[arg(long, value_name = "none|optional|required")]
    pub tls_client_auth: Option<String>,
    /// File mode of Unix sockets, octal
    #[arg(long, value_name = "MODE")]
    pub unix_socket_mode: Option<String>,
    /// Callers and their rights, TOML, watched; unset: every caller has every right
    #[arg(long, value_name = "FILE")]
    pub callers: Option<String>,
    /// Serve gRPC server reflection
    #[arg(long, value_name = "on|off")]
    pub reflection: Option<String>,
    /// Explain decisions to callers that request it
    #[arg(long, value_name = "on|off")]
    pub explanations: Option<String>,
    /// Serve PolicyStoreService
    #[arg(long, value_name = "on|off")]
    pub policy_store_service: Option<String>,
    /// Allow plaintext on non-loopback addresses
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: Option<bool>,
    /// Address of metrics, readiness and status over HTTP; reads need no authentication
    #[arg(long, value_name = "ADDR|off")]
    pub admin_listen: Option<String>,
    /// Schema validation: strict rejects, warn reports, off checks no requests either
    #[arg(long, value_name = "strict|warn|off")]
    pub validation: Option<String>,
    /// Effect of a forbid whose evaluation fails: skip (Cedar's rule) or deny
    #[arg(long, value_name = "skip|deny")]
    pub on_policy_error: Option<String>,
    /// Entity types that callers may send, comma-separated; empty: none, unset: any
    #[arg(long, value_name = "T,…", value_delimiter = ',')]
    pub request_entity_types: Option<Vec<String>>,
    /// Principal of requests that name none; unset: such requests are rejected
    #[arg(long, value_name = "UID")]
    pub anonymous_principal: Option<String>,
    /// Issuers of accepted principal tokens, TOML; unset: no token is accepted
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<String>,
    /// Revoked tokens, subjects and keys, TOML or JSON, watched
    #[arg(long, value_name = "FILE")]
    pub revocations: Option<String>,
    /// Memory for verified tokens, in bytes; 0 verifies every token anew
    #[arg(long, value_name = "BYTES")]
    pub token_cache_bytes: Option<i64>,
    /// Start unready, instead of failing, while the policy directory is invalid
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub start_unready: Option<bool>,
    /// Load a directory, schema or policy file that has become empty
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_empty: Option<bool>,
    /// Detection of changed files: by events, backed by polling, or by poll alone
    #[arg(long, value_name = "events|poll")]
    pub watch: Option<String>,
    /// Interval between rereads of the directory without an event
    #[arg(long, value_name = "DURATION")]
    pub poll_interval: Option<String>,
    /// Time without writes after which a change is loaded
    #[arg(long, value_name = "DURATION")]
    pub quiet_period: Option<String>,
    /// Time after which constant writes are reported; at least the quiet period
    #[arg(long, value_name = "DURATION")]
    pub max_reload_delay: Option<String>,
    /// Largest file read from the directory, in bytes
    #[arg(long, value_name = "BYTES")]
    pub max_file_bytes: Option<i64>,
    /// Most bytes read from the directory, all files together
    #[arg(long, value_name = "BYTES")]
    pub max_total_bytes: Option<i64>,
    /// Memory for policies and stored entities, in bytes; larger loads are rejected
    #[arg(long, value_name = "BYTES")]
    pub max_store_bytes: Option<i64>,
    /// Most policies whose scope may match one request
    #[arg(long, value_name = "COUNT")]
    pub max_candidates: Option<i64>,
    /// Memory for cached decisions, in bytes; 0 disables the cache
    #[arg(long, value_name = "BYTES")]
    pub cache_bytes: Option<i64>,
    /// Largest request message, in bytes
    #[arg(long, value_name = "BYTES")]
    pub max_message_bytes: Option<i64>,
    /// Memory for partial and waiting requests and large unread responses, in bytes
    #[arg(long, value_name = "BYTES")]
    pub max_pending_bytes: Option<i64>,
    /// Most requests in one batch
    #[arg(long, value_name = "COUNT")]
    pub max_batch_items: Option<i64>,
    /// Most entities in one request
    #[arg(long, value_name = "COUNT")]
    pub max_request_entities: Option<i64>,
    /// Most attributes, set members, entities and parents of one request, in total
    #[arg(long, value_name = "COUNT")]
    pub max_request_values: Option<i64>,
    /// Deepest nesting of values in a request
    #[arg(long, value_name = "LEVELS")]
    pub max_value_depth: Option<i64>,
    /// Most concurrent calls on one connection
    #[arg(long, value_name = "COUNT")]
    pub max_concurrent_streams: Option<i64>,
    /// Most concurrent calls not answered at once, streams and watches included
    #[arg(long, value_name = "COUNT")]
    pub max_concurrent_calls: Option<i64>,
    /// Time limit of a unary call, also if its deadline is later; 0s: no limit
    #[arg(long, value_name = "DURATION")]
    pub max_call_time: Option<String>,
    /// Target queueing delay. Calls that waited longer are shed once this lasts 100 ms; 0s disables
    #[arg(long, value_name = "DURATION")]
    pub overload_delay: Option<String>,
    /// Largest header list of a call, in bytes; each header counts 32 bytes more
    #[arg(long, value_name = "BYTES")]
    pub max_header_bytes: Option<i64>,
    /// Most connections; further ones are closed at once
    #[arg(long, value_name = "COUNT")]
    pub max_connections: Option<i64>,
    /// Age (± 10 %) at which clients are sent to a new connection; 0s: no limit
    #[arg(long, value_name = "DURATION")]
    pub max_connection_age: Option<String>,
    /// Time for calls to finish on a connection that reached its maximum age
    #[arg(long, value_name = "DURATION")]
    pub max_connection_age_grace: Option<String>,
    /// Time without a call after which a connection is closed; 0s: no limit
    #[arg(long, value_name = "DURATION")]
    pub max_connection_idle: Option<String>,
    /// Time limit for the TLS handshake and HTTP/2 preface
    #[arg(long, value_name = "DURATION")]
    pub handshake_timeout: Option<String>,
    /// Interval between HTTP/2 pings on a silent connection
    #[arg(long, value_name = "DURATION")]
    pub keepalive_interval: Option<String>,
    /// Time limit for the reply to a ping before the connection is closed
    #[arg(long, value_name = "DURATION")]
    pub keepalive_timeout: Option<String>,
    /// Time between NOT_SERVING and draining at shutdown, for load balancers to notice
    #[arg(long, value_name = "DURATION")]
    pub shutdown_delay: Option<String>,
    /// Time limit for calls in flight at shutdown, after the shutdown delay
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
    /// Destination of the decision log: off, stdout, file:PATH or otlp
    #[arg(long, value_name = "off|stdout|file:PATH|otlp")]
    pub decision_log: Option<String>,
    /// Share of ALLOWs that are logged, such as 0.1 or 10%; every DENY is logged
    #[arg(long, value_name = "SHARE")]
    pub decision_log_allow_sample: Option<String>,
    /// Values logged unmasked: context.NAME, TYPE.NAME, errors.message; NAME or all: *
    #[arg(long, value_name = "PATH,…", value_delimiter = ',')]
    pub decision_log_attributes: Option<Vec<String>>,
    /// Effect of a full decision log queue: drop (and count) records, or block calls
    #[arg(long, value_name = "drop|block")]
    pub decision_log_when_full: Option<String>,
    /// Memory for decision log records that wait to be written, in bytes
    #[arg(long, value_name = "BYTES")]
    pub decision_log_queue_bytes: Option<i64>,
    /// Size at which the decision log file is rotated, in bytes; 0 disables rotation
    #[arg(long, value_name = "BYTES")]
    pub decision_log_max_file_bytes: Option<i64>,
    /// Most decision log files kept, the current one included
    #[arg(long, value_name = "COUNT")]
    pub decision_log_max_files: Option<i64>,
    /// Log filter in the syntax of tracing's EnvFilter, such as info or cedar_pdp=debug
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Format of log lines: text or json
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<String>,
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
