//! `authorize`: asks for one decision, of a directory or of a running service.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};

use super::target::{self, OwnCertificate};
use super::{AuthorizeArgs, Format, JsonSource, Outcome, directory, report};
use crate::api::grpc::client;
use crate::config::Config;
use crate::pdp::answer::{Answer, Decision};
use crate::pdp::query::{Query, Record, Uid};
use crate::pdp::{Snapshot, authorize, request_json};

/// Asks, prints the answer, and ends as it says.
pub(super) fn run(args: &AuthorizeArgs, config: &Config) -> anyhow::Result<Outcome> {
    let answer = match &args.connect {
        Some(address) => {
            let query = query(args, None, config)?;
            let token = args.token.as_deref().map(token).transpose()?;
            // Of this command line alone: what the service is configured with is not the caller's.
            let flags = &args.config.flags;
            let own = OwnCertificate {
                certificate: flags.tls_cert.as_deref().map(Path::new),
                key: flags.tls_key.as_deref().map(Path::new),
            };
            let target = target::target(address.clone(), &args.target, own)?;
            if token.is_some() && target.tls.is_none() && !address.is_this_machine() {
                bail!(
                    "`--token` would send the token in the clear: say how to speak TLS, such as `--tls-ca`"
                );
            }
            client::authorize(&target, &query, token)?
        }
        // clap asks for no `--connect` where something stands that conflicts with it.
        None if args.token.is_some() => {
            bail!(
                "`--token` is verified by a service, never by a directory: say which by `--connect`"
            )
        }
        None => {
            let directory = directory::load(config)?;
            let snapshot = match directory.compiled {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    let _ = writeln!(
                        std::io::stderr(),
                        "{}",
                        directory::render(&error.errors, false)
                    );
                    return Err(error.into());
                }
            };
            let query = query(args, Some(&snapshot), config)?;
            authorize(&snapshot, &query)?
        }
    };
    print(&answer, args.format)?;
    Ok(match answer.decision {
        Decision::Allow => Outcome::Good,
        Decision::Deny => Outcome::No,
    })
}

fn print(answer: &Answer, format: Format) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match format {
        Format::Text => write!(stdout, "{}", report::text(answer))?,
        Format::Json => writeln!(stdout, "{:#}", report::json(answer))?,
    }
    Ok(())
}

/// The query that the arguments ask; with a snapshot, its schema tells the types of what is
/// written without them.
fn query(
    args: &AuthorizeArgs,
    snapshot: Option<&Snapshot>,
    config: &Config,
) -> anyhow::Result<Query> {
    let most = config.limits.max_message_bytes;
    let context = match &args.context {
        None => Record::default(),
        Some(source) => {
            let text = match source {
                JsonSource::Inline(text) => text.clone(),
                JsonSource::File(path) => read(path, most)?,
            };
            request_json::context(&text, &args.action, snapshot).context("--context")?
        }
    };
    let entities = match &args.entities {
        None => Vec::new(),
        Some(path) => {
            request_json::request_entities(&read(path, most)?, snapshot).context("--entities")?
        }
    };
    Ok(Query {
        // With a token the service knows who it is, and this is not sent.
        principal: args
            .principal
            .clone()
            .unwrap_or_else(|| Uid::new("Token", "")),
        action: args.action.clone(),
        resource: args.resource.clone(),
        context,
        entities,
        claimed: None,
        explain: args.explain,
    })
}

/// The token in a file, without the line's end that editors leave behind it.
fn token(path: &Path) -> anyhow::Result<String> {
    Ok(read(path, MAX_TOKEN_BYTES)?.trim_end().to_owned())
}

/// No service takes longer ones.
const MAX_TOKEN_BYTES: usize = 1 << 20;

/// Reads a file that is part of one request, and so no larger than a message.
fn read(path: &Path, most: usize) -> anyhow::Result<String> {
    let reading = || format!("cannot read `{}`", path.display());
    let file = File::open(path).with_context(reading)?;
    let mut text = String::new();
    file.take(most as u64 + 1)
        .read_to_string(&mut text)
        .with_context(reading)?;
    if text.len() > most {
        bail!("`{}` is larger than {most} bytes", path.display());
    }
    Ok(text)
}
