//! A request body whose partial message is charged to the memory budget.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tokio::time::Sleep;
use tonic::Status;

use super::encoded_answer::PREFIX_BYTES;
use crate::api::decision::memory::{MemoryBudget, MemoryReservation};
use crate::api::decision::rejection::Rejection;

/// Wraps `body` and charges each message to `memory` while it arrives.
pub(crate) fn metered<B>(body: B, memory: &MemoryBudget) -> MeteredBody<B> {
    MeteredBody {
        body,
        reserved: memory.reserve_nothing(),
        memory: memory.clone(),
        framing: Framing::default(),
        timer: None,
    }
}

/// A body whose partial message is charged to the memory budget until the message is complete.
pub(crate) struct MeteredBody<B> {
    body: B,
    reserved: MemoryReservation,
    memory: MemoryBudget,
    framing: Framing,
    /// The timeout of the partial message; `None` until the body first has to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> MeteredBody<B> {
    /// Counts the rejection of the call, and returns it as the body's error.
    fn reject(&self, rejection: Rejection) -> Box<dyn std::error::Error + Send + Sync> {
        self.memory.count(&rejection);
        Status::from(rejection).into()
    }

    /// Returns whether the partial message, if there is one, has timed out.
    fn has_timed_out(&mut self, context: &mut Context<'_>) -> bool {
        let timeout = self.memory.message_timeout();
        let Some(timeout) = timeout.filter(|_| self.framing.partial_bytes > 0) else {
            return false;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        timer.as_mut().poll(context).is_ready()
    }
}

/// The progress of the partial message in gRPC's framing: a prefix with the length, then the message.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes received of the prefix.
    prefix_bytes: usize,
    /// Bytes missing of the message.
    missing_bytes: usize,
    /// Bytes received of the partial message, including its prefix.
    partial_bytes: usize,
    /// Complete messages, modulo 2^64.
    complete: usize,
}

impl Framing {
    /// Advances by the received `bytes`.
    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let Some(next) = self.prefix.get_mut(self.prefix_bytes) {
                let Some((first, rest)) = bytes.split_first() else {
                    return;
                };
                (*next, bytes) = (*first, rest);
                self.prefix_bytes += 1;
                self.partial_bytes += 1;
                if self.prefix_bytes == PREFIX_BYTES {
                    let [_, length @ ..] = self.prefix;
                    self.missing_bytes = u32::from_be_bytes(length) as usize;
                }
            } else {
                let (received, rest) = bytes.split_at(self.missing_bytes.min(bytes.len()));
                self.missing_bytes -= received.len();
                self.partial_bytes += received.len();
                bytes = rest;
            }
            if self.prefix_bytes == PREFIX_BYTES && self.missing_bytes == 0 {
                // The message is complete, and is decoded next.
                (self.prefix_bytes, self.partial_bytes) = (0, 0);
                self.complete = self.complete.wrapping_add(1);
            }
        }
    }
}

impl<B> HttpBody for MeteredBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let me = &mut *self;
        let polled = Pin::new(&mut me.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(bytes) = frame.data_ref()
        {
            let complete = me.framing.complete;
            me.framing.advance(bytes);
            if me.framing.complete != complete {
                // The next message has its own timeout.
                me.timer = None;
            }
            if let Err(rejection) = me.reserved.resize(me.framing.partial_bytes) {
                return Poll::Ready(Some(Err(me.reject(rejection))));
            }
        }
        if polled.is_pending() && me.has_timed_out(context) {
            return Poll::Ready(Some(Err(me.reject(Rejection::DeadlineExceeded))));
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn progress(framing: &Framing) -> (usize, usize) {
        (framing.partial_bytes, framing.missing_bytes)
    }

    #[test]
    fn message_is_partial_until_complete() {
        let mut framing = Framing::default();
        framing.advance(&[0, 0, 0]);
        assert_eq!(progress(&framing), (3, 0));
        framing.advance(&[0, 4, b'a']);
        assert_eq!(progress(&framing), (6, 3));
        framing.advance(b"bc");
        assert_eq!(progress(&framing), (8, 1));
        // The rest, an empty message, a whole message, and the first bytes of another.
        framing.advance(b"d\0\0\0\0\0\0\0\0\0\x01x\0\0\0\0\x09y");
        assert_eq!(progress(&framing), (6, 8));
    }

    #[test]
    fn reservation_is_released_with_the_body() {
        let memory = MemoryBudget::new(10, None, None);
        let mut one = metered((), &memory);
        let two = metered((), &memory);
        for (bytes, is_accepted) in [(&[0, 0, 0, 1, 0, 7][..], true), (&[7; 5], false)] {
            one.framing.advance(bytes);
            let resized = one.reserved.resize(one.framing.partial_bytes);
            assert_eq!(resized.is_ok(), is_accepted);
        }
        assert_eq!(memory.reserved(), 11);
        drop((one, two));
        assert_eq!(memory.reserved(), 0);
    }

    /// A body without an end, whose frames arrive one at a time.
    struct SlowBody(tokio::sync::mpsc::Receiver<&'static [u8]>);

    impl HttpBody for SlowBody {
        type Data = Bytes;
        type Error = Box<dyn std::error::Error + Send + Sync>;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let frame = |bytes| Some(Ok(Frame::data(Bytes::from_static(bytes))));
            self.0.poll_recv(context).map(|bytes| bytes.and_then(frame))
        }
    }

    #[tokio::test]
    async fn partial_message_times_out() {
        const TIME: Duration = Duration::from_millis(50);
        let memory = MemoryBudget::new(100, Some(TIME), None);
        let (send, frames) = tokio::sync::mpsc::channel(2);
        let mut body = metered(SlowBody(frames), &memory);
        let mut next =
            async || std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        // Between messages there is no timeout.
        assert!(tokio::time::timeout(2 * TIME, next()).await.is_err());
        for part in [&[0, 0, 0, 0, 1][..], &[7]] {
            send.send(part).await.unwrap();
            assert!(next().await.unwrap().is_ok());
        }
        assert!(tokio::time::timeout(2 * TIME, next()).await.is_err());
        send.send(&[0]).await.unwrap();
        assert!(next().await.unwrap().is_ok());
        let ended = tokio::time::timeout(200 * TIME, next()).await;
        let ended = ended.expect("the message has no timeout");
        let status = ended.unwrap().unwrap_err().downcast::<Status>();
        assert_eq!(status.unwrap().code(), tonic::Code::DeadlineExceeded);
        drop(body);
        assert_eq!(memory.reserved(), 0);
    }
}
