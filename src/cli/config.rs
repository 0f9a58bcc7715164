//! `config`: prints the configuration in force.

use std::io::{self, Write as _};

use anyhow::Context as _;

use super::Outcome;
use crate::config::sources::{self, ConfigArgs};

/// Prints every setting, with its source.
pub(super) fn run(args: ConfigArgs) -> anyhow::Result<Outcome> {
    let text = sources::merge(args)?.to_toml()?;
    io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to stdout")?;
    Ok(Outcome::Good)
}
