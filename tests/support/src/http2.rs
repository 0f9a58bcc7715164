//! An HTTP/2 connection that sends whatever it is told.

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

use crate::PATIENCE;
use crate::protobuf::framed;

pub const AUTHORIZE: &str = "/pdp.v1.AuthorizationService/Authorize";
pub const BATCH: &str = "/pdp.v1.AuthorizationService/BatchAuthorize";
pub const STREAM: &str = "/pdp.v1.AuthorizationService/StreamAuthorize";

/// Settings under which no answer waits for its caller.
pub fn with_wide_windows() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    builder
}

/// One connection.
pub struct Caller {
    sender: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What came back.
#[derive(Debug)]
pub struct Outcome {
    /// The status of HTTP.
    pub http: u16,
    /// The status of gRPC, from headers or trailers; `None` when there was none.
    pub status: Option<Status>,
    /// The messages, without their frames.
    pub messages: Vec<Bytes>,
    /// What HTTP/2 says of a call that broke off.
    pub broken: Option<h2::Error>,
}

impl Outcome {
    /// The code; panics when there is no gRPC status.
    pub fn code(&self) -> Code {
        self.status
            .as_ref()
            .unwrap_or_else(|| panic!("no gRPC status: {self:?}"))
            .code()
    }

    /// Whether it was turned away by a service that ends: with UNAVAILABLE, or by HTTP/2, which says
    /// of it that it was never begun and may be made elsewhere. A call that is lost is none of these.
    pub fn is_turned_away(&self) -> bool {
        match &self.broken {
            None => self.code() == Code::Unavailable,
            Some(error) => match error.reason() {
                Some(Reason::NO_ERROR) => error.is_go_away() && error.is_remote(),
                Some(Reason::REFUSED_STREAM) => error.is_reset() && error.is_remote(),
                Some(_) | None => false,
            },
        }
    }

    /// The only message.
    pub fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.code(), Code::Ok, "{self:?}");
        assert_eq!(self.messages.len(), 1, "{self:?}");
        M::decode(self.messages[0].clone()).unwrap()
    }

    /// All messages.
    pub fn messages<M: Message + Default>(&self) -> Vec<M> {
        self.messages
            .iter()
            .map(|bytes| M::decode(bytes.clone()).unwrap())
            .collect()
    }
}

/// The fields that `google.rpc.BadRequest` names.
pub fn fields_of(status: &Status) -> Vec<String> {
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

/// A POST as gRPC makes it.
pub fn post(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://pdp.test{path}"))
        .version(http::Version::HTTP_2)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
}

impl Caller {
    /// Connects to `address`.
    pub async fn connect(address: &str) -> Self {
        Self::connect_as(address, &with_wide_windows()).await
    }

    /// Connects with these settings.
    pub async fn connect_as(address: &str, builder: &h2::client::Builder) -> Self {
        let socket = TcpStream::connect(address)
            .await
            .expect("the server accepts");
        socket.set_nodelay(true).unwrap();
        Self::over(socket, builder).await
    }

    /// Speaks HTTP/2 over what is connected.
    pub async fn over(
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

    /// Opens a call: the body is still to be sent, the answer still to be read.
    pub async fn open(&self, request: http::Request<()>) -> Result<Call, h2::Error> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, body) = sender.send_request(request, false)?;
        Ok(Call { response, body })
    }

    /// One call with this body, which need not be one frame.
    pub async fn send(&self, request: http::Request<()>, body: Vec<u8>) -> Outcome {
        let whole = async {
            match self.open(request).await {
                Ok(mut call) => {
                    let _ = call.body.send_data(body.into(), true);
                    call.outcome().await
                }
                Err(broken) => Outcome {
                    http: 0,
                    status: None,
                    messages: vec![],
                    broken: Some(broken),
                },
            }
        };
        tokio::time::timeout(PATIENCE, whole)
            .await
            .expect("the call ends")
    }

    /// One call with one message.
    pub async fn call(&self, path: &str, message: &[u8]) -> Outcome {
        self.send(post(path).body(()).unwrap(), framed(message))
            .await
    }
}

/// A call under way.
pub struct Call {
    pub response: h2::client::ResponseFuture,
    pub body: SendStream<Bytes>,
}

impl Call {
    /// Breaks it off.
    pub fn reset(mut self) {
        self.body.send_reset(Reason::CANCEL);
    }

    /// Reads it to its end.
    pub async fn outcome(self) -> Outcome {
        outcome_of(self.response).await
    }
}

/// What comes of a call, whose body may still be sent meanwhile.
pub async fn outcome_of(response: h2::client::ResponseFuture) -> Outcome {
    let mut outcome = Outcome {
        http: 0,
        status: None,
        messages: vec![],
        broken: None,
    };
    let response = match response.await {
        Ok(response) => response,
        Err(broken) => {
            return Outcome {
                broken: Some(broken),
                ..outcome
            };
        }
    };
    outcome.http = response.status().as_u16();
    outcome.status = Status::from_header_map(response.headers());
    let (body, trailers) = match read(response.into_body()).await {
        Ok(read) => read,
        Err(broken) => {
            return Outcome {
                broken: Some(broken),
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
