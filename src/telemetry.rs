//! What the service says about itself while it runs: log lines on stderr.
//!
//! Nothing here decides what is worth saying; each part of the house says it through `tracing`.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::{LogConfig, LogFormat};

/// Sends what is logged from here on to stderr.
///
/// Only the first call in a process has an effect. A stderr that cannot be written to loses log
/// lines and nothing else.
pub fn init(config: &LogConfig) {
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
    let filter = EnvFilter::builder().parse_lossy(&config.filter);
    // An error here means that a subscriber is already at work, which is what is wanted.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logging_may_be_set_up_twice() {
        init(&LogConfig::default());
        init(&LogConfig {
            format: LogFormat::Json,
            ..LogConfig::default()
        });
        tracing::info!("said once");
    }
}
