//! `init`: writes a small policy directory to begin with.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use super::Outcome;

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Directory to write; it must not exist, or be empty
    #[arg(value_name = "DIR", default_value = "policies")]
    pub(super) dir: PathBuf,
}

/// The files, which are also an example in the repository.
const FILES: [(&str, &str); 4] = [
    (
        "photos.cedarschema",
        include_str!("../../examples/photos/photos.cedarschema"),
    ),
    (
        "photos.cedar",
        include_str!("../../examples/photos/photos.cedar"),
    ),
    (
        "photos.entities.json",
        include_str!("../../examples/photos/photos.entities.json"),
    ),
    (
        "photos.test.json",
        include_str!("../../examples/photos/photos.test.json"),
    ),
];

/// Writes the directory, and prints what to do with it.
pub(super) fn run(args: &InitArgs) -> anyhow::Result<Outcome> {
    let dir = &args.dir;
    let cannot_write = |path: &Path| format!("cannot write `{}`", path.display());
    fs::create_dir_all(dir).with_context(|| cannot_write(dir))?;
    let mut entries = fs::read_dir(dir).with_context(|| cannot_write(dir))?;
    if entries.next().is_some() {
        bail!("`{}` is not empty; nothing was written", dir.display());
    }
    for (name, text) in FILES {
        let path = dir.join(name);
        let written = File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| cannot_write(&path))?;
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "wrote {} files to {}", FILES.len(), dir.display())?;
    for command in ["validate", "test", "serve --policies"] {
        writeln!(stdout, "  cedar-pdp {command} {}", dir.display())?;
    }
    Ok(Outcome::Good)
}
