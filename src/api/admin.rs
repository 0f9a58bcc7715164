//! The operators' door: a page of metrics, whether the process lives and is ready, its status, and
//! the filter of its log, over HTTP/1.1 on an address of its own.
//!
//! It has nothing in common with the callers' doors but the process, and everything on it is
//! bounded, so that whoever reaches it can do no harm to callers: connections, sizes and times,
//! and how many requests it answers in a second. What changes something is only for this machine.

mod status;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::answer::EncodedAnswer;
use super::listen::{BoundAddress, Connection, ListenError, Listener};
use crate::config::listen::Listen;
use crate::engine::Engine;
use crate::pip::TokenFigures;
use crate::policy_store::StatusReader;
use crate::readiness::ReadinessReader;
use crate::telemetry::log::LogFilter;

/// The most connections at a time. A further one takes the place of the oldest.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection may live: several scrapes, and no idle connection for ever.
const LONGEST_CONNECTION: Duration = Duration::from_secs(300);
/// How long a caller may take to send a request's head, counted from the end of the one before.
const LONGEST_HEAD: Duration = Duration::from_secs(60);
/// How long a caller may take to send a request's body.
const LONGEST_BODY: Duration = Duration::from_secs(5);
/// The largest head of a request, in bytes, and the most fields in it.
const LARGEST_HEAD: usize = 8 << 10;
const MOST_FIELDS: usize = 64;
/// The largest body of a request, in bytes.
const LARGEST_BODY: usize = 4 << 10;
/// From one answer to the next, over all connections: some 200 a second, whoever asks.
const PACE: Duration = Duration::from_millis(5);
/// How long to rest when the system has no descriptor left to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What stands behind the operators' door.
pub struct Office {
    /// Makes a page of metrics; may take a fraction of a millisecond.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// The media type of that page.
    pub metrics_type: &'static str,
    /// Says which lines are logged.
    pub log: LogFilter,
    /// Tells what is in force.
    pub status: StatusReader,
    /// Tells what the cache does.
    pub engine: Arc<Engine<EncodedAnswer>>,
    /// Tells how tokens fare; nothing when there are no issuers.
    pub tokens: Box<dyn Fn() -> Option<TokenFigures> + Send + Sync>,
    /// Whether calls are welcome, and why not.
    pub readiness: ReadinessReader,
    /// When the process was started.
    pub started_at: SystemTime,
    /// Every setting in force, as JSON; none holds a secret.
    pub settings: serde_json::Value,
}

/// An open operators' door, which answers once [`run`](Self::run) is polled.
pub struct AdminServer {
    listener: Listener,
    address: BoundAddress,
    desk: Arc<Desk>,
}

/// Why the operators' door could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address could not be listened on.
    #[error("`admin_listen`: {0}; give another address, or `off`")]
    Listen(#[from] ListenError),
    /// The address that the system gave could not be read back.
    #[error("`admin_listen`: cannot tell the address that was bound: {0}")]
    Address(#[source] io::Error),
}

impl AdminServer {
    /// Listens on `address`; the file of a Unix socket has this mode.
    ///
    /// # Errors
    ///
    /// [`AdminError`]; then no address is held.
    pub async fn open(
        address: &Listen,
        socket_mode: u32,
        office: Office,
    ) -> Result<Self, AdminError> {
        let listener = Listener::bind(address, socket_mode).await?;
        let address = listener.address().map_err(AdminError::Address)?;
        Ok(Self {
            listener,
            address,
            desk: Arc::new(Desk {
                office,
                next: Mutex::new(Instant::now()),
            }),
        })
    }

    /// Where operators find it.
    #[must_use]
    pub fn address(&self) -> &BoundAddress {
        &self.address
    }

    /// Serves until dropped: a service that drains is still looked at.
    pub async fn run(self) {
        let mut open = OpenConnections::default();
        let mut is_failing = false;
        loop {
            match self.listener.accept().await {
                Ok(accepted) => {
                    is_failing = false;
                    let served = connection(accepted, Arc::clone(&self.desk));
                    open.push(tokio::spawn(served).abort_handle());
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "cannot accept connections of operators");
                    }
                    is_failing = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The tasks of open connections, the oldest first; all are ended when this is dropped.
#[derive(Default)]
struct OpenConnections(VecDeque<AbortHandle>);

impl OpenConnections {
    /// Takes one more. Of too many the oldest has to go: a caller that holds connections and does
    /// nothing must not keep the others out.
    fn push(&mut self, connection: AbortHandle) {
        self.0.retain(|connection| !connection.is_finished());
        if self.0.len() >= MOST_CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

impl Drop for OpenConnections {
    fn drop(&mut self) {
        for connection in &self.0 {
            connection.abort();
        }
    }
}

/// Serves one connection to its end.
async fn connection(accepted: Connection, desk: Arc<Desk>) {
    match accepted {
        Connection::Tcp(stream) => {
            let is_local = stream
                .peer_addr()
                .is_ok_and(|peer| is_this_machine(peer.ip()));
            serve(stream, is_local, desk).await;
        }
        Connection::Unix(stream) => serve(stream, true, desk).await,
    }
}

/// Whether a caller at `ip` runs on this machine, or beside us in one pod.
///
/// Not any loopback address: service meshes give what they forward from elsewhere one of those.
fn is_this_machine(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip == Ipv4Addr::LOCALHOST,
        IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST,
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_local: bool,
    desk: Arc<Desk>,
) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(request, is_local).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST_HEAD)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LONGEST_CONNECTION, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection of an operator ended"),
        Err(_elapsed) => tracing::debug!("connection of an operator closed: it was open for long"),
    }
}

type Page = Response<Full<Bytes>>;

/// Where requests are answered.
struct Desk {
    office: Office,
    /// When the next answer may be made.
    next: Mutex<Instant>,
}

impl Desk {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>, is_local: bool) -> Page {
        self.wait_for_turn().await;
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match (request.uri().path(), request.method()) {
            ("/metrics", _) if is_read => self.metrics().await,
            ("/livez", _) if is_read => text(StatusCode::OK, "ok\n"),
            ("/readyz", _) if is_read => self.readiness(),
            ("/status", _) if is_read => self.status().await,
            ("/log", _) if is_read => text(StatusCode::OK, format!("{}\n", self.office.log.text())),
            ("/log", &Method::PUT) => self.change_log(request, is_local).await,
            ("/log", _) => not_allowed("GET, HEAD, PUT"),
            ("/metrics" | "/livez" | "/readyz" | "/status", _) => not_allowed("GET, HEAD"),
            ("/", _) if is_read => text(StatusCode::OK, INDEX),
            _ => text(StatusCode::NOT_FOUND, "there is no such page\n"),
        }
    }

    /// Waits, in turn with whoever else asks, until there may be another answer.
    async fn wait_for_turn(&self) {
        let mut next = self.next.lock().await;
        tokio::time::sleep_until(*next).await;
        *next = Instant::now() + PACE;
    }

    async fn metrics(self: &Arc<Self>) -> Page {
        let desk = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || (desk.office.metrics)());
        match made.await {
            Ok(page) => {
                let mut page = text(StatusCode::OK, page);
                page.headers_mut().insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static(self.office.metrics_type),
                );
                page
            }
            Err(error) => failed(&error),
        }
    }

    fn readiness(&self) -> Page {
        let reasons = self.office.readiness.unready();
        if reasons.is_empty() {
            return text(StatusCode::OK, "ready\n");
        }
        let lines = reasons
            .iter()
            .map(|reason| format!("not ready: {reason}\n"));
        text(StatusCode::SERVICE_UNAVAILABLE, lines.collect::<String>())
    }

    async fn status(self: &Arc<Self>) -> Page {
        let desk = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            serde_json::to_string_pretty(&status::of(&desk.office))
        });
        match made.await {
            Ok(Ok(json)) => {
                let mut page = text(StatusCode::OK, json + "\n");
                page.headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                page
            }
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error),
        }
    }

    async fn change_log(&self, request: Request<Incoming>, is_local: bool) -> Page {
        if !is_local {
            return text(
                StatusCode::FORBIDDEN,
                "only callers on this machine may change something\n",
            );
        }
        // A web page in a browser on this machine may send requests here, too; it cannot help
        // saying where it comes from.
        if request.headers().contains_key(ORIGIN) {
            return text(
                StatusCode::FORBIDDEN,
                "web pages may not change something\n",
            );
        }
        let body = Limited::new(request.into_body(), LARGEST_BODY).collect();
        let body = match tokio::time::timeout(LONGEST_BODY, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => {
                return text(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("a filter has at most {LARGEST_BODY} bytes\n"),
                );
            }
            Err(_elapsed) => return text(StatusCode::REQUEST_TIMEOUT, "the body did not come\n"),
        };
        let changed = std::str::from_utf8(&body)
            .map_err(|error| error.to_string())
            .and_then(|filter| {
                let filter = filter.trim().to_owned();
                let log = &self.office.log;
                log.change(filter).map_err(|error| error.to_string())
            });
        match changed {
            Ok(()) => {
                let filter = self.office.log.text();
                tracing::info!(filter, "the log's filter was changed");
                text(StatusCode::OK, format!("{filter}\n"))
            }
            Err(problem) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
        }
    }
}

const INDEX: &str = "\
cedar-pdp
/metrics  figures, for Prometheus
/livez    200 while the process answers
/readyz   200 when calls are welcome, else 503 with the reasons
/status   what is in force, as JSON
/log      the filter of the log; PUT another to change it
";

fn text(status: StatusCode, text: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(text.into()));
    *page.status_mut() = status;
    let headers = page.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

fn not_allowed(allowed: &'static str) -> Page {
    let mut page = text(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("allowed here: {allowed}\n"),
    );
    page.headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    page
}

fn failed(error: &dyn std::error::Error) -> Page {
    tracing::error!(%error, "a page for operators could not be made");
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the page could not be made\n",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_the_loopback_address_itself() {
        for (ip, is_local) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            // What Istio forwards comes from here.
            ("127.0.0.6", false),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("::", false),
        ] {
            assert_eq!(is_this_machine(ip.parse().unwrap()), is_local, "{ip}");
        }
    }

    #[tokio::test]
    async fn of_too_many_connections_the_oldest_goes() {
        let mut open = OpenConnections::default();
        let mut tasks: Vec<_> = (0..=MOST_CONNECTIONS)
            .map(|_| tokio::spawn(std::future::pending::<()>()))
            .collect();
        for task in &tasks {
            open.push(task.abort_handle());
        }
        let oldest = tasks.remove(0);
        assert!(oldest.await.unwrap_err().is_cancelled());
        assert!(tasks.iter().all(|task| !task.is_finished()));
        drop(open);
        for task in tasks {
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }
}
