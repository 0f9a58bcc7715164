//! `schema`: prints the schema of a directory as one text, for editors and other tools.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::{Format, Outcome, config_of_directory, directory};
use crate::authoring::report;
use crate::config::sources::ConfigArgs;
use crate::pdp::joined_schema;

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub(super) struct SchemaArgs {
    /// Policy directory to read [default: that of the settings]
    #[arg(value_name = "DIR", conflicts_with = "policies")]
    pub(super) dir: Option<PathBuf>,
    /// Output format: text is Cedar's syntax
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Settings that change what is read.
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Prints the schema; the outcome is good if the schema files are valid.
pub(super) fn run(args: SchemaArgs) -> anyhow::Result<Outcome> {
    let store = config_of_directory(args.config, args.dir)?.store;
    let sources = directory::load(&store)?.sources;
    let schema = match joined_schema(&sources) {
        Ok(Some(schema)) => schema,
        Ok(None) => bail!("there is no schema in `{}`", store.directory.display()),
        Err(diagnostics) => {
            let diagnostics = report::diagnostics_text(&diagnostics, false);
            writeln!(io::stderr(), "{diagnostics}")?;
            return Ok(Outcome::No);
        }
    };
    let mut stdout = io::stdout().lock();
    match args.format {
        Format::Text => writeln!(stdout, "{}", schema.cedar.trim_end())?,
        Format::Json => writeln!(stdout, "{:#}", schema.json)?,
    }
    Ok(Outcome::Good)
}
