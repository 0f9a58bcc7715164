//! `authorize`: requests one decision from a directory or from a running service.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;

use super::target::{ClientCertificate, TargetArgs, target};
use super::{Format, Outcome, directory};
use crate::api::grpc::client;
use crate::authoring::report;
use crate::config::Config;
use crate::config::listen::Listen;
use crate::config::sources::{self, ConfigArgs};
use crate::pdp::answer::{Answer, Decision};
use crate::pdp::query::{Query, Record, Uid};
use crate::pdp::request_json::RequestJson;
use crate::pdp::{Snapshot, authorize, request_json};

/// Arguments of `authorize`. Without `--connect` the policy directory decides.
#[derive(Debug, Args)]
pub(super) struct AuthorizeArgs {
    /// Running service to ask, with its own settings: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR", conflicts_with = "policies")]
    pub(super) connect: Option<Listen>,
    /// Principal, such as User::"alice"
    #[arg(long, value_name = "UID", required_unless_present_any = ["token", "request_json"])]
    pub(super) principal: Option<Uid>,
    /// File with the token of the principal, in place of `--principal`
    #[arg(
        long,
        value_name = "FILE",
        requires = "connect",
        conflicts_with_all = ["principal", "policies"]
    )]
    pub(super) token: Option<PathBuf>,
    /// Action, such as Action::"read"
    #[arg(long, value_name = "UID", required_unless_present = "request_json")]
    pub(super) action: Option<Uid>,
    /// Resource, such as Document::"1"
    #[arg(long, value_name = "UID", required_unless_present = "request_json")]
    pub(super) resource: Option<Uid>,
    /// Context: a JSON object, or a file with one
    #[arg(long, value_name = "FILE|JSON")]
    pub(super) context: Option<String>,
    /// File with principal, action, resource and context, as JSON
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["principal", "action", "resource", "context", "token"]
    )]
    pub(super) request_json: Option<PathBuf>,
    /// File of entities for this request only, in Cedar's JSON format
    #[arg(long, value_name = "FILE")]
    pub(super) entities: Option<PathBuf>,
    /// Explain the decision
    #[arg(long)]
    pub(super) explain: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Arguments of the connection to the service. They stand after the others: their heading holds
    /// for what follows.
    #[command(flatten)]
    pub(super) target: TargetArgs,
    /// Settings that change how a directory decides.
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Requests the decision and prints the answer; the outcome is the decision.
pub(super) fn run(args: AuthorizeArgs) -> anyhow::Result<Outcome> {
    let config = sources::merge(args.config.clone())?.check()?;
    let answer = match &args.connect {
        Some(address) => from_service(address, &args, &config)?,
        // clap does not require `--connect` if an argument is given that conflicts with it.
        None if args.token.is_some() => {
            bail!("`--token` needs `--connect`: only a service verifies tokens")
        }
        None => from_directory(&args, &config)?,
    };
    print(&answer, args.format)?;
    Ok(Outcome::of(answer.decision == Decision::Allow))
}

fn from_service(address: &Listen, args: &AuthorizeArgs, config: &Config) -> anyhow::Result<Answer> {
    let query = query(args, None, config)?;
    let token = args.token.as_deref().map(token).transpose()?;
    // Only the flags count: the certificate in the file or environment is the service's.
    let flags = &args.config.flags;
    let certificate = ClientCertificate {
        certificate: flags.tls_cert.as_deref().map(Path::new),
        key: flags.tls_key.as_deref().map(Path::new),
    };
    let target = target(address.clone(), &args.target, certificate)?;
    if token.is_some() && target.tls.is_none() && !address.is_local() {
        bail!("`--token` would send the token in plaintext: enable TLS, such as by `--tls-ca`");
    }
    Ok(client::authorize(&target, &query, token)?)
}

fn from_directory(args: &AuthorizeArgs, config: &Config) -> anyhow::Result<Answer> {
    let directory = directory::load(&config.store)?;
    let snapshot = directory.compiled.inspect_err(|error| {
        let diagnostics = report::diagnostics_text(&error.errors, false);
        let _ = writeln!(std::io::stderr(), "{diagnostics}");
    })?;
    let query = query(args, Some(&snapshot), config)?;
    Ok(authorize(&snapshot, &query)?)
}

fn print(answer: &Answer, format: Format) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match format {
        Format::Text => write!(stdout, "{}", report::text(answer))?,
        Format::Json => writeln!(stdout, "{:#}", report::json(answer))?,
    }
    Ok(())
}

/// Returns the query of the arguments. The snapshot's schema gives the types of values that are
/// written without them.
fn query(
    args: &AuthorizeArgs,
    snapshot: Option<&Snapshot>,
    config: &Config,
) -> anyhow::Result<Query> {
    let max_bytes = config.api.max_message_bytes;
    let entities = match &args.entities {
        None => Vec::new(),
        Some(path) => request_json::request_entities(&read(path, max_bytes)?, snapshot)
            .context("--entities")?,
    };
    let query = match &args.request_json {
        Some(path) => query_of_file(path, max_bytes, snapshot)?,
        None => query_of_flags(args, max_bytes, snapshot)?,
    };
    Ok(Query {
        entities,
        explain: args.explain,
        ..query
    })
}

fn query_of_file(
    path: &Path,
    max_bytes: usize,
    snapshot: Option<&Snapshot>,
) -> anyhow::Result<Query> {
    let text: Arc<str> = Arc::from(read(path, max_bytes)?);
    let request = RequestJson::parse(&path.display().to_string(), &text);
    let request = request.map_err(|found| anyhow::anyhow!("{}", found.render(false)))?;
    let query = request.query(snapshot);
    query.map_err(|message| anyhow::anyhow!("`{}`: {message}", path.display()))
}

fn query_of_flags(
    args: &AuthorizeArgs,
    max_bytes: usize,
    snapshot: Option<&Snapshot>,
) -> anyhow::Result<Query> {
    let (Some(action), Some(resource)) = (&args.action, &args.resource) else {
        bail!("`--action` and `--resource` are required without `--request-json`");
    };
    let context = match &args.context {
        None => Record::default(),
        Some(source) => {
            let text = match source.trim_start().starts_with('{') {
                true => source.clone(),
                false => read(Path::new(source), max_bytes)?,
            };
            request_json::context(&text, action, snapshot).context("--context")?
        }
    };
    Ok(Query {
        // With a token the service takes the principal from it, and this one is not sent.
        principal: args
            .principal
            .clone()
            .unwrap_or_else(|| Uid::new("Token", "")),
        action: action.clone(),
        resource: resource.clone(),
        context,
        entities: Vec::new(),
        claimed: None,
        explain: false,
    })
}

/// Reads a token from a file, without the newline that editors append.
fn token(path: &Path) -> anyhow::Result<String> {
    Ok(read(path, MAX_TOKEN_BYTES)?.trim_end().to_owned())
}

/// Largest token, in bytes; services reject longer ones.
const MAX_TOKEN_BYTES: usize = 1 << 20;

/// Reads a file that is part of one request, and so no larger than a message.
fn read(path: &Path, max_bytes: usize) -> anyhow::Result<String> {
    let cannot_read = || format!("cannot read `{}`", path.display());
    let file = File::open(path).with_context(cannot_read)?;
    let mut text = String::new();
    file.take(max_bytes as u64 + 1)
        .read_to_string(&mut text)
        .with_context(cannot_read)?;
    if text.len() > max_bytes {
        bail!("`{}` is larger than {max_bytes} bytes", path.display());
    }
    Ok(text)
}
