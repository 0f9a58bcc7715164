//! The connection of a command to a running service: address, TLS and credentials.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::api::grpc::client::{Target, TargetTls};
use crate::config::listen::Listen;

/// Arguments of the connection, except the client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct TargetArgs {
    /// Use TLS, and verify the service by these CA certificates, PEM
    #[arg(long, value_name = "FILE")]
    pub(super) tls_ca: Option<PathBuf>,
    /// Use TLS, and expect this name in the service's certificate
    #[arg(long, value_name = "NAME")]
    pub(super) tls_server_name: Option<String>,
    /// Send the bearer key in the first line of this file
    #[arg(long, value_name = "FILE")]
    pub(super) bearer: Option<PathBuf>,
}

/// Files of the client's certificate and key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClientCertificate<'a> {
    pub(super) certificate: Option<&'a Path>,
    pub(super) key: Option<&'a Path>,
}

/// Most bytes read from a file of certificates or keys.
const MAX_BYTES: u64 = 1 << 20;

/// Returns the connection to the service at `address`; reads the files that the arguments name.
pub(super) fn target(
    address: Listen,
    args: &TargetArgs,
    client: ClientCertificate<'_>,
) -> anyhow::Result<Target> {
    let identity = match (client.certificate, client.key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => bail!("`--tls-cert` and `--tls-key` go together"),
    };
    let uses_tls = args.tls_ca.is_some() || args.tls_server_name.is_some() || identity.is_some();
    if uses_tls && matches!(address, Listen::Unix(_)) {
        bail!("TLS is not supported on Unix sockets");
    }
    let tls = match uses_tls {
        true => Some(TargetTls {
            authorities: args.tls_ca.as_deref().map(read).transpose()?,
            identity,
            server_name: args.tls_server_name.clone(),
        }),
        false => None,
    };
    if args.bearer.is_some() && tls.is_none() && !address.is_local() {
        bail!("`--bearer` would send the key in plaintext: enable TLS, such as by `--tls-ca`");
    }
    let bearer = args.bearer.as_deref().map(first_line).transpose()?;
    Ok(Target {
        address,
        tls,
        bearer,
    })
}

/// Returns the first line of a file that is not blank.
fn first_line(file: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(read(file)?)
        .ok()
        .with_context(|| format!("`{}` is not UTF-8 text", file.display()))?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map(ToOwned::to_owned)
        .with_context(|| format!("`{}` contains no key", file.display()))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot_read = || format!("cannot read `{}`", file.display());
    let mut bytes = Vec::new();
    File::open(file)
        .with_context(cannot_read)?
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .with_context(cannot_read)?;
    Ok(bytes)
}
