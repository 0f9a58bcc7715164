//! Reads the body of a unary call: its one message, or an unread body that is left to tonic.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use prost::bytes::Bytes;

use crate::api::decision::memory::MemoryBudget;
use crate::api::decision::rejection::Rejection;
use crate::api::grpc::wire::encoded_answer::PREFIX_BYTES;

/// A request body of which some frames were read; they are replayed first.
pub(crate) struct PartialBody {
    read: VecDeque<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
}

/// A body that was not read as one message.
pub(crate) enum UnreadBody {
    /// The message is not in one frame, or is not all of the body.
    Partial(PartialBody),
    /// The memory budget does not allow to wait for the end.
    Rejected(Rejection),
}

/// Reads a body that is one message in one frame, and returns the message with its prefix.
///
/// Reads at most two frames of any other body: tonic bounds what else a caller sends. During the
/// wait for the end, the message is charged to `memory`.
pub(crate) async fn read(
    mut body: Incoming,
    max_bytes: usize,
    memory: &MemoryBudget,
) -> Result<Bytes, UnreadBody> {
    let mut read = VecDeque::new();
    if let Some(first) = body.frame().await {
        match first.map(Frame::into_data) {
            Ok(Ok(bytes)) if is_message(&bytes, max_bytes) => {
                // Some callers send the end of the stream in a separate frame.
                if body.is_end_stream() {
                    return Ok(bytes);
                }
                let mut reserved = None;
                let end = poll_fn(|context| {
                    let polled = Pin::new(&mut body).poll_frame(context);
                    if polled.is_pending() && reserved.is_none() {
                        match memory.reserve(bytes.len()) {
                            Ok(reservation) => reserved = Some(reservation),
                            Err(rejection) => return Poll::Ready(Err(rejection)),
                        }
                    }
                    polled.map(Ok)
                });
                match end.await.map_err(UnreadBody::Rejected)? {
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
    Err(UnreadBody::Partial(PartialBody { read, rest: body }))
}

/// Returns whether `bytes` are one uncompressed message with its prefix.
fn is_message(bytes: &[u8], max_bytes: usize) -> bool {
    let Some(([compressed, length @ ..], message)) = bytes.split_first_chunk::<PREFIX_BYTES>()
    else {
        return false;
    };
    *compressed == 0
        && message.len() <= max_bytes
        && u32::try_from(message.len()).is_ok_and(|len| len.to_be_bytes() == *length)
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
