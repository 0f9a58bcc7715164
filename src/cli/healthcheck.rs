//! `healthcheck`: asks a running service whether it is serving, for images that hold nothing else.

use std::io::Write as _;

use super::Outcome;
use crate::api::grpc::client::{self, Target};

/// Asks the service at `target` for the health of `service`.
pub(super) fn run(target: &Target, service: &str) -> anyhow::Result<Outcome> {
    let serving = client::is_serving(target, service)?;
    writeln!(
        std::io::stdout(),
        "{}",
        if serving { "SERVING" } else { "NOT_SERVING" }
    )?;
    Ok(if serving { Outcome::Good } else { Outcome::No })
}
