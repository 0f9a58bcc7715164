//! An HTTP/2 client that sends arbitrary bodies and headers.

use std::future::poll_fn;

use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use prost::Message;
use prost::bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::TIME_LIMIT;
use crate::protobuf::framed;

pub const AUTHORIZE: &str = "/pdp.v1.AuthorizationService/Authorize";
pub const BATCH: &str = "/pdp.v1.AuthorizationService/BatchAuthorize";
pub const STREAM: &str = "/pdp.v1.AuthorizationService/StreamAuthorize";

/// Returns settings under which flow control delays no answer.
pub fn wide_windows() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    builder
}

/// One client connection.
pub struct Http2Client {
    sender: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Http2Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The result of a call.
#[derive(Debug)]
pub struct Outcome {
    /// The HTTP status.
    pub http: u16,
    /// The gRPC status, from headers or trailers; `None` without one.
    pub status: Option<Status>,
    /// The messages, without their prefixes.
    pub messages: Vec<Bytes>,
    /// The HTTP/2 error that ended the call.
    pub h2_error: Option<h2::Error>,
}

impl Outcome {
    /// Returns the status code. Panics without a gRPC status.
    pub fn code(&self) -> Code {
        self.status
            .as_ref()
            .unwrap_or_else(|| panic!("no gRPC status: {self:?}"))
            .code()
    }

    /// Returns whether a service that shuts down rejected the call before processing it: with
    /// UNAVAILABLE, or by HTTP/2, so that the client may retry. A lost call is neither.
    pub fn is_retryable_rejection(&self) -> bool {
        match &self.h2_error {
            None => self.code() == Code::Unavailable,
            Some(error) => match error.reason() {
                Some(Reason::NO_ERROR) => error.is_go_away() && error.is_remote(),
                Some(Reason::REFUSED_STREAM) => error.is_reset() && error.is_remote(),
                Some(_) | None => false,
            },
        }
    }

    /// Decodes the only message.
    pub fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.code(), Code::Ok, "{self:?}");
        assert_eq!(self.messages.len(), 1, "{self:?}");
        M::decode(self.messages[0].clone()).unwrap()
    }

    /// Decodes all messages.
    pub fn messages<M: Message + Default>(&self) -> Vec<M> {
        self.messages
            .iter()
            .map(|bytes| M::decode(bytes.clone()).unwrap())
            .collect()
    }
}

/// Returns the fields that `google.rpc.BadRequest` names.
pub fn violated_fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details
        .bad_request()
        .map(|bad| bad.field_violations.clone())
        .unwrap_or_default();
    violations
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

/// Starts a gRPC request.
pub fn post(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://pdp.test{path}"))
        .version(http::Version::HTTP_2)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
}

impl Http2Client {
    /// Connects to `address` with wide windows.
    pub async fn connect(address: &str) -> Self {
        Self::connect_with(address, &wide_windows()).await
    }

    /// Connects with these settings.
    pub async fn connect_with(address: &str, builder: &h2::client::Builder) -> Self {
        let socket = TcpStream::connect(address)
            .await
            .expect("the server accepts");
        socket.set_nodelay(true).unwrap();
        Self::from_stream(socket, builder).await
    }

    /// Performs the HTTP/2 handshake on an open connection.
    pub async fn from_stream(
        socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        builder: &h2::client::Builder,
    ) -> Self {
        let (sender, connection) = builder
            .handshake::<_, Bytes>(socket)
            .await
            .expect("the server speaks HTTP/2");
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { sender, driver }
    }

    /// Opens a call: sends its headers, but neither body nor end.
    pub async fn open(&self, request: http::Request<()>) -> Result<Call, h2::Error> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, body) = sender.send_request(request, false)?;
        Ok(Call { response, body })
    }

    /// Makes one call with this body, which need not be one frame.
    pub async fn send(&self, request: http::Request<()>, body: Vec<u8>) -> Outcome {
        let whole = async {
            match self.open(request).await {
                Ok(mut call) => {
                    let _ = call.body.send_data(body.into(), true);
                    call.outcome().await
                }
                Err(h2_error) => Outcome {
                    http: 0,
                    status: None,
                    messages: vec![],
                    h2_error: Some(h2_error),
                },
            }
        };
        tokio::time::timeout(TIME_LIMIT, whole)
            .await
            .expect("the call ends")
    }

    /// Makes one call with one message.
    pub async fn call(&self, path: &str, message: &[u8]) -> Outcome {
        self.send(post(path).body(()).unwrap(), framed(message))
            .await
    }
}

/// A call in progress.
pub struct Call {
    pub response: h2::client::ResponseFuture,
    pub body: SendStream<Bytes>,
}

impl Call {
    /// Cancels the call.
    pub fn reset(mut self) {
        self.body.send_reset(Reason::CANCEL);
    }

    /// Reads the answer to its end.
    pub async fn outcome(self) -> Outcome {
        read_outcome(self.response).await
    }
}

/// Reads the answer to a call, whose body may still be in progress.
pub async fn read_outcome(response: h2::client::ResponseFuture) -> Outcome {
    let mut outcome = Outcome {
        http: 0,
        status: None,
        messages: vec![],
        h2_error: None,
    };
    let response = match response.await {
        Ok(response) => response,
        Err(h2_error) => {
            return Outcome {
                h2_error: Some(h2_error),
                ..outcome
            };
        }
    };
    outcome.http = response.status().as_u16();
    outcome.status = Status::from_header_map(response.headers());
    let (body, trailers) = match read(response.into_body()).await {
        Ok(read) => read,
        Err(h2_error) => {
            return Outcome {
                h2_error: Some(h2_error),
                ..outcome
            };
        }
    };
    if let Some(trailers) = trailers {
        outcome.status = Status::from_header_map(&trailers).or(outcome.status);
    }
    let mut rest = Bytes::from(body);
    while rest.len() >= 5 {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        outcome.messages.push(rest.slice(5..5 + length));
        rest = rest.slice(5 + length..);
    }
    outcome
}

async fn read(mut stream: RecvStream) -> Result<(Vec<u8>, Option<http::HeaderMap>), h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        let _ = stream.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let trailers = poll_fn(|cx| stream.poll_trailers(cx)).await?;
    Ok((body, trailers))
}
