//! The HTTP client of OTLP over HTTP, for collectors with and without TLS.

use std::sync::Arc;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::bytes::Bytes;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// The largest response body that is read, in bytes.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// An error in the CA certificates that verify a collector.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file holds something else.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE is not a file of PEM certificates: {0}")]
    Pem(rustls::pki_types::pem::Error),
    /// A certificate cannot be used.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE: {0}")]
    Certificate(rustls::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(rustls::Error),
}

/// An HTTP/1.1 client that keeps connections open.
#[derive(Clone, Debug)]
pub(super) struct HttpsClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl HttpsClient {
    /// Builds a client that verifies servers by the CA certificates in `pem`, or else by the system's.
    pub(super) fn new(pem: Option<&[u8]>) -> Result<Self, RootsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(RootsError::Tls)?
            .with_root_certificates(roots(pem)?)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Sends a request and reads the whole response. The caller limits the time.
    pub(super) async fn send(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        let response = self.0.request(request.map(Full::new)).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

fn roots(pem: Option<&[u8]>) -> Result<RootCertStore, RootsError> {
    let mut roots = RootCertStore::empty();
    match pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(RootsError::Pem)?;
                roots.add(certificate).map_err(RootsError::Certificate)?;
            }
        }
        // A system without certificates can still send to a collector without TLS.
        None => {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
        }
    }
    Ok(roots)
}
