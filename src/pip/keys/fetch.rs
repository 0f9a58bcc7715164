//! Fetches a JWKS over HTTP, bounded in time and size.
//!
//! Connections are not kept, since fetches are minutes apart. Redirects are not followed, since a
//! redirect could name another server.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AGE, CACHE_CONTROL, USER_AGENT};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::pip::issuers::UrlSource;
use crate::watch::files::{FileReader, ReadError};

/// Size of the largest accepted JWKS, in bytes.
const MAX_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct FetchedJwks {
    pub(super) text: Bytes,
    /// Remaining freshness by the HTTP cache headers.
    pub(super) fresh_for: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::pip) enum FetchError {
    #[error(transparent)]
    CaFile(#[from] ReadError),
    #[error("`{}` contains no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("the system has no root certificates; set a `ca_file`")]
    NoRoots,
    #[error("cannot use TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("invalid URL: {0}")]
    Request(#[source] http::Error),
    #[error("cannot connect to the server: {0}")]
    Connection(String),
    #[error("the server returned status {0}")]
    Status(StatusCode),
    #[error("the response is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("the response ended early: {0}")]
    Incomplete(String),
    #[error("timed out after {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
}

/// Fetches the JWKS within the source's `fetch_timeout`.
pub(super) async fn fetch(source: &UrlSource) -> Result<FetchedJwks, FetchError> {
    let timeout = source.fetch_timeout;
    tokio::time::timeout(timeout, request(source))
        .await
        .unwrap_or(Err(FetchError::TimedOut(timeout)))
}

async fn request(source: &UrlSource) -> Result<FetchedJwks, FetchError> {
    // The CA file is read at each fetch, so that it can be replaced while the service runs.
    let ca_file = source.ca_file.clone();
    let tls = tokio::task::spawn_blocking(move || client_config(ca_file))
        .await
        .map_err(|error| FetchError::Connection(error.to_string()))??;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector);
    let request = Request::get(&source.url)
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(USER_AGENT, concat!("cedar-pdp/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .map_err(FetchError::Request)?;
    let response = client
        .request(request)
        .await
        .map_err(|error| FetchError::Connection(error_with_causes(&error)))?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let fresh_for = fresh_for(response.headers());
    let body = Limited::new(response.into_body(), MAX_BYTES);
    let text = body.collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            FetchError::TooLarge
        } else {
            FetchError::Incomplete(error_with_causes(&*error))
        }
    })?;
    Ok(FetchedJwks {
        text: text.to_bytes(),
        fresh_for,
    })
}

/// Returns the TLS settings for a key server, which trust the CA of `ca_file` or the system's roots.
pub(in crate::pip) fn client_config(ca_file: Option<PathBuf>) -> Result<ClientConfig, FetchError> {
    let (certificates, no_certificate) = match ca_file {
        Some(path) => {
            let text = FileReader::default().read(&path)?;
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
            let no_certificate = FetchError::NoCertificate { path };
            (certificates.unwrap_or_default(), no_certificate)
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            (system.certs, FetchError::NoRoots)
        }
    };
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(no_certificate);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Returns the freshness by `Cache-Control` minus `Age`; `None` if the header sets none.
fn fresh_for(headers: &HeaderMap) -> Option<Duration> {
    let mut fresh = None;
    for value in headers.get_all(CACHE_CONTROL) {
        for directive in value.to_str().ok()?.split(',') {
            let directive = directive.trim().to_ascii_lowercase();
            if directive == "no-store" || directive == "no-cache" {
                return Some(Duration::ZERO);
            }
            if let Some(seconds) = directive.strip_prefix("max-age=") {
                fresh = seconds
                    .trim_matches('"')
                    .parse()
                    .ok()
                    .map(Duration::from_secs);
            }
        }
    }
    let age = headers
        .get(AGE)
        .and_then(|age| age.to_str().ok()?.parse().ok())
        .map_or(Duration::ZERO, Duration::from_secs);
    fresh.map(|fresh| fresh.saturating_sub(age))
}

fn error_with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &'static str)], seconds: Option<u64>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        assert_eq!(fresh_for(&map), seconds.map(Duration::from_secs));
    }

    #[test]
    fn freshness_comes_from_cache_headers() {
        check(&[], None);
        check(&[("cache-control", "public")], None);
        check(&[("cache-control", "public, Max-Age=600")], Some(600));
        check(
            &[("cache-control", "max-age=600"), ("age", "100")],
            Some(500),
        );
        check(&[("cache-control", "max-age=600"), ("age", "700")], Some(0));
        check(&[("cache-control", "no-store, max-age=600")], Some(0));
        check(&[("cache-control", "max-age=soon")], None);
    }

    /// Fetches from a server that responds with `bytes` bytes, with or without `Content-Length`.
    async fn fetch_bytes(bytes: usize, has_length: bool) -> Result<FetchedJwks, FetchError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = format!("content-length: {bytes}\r\n");
            let length = if has_length { &length } else { "" };
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{length}\r\n");
            // Closing with unread request bytes would reset the connection and lose the response.
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            // The client stops reading at its limit, so these writes may fail.
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&vec![b' '; bytes]).await;
        });
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&ca_file, key.cert.pem()).unwrap();
        let source = UrlSource {
            url,
            // Not used for http, but read: the machine may have no root certificates.
            ca_file: Some(ca_file),
            refresh_min: Duration::from_secs(60),
            refresh_max: Duration::from_secs(3_600),
            refetch_interval: Duration::from_secs(10),
            // The size ends the fetch, not the time.
            fetch_timeout: Duration::from_secs(3_600),
            key_wait: Duration::from_secs(2),
            max_stale: None,
        };
        let fetched = fetch(&source).await;
        server.abort();
        fetched
    }

    #[tokio::test]
    async fn jwks_is_bounded_in_size() {
        for has_length in [true, false] {
            let largest = fetch_bytes(MAX_BYTES, has_length).await.unwrap();
            assert_eq!(largest.text.len(), MAX_BYTES);
            let error = fetch_bytes(MAX_BYTES + 1, has_length).await.unwrap_err();
            assert!(matches!(error, FetchError::TooLarge), "{error}");
        }
    }
}
