//! The body of a unary call: its one message, as it came, or all of it for tonic to make sense of.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Frame, Incoming};
use prost::bytes::Bytes;

use crate::api::decision::memory::MemoryBudget;
use crate::api::decision::rejection::Rejection;
use crate::api::grpc::wire::encoded_answer::PREFIX_BYTES;

/// A call's body, what was read of it included.
pub(crate) struct PartialBody {
    read: VecDeque<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
}

/// Why a message was not read.
pub(crate) enum NotWhole {
    /// It did not come in one piece, or is not all there is.
    Partial(PartialBody),
    /// Too much is held of others to wait for its end.
    Rejected(Rejection),
}

/// Reads `body` for a message that came in one piece and is all there is; what is read otherwise
/// is held.
///
/// Reads no further than that takes: whatever else a caller sends is for tonic to bound. While the
/// end is waited for, the message is on the account of `pending`.
pub(crate) async fn read(
    mut body: Incoming,
    most_bytes: usize,
    memory: &MemoryBudget,
) -> Result<Bytes, NotWhole> {
    let mut read = VecDeque::new();
    if let Some(first) = next(&mut body).await {
        match first.map(Frame::into_data) {
            Ok(Ok(bytes)) if is_whole(&bytes, most_bytes) => {
                // Some callers end the call in a frame of its own.
                if body.is_end_stream() {
                    return Ok(bytes);
                }
                let mut held = None;
                let end = poll_fn(|context| {
                    let polled = Pin::new(&mut body).poll_frame(context);
                    if polled.is_pending() && held.is_none() {
                        match memory.reserve(bytes.len()) {
                            Ok(holds) => held = Some(holds),
                            Err(rejection) => return Poll::Ready(Err(rejection)),
                        }
                    }
                    polled.map(Ok)
                });
                match end.await.map_err(NotWhole::Rejected)? {
                    None => return Ok(bytes),
                    Some(Ok(frame))
                        if frame.data_ref().is_some_and(Bytes::is_empty)
                            && body.is_end_stream() =>
                    {
                        return Ok(bytes);
                    }
                    Some(other) => read.extend([Ok(Frame::data(bytes)), other]),
                }
            }
            Ok(Ok(bytes)) => read.push_back(Ok(Frame::data(bytes))),
            Ok(Err(trailers)) => read.push_back(Ok(trailers)),
            Err(error) => read.push_back(Err(error)),
        }
    }
    Err(NotWhole::Partial(PartialBody { read, rest: body }))
}

/// Whether `bytes` are one uncompressed message with its prefix.
fn is_whole(bytes: &[u8], most_bytes: usize) -> bool {
    let Some(([compressed, length @ ..], message)) = bytes.split_first_chunk::<PREFIX_BYTES>()
    else {
        return false;
    };
    *compressed == 0
        && message.len() <= most_bytes
        && u32::try_from(message.len()).is_ok_and(|len| len.to_be_bytes() == *length)
}

async fn next(body: &mut Incoming) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

/// A body that has been read to its end: one message with its prefix.
pub(crate) struct Whole(pub(crate) Option<Bytes>);

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

impl HttpBody for PartialBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }
}
