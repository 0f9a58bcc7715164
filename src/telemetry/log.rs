//! Writes log lines to stderr, by a filter that may be changed while the service runs.

use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use crate::config::value::{Problem, log_filter, log_filters};
use crate::config::{LogConfig, LogFormat};

/// The filter of log lines. Clones share it.
#[derive(Clone, Debug)]
pub struct LogFilter {
    text: Arc<Mutex<String>>,
    /// `None` if another subscriber of this process writes the log.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

/// An error that leaves the filter as it is.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The text is not a filter.
    #[error("the filter {0}")]
    Filter(Problem),
    /// Another subscriber writes the log.
    #[error("the log of this process is written by another subscriber")]
    OtherSubscriber,
}

/// Starts to write log lines to stderr.
///
/// Only the first call in a process has an effect. If stderr cannot be written to, log lines are
/// lost and nothing else happens.
pub fn init(config: &LogConfig) -> LogFilter {
    // With internal errors, the subscriber would report a failed write with `eprintln!`, which
    // panics on the same broken stderr. They are off by default; this line keeps them off.
    let lines = layer().with_writer(io::stderr).log_internal_errors(false);
    // On a terminal, the layer's own rule applies: colours, unless NO_COLOR forbids them.
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
    // The configuration has checked the filter, so lossy parsing loses nothing.
    let filter = log_filters().parse_lossy(&config.filter);
    let (filter, handle) = reload::Layer::new(filter);
    // An error means that a subscriber is already installed; that one stays.
    let installed = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
    LogFilter {
        text: Arc::new(Mutex::new(config.filter.clone())),
        filter: installed.is_ok().then_some(handle),
    }
}

impl LogFilter {
    /// Returns the text of the filter.
    #[must_use]
    pub fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }

    /// Replaces the filter until the process ends, and returns its text.
    ///
    /// The change is logged before and after: the new filter may turn the log off, and the old one
    /// may have turned it off.
    ///
    /// # Errors
    ///
    /// [`FilterError`]; the filter then stays as it is.
    pub fn change(&self, text: String) -> Result<String, FilterError> {
        let text = log_filter(text).map_err(FilterError::Filter)?;
        // Locked throughout, so that the text always belongs to the filter in use.
        let mut current = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = self.filter.as_ref().ok_or(FilterError::OtherSubscriber)?;
        let old = current.clone();
        tracing::warn!(old, new = text, "changing the log filter");
        handle
            .reload(log_filters().parse_lossy(&text))
            .map_err(|_gone| FilterError::OtherSubscriber)?;
        tracing::warn!(old, new = text, "log filter changed");
        current.clone_from(&text);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn first_initialization_owns_the_filter() {
        let first = init(&Config::default().log);
        let second = init(&LogConfig {
            format: LogFormat::Json,
            ..Config::default().log
        });
        tracing::info!("logged once");
        assert!(second.filter.is_none());
        let rejected = second.change("debug".to_owned());
        assert!(matches!(rejected, Err(FilterError::OtherSubscriber)));
        // Another test of this process may have come before even the first.
        if first.filter.is_some() {
            first.change("off".to_owned()).unwrap();
            assert_eq!(first.text(), "off");
        }
        let rejected = first.change("cedar_pdp=loud".to_owned());
        assert!(matches!(rejected, Err(FilterError::Filter(_))));
    }
}
