//! `fmt`: formats the policy files of a directory.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{Outcome, config_of_directory, directory};
use crate::config::sources::ConfigArgs;
use crate::pdp::analysis::format::format_policies;
use crate::pdp::sources::FileKind;

/// Arguments of `fmt`.
#[derive(Debug, Args)]
pub(super) struct FmtArgs {
    /// Policy directory to format [default: that of the settings]
    #[arg(value_name = "DIR", conflicts_with = "policies")]
    pub(super) dir: Option<PathBuf>,
    /// Write nothing, and exit with status 1 if a file is not formatted
    #[arg(long)]
    pub(super) check: bool,
    /// Settings that change what is read.
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Formats every `.cedar` file; the outcome is good if all are formatted.
pub(super) fn run(args: FmtArgs) -> anyhow::Result<Outcome> {
    let store = config_of_directory(args.config, args.dir)?.store;
    let sources = directory::load(&store)?.sources;
    let mut stdout = io::stdout().lock();
    let mut is_good = true;
    for file in sources.of_kind(FileKind::Policies) {
        let text = file.text()?;
        let formatted = match format_policies(&text) {
            Ok(formatted) => formatted,
            Err(error) => {
                is_good = false;
                writeln!(io::stderr(), "{}: {error}", file.path)?;
                continue;
            }
        };
        if formatted == *text {
            continue;
        }
        if args.check {
            is_good = false;
            writeln!(stdout, "not formatted: {}", file.path)?;
        } else {
            replace(&store.directory.join(&file.path), &formatted)?;
            writeln!(stdout, "formatted: {}", file.path)?;
        }
    }
    Ok(Outcome::of(is_good))
}

/// Replaces the content of a file at once, so that a running service never reads a part.
///
/// A symbolic link stays, and its target is replaced.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let cannot_write = || format!("cannot write `{}`", path.display());
    let path = fs::canonicalize(path).with_context(cannot_write)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".fmt");
    // Names that begin with a dot are not read.
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let new = path.with_file_name(hidden);
    let permissions = fs::metadata(&path)
        .with_context(cannot_write)?
        .permissions();
    fs::write(&new, text).with_context(cannot_write)?;
    fs::set_permissions(&new, permissions).with_context(cannot_write)?;
    fs::rename(&new, &path).with_context(cannot_write)
}
