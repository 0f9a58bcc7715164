//! The operators' door: a page of metrics, whether the process lives and is ready, its status, and
//! the filter of its log, over HTTP/1.1 on an address of its own.
//!
//! It has nothing in common with the callers' router but the process, and everything on it is
//! bounded, so that whoever reaches it can do no harm to callers: connections, sizes and times,
//! and how many pages it makes in a second. What changes something is only for this machine, and for
//! who shows the key of a caller that may administer.

pub mod metrics;
mod process;
mod status;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode};
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

use crate::api::OverloadState;
use crate::api::auth::callers::Callers;
use crate::api::grpc::wire::encoded_answer::EncodedAnswer;
use crate::api::transport::listener::{BoundAddress, Connection, ListenError, Listener};
use crate::config::listen::Listen;
use crate::engine::Engine;
use crate::pip::TokenMetrics;
use crate::policy_store::StatusReader;
use crate::readiness::ReadinessReader;
use crate::telemetry::log::LogFilter;

/// The most connections at a time. A further one takes the place of the one that has been idle for
/// longest.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection may live: several scrapes, and no idle connection for ever.
const LONGEST_CONNECTION: Duration = Duration::from_secs(300);
/// From then on a connection without a request is idle: a new one is not, for its request may be
/// on its way.
const IDLE: Duration = Duration::from_secs(1);
/// How long a caller may take to send a request's head, counted from the end of the one before.
const LONGEST_HEAD: Duration = Duration::from_secs(60);
/// How long a caller may take to send a request's body.
const LONGEST_BODY: Duration = Duration::from_secs(5);
/// The largest head of a request, in bytes, and the most fields in it.
const LARGEST_HEAD: usize = 8 << 10;
const MOST_FIELDS: usize = 64;
/// The largest body of a request, in bytes.
const LARGEST_BODY: usize = 4 << 10;
/// From one page to the next, over all connections: some 200 a second, whoever asks.
const PACE: Duration = Duration::from_millis(5);
/// How long to rest when the system has no descriptor left to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What stands behind the operators' door.
pub struct AdminState {
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
    /// Tells who may change something from elsewhere.
    pub callers: Arc<Callers>,
    /// Tells how tokens fare; nothing when there are no issuers.
    pub tokens: Box<dyn Fn() -> Option<TokenMetrics> + Send + Sync>,
    /// The state of load shedding.
    pub overload: Box<dyn Fn() -> OverloadState + Send + Sync>,
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
    service: Arc<AdminService>,
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
        admin_state: AdminState,
    ) -> Result<Self, AdminError> {
        let listener = Listener::bind(address, socket_mode).await?;
        let address = listener.address().map_err(AdminError::Address)?;
        Ok(Self {
            listener,
            address,
            service: Arc::new(AdminService {
                admin_state,
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
                    let in_use = Arc::new(InUse::default());
                    let served =
                        connection(accepted, Arc::clone(&self.service), Arc::clone(&in_use));
                    open.push(tokio::spawn(served).abort_handle(), in_use);
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
struct OpenConnections(VecDeque<(AbortHandle, Arc<InUse>)>);

impl OpenConnections {
    /// Takes one more. Of too many one has to go: a caller that holds connections and does nothing
    /// must not keep the others out.
    fn push(&mut self, connection: AbortHandle, in_use: Arc<InUse>) {
        self.0.retain(|(connection, _)| !connection.is_finished());
        if self.0.len() >= MOST_CONNECTIONS {
            let goes = self.longest_idle().unwrap_or(0);
            if let Some((connection, _)) = self.0.remove(goes) {
                connection.abort();
            }
        }
        self.0.push_back((connection, in_use));
    }

    /// The one that has been idle for longest; `None` when each has a request or is new.
    fn longest_idle(&self) -> Option<usize> {
        let idle = self.0.iter().enumerate().filter_map(|(at, (_, in_use))| {
            let since = in_use.idle_since()?;
            (since.elapsed() >= IDLE).then_some((since, at))
        });
        idle.min().map(|(_, at)| at)
    }
}

impl Drop for OpenConnections {
    fn drop(&mut self) {
        for (connection, _) in &self.0 {
            connection.abort();
        }
    }
}

/// Since when a connection has had no request; `None` while it has one.
struct InUse(StdMutex<Option<Instant>>);

impl Default for InUse {
    fn default() -> Self {
        Self(StdMutex::new(Some(Instant::now())))
    }
}

impl InUse {
    fn set(&self, idle_since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = idle_since;
    }

    fn idle_since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one connection to its end.
async fn connection(accepted: Connection, service: Arc<AdminService>, in_use: Arc<InUse>) {
    match accepted {
        Connection::Tcp(stream) => {
            let is_local = stream
                .peer_addr()
                .is_ok_and(|peer| is_this_machine(peer.ip()));
            let from = match is_local {
                true => Origin::Loopback,
                false => Origin::Elsewhere,
            };
            serve(stream, from, service, in_use).await;
        }
        Connection::Unix(stream) => serve(stream, Origin::UnixSocket, service, in_use).await,
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    UnixSocket,
    /// This machine's, or pod's, loopback address.
    Loopback,
    Elsewhere,
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
    from: Origin,
    service: Arc<AdminService>,
    in_use: Arc<InUse>,
) {
    let service = service_fn(move |request| {
        let (service, in_use) = (Arc::clone(&service), Arc::clone(&in_use));
        async move {
            in_use.set(None);
            let page = service.answer(request, from).await;
            in_use.set(Some(Instant::now()));
            Ok::<_, Infallible>(page)
        }
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
struct AdminService {
    admin_state: AdminState,
    /// When the next page may be made.
    next: Mutex<Instant>,
}

impl AdminService {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>, from: Origin) -> Page {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        // Whoever asks for pages all the time must not have the service restarted, or taken out of
        // use: these two cost next to nothing and wait for nobody.
        match request.uri().path() {
            "/livez" if is_read => return text(StatusCode::OK, "ok\n"),
            "/readyz" if is_read => return self.readiness(),
            _ => {}
        }
        self.wait_for_turn().await;
        match (request.uri().path(), request.method()) {
            ("/metrics", _) if is_read => self.metrics().await,
            ("/status", _) if is_read => self.status().await,
            ("/log", _) if is_read => {
                text(StatusCode::OK, format!("{}\n", self.admin_state.log.text()))
            }
            ("/log", &Method::PUT) => self.change_log(request, from).await,
            ("/log", _) => not_allowed("GET, HEAD, PUT"),
            ("/metrics" | "/livez" | "/readyz" | "/status", _) => not_allowed("GET, HEAD"),
            ("/", _) if is_read => text(StatusCode::OK, INDEX),
            _ => text(StatusCode::NOT_FOUND, "there is no such page\n"),
        }
    }

    /// Waits, in turn with whoever else asks, until there may be another page.
    async fn wait_for_turn(&self) {
        let mut next = self.next.lock().await;
        tokio::time::sleep_until(*next).await;
        *next = Instant::now() + PACE;
    }

    async fn metrics(self: &Arc<Self>) -> Page {
        let service = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || (service.admin_state.metrics)());
        match made.await {
            Ok(page) => {
                let mut page = text(StatusCode::OK, page);
                page.headers_mut().insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static(self.admin_state.metrics_type),
                );
                page
            }
            Err(error) => failed(&error),
        }
    }

    fn readiness(&self) -> Page {
        let reasons = self.admin_state.readiness.reasons();
        if reasons.is_empty() {
            return text(StatusCode::OK, "ready\n");
        }
        let lines = reasons
            .iter()
            .map(|reason| format!("not ready: {reason}\n"));
        text(StatusCode::SERVICE_UNAVAILABLE, lines.collect::<String>())
    }

    async fn status(self: &Arc<Self>) -> Page {
        let service = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            serde_json::to_string_pretty(&status::of(&service.admin_state))
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

    async fn change_log(&self, request: Request<Incoming>, from: Origin) -> Page {
        match self.admin_state.callers.administrator(request.headers()) {
            // No web page knows the key, and whoever forwards it means to.
            Ok(Some(name)) => tracing::warn!(caller = name, "the log's filter is to be changed"),
            // A wrong one is refused wherever it comes from, as at the other router.
            Err(rejection) => return text(StatusCode::FORBIDDEN, format!("{rejection}\n")),
            Ok(None) => {
                if let Err(why_not) = may_change(from, request.headers()) {
                    return text(StatusCode::FORBIDDEN, why_not);
                }
            }
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
                let log = &self.admin_state.log;
                log.change(filter).map_err(|error| error.to_string())
            });
        match changed {
            Ok(filter) => text(StatusCode::OK, format!("{filter}\n")),
            Err(problem) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
        }
    }
}

/// Whether a caller may change something, or why not.
fn may_change(from: Origin, headers: &HeaderMap) -> Result<(), &'static str> {
    match from {
        Origin::UnixSocket => {}
        Origin::Loopback if names_this_machine(headers) => {}
        // A name of someone else's that leads here is how a web page gets around its browser.
        Origin::Loopback => {
            return Err("`Host` must be `localhost` or an address to change something\n");
        }
        Origin::Elsewhere => {
            return Err(
                "only callers on this machine, or with the key of one who may `administer`, may change something\n",
            );
        }
    }
    // A web page in a browser on this machine may send requests here, too; it cannot help saying
    // where it comes from.
    if headers.contains_key(ORIGIN) {
        return Err("web pages may not change something\n");
    }
    // The proxy is on this machine, and its caller may be anywhere.
    if FORWARDING.iter().any(|name| headers.contains_key(*name)) {
        return Err("what was forwarded may not change something\n");
    }
    Ok(())
}

/// What proxies add to what they forward.
const FORWARDING: [&str; 7] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-envoy-external-address",
];

/// Whether the one `Host` is `localhost` or an address, which no one can have lead elsewhere.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else {
        return false;
    };
    let host = authority.host();
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::config::LogConfig;
    use crate::engine::cache::CacheSettings;
    use crate::policy_store::{self, StoreStatus};
    use crate::readiness::Readiness;

    fn service() -> Arc<AdminService> {
        service_of(Arc::new(Callers::Anyone))
    }

    fn service_of(callers: Arc<Callers>) -> Arc<AdminService> {
        let (_publisher, snapshots) = policy_store::snapshots();
        let settings = CacheSettings {
            capacity_bytes: None,
        };
        let admin_state = AdminState {
            metrics: Box::new(String::new),
            metrics_type: "text/plain",
            log: crate::telemetry::log::init(&LogConfig::default()),
            status: StatusReader::of(StoreStatus::default()),
            engine: Arc::new(Engine::new(snapshots, settings)),
            callers,
            tokens: Box::new(|| None),
            overload: Box::new(|| OverloadState {
                shedding_since: None,
                queue_delay: Duration::ZERO,
                shed: 0,
            }),
            readiness: Readiness::new().reader(),
            started_at: SystemTime::now(),
            settings: serde_json::Value::Null,
        };
        Arc::new(AdminService {
            admin_state,
            next: Mutex::new(Instant::now()),
        })
    }

    /// What is answered to a caller who asks for `path`.
    async fn ask(service: &Arc<AdminService>, path: &str) -> String {
        say(
            service,
            &format!("GET {path} HTTP/1.1\r\nHost: pdp\r\n"),
            "",
        )
        .await
    }

    /// What is answered to a caller elsewhere who sends this head and this body.
    async fn say(service: &Arc<AdminService>, head: &str, body: &str) -> String {
        let (mut caller, stream) = tokio::io::duplex(4 << 10);
        let in_use = Arc::default();
        tokio::spawn(serve(
            stream,
            Origin::Elsewhere,
            Arc::clone(service),
            in_use,
        ));
        let length = body.len();
        let request = format!("{head}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        caller.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn from_elsewhere_the_log_is_changed_by_who_shows_a_key_and_may_administer() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("operator", "the-key-of-the-operator"),
            ("service", "the-key-of-the-service"),
            (
                "callers.toml",
                "[[caller]]\nname = 'operator'\nbearer = ['operator']\nrights = ['administer']\n\
                 [[caller]]\nname = 'service'\nbearer = ['service']\nrights = ['authorize']\n",
            ),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let (callers, _) = Callers::open(&dir.path().join("callers.toml")).unwrap();
        let listed = service_of(Arc::new(callers));
        let put = |key: &str| {
            format!("PUT /log HTTP/1.1\r\nHost: pdp\r\nAuthorization: Bearer {key}\r\n")
        };
        // A filter that is none, so that nothing is changed for other tests.
        let told = say(&listed, &put("the-key-of-the-operator"), "=[").await;
        assert!(told.starts_with("HTTP/1.1 400"), "{told}");
        for (service, key) in [
            (&listed, "the-key-of-the-service"),
            (&listed, "the-key-of-nobody"),
            (&service(), "the-key-of-the-operator"),
        ] {
            let told = say(service, &put(key), "=[").await;
            assert!(told.starts_with("HTTP/1.1 403"), "{told}");
        }
    }

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

    #[test]
    fn what_changes_something_comes_from_this_machine_and_names_it() {
        let may = |from, fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            may_change(from, &headers).is_ok()
        };
        for host in [
            "localhost",
            "LocalHost:9464",
            "127.0.0.1:9464",
            "[::1]:9464",
            "10.0.0.1",
        ] {
            assert!(may(Origin::Loopback, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:9464",
            "pdp",
            "a@[",
            "",
        ] {
            assert!(!may(Origin::Loopback, &[("host", host)]), "{host}");
        }
        assert!(!may(Origin::Loopback, &[]));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert!(!may(Origin::Loopback, &twice));
        assert!(!may(Origin::Elsewhere, &[("host", "127.0.0.1")]));
        assert!(may(Origin::UnixSocket, &[("host", "pdp")]));
        for name in FORWARDING.into_iter().chain(["origin"]) {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("localhost"));
            headers.insert(name, HeaderValue::from_static("x"));
            for from in [Origin::UnixSocket, Origin::Loopback] {
                may_change(from, &headers).unwrap_err();
            }
        }
    }

    /// A task for each connection that there may be, and one that is idle for longest.
    fn full_server() -> (
        OpenConnections,
        Vec<tokio::task::JoinHandle<()>>,
        Vec<Arc<InUse>>,
    ) {
        let mut open = OpenConnections::default();
        let (mut tasks, mut uses) = (Vec::new(), Vec::new());
        for _ in 0..MOST_CONNECTIONS {
            let task = tokio::spawn(std::future::pending::<()>());
            let in_use = Arc::new(InUse::default());
            open.push(task.abort_handle(), Arc::clone(&in_use));
            tasks.push(task);
            uses.push(in_use);
        }
        (open, tasks, uses)
    }

    fn one_more(open: &mut OpenConnections) -> tokio::task::JoinHandle<()> {
        let task = tokio::spawn(std::future::pending::<()>());
        open.push(task.abort_handle(), Arc::default());
        task
    }

    /// Makes each idle for longer than a new one may be.
    fn grow_idle(uses: &[Arc<InUse>]) {
        let since = Instant::now().checked_sub(IDLE * 60).unwrap();
        for (n, in_use) in (0..).zip(uses) {
            in_use.set(Some(since + Duration::from_millis(n)));
        }
    }

    #[tokio::test]
    async fn of_too_many_connections_the_one_goes_that_is_idle_for_longest() {
        let (mut open, mut tasks, uses) = full_server();
        grow_idle(&uses);
        // The oldest has a request, and the next was answered just now.
        uses[0].set(None);
        uses[1].set(Some(Instant::now()));
        let newest = one_more(&mut open);
        assert!(tasks.remove(2).await.unwrap_err().is_cancelled());
        assert!(tasks.iter().all(|task| !task.is_finished()));
        drop(open);
        for task in tasks.into_iter().chain([newest]) {
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }

    #[tokio::test]
    async fn of_too_many_with_requests_the_oldest_goes_and_no_new_one() {
        let (mut open, mut tasks, uses) = full_server();
        for in_use in &uses {
            in_use.set(None);
        }
        // A prober that has not come to its request is not what is taken for idle.
        let prober = one_more(&mut open);
        let _another = one_more(&mut open);
        for _ in 0..2 {
            assert!(tasks.remove(0).await.unwrap_err().is_cancelled());
        }
        assert!(!prober.is_finished());
        assert!(tasks.iter().all(|task| !task.is_finished()));
    }

    #[tokio::test]
    async fn probes_are_answered_however_many_wait_for_a_page() {
        let service = service();
        let _held = service.next.lock().await;
        for (path, body) in [("/livez", "ok\n"), ("/readyz", "ready\n")] {
            let asked = ask(&service, path);
            let answer = tokio::time::timeout(Duration::from_secs(20), asked).await;
            assert!(answer.unwrap().ends_with(body), "{path}");
        }
        let page = tokio::time::timeout(Duration::from_millis(50), ask(&service, "/"));
        page.await.unwrap_err();
    }
}
