//! Sends log records to a collector, a message at a time, and tells what its answer means for them.
//!
//! The exporter that spans are sent with tells of an answer in words alone. A span may be lost; of a
//! record it must be known whether it may be sent again, and OTLP's specification says when.
//! <https://opentelemetry.io/docs/specs/otlp/#failures>

use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use opentelemetry_http::HttpClient as _;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Extensions, Status};
use tonic_types::StatusExt as _;

use super::http_client::HttpsClient;
use super::{CollectorConfig, CollectorError, Protocol, authorities, client_tls};

/// How the service names itself.
const AGENT: &str = concat!("cedar-pdp/", env!("CARGO_PKG_VERSION"));

/// The most letters of what a collector says that are told.
const MOST_LETTERS: usize = 200;

/// The way to a collector.
#[derive(Debug)]
pub(in crate::telemetry) struct Records {
    way: Way,
    headers: HeaderMap,
    timeout: Duration,
}

#[derive(Debug)]
enum Way {
    Grpc(LogsServiceClient<Channel>),
    Http(Box<HttpsClient>, Uri),
}

/// What a collector that took a message left out of it.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct Taken {
    /// How many records it refused for good.
    pub(in crate::telemetry) refused: u64,
    /// What it says of them, or of the message.
    pub(in crate::telemetry) reason: String,
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::telemetry) enum NotTaken {
    /// It may be another time, or when someone has mended what is wrong.
    #[error("{reason}")]
    Now {
        /// What the collector says.
        reason: String,
        /// How long it wants to be left alone.
        wait: Option<Duration>,
    },
    /// It never will be.
    #[error("{reason}")]
    Ever {
        /// What the collector says.
        reason: String,
    },
}

/// The way to the collector of `config`. Connects to no one yet.
///
/// # Errors
///
/// [`CollectorError`].
pub(in crate::telemetry) fn open(config: &CollectorConfig) -> Result<Records, CollectorError> {
    let no_address = || {
        // Without a name and password, which may stand before the host.
        let (_, shown) = config
            .endpoint
            .rsplit_once('@')
            .unwrap_or(("", &config.endpoint));
        CollectorError::Address(shown.to_owned())
    };
    let mut headers = headers(config);
    let way = match config.protocol {
        Protocol::Grpc => {
            let endpoint = Endpoint::from_shared(config.endpoint.clone())
                .and_then(|endpoint| endpoint.user_agent(AGENT))
                .map_err(|_| no_address())?;
            let endpoint = match client_tls(config)? {
                None => endpoint,
                Some(tls) => endpoint.tls_config(tls).map_err(CollectorError::Tls)?,
            };
            Way::Grpc(LogsServiceClient::new(endpoint.connect_lazy()))
        }
        Protocol::HttpProtobuf => {
            headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
            headers.insert(
                CONTENT_TYPE,
                HeaderValue::from_static("application/x-protobuf"),
            );
            let client = HttpsClient::new(authorities(config)?.as_deref())?;
            let endpoint = config.endpoint.parse().map_err(|_| no_address())?;
            Way::Http(Box::new(client), endpoint)
        }
    };
    Ok(Records {
        way,
        headers,
        timeout: config.timeout,
    })
}

fn headers(config: &CollectorConfig) -> HeaderMap {
    let header = |(name, value): (&str, &str)| {
        // INVARIANT: the configuration holds none that would be left out here.
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    };
    config.headers.iter().filter_map(header).collect()
}

impl Records {
    /// Sends `message`, and waits for the answer to it.
    ///
    /// # Errors
    ///
    /// [`NotTaken`].
    pub(in crate::telemetry) async fn send(
        &self,
        message: ExportLogsServiceRequest,
    ) -> Result<Taken, NotTaken> {
        let sending = async {
            match &self.way {
                Way::Grpc(client) => {
                    let headers = MetadataMap::from_headers(self.headers.clone());
                    let message =
                        tonic::Request::from_parts(headers, Extensions::default(), message);
                    let answer = client.clone().export(message).await;
                    answer.map(tonic::Response::into_inner).map_err(by_status)
                }
                Way::Http(client, endpoint) => {
                    let mut request = Request::new(message.encode_to_vec().into());
                    *request.method_mut() = http::Method::POST;
                    *request.uri_mut() = endpoint.clone();
                    *request.headers_mut() = self.headers.clone();
                    let answer = client.send_bytes(request).await;
                    let answer = answer.map_err(|error| now(error.to_string()))?;
                    match answer.status().is_success() {
                        // One that cannot be read has still said that it took the message.
                        true => Ok(ExportLogsServiceResponse::decode(answer.into_body())
                            .unwrap_or_default()),
                        false => Err(by_answer(answer.status(), answer.headers())),
                    }
                }
            }
        };
        let answer = tokio::time::timeout(self.timeout, sending)
            .await
            .unwrap_or_else(|_elapsed| Err(now(format!("no answer within {:?}", self.timeout))))?;
        let left_out = answer.partial_success.unwrap_or_default();
        Ok(Taken {
            refused: u64::try_from(left_out.rejected_log_records).unwrap_or(0),
            reason: shortened(&left_out.error_message),
        })
    }
}

fn now(reason: String) -> NotTaken {
    NotTaken::Now { reason, wait: None }
}

/// What a call's end means for the message.
fn by_status(status: Status) -> NotTaken {
    let code = status.code();
    let reason = format!("{code:?}: {}", shortened(status.message()));
    // Of a connection that failed, tonic tells the cause; what a collector answers has none.
    let is_answer = std::error::Error::source(&status).is_none();
    let wait = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    let may_be_taken = match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        // Of one that will never have room for it, it does not say when to come back.
        Code::ResourceExhausted => wait.is_some(),
        // Not the message is wrong, but a setting, here or there.
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented => true,
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Internal => false,
    };
    match may_be_taken || !is_answer {
        true => NotTaken::Now { reason, wait },
        false => NotTaken::Ever { reason },
    }
}

/// What an answer that is no success means for the message.
fn by_answer(status: StatusCode, headers: &HeaderMap) -> NotTaken {
    let reason = format!("HTTP status {status}");
    let may_be_taken = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            // Not the message is wrong, but a setting, here or there.
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
    );
    match may_be_taken {
        true => NotTaken::Now {
            reason,
            wait: headers
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok())
                .map(Duration::from_secs),
        },
        false => NotTaken::Ever { reason },
    }
}

fn shortened(said: &str) -> String {
    said.chars().take(MOST_LETTERS).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic_types::ErrorDetails;

    use super::*;

    fn is_sent_again(told: &NotTaken) -> bool {
        match told {
            NotTaken::Now { .. } => true,
            NotTaken::Ever { .. } => false,
        }
    }

    #[test]
    fn what_otlp_calls_retryable_is_sent_again_and_what_operators_mend() {
        let again: Vec<i32> = (1..=16)
            .filter(|code| is_sent_again(&by_status(Status::new((*code).into(), ""))))
            .collect();
        // CANCELLED, DEADLINE_EXCEEDED, PERMISSION_DENIED, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED,
        // UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED.
        assert_eq!(again, [1, 4, 7, 10, 11, 12, 14, 15, 16]);
        let again: Vec<u16> = (300..600)
            .filter(|status| {
                let status = StatusCode::from_u16(*status).unwrap();
                is_sent_again(&by_answer(status, &HeaderMap::new()))
            })
            .collect();
        assert_eq!(again, [401, 403, 404, 429, 502, 503, 504]);
    }

    #[test]
    fn a_collector_says_how_long_it_wants_to_be_left_alone() {
        let wait = Some(Duration::from_secs(7));
        let details = ErrorDetails::with_retry_info(wait);
        let full = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let reason = "ResourceExhausted: full".to_owned();
        assert_eq!(by_status(full), NotTaken::Now { reason, wait });
        let headers = [(RETRY_AFTER, HeaderValue::from_static("7"))];
        let told = by_answer(
            StatusCode::TOO_MANY_REQUESTS,
            &headers.into_iter().collect(),
        );
        let reason = "HTTP status 429 Too Many Requests".to_owned();
        assert_eq!(told, NotTaken::Now { reason, wait });
    }

    #[test]
    fn a_connection_that_fails_is_no_answer() {
        let mut status = Status::unknown("transport error");
        status.set_source(Arc::new(std::io::Error::other("reset")));
        assert!(is_sent_again(&by_status(status)));
    }
}
