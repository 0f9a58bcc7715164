//! The typed client that our own commands use.

use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::pb::authorization_service_client::AuthorizationServiceClient;
use super::{from_proto, to_proto};
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

/// Asks the service at `address` to decide `query`.
///
/// # Errors
///
/// [`ClientError`].
pub fn authorize(address: &Listen, query: &Query) -> Result<Answer, ClientError> {
    let request = to_proto::request(query);
    ask(address, |channel| async move {
        let response = AuthorizationServiceClient::new(channel)
            .authorize(request)
            .await?
            .into_inner();
        from_proto::answer(response).map_err(ClientError::Answer)
    })
}

/// Asks the service at `address` whether `service` (the empty name: all of it) is serving.
///
/// # Errors
///
/// [`ClientError`].
pub fn is_serving(address: &Listen, service: &str) -> Result<bool, ClientError> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    ask(address, |channel| async move {
        let response = HealthClient::new(channel)
            .check(request)
            .await?
            .into_inner();
        Ok(response.status() == ServingStatus::Serving)
    })
}

/// Connects and asks, on a runtime of its own.
fn ask<T, F: Future<Output = Result<T, ClientError>>>(
    address: &Listen,
    call: impl FnOnce(Channel) -> F,
) -> Result<T, ClientError> {
    let failed = |message: String| ClientError::Connect {
        address: address.to_string(),
        message,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let uri = match address {
        Listen::Tcp(..) => format!("http://{address}"),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    };
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|error| failed(error.to_string()))?
            .connect_timeout(TIMEOUT)
            .timeout(TIMEOUT);
        let channel = endpoint.connect().await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            failed(format!("{error}{}", cause.unwrap_or_default()))
        })?;
        call(channel).await
    })
}
