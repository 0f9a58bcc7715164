//! The running service that a command asks, and what it is shown on the way in.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::api::grpc::client::{Target, TargetTls};
use crate::config::listen::Listen;

/// How to come in, beside the caller's own certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Connection")]
pub struct TargetArgs {
    /// Speak TLS, and verify the service by these authorities, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Speak TLS, and expect this name in the service's certificate
    #[arg(long, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// Send the bearer key that is the first line of this file
    #[arg(long, value_name = "FILE")]
    pub bearer: Option<PathBuf>,
}

/// The files of a caller's certificate and key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OwnCertificate<'a> {
    pub(super) certificate: Option<&'a Path>,
    pub(super) key: Option<&'a Path>,
}

/// No file that belongs here is larger.
const MAX_BYTES: u64 = 1 << 20;

/// The service at `address`, with what the files hold that were named.
pub(super) fn target(
    address: Listen,
    args: &TargetArgs,
    own: OwnCertificate<'_>,
) -> anyhow::Result<Target> {
    let identity = match (own.certificate, own.key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => bail!("`--tls-cert` and `--tls-key` go together"),
    };
    let speaks_tls = args.tls_ca.is_some() || args.tls_server_name.is_some() || identity.is_some();
    if speaks_tls && matches!(address, Listen::Unix(_)) {
        bail!("no TLS is spoken on a Unix socket");
    }
    let tls = match speaks_tls {
        true => Some(TargetTls {
            authorities: args.tls_ca.as_deref().map(read).transpose()?,
            identity,
            server_name: args.tls_server_name.clone(),
        }),
        false => None,
    };
    if args.bearer.is_some() && tls.is_none() && !address.is_this_machine() {
        bail!(
            "`--bearer` would send the key in the clear: say how to speak TLS, such as `--tls-ca`"
        );
    }
    let bearer = args.bearer.as_deref().map(first_line).transpose()?;
    Ok(Target {
        address,
        tls,
        bearer,
    })
}

fn first_line(file: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(read(file)?)
        .ok()
        .with_context(|| format!("`{}` is no text", file.display()))?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map(ToOwned::to_owned)
        .with_context(|| format!("`{}` holds no key", file.display()))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let reading = || format!("cannot read `{}`", file.display());
    let mut bytes = Vec::new();
    File::open(file)
        .with_context(reading)?
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .with_context(reading)?;
    Ok(bytes)
}
