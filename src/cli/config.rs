//! `cedar-pdp config`: prints the configuration in force.

use std::io::{self, Write as _};

use anyhow::Context as _;

use super::Outcome;
use crate::config::layers::Effective;

pub(super) fn run(effective: &Effective) -> anyhow::Result<Outcome> {
    let text = effective.to_toml()?;
    io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to stdout")?;
    Ok(Outcome::Good)
}
