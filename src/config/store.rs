//! Settings of the policy store.

use std::path::PathBuf;
use std::time::Duration;

use super::Config;
use crate::pdp::settings::Settings;
use crate::watch::WatchSettings;

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

impl Default for StoreSettings {
    fn default() -> Self {
        Config::default().store
    }
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
