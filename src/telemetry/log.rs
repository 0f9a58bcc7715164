//! Log lines on stderr, and the filter that says which, which may change while the service runs.

use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use crate::config::value::{Problem, log_filter, log_filters};
use crate::config::{LogConfig, LogFormat};

/// The filter in force. Clones are of one and the same.
#[derive(Clone, Debug)]
pub struct LogFilter {
    text: Arc<Mutex<String>>,
    /// `None` when the lines are another subscriber's, which this process had before.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

/// Why a filter was not put in force.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is no filter.
    #[error("the filter {0}")]
    Filter(Problem),
    /// The log is not ours to filter.
    #[error("the log of this process is written by another subscriber")]
    NotOurs,
}

/// Sends what is logged from here on to stderr.
///
/// Only the first call in a process has an effect. A stderr that cannot be written to loses log
/// lines and nothing else.
pub fn init(config: &LogConfig) -> LogFilter {
    // Told to, the subscriber reports a failed write with `eprintln!`, which panics on the same
    // broken stderr; it is not the default, but worth saying.
    let lines = layer().with_writer(io::stderr).log_internal_errors(false);
    // With a terminal the layer's own rule stands: colours, unless NO_COLOR forbids them.
    let lines = match io::stderr().is_terminal() {
        true => lines,
        false => lines.with_ansi(false),
    };
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    // The filter was parsed when the configuration was checked, so nothing is lost in this one.
    let filter = log_filters().parse_lossy(&config.filter);
    let (filter, handle) = reload::Layer::new(filter);
    // An error here means that a subscriber is already at work, which is what is wanted.
    let ours = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
    LogFilter {
        text: Arc::new(Mutex::new(config.filter.clone())),
        filter: ours.is_ok().then_some(handle),
    }
}

impl LogFilter {
    /// The filter in force, as it was written.
    #[must_use]
    pub fn text(&self) -> String {
        self.text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts another in force, until the process ends, and logs that: before, lest the new one
    /// hides who turned the log off, and after, lest the old one hides who turned it on. What is
    /// in force then, as it was written.
    ///
    /// # Errors
    ///
    /// [`FilterError`]; then the one in force stays.
    pub fn change(&self, text: String) -> Result<String, FilterError> {
        let text = log_filter(text).map_err(FilterError::Filter)?;
        // Held throughout, so that what is told is what is in force.
        let mut told = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = self.filter.as_ref().ok_or(FilterError::NotOurs)?;
        let old = told.clone();
        tracing::warn!(old, new = text, "the log's filter is being changed");
        handle
            .reload(log_filters().parse_lossy(&text))
            .map_err(|_gone| FilterError::NotOurs)?;
        tracing::warn!(old, new = text, "the log's filter was changed");
        told.clone_from(&text);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logging_may_be_set_up_twice_and_is_filtered_by_the_first() {
        let first = init(&LogConfig::default());
        let second = init(&LogConfig {
            format: LogFormat::Json,
            ..LogConfig::default()
        });
        tracing::info!("said once");
        assert!(second.filter.is_none());
        let refused = second.change("debug".to_owned());
        assert!(matches!(refused, Err(FilterError::NotOurs)));
        // Another test of this process may have been before even the first.
        if first.filter.is_some() {
            first.change("off".to_owned()).unwrap();
            assert_eq!(first.text(), "off");
        }
        let refused = first.change("cedar_pdp=loud".to_owned());
        assert!(matches!(refused, Err(FilterError::Filter(_))));
    }
}
