//! A key server over HTTPS that behaves as a test wants.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::support::eventually;

/// The server's response to a request.
#[derive(Clone, Debug)]
pub(crate) enum ResponseMode {
    /// This text with this `Cache-Control`.
    Serve(String, &'static str),
    /// This status and text.
    Fail(u16, &'static str),
    /// A redirect to a valid set.
    Redirect,
    /// This text after a delay.
    Slow(Duration, String),
    /// Single bytes with pauses, without end.
    Trickle,
    /// An endless response.
    Endless,
    /// A closed connection.
    Cut,
}

/// The server, which stops when dropped.
pub(crate) struct KeyServer {
    mode: Arc<Mutex<ResponseMode>>,
    request_count: Arc<AtomicUsize>,
    port: u16,
    tls: Option<Arc<ServerConfig>>,
    task: JoinHandle<()>,
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeyServer {
    /// Starts a server, and writes the certificate of its authority to `ca_file`.
    pub(crate) async fn start(mode: ResponseMode, ca_file: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(ca_file, ca.as_ref().pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, &ca)
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        Self::listen(mode, Some(Arc::new(config)), 0).await
    }

    async fn listen(mode: ResponseMode, tls: Option<Arc<ServerConfig>>, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(Mutex::new(mode));
        let request_count = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(accept(
            listener,
            tls.clone(),
            Arc::clone(&mode),
            Arc::clone(&request_count),
        ));
        Self {
            mode,
            request_count,
            port,
            tls,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/jwks.json", self.port)
    }

    /// Sets the response from now on.
    pub(crate) fn set(&self, mode: ResponseMode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// Returns the number of requests.
    pub(crate) fn request_count(&self) -> usize {
        self.request_count.load(Ordering::SeqCst)
    }

    /// Stops listening; returns the state needed to start again.
    pub(crate) async fn stop(self) -> Stopped {
        self.task.abort();
        let stopped = Stopped {
            port: self.port,
            tls: self.tls.clone(),
        };
        // Waits until the listener is closed.
        let port = self.port;
        eventually("the port is closed", async || {
            let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            connected.is_err()
        })
        .await;
        stopped
    }
}

/// A stopped server.
pub(crate) struct Stopped {
    port: u16,
    tls: Option<Arc<ServerConfig>>,
}

impl Stopped {
    pub(crate) async fn start(self, mode: ResponseMode) -> KeyServer {
        KeyServer::listen(mode, self.tls, self.port).await
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    mode: Arc<Mutex<ResponseMode>>,
    request_count: Arc<AtomicUsize>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (mode, request_count) = (Arc::clone(&mode), Arc::clone(&request_count));
        let acceptor = TlsAcceptor::from(tls.clone().unwrap());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| {
                request_count.fetch_add(1, Ordering::SeqCst);
                answer(request, mode.lock().unwrap().clone())
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(
    _request: Request<hyper::body::Incoming>,
    mode: ResponseMode,
) -> Result<Response<Body>, std::io::Error> {
    let full = |text: String| Full::new(Bytes::from(text)).boxed();
    let response = Response::builder();
    let response = match mode {
        ResponseMode::Serve(text, caching) => response
            .header("cache-control", caching)
            .header("content-type", "application/json")
            .body(full(text)),
        ResponseMode::Fail(status, text) => response.status(status).body(full(text.to_owned())),
        ResponseMode::Redirect => response
            .status(302)
            .header("location", "/jwks.json")
            .body(full(String::new())),
        ResponseMode::Slow(pause, text) => {
            tokio::time::sleep(pause).await;
            response.body(full(text))
        }
        ResponseMode::Trickle => response.body(repeated_body(Duration::from_millis(200), " ")),
        ResponseMode::Endless => {
            let chunk = "x".repeat(1 << 16).leak();
            response.body(repeated_body(Duration::ZERO, chunk))
        }
        ResponseMode::Cut => return Err(std::io::Error::other("cut")),
    };
    Ok(response.unwrap())
}

/// Returns a body that repeats `text` without end.
fn repeated_body(pause: Duration, text: &'static str) -> Body {
    let endless = futures_util::stream::unfold((), move |()| async move {
        tokio::time::sleep(pause).await;
        let frame = Frame::data(Bytes::from_static(text.as_bytes()));
        Some((Ok::<_, Infallible>(frame), ()))
    });
    let endless: Pin<Box<dyn futures_util::Stream<Item = _> + Send + Sync>> = Box::pin(endless);
    StreamBody::new(endless).boxed()
}
