//! Sends one message at a time to a collector and waits for the response.

use std::fmt::Display;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use prost::bytes::Bytes;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::Instant;
use tonic::Extensions;
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_prost::ProstCodec;

use super::{CollectorError, ExportError, redacted_endpoint};
use crate::config::otel::{CollectorConfig, Protocol};

/// The largest response body over HTTP that is read, in bytes.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

const AGENT: &str = concat!("cedar-pdp/", env!("CARGO_PKG_VERSION"));

/// A client of one collector for one kind of telemetry.
#[derive(Debug)]
pub(in crate::telemetry) struct OtlpClient {
    transport: Transport,
    headers: HeaderMap,
    timeout: Duration,
}

#[derive(Debug)]
enum Transport {
    Grpc(Channel, PathAndQuery),
    Http(Box<HttpsClient>, Uri),
}

/// An HTTP/1.1 client that keeps connections open, for collectors with and without TLS.
type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

impl OtlpClient {
    /// Prepares a client, which connects when it sends. `grpc_method` is the path of the method that
    /// is called over gRPC. Must be called within a tokio runtime.
    pub(in crate::telemetry) fn new(
        config: &CollectorConfig,
        grpc_method: &'static str,
    ) -> Result<Self, CollectorError> {
        let invalid = || CollectorError::Endpoint(redacted_endpoint(config).to_owned());
        let mut headers = config.headers.clone();
        let transport = match config.protocol {
            Protocol::Grpc => {
                let endpoint = Endpoint::from_shared(config.endpoint.clone())
                    .and_then(|endpoint| endpoint.user_agent(AGENT))
                    .map_err(|_| invalid())?;
                let endpoint = match grpc_tls(config)? {
                    None => endpoint,
                    Some(tls) => endpoint.tls_config(tls).map_err(tls_error)?,
                };
                let method = PathAndQuery::from_static(grpc_method);
                Transport::Grpc(endpoint.connect_lazy(), method)
            }
            Protocol::HttpProtobuf => {
                headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
                let protobuf = HeaderValue::from_static("application/x-protobuf");
                headers.insert(CONTENT_TYPE, protobuf);
                let client = https_client(ca_certificates(config)?.as_deref())?;
                let endpoint = config.endpoint.parse().map_err(|_| invalid())?;
                Transport::Http(Box::new(client), endpoint)
            }
        };
        Ok(Self {
            transport,
            headers,
            timeout: config.timeout,
        })
    }

    /// Returns the time until which a message may be sent that is sent first now.
    pub(in crate::telemetry) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Sends `message` and returns the response.
    ///
    /// # Errors
    ///
    /// [`ExportError`], also when no response has arrived at the deadline.
    pub(in crate::telemetry) async fn send<R: Message + Default + 'static>(
        &self,
        message: impl Message + 'static,
        deadline: Instant,
    ) -> Result<R, ExportError> {
        let sending = async {
            match &self.transport {
                Transport::Grpc(channel, method) => self.call(channel, method, message).await,
                Transport::Http(client, endpoint) => self.post(client, endpoint, message).await,
            }
        };
        let sent = tokio::time::timeout_at(deadline, sending).await;
        sent.unwrap_or_else(|_elapsed| {
            let reason = format!("no response within {:?}", self.timeout);
            Err(ExportError::unanswered(reason))
        })
    }

    async fn call<R: Message + Default + 'static>(
        &self,
        channel: &Channel,
        method: &PathAndQuery,
        message: impl Message + 'static,
    ) -> Result<R, ExportError> {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.map_err(ExportError::unanswered)?;
        let metadata = MetadataMap::from_headers(self.headers.clone());
        let request = tonic::Request::from_parts(metadata, Extensions::default(), message);
        let codec = ProstCodec::default();
        let response = grpc.unary(request, method.clone(), codec).await;
        response
            .map(tonic::Response::into_inner)
            .map_err(ExportError::from_grpc)
    }

    async fn post<R: Message + Default>(
        &self,
        client: &HttpsClient,
        endpoint: &Uri,
        message: impl Message,
    ) -> Result<R, ExportError> {
        let mut request = http::Request::new(Full::new(message.encode_to_vec().into()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = endpoint.clone();
        *request.headers_mut() = self.headers.clone();
        let response = client.request(request).await;
        let (head, body) = response.map_err(ExportError::unanswered)?.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await;
        let body = body.map_err(ExportError::unanswered)?;
        if !head.status.is_success() {
            return Err(ExportError::from_http(head.status, &head.headers));
        }
        // A success status accepts the message, even if the body cannot be decoded.
        Ok(R::decode(body.to_bytes()).unwrap_or_default())
    }
}

/// Returns the TLS settings of gRPC; `None` if the endpoint uses no TLS.
fn grpc_tls(config: &CollectorConfig) -> Result<Option<ClientTlsConfig>, CollectorError> {
    if !config.endpoint.starts_with("https:") {
        return Ok(None);
    }
    Ok(Some(match ca_certificates(config)? {
        None => ClientTlsConfig::new().with_enabled_roots(),
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
    }))
}

/// Reads the CA certificates as PEM; `None` if those of the system apply.
fn ca_certificates(config: &CollectorConfig) -> Result<Option<Vec<u8>>, CollectorError> {
    let Some(file) = &config.certificate else {
        return Ok(None);
    };
    let cannot_read = |error| CollectorError::CertificateFile(file.clone(), error);
    fs::read(file).map(Some).map_err(cannot_read)
}

/// Builds a client that verifies servers by the CA certificates in `pem`, or else by the system's.
fn https_client(pem: Option<&[u8]>) -> Result<HttpsClient, CollectorError> {
    let mut roots = RootCertStore::empty();
    match pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(tls_error)?;
                roots.add(certificate).map_err(tls_error)?;
            }
        }
        // A system without certificates can still send to a collector without TLS.
        None => {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

fn tls_error(error: impl Display) -> CollectorError {
    CollectorError::Tls(error.to_string())
}
