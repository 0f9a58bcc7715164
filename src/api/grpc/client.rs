//! The typed client that our own commands use.

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

/// Why a running service gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No runtime, no connection.
    #[error("cannot connect to `{address}`: {message}")]
    Connect {
        /// Where we tried.
        address: String,
        /// What went wrong.
        message: String,
    },
    /// The key is none that can be sent.
    #[error("the bearer key holds what no header can")]
    Bearer,
    /// The service answered with an error.
    #[error("{code:?}: {message}")]
    Refused {
        /// The gRPC status.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// The service sent what no version of it should.
    #[error("the answer makes no sense: {0}")]
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

/// How long a command waits for a service before it says that there is none.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// A running service, and how to come in.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub address: Listen,
    /// How it is spoken to on TCP; `None` is in the clear.
    pub tls: Option<TargetTls>,
    /// What the caller shows with each call.
    pub bearer: Option<String>,
}

/// What TLS is spoken with.
#[derive(Clone, Debug, Default)]
pub struct TargetTls {
    /// The authorities that the service's certificate is verified by, PEM; `None` is those of this
    /// machine.
    pub authorities: Option<Vec<u8>>,
    /// What the caller shows: its certificate and its key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in the service's certificate, where it is not that of the address.
    pub server_name: Option<String>,
}

/// Asks `target` to decide `query`, whose principal is the one that `token` names if there is one.
///
/// # Errors
///
/// [`ClientError`].
pub fn authorize(
    target: &Target,
    query: &Query,
    token: Option<String>,
) -> Result<Answer, ClientError> {
    let mut message = to_proto::request(query);
    if let Some(token) = token {
        message.identity = Some(authorize_request::Identity::PrincipalToken(token));
    }
    let request = target.request(message)?;
    target.ask(|channel| async move {
        let response = AuthorizationServiceClient::new(channel)
            .authorize(request)
            .await?
            .into_inner();
        from_response::answer(response).map_err(ClientError::Answer)
    })
}

/// Asks `target` whether `service` (the empty name: all of it) is serving.
///
/// # Errors
///
/// [`ClientError`].
pub fn is_serving(target: &Target, service: &str) -> Result<bool, ClientError> {
    let request = target.request(HealthCheckRequest {
        service: service.to_owned(),
    })?;
    target.ask(|channel| async move {
        let response = HealthClient::new(channel)
            .check(request)
            .await?
            .into_inner();
        Ok(response.status() == ServingStatus::Serving)
    })
}

impl Target {
    fn request<T>(&self, message: T) -> Result<Request<T>, ClientError> {
        let mut request = Request::new(message);
        if let Some(key) = &self.bearer {
            let mut shown: MetadataValue<Ascii> = format!("Bearer {key}")
                .parse()
                .map_err(|_| ClientError::Bearer)?;
            shown.set_sensitive(true);
            request.metadata_mut().insert("authorization", shown);
        }
        Ok(request)
    }

    /// Connects and asks, on a runtime of its own.
    fn ask<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<T, ClientError> {
        let failed = |message: String| ClientError::Connect {
            address: self.address.to_string(),
            message,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
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

/// The error and what it came of: of a handshake that failed, the causes say why.
fn with_causes(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
