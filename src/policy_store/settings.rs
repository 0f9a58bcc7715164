//! The settings of the policy store.

use std::path::PathBuf;
use std::time::Duration;

use super::directory::SourceLimits;
use crate::pdp::settings::Settings;
use crate::watch::{Mode, WatchSettings};

/// The operator's settings for the policy directory.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The policy directory, or a link to it.
    pub directory: PathBuf,
    /// Limits on what is read.
    pub limits: SourceLimits,
    /// Settings for compiling and evaluating the policies.
    pub pdp: Settings,
    /// The source of change reports, and the poll interval.
    pub watch: WatchSettings,
    /// Time without a write after which a change is loaded.
    pub quiet_period: Duration,
    /// Time after which a change that keeps being written is reported as held back.
    pub max_reload_delay: Duration,
    /// Loads a directory, schema or policy file that becomes empty, instead of rejecting it.
    pub allow_empty: bool,
    /// Starts without policies if the directory is invalid, and waits until it is valid.
    pub start_unready: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("./policies"),
            limits: SourceLimits::default(),
            pdp: Settings::default(),
            watch: WatchSettings {
                mode: Mode::default(),
                poll: Duration::from_secs(5),
            },
            quiet_period: Duration::from_millis(50),
            max_reload_delay: Duration::from_secs(5),
            allow_empty: false,
            start_unready: false,
        }
    }
}
