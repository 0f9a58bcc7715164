//! What OTLP over HTTP is sent with: hyper's client, for collectors with and without TLS.

use std::sync::Arc;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use prost::bytes::Bytes;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// The largest answer of a collector that is read, in bytes.
const LARGEST_ANSWER: usize = 1 << 20;

/// Why there are no authorities to verify a collector by.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRoots {
    /// The file holds something else.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE is no file of certificates: {0}")]
    Pem(rustls::pki_types::pem::Error),
    /// A certificate cannot be used.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE: {0}")]
    Certificate(rustls::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(rustls::Error),
}

#[derive(Clone, Debug)]
pub(super) struct HttpsClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl HttpsClient {
    /// Verifies collectors by the authorities in this PEM, or else by the system's.
    pub(super) fn new(authorities: Option<&[u8]>) -> Result<Self, InvalidRoots> {
        let mut roots = RootCertStore::empty();
        match authorities {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(InvalidRoots::Pem)?;
                    roots.add(certificate).map_err(InvalidRoots::Certificate)?;
                }
            }
            // A system without any can still send to a collector without TLS.
            None => {
                let system = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(system.certs);
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(InvalidRoots::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }
}

#[tonic::async_trait]
impl HttpClient for HttpsClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // INVARIANT: whoever sends bounds the time.
        let answer = self.0.request(request.map(Full::new)).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LARGEST_ANSWER).collect().await?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}
