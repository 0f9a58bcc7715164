//! The pages of the admin server.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use prost::bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::access::{self, Origin};
use super::state::AdminState;
use super::status;
use crate::counters::page;

/// Time limit for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a request's body.
const MAX_BODY_BYTES: usize = 4 << 10;
/// Time between two pages of all connections: at most 200 pages per second.
const PAGE_INTERVAL: Duration = Duration::from_millis(5);

type Page = Response<Full<Bytes>>;

/// Responds to the requests of all connections.
pub(super) struct AdminService {
    state: AdminState,
    /// The time from which the next page may be created.
    next_page: Mutex<Instant>,
}

impl AdminService {
    pub(super) fn new(state: AdminState) -> Self {
        Self {
            state,
            next_page: Mutex::new(Instant::now()),
        }
    }

    /// Responds to `request`, which came by a connection of this origin.
    pub(super) async fn respond(
        self: &Arc<Self>,
        request: Request<Incoming>,
        origin: Origin,
    ) -> Page {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        // These two are cheap and do not wait: a client that requests pages all the time must not
        // make probes fail, which would restart the service or take it out of use.
        match request.uri().path() {
            "/livez" if is_read => return text(StatusCode::OK, "ok\n"),
            "/readyz" if is_read => return self.readiness(),
            _ => {}
        }
        self.wait_for_interval().await;
        match (request.uri().path(), request.method()) {
            ("/metrics", _) if is_read => self.metrics().await,
            ("/status", _) if is_read => self.status().await,
            ("/log", _) if is_read => text(StatusCode::OK, format!("{}\n", self.state.log.text())),
            ("/log", &Method::PUT) => {
                let changed = self.change_log(request, origin).await;
                changed.unwrap_or_else(|rejection| rejection)
            }
            ("/log", _) => not_allowed("GET, HEAD, PUT"),
            ("/metrics" | "/livez" | "/readyz" | "/status", _) => not_allowed("GET, HEAD"),
            ("/", _) if is_read => text(StatusCode::OK, INDEX),
            _ => text(StatusCode::NOT_FOUND, "page not found\n"),
        }
    }

    /// Waits, in the order of arrival, until the next page may be created.
    async fn wait_for_interval(&self) {
        let mut next_page = self.next_page.lock().await;
        tokio::time::sleep_until(*next_page).await;
        *next_page = Instant::now() + PAGE_INTERVAL;
    }

    async fn metrics(self: &Arc<Self>) -> Page {
        let service = Arc::clone(self);
        let created = tokio::task::spawn_blocking(move || service.state.metrics.text());
        match created.await {
            Ok(text) => content(page::CONTENT_TYPE, text),
            Err(error) => internal_error(&error),
        }
    }

    fn readiness(&self) -> Page {
        let reasons = self.state.readiness.reasons();
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
        let created = tokio::task::spawn_blocking(move || {
            serde_json::to_string_pretty(&status::read(&service.state))
        });
        match created.await {
            Ok(Ok(json)) => content("application/json", json + "\n"),
            Ok(Err(error)) => internal_error(&error),
            Err(error) => internal_error(&error),
        }
    }

    /// Replaces the log filter by the body of `request`. An error is the response to a rejected
    /// request.
    async fn change_log(&self, request: Request<Incoming>, origin: Origin) -> Result<Page, Page> {
        let forbidden = |text: String| self::text(StatusCode::FORBIDDEN, text);
        match self.state.callers.administrator(request.headers()) {
            // The origin does not matter: no web page knows the key.
            Ok(Some(name)) => tracing::warn!(caller = name, "caller changes the log filter"),
            // An unknown key is rejected from every origin, as by the gRPC server.
            Err(denied) => return Err(forbidden(format!("{denied}\n"))),
            Ok(None) => access::check_change(origin, request.headers())
                .map_err(|reason| forbidden(reason.to_owned()))?,
        }
        let body = read_body(request.into_body()).await?;
        let changed = std::str::from_utf8(&body)
            .map_err(|error| error.to_string())
            .and_then(|filter| {
                let filter = filter.trim().to_owned();
                let changed = self.state.log.change(filter);
                changed.map_err(|error| error.to_string())
            });
        match changed {
            Ok(filter) => Ok(text(StatusCode::OK, format!("{filter}\n"))),
            Err(problem) => Err(text(StatusCode::BAD_REQUEST, format!("{problem}\n"))),
        }
    }
}

/// Reads the body of a request, within its limits of bytes and time.
async fn read_body(body: Incoming) -> Result<Bytes, Page> {
    let reading = Limited::new(body, MAX_BODY_BYTES).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(text(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a filter has at most {MAX_BODY_BYTES} bytes\n"),
        )),
        Err(_elapsed) => Err(text(
            StatusCode::REQUEST_TIMEOUT,
            "timed out waiting for the body\n",
        )),
    }
}

const INDEX: &str = "\
cedar-pdp
/metrics  metrics, for Prometheus
/livez    200 while the process responds
/readyz   200 if ready for calls, else 503 with the reasons
/status   policies, cache, issuers and settings, as JSON
/log      the log filter; PUT another to change it
";

fn text(status: StatusCode, text: impl Into<Bytes>) -> Page {
    let mut page = content("text/plain; charset=utf-8", text);
    *page.status_mut() = status;
    page
}

/// Returns a page with this media type.
fn content(content_type: &'static str, text: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(text.into()));
    let headers = page.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

fn not_allowed(allowed: &'static str) -> Page {
    let mut page = text(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("allowed methods: {allowed}\n"),
    );
    page.headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    page
}

fn internal_error(error: &dyn std::error::Error) -> Page {
    tracing::error!(%error, "cannot create a page of the admin server");
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "cannot create the page\n",
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::api::admin::connections::serve_http;
    use crate::api::auth::callers::Callers;
    use crate::api::decision::admission::Admission;
    use crate::config::Config;
    use crate::config::api::AdmissionLimits;
    use crate::counters::page::Exporters;
    use crate::engine::Engine;
    use crate::engine::cache::CacheSettings;
    use crate::policy_store::{self, StatusReader, StoreStatus};
    use crate::readiness::Readiness;
    use std::time::SystemTime;

    fn service(callers: Callers) -> Arc<AdminService> {
        let (_publisher, snapshots) = policy_store::snapshots();
        let settings = CacheSettings {
            capacity_bytes: None,
        };
        Arc::new(AdminService::new(AdminState {
            metrics: Exporters::new(Vec::new()),
            log: crate::telemetry::log::init(&Config::default().log),
            status: StatusReader::of(StoreStatus::default()),
            engine: Arc::new(Engine::new(snapshots, settings)),
            callers: Arc::new(callers),
            admission: Admission::new(&AdmissionLimits {
                delay: None,
                calls: 1,
            }),
            tokens: None,
            readiness: Readiness::new().reader(),
            started_at: SystemTime::now(),
            settings: serde_json::Value::Null,
        }))
    }

    /// Returns the response to a remote client that requests `path`.
    async fn get(service: &Arc<AdminService>, path: &str) -> String {
        send(
            service,
            &format!("GET {path} HTTP/1.1\r\nHost: pdp\r\n"),
            "",
        )
        .await
    }

    /// Returns the response to a remote client that sends this head and this body.
    async fn send(service: &Arc<AdminService>, head: &str, body: &str) -> String {
        let (mut client, stream) = tokio::io::duplex(4 << 10);
        let activity = Arc::default();
        tokio::spawn(serve_http(
            stream,
            Origin::Remote,
            Arc::clone(service),
            activity,
        ));
        let length = body.len();
        let request = format!("{head}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn remote_log_change_requires_administer_key() {
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
        let listed = service(callers);
        let unlisted = service(Callers::Anyone);
        let put = |key: &str| {
            format!("PUT /log HTTP/1.1\r\nHost: pdp\r\nAuthorization: Bearer {key}\r\n")
        };
        // An invalid filter, so that nothing changes for other tests.
        let response = send(&listed, &put("the-key-of-the-operator"), "=[").await;
        assert!(response.starts_with("HTTP/1.1 400"), "{response}");
        for (service, key) in [
            (&listed, "the-key-of-the-service"),
            (&listed, "the-key-of-nobody"),
            (&unlisted, "the-key-of-the-operator"),
        ] {
            let response = send(service, &put(key), "=[").await;
            assert!(response.starts_with("HTTP/1.1 403"), "{response}");
        }
    }

    #[tokio::test]
    async fn probes_do_not_wait_for_pages() {
        let service = service(Callers::Anyone);
        let _held = service.next_page.lock().await;
        for (path, body) in [("/livez", "ok\n"), ("/readyz", "ready\n")] {
            let response = get(&service, path);
            let response = tokio::time::timeout(Duration::from_secs(20), response).await;
            assert!(response.unwrap().ends_with(body), "{path}");
        }
        let page = tokio::time::timeout(Duration::from_millis(50), get(&service, "/"));
        page.await.unwrap_err();
    }
}
