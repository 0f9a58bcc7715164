//! Settings: first as text, then as checked values.
//!
//! [`RawConfig`] is the text of each key, [`Config`] its meaning; [`RawConfig::check`] alone leads
//! from one to the other. [`sources`] reads the text (file, environment, flags). Each part of the
//! service takes its own field of [`Config`]. Nothing here opens a directory or binds an address.

pub mod api;
mod check;
pub mod decision_log;
pub mod listen;
pub mod otel;
mod raw;
pub mod sources;
pub mod value;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use crate::pdp::settings::Settings;
use crate::watch::WatchSettings;
use api::ApiSettings;
use decision_log::DecisionLogConfig;
use listen::Listen;
pub use raw::RawConfig;

/// All settings of the service, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses that callers connect to; at least one.
    pub listen: Vec<Listen>,
    /// Settings of the gRPC API.
    pub api: ApiSettings,
    /// Address of the admin HTTP server; `None` disables it.
    pub admin_listen: Option<Listen>,
    /// Settings of the policy store, those of the decision among them.
    pub store: StoreSettings,
    /// Settings of token verification; `None` accepts no token.
    pub tokens: Option<TokenSettings>,
    /// Size of the decision cache.
    pub cache: CacheSettings,
    /// Settings of the decision log.
    pub decision_log: DecisionLogConfig,
    /// Time limits of a shutdown.
    pub shutdown: ShutdownSettings,
    /// Settings of the log of events.
    pub log: LogConfig,
    /// The text of every setting in force, defaults included.
    pub in_force: RawConfig,
}

/// The configuration in which no key is set.
impl Default for Config {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "a test checks the defaults")]
        RawConfig::default().check().expect("valid defaults")
    }
}

/// Settings of the policy store: what it reads, and when it reloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// The policy directory, or a link to it.
    pub directory: PathBuf,
    /// Bounds of what is read from the directory.
    pub limits: SourceLimits,
    /// Settings of compilation and decision.
    pub pdp: Settings,
    /// Detection of changes, and the longest time between two reads of the directory.
    pub watch: WatchSettings,
    /// Time without writes after which a change is loaded.
    pub quiet_period: Duration,
    /// Time after which constant writes are reported as holding back the reload.
    pub max_reload_delay: Duration,
    /// Loads a directory, schema or policy file that has become empty, which may be a mistake.
    pub allow_empty: bool,
    /// Waits for an invalid directory at startup, instead of failing.
    pub start_unready: bool,
}

/// Bounds of what is read from a policy directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// Most bytes of one file.
    pub file_bytes: u64,
    /// Most bytes of all files together.
    pub total_bytes: u64,
    /// Most files and directories.
    pub files: usize,
    /// Deepest nesting of directories, not counting the policy directory itself.
    pub depth: usize,
}

impl Default for SourceLimits {
    fn default() -> Self {
        Config::default().store.limits
    }
}

/// Settings of token verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSettings {
    /// The issuers file.
    pub issuers: PathBuf,
    /// The revocations file.
    pub revocations: Option<PathBuf>,
    /// Most memory for verified tokens, in bytes; `None` disables the token cache.
    pub cache_bytes: Option<NonZeroU64>,
    /// Detection of changes of these files.
    pub following: WatchSettings,
}

/// Size of the decision cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Most memory for cached answers, in bytes; `None` disables the cache.
    pub capacity_bytes: Option<NonZeroU64>,
}

/// Time limits of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownSettings {
    /// Time in which health is NOT_SERVING and calls are still accepted.
    pub delay: Duration,
    /// Time after the delay for calls in flight to finish.
    pub drain_timeout: Duration,
}

/// Settings of the log of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A valid filter in the syntax of tracing's `EnvFilter`.
    pub filter: String,
    /// The format of a line.
    pub format: LogFormat,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests;
