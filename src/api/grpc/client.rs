//! The gRPC client of the command line.

use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use crate::api::grpc::pb::authorize_request;
use crate::api::grpc::wire::from_response;
use crate::api::grpc::wire::to_proto;
use crate::config::listen::Listen;
use crate::pdp::answer::Answer;
use crate::pdp::query::Query;

/// A failed call to a running service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// There is no runtime or no connection.
    #[error("cannot connect to `{address}`: {message}")]
    Connect { address: String, message: String },
    #[error("the bearer key contains characters that are not allowed in a header")]
    Bearer,
    /// The service answered with an error.
    #[error("{code:?}: {message}")]
    Refused { code: tonic::Code, message: String },
    #[error("invalid response: {0}")]
    Answer(&'static str),
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

/// Time limit of a connection attempt, and of a call.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The address of a running service, and the credentials for it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: Listen,
    /// The TLS settings for TCP; `None` is plaintext.
    pub(crate) tls: Option<TargetTls>,
    /// The bearer key sent with each call.
    pub(crate) bearer: Option<String>,
}

/// The TLS settings of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct TargetTls {
    /// The trusted root certificates, PEM; `None` is those of this machine.
    pub(crate) authorities: Option<Vec<u8>>,
    /// The client's certificate and key, PEM.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in the service's certificate, if it differs from the address.
    pub(crate) server_name: Option<String>,
}

/// Requests a decision of `query` from `target`. A `token` replaces the query's principal.
pub(crate) fn authorize(
    target: &Target,
    query: &Query,
    token: Option<String>,
) -> Result<Answer, ClientError> {
    let mut message = to_proto::request(query);
    if let Some(token) = token {
        message.identity = Some(authorize_request::Identity::PrincipalToken(token));
    }
    let request = target.request(message)?;
    target.call(|channel| async move {
        let response = (AuthorizationServiceClient::new(channel).authorize(request)).await?;
        from_response::answer(response.into_inner()).map_err(ClientError::Answer)
    })
}

/// Requests the health of `service` from `target`. The empty name is the whole process.
pub(crate) fn is_serving(target: &Target, service: &str) -> Result<bool, ClientError> {
    let request = target.request(HealthCheckRequest {
        service: service.to_owned(),
    })?;
    target.call(|channel| async move {
        let response = HealthClient::new(channel).check(request).await?;
        Ok(response.get_ref().status() == ServingStatus::Serving)
    })
}

impl Target {
    fn request<T>(&self, message: T) -> Result<Request<T>, ClientError> {
        let mut request = Request::new(message);
        if let Some(key) = &self.bearer {
            let mut bearer: MetadataValue<Ascii> = format!("Bearer {key}")
                .parse()
                .map_err(|_| ClientError::Bearer)?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        Ok(request)
    }

    /// Connects and makes a call, on a separate runtime.
    fn call<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<T, ClientError> {
        let failed = |message: String| ClientError::Connect {
            address: self.address.to_string(),
            message,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        runtime.block_on(async {
            let channel = match self.endpoint() {
                Ok(endpoint) => endpoint.connect().await,
                Err(error) => Err(error),
            };
            let channel = channel.map_err(|error| failed(with_causes(&error)))?;
            call(channel).await
        })
    }

    fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        let uri = match (&self.address, &self.tls) {
            (Listen::Tcp(..), Some(_)) => format!("https://{}", self.address),
            (Listen::Tcp(..), None) => format!("http://{}", self.address),
            (Listen::Unix(path), _) => format!("unix:{}", path.display()),
        };
        let endpoint = Endpoint::from_shared(uri)?
            .connect_timeout(TIMEOUT)
            .timeout(TIMEOUT);
        match &self.tls {
            Some(tls) => endpoint.tls_config(tls.config()),
            None => Ok(endpoint),
        }
    }
}

impl TargetTls {
    fn config(&self) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new();
        config = match &self.authorities {
            Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
            None => config.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        config
    }
}

/// Returns the texts of the error and its causes: only the causes explain a failed handshake.
fn with_causes(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let cause_text = error.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        cause = error.source();
    }
    text
}
