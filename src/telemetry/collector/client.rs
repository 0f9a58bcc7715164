//! Sends one message at a time to a collector and waits for the response.

use std::time::Duration;

use http::header::{CONTENT_TYPE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri};
use prost::Message;
use tokio::time::Instant;
use tonic::Extensions;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{CollectorConfig, CollectorError, ExportError, HttpsClient, Protocol};
use super::{ca_certificates, grpc_tls, redacted_endpoint};

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

impl OtlpClient {
    /// Prepares a client, which connects when it sends. `grpc_method` is the path of the method that
    /// is called over gRPC. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`CollectorError`].
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
                    Some(tls) => endpoint
                        .tls_config(tls)
                        .map_err(|error| CollectorError::Tls(error.to_string()))?,
                };
                let method = PathAndQuery::from_static(grpc_method);
                Transport::Grpc(endpoint.connect_lazy(), method)
            }
            Protocol::HttpProtobuf => {
                headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
                let protobuf = HeaderValue::from_static("application/x-protobuf");
                headers.insert(CONTENT_TYPE, protobuf);
                let client = HttpsClient::new(ca_certificates(config)?.as_deref())?;
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
        let ready = grpc.ready().await;
        ready.map_err(|error| ExportError::unanswered(error.to_string()))?;
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
        let mut request = http::Request::new(message.encode_to_vec().into());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = endpoint.clone();
        *request.headers_mut() = self.headers.clone();
        let response = client.send(request).await;
        let response = response.map_err(|error| ExportError::unanswered(error.to_string()))?;
        if !response.status().is_success() {
            let (head, _) = response.into_parts();
            return Err(ExportError::from_http(head.status, &head.headers));
        }
        // A success status accepts the message, even if the body cannot be decoded.
        Ok(R::decode(response.into_body()).unwrap_or_default())
    }
}
