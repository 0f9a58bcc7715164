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
        held: memory.reserve_nothing(),
        memory: memory.clone(),
        framing: Framing::default(),
        too_late: None,
    }
}

/// A body whose messages are on an budget while they come.
pub(crate) struct MeteredBody<B> {
    body: B,
    held: MemoryReservation,
    memory: MemoryBudget,
    framing: Framing,
    /// When the message that comes now must have come; few take so long that it is made.
    too_late: Option<Pin<Box<Sleep>>>,
}

impl<B> MeteredBody<B> {
    /// The end of the call, by a fault of its body.
    fn ends(&self, rejection: Rejection) -> Box<dyn std::error::Error + Send + Sync> {
        self.memory.count(&rejection);
        Status::from(rejection).into()
    }

    /// Whether a message has begun to come, and has not come in full in its time.
    fn is_too_late(&mut self, context: &mut Context<'_>) -> bool {
        let most_time = self.memory.message_timeout();
        let Some(most_time) = most_time.filter(|_| self.framing.held > 0) else {
            return false;
        };
        let too_late = self
            .too_late
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(most_time)));
        too_late.as_mut().poll(context).is_ready()
    }
}

/// How far the message is that comes now, in gRPC's framing: a prefix that tells its length, and as
/// many bytes.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix has come.
    prefixed: usize,
    /// How much of the message has not.
    left: usize,
    /// What has come of a message that has not come in full, its prefix included.
    held: usize,
    /// How many have come in full.
    whole: usize,
}

impl Framing {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let Some(place) = self.prefix.get_mut(self.prefixed) {
                let Some((first, rest)) = bytes.split_first() else {
                    return;
                };
                (*place, bytes) = (*first, rest);
                self.prefixed += 1;
                self.held += 1;
                if self.prefixed == PREFIX_BYTES {
                    let [_, length @ ..] = self.prefix;
                    self.left = u32::from_be_bytes(length) as usize;
                }
            } else {
                let (taken, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.left -= taken.len();
                self.held += taken.len();
                bytes = rest;
            }
            if self.prefixed == PREFIX_BYTES && self.left == 0 {
                // It is complete, and decoded next.
                (self.prefixed, self.held) = (0, 0);
                self.whole = self.whole.wrapping_add(1);
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
            let whole = me.framing.whole;
            me.framing.take(bytes);
            if me.framing.whole != whole {
                // The time of another message.
                me.too_late = None;
            }
            if let Err(rejection) = me.held.resize(me.framing.held) {
                return Poll::Ready(Some(Err(me.ends(rejection))));
            }
        }
        if polled.is_pending() && me.is_too_late(context) {
            return Poll::Ready(Some(Err(me.ends(Rejection::DeadlineExceeded))));
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

    fn held(framing: &Framing) -> (usize, usize) {
        (framing.held, framing.left)
    }

    #[test]
    fn a_message_is_held_until_it_has_come_in_full() {
        let mut framing = Framing::default();
        framing.take(&[0, 0, 0]);
        assert_eq!(held(&framing), (3, 0));
        framing.take(&[0, 4, b'a']);
        assert_eq!(held(&framing), (6, 3));
        framing.take(b"bc");
        assert_eq!(held(&framing), (8, 1));
        // Its end, an empty one, one whole, and the begin of another.
        framing.take(b"d\0\0\0\0\0\0\0\0\0\x01x\0\0\0\0\x09y");
        assert_eq!(held(&framing), (6, 8));
    }

    #[test]
    fn what_is_held_is_given_back() {
        let memory = MemoryBudget::new(10, None, None);
        let mut one = metered((), &memory);
        let two = metered((), &memory);
        for (bytes, is_taken) in [(&[0, 0, 0, 1, 0, 7][..], true), (&[7; 5], false)] {
            one.framing.take(bytes);
            let settled = one.held.resize(one.framing.held);
            assert_eq!(settled.is_ok(), is_taken);
        }
        assert_eq!(memory.reserved(), 11);
        drop((one, two));
        assert_eq!(memory.reserved(), 0);
    }

    /// Frames that come one at a time, and no end.
    struct Trickle(tokio::sync::mpsc::Receiver<&'static [u8]>);

    impl HttpBody for Trickle {
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
    async fn a_message_that_is_begun_must_come_in_its_time() {
        const TIME: Duration = Duration::from_millis(50);
        let memory = MemoryBudget::new(100, Some(TIME), None);
        let (send, frames) = tokio::sync::mpsc::channel(2);
        let mut body = metered(Trickle(frames), &memory);
        let mut next =
            async || std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        // Before the first message there is all the time that there is, and after one.
        assert!(tokio::time::timeout(2 * TIME, next()).await.is_err());
        for begin_and_end in [&[0, 0, 0, 0, 1][..], &[7]] {
            send.send(begin_and_end).await.unwrap();
            assert!(next().await.unwrap().is_ok());
        }
        assert!(tokio::time::timeout(2 * TIME, next()).await.is_err());
        send.send(&[0]).await.unwrap();
        assert!(next().await.unwrap().is_ok());
        let ended = tokio::time::timeout(200 * TIME, next()).await;
        let ended = ended.expect("it may take for ever");
        let status = ended.unwrap().unwrap_err().downcast::<Status>();
        assert_eq!(status.unwrap().code(), tonic::Code::DeadlineExceeded);
        drop(body);
        assert_eq!(memory.reserved(), 0);
    }
}
