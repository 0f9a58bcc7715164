//! Load from another process; every call must succeed.
//!
//! h2load (<https://nghttp2.org>) repeats one body. Different calls come from a generator of our
//! own: the benchmark's program, started again, with the `h2` crate. Both keep the same number of
//! calls in flight on the same number of connections. But they group frames into writes
//! differently, which changes the server's cost per call: do not compare figures of one with
//! figures of the other.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use cedar_pdp::api::grpc::pb;
use h2::client::SendRequest;
use prost::bytes::{Buf as _, Bytes};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use super::processes::CpuMeter;
use super::running::Server;

pub const CONNECTIONS: usize = 8;
/// Calls in flight per connection.
pub const IN_FLIGHT: usize = 16;

/// The argument that makes this program the generator.
pub const GENERATOR: &str = "generate";

const METHOD: &str = "/pdp.v1.AuthorizationService/Authorize";
const BATCH_METHOD: &str = "/pdp.v1.AuthorizationService/BatchAuthorize";

/// The source of calls.
pub enum Load {
    /// h2load, with the body in this file.
    H2load(PathBuf),
    /// Our generator, with the bodies in this file, in turn.
    Own(Bodies),
}

/// A file with the bodies of calls of one method.
pub struct Bodies {
    file: PathBuf,
    method: &'static str,
    count: usize,
    /// The first body of the next run, by server address. A run continues after the previous one,
    /// so that short runs use all bodies too.
    next: RefCell<HashMap<String, usize>>,
}

impl Load {
    /// Uses h2load with `requests`, of which there must be one.
    pub fn h2load(file: PathBuf, requests: &[pb::AuthorizeRequest]) -> anyhow::Result<Self> {
        ensure!(requests.len() == 1, "h2load posts one body");
        fs::write(&file, bodies(requests))?;
        Ok(Self::H2load(file))
    }

    /// Uses our generator with `requests`.
    pub fn own(file: PathBuf, requests: &[pb::AuthorizeRequest]) -> anyhow::Result<Self> {
        Self::own_of(file, METHOD, requests)
    }

    /// Uses our generator with batches of `batch` of the `requests`.
    pub fn own_batches(
        file: PathBuf,
        requests: &[pb::AuthorizeRequest],
        batch: usize,
    ) -> anyhow::Result<Self> {
        let batches: Vec<_> = requests
            .chunks(batch)
            .map(|requests| pb::BatchAuthorizeRequest {
                requests: requests.to_vec(),
            })
            .collect();
        Self::own_of(file, BATCH_METHOD, &batches)
    }

    fn own_of(
        file: PathBuf,
        method: &'static str,
        messages: &[impl prost::Message],
    ) -> anyhow::Result<Self> {
        fs::write(&file, bodies(messages))?;
        Ok(Self::Own(Bodies {
            file,
            method,
            count: messages.len(),
            next: RefCell::default(),
        }))
    }

    /// Makes `calls` calls to the server at `address`, and returns when all are answered.
    pub fn run(&self, address: &str, calls: usize) -> anyhow::Result<()> {
        self.run_over(address, None, calls)
    }

    /// Makes `calls` calls to `server`, and returns its CPU time per call, in microseconds.
    pub fn microseconds_per_call(&self, server: &Server, calls: usize) -> anyhow::Result<f64> {
        let meter = CpuMeter::start(server.pid())?;
        self.run(server.address(), calls)?;
        Ok(meter.used()?.as_secs_f64() * 1e6 / calls as f64)
    }

    /// Makes the calls over TLS if `authority` names the file of an authority. h2load does not
    /// verify the server's certificate.
    pub fn run_over(
        &self,
        address: &str,
        authority: Option<&Path>,
        calls: usize,
    ) -> anyhow::Result<()> {
        let scheme = match authority {
            Some(_) => "https",
            None => "http",
        };
        match self {
            Self::H2load(body) => {
                let output = Command::new("h2load")
                    .args([
                        "--clients",
                        &CONNECTIONS.to_string(),
                        "--max-concurrent-streams",
                        &IN_FLIGHT.to_string(),
                    ])
                    .args(["--requests", &calls.to_string(), "--threads", "1"])
                    .args([
                        "--header",
                        "content-type: application/grpc",
                        "--header",
                        "te: trailers",
                    ])
                    .arg("--data")
                    .arg(body)
                    .arg(format!("{scheme}://{address}{METHOD}"))
                    .output()
                    .map_err(missing_h2load)?;
                let text = String::from_utf8_lossy(&output.stdout);
                let all =
                    format!("{calls} done, {calls} succeeded, 0 failed, 0 errored, 0 timeout");
                ensure!(
                    output.status.success() && text.contains(&all),
                    "not every call succeeded: {text}"
                );
            }
            Self::Own(bodies) => {
                let mut next = bodies.next.borrow_mut();
                let first = next.entry(address.to_owned()).or_default();
                let status = Command::new(std::env::current_exe()?)
                    .args([GENERATOR, address, &calls.to_string(), &first.to_string()])
                    .arg(bodies.method)
                    .arg(&bodies.file)
                    .args(authority)
                    .status()
                    .context("cannot start the generator")?;
                ensure!(status.success(), "the generator failed");
                *first = (*first + calls) % bodies.count;
            }
        }
        Ok(())
    }
}

/// Checks at startup that h2load is installed.
pub fn find_h2load() -> anyhow::Result<()> {
    Command::new("h2load")
        .arg("--version")
        .output()
        .map_err(missing_h2load)?;
    Ok(())
}

fn missing_h2load(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(
        "cannot run `h2load`, which this benchmark needs (on Debian: apt install nghttp2-client)",
    )
}

/// Encodes the bodies of calls, one after the other: each is a message with gRPC's prefix, which
/// has its length.
pub fn bodies(messages: &[impl prost::Message]) -> Vec<u8> {
    let mut bodies = Vec::new();
    for message in messages {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        bodies.push(0);
        bodies.extend_from_slice(&length.to_be_bytes());
        bodies.extend_from_slice(&message);
    }
    bodies
}

/// Splits the bodies in `file`.
pub fn read_bodies(file: &Path) -> anyhow::Result<Vec<Bytes>> {
    let mut rest = Bytes::from(fs::read(file)?);
    let mut bodies = Vec::new();
    while rest.has_remaining() {
        let length = rest.get(1..5).context("a body is cut short")?.get_u32();
        let body = 5 + usize::try_from(length)?;
        ensure!(body <= rest.len(), "a body is cut short");
        bodies.push(rest.split_to(body));
    }
    ensure!(!bodies.is_empty(), "`{}` holds no bodies", file.display());
    Ok(bodies)
}

/// Runs the generator. Its arguments are an address, a number of calls, the number of the first
/// body, a method, a file of bodies, and for TLS the file of an authority.
pub fn generate(arguments: &[String]) -> anyhow::Result<()> {
    let (address, calls, first, method, file, authority) = match arguments {
        [address, calls, first, method, file] => (address, calls, first, method, file, None),
        [address, calls, first, method, file, authority] => {
            (address, calls, first, method, file, Some(tls(authority)?))
        }
        _ => bail!("the generator needs an address, two numbers, a method and a file"),
    };
    let url = format!("http://{address}{method}");
    let sequence = Rc::new(CallSequence {
        bodies: read_bodies(Path::new(file))?,
        first: first.parse()?,
        next_index: Cell::new(0),
        calls: calls.parse()?,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut callers = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let client = match &authority {
                None => connect(stream).await?,
                Some(tls) => connect(tls.connect("localhost".try_into()?, stream).await?).await?,
            };
            for _ in 0..IN_FLIGHT {
                callers.push(tokio::task::spawn_local(call_in_sequence(
                    client.clone(),
                    url.clone(),
                    Rc::clone(&sequence),
                )));
            }
        }
        for caller in callers {
            caller.await??;
        }
        Ok(())
    })
}

/// Returns a TLS client that trusts the authority in `file`.
fn tls(file: &str) -> anyhow::Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(file)? {
        roots.add(authority?)?;
    }
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Starts an HTTP/2 connection in the background.
async fn connect(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> anyhow::Result<SendRequest<Bytes>> {
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::task::spawn_local(connection);
    Ok(client)
}

/// The bodies in order, over all connections, until all calls are made.
struct CallSequence {
    bodies: Vec<Bytes>,
    first: usize,
    next_index: Cell<usize>,
    calls: usize,
}

impl CallSequence {
    fn next(&self) -> Option<Bytes> {
        let index = self.next_index.replace(self.next_index.get() + 1);
        if index >= self.calls {
            return None;
        }
        let body = (self.first + index) % self.bodies.len();
        self.bodies.get(body).cloned()
    }
}

async fn call_in_sequence(
    mut client: SendRequest<Bytes>,
    url: String,
    sequence: Rc<CallSequence>,
) -> anyhow::Result<()> {
    let request = http::Request::post(url)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    while let Some(body) = sequence.next() {
        client = client.ready().await?;
        let (answer, mut sending) = client.send_request(request.clone(), false)?;
        sending.send_data(body, true)?;
        let answer = answer.await?;
        ensure!(
            answer.status() == http::StatusCode::OK
                && !answer.headers().contains_key("grpc-status"),
            "a call was answered with {answer:?}"
        );
        let mut body = answer.into_body();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        let trailers = body
            .trailers()
            .await?
            .context("a call was answered without a gRPC status")?;
        ensure!(
            trailers
                .get("grpc-status")
                .is_some_and(|status| status == "0"),
            "a call was answered with {trailers:?}"
        );
    }
    Ok(())
}
