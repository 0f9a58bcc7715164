//! The body of a response.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Frame};
use prost::bytes::Bytes;
use tonic::Status;
use tonic::body::Body;

/// hyper accepts a whole frame as soon as the window has room for a part of it, and buffers it for
/// as long as the caller does not read. Frames that hyper has not accepted are charged to the
/// memory budget.
pub(crate) const FRAME_BYTES: usize = 16 << 10;

/// A response body: one encoded answer with the status OK, or a body of tonic's.
pub(crate) enum AnswerBody {
    /// The unsent part of the answer; the status follows.
    Encoded(Bytes),
    /// The answer was sent; the trailers with the status follow.
    StatusOk,
    /// Nothing is left to send.
    Ended,
    Tonic(ChunkedBody),
}

/// A body of tonic's, sent in frames of at most [`FRAME_BYTES`].
pub(crate) struct ChunkedBody {
    body: Body,
    rest: Bytes,
}

impl ChunkedBody {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut bytes = std::mem::take(&mut self.rest);
        if bytes.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                ended => return Poll::Ready(ended),
            };
            bytes = match frame.into_data() {
                Ok(bytes) => bytes,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
        }
        self.rest = bytes.split_off(bytes.len().min(FRAME_BYTES));
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl AnswerBody {
    pub(crate) fn tonic(body: Body) -> Self {
        Self::Tonic(ChunkedBody {
            body,
            rest: Bytes::new(),
        })
    }
}

// It has no size hint: gRPC does not use the length of a body.
impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        Poll::Ready(match me {
            Self::Tonic(tonic) => return tonic.poll_frame(context),
            Self::Encoded(bytes) if bytes.len() > FRAME_BYTES => {
                Some(Ok(Frame::data(bytes.split_to(FRAME_BYTES))))
            }
            Self::Encoded(_) => match std::mem::replace(me, Self::StatusOk) {
                Self::Encoded(bytes) => Some(Ok(Frame::data(bytes))),
                Self::StatusOk | Self::Ended | Self::Tonic(_) => None,
            },
            Self::StatusOk => {
                *me = Self::Ended;
                let mut trailers = http::HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            Self::Ended => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Encoded(_) | Self::StatusOk => false,
            Self::Ended => true,
            Self::Tonic(tonic) => tonic.rest.is_empty() && tonic.body.is_end_stream(),
        }
    }
}
