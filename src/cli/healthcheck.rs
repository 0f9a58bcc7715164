//! `healthcheck`: asks a running service whether it is serving, for images that hold nothing else.

use std::io::Write as _;

use super::Outcome;
use crate::api::client;
use crate::config::listen::Listen;

/// Asks the service at `address` for the health of `service`.
pub(super) fn run(address: &Listen, service: &str) -> anyhow::Result<Outcome> {
    let serving = client::is_serving(address, service)?;
    writeln!(
        std::io::stdout(),
        "{}",
        if serving { "SERVING" } else { "NOT_SERVING" }
    )?;
    Ok(if serving { Outcome::Good } else { Outcome::No })
}
