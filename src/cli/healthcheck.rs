//! `healthcheck`: checks whether a running service is serving, for images that contain nothing else.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::Outcome;
use super::target::{ClientCertificate, TargetArgs, target};
use crate::api::grpc::client;
use crate::config::listen::Listen;
use crate::config::sources::{self, ConfigArgs};

/// Arguments of `healthcheck`.
#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    /// Address of the service; by default the first that serve would listen on
    #[arg(long, value_name = "ADDR")]
    pub(super) connect: Option<Listen>,
    /// Name of the gRPC service to check; empty: the whole server
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(super) service: String,
    /// Configuration file, TOML [env: CEDAR_PDP_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Arguments of the connection to the service. They stand after the others: their heading holds
    /// for what follows.
    #[command(flatten)]
    pub(super) target: TargetArgs,
    /// Client certificate chain, PEM
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        help_heading = "Connection"
    )]
    pub(super) tls_cert: Option<PathBuf>,
    /// Private key of the client certificate, PEM
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "Connection"
    )]
    pub(super) tls_key: Option<PathBuf>,
}

/// Prints the health of the service; the outcome is good if it is serving.
pub(super) fn run(args: HealthcheckArgs) -> anyhow::Result<Outcome> {
    let config = sources::merge(ConfigArgs {
        config: args.config,
        ..Default::default()
    })?
    .check()?;
    // INVARIANT: a checked configuration has an address.
    let address = args.connect.or_else(|| config.listen.into_iter().next());
    let address = address.context("there is no address to connect to")?;
    let certificate = ClientCertificate {
        certificate: args.tls_cert.as_deref(),
        key: args.tls_key.as_deref(),
    };
    let target = target(address, &args.target, certificate)?;
    let is_serving = client::is_serving(&target, &args.service)?;
    let status = if is_serving { "SERVING" } else { "NOT_SERVING" };
    writeln!(std::io::stdout(), "{status}")?;
    Ok(Outcome::of(is_serving))
}
