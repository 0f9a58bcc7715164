//! Bounds what is held of requests that have not come in full, of all callers together.
//!
//! A message is read whole before it is decoded. One caller may begin as many as it may have calls,
//! each as large as a message may be, and end none of them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::Status;

use super::answer::PREFIX_BYTES;
use super::figures::CallFigures;
use super::status::Rejection;

/// The account of what is held. All doors share one.
#[derive(Clone, Debug)]
pub(super) struct PendingBytes(Arc<Account>);

#[derive(Debug)]
struct Account {
    held: AtomicUsize,
    most: usize,
    figures: Option<Arc<CallFigures>>,
}

impl PendingBytes {
    /// An account that may come to `most` bytes.
    pub(super) fn new(most: usize, figures: Option<Arc<CallFigures>>) -> Self {
        let held = AtomicUsize::new(0);
        Self(Arc::new(Account {
            held,
            most,
            figures,
        }))
    }

    /// `body`, its messages on this account while they come.
    pub(super) fn counting<B>(&self, body: B) -> Gathering<B> {
        Gathering {
            body,
            account: self.clone(),
            framing: Framing::default(),
        }
    }

    /// Has the account show `now` in place of `before`.
    fn settle(&self, before: usize, now: usize) -> Result<(), Rejection> {
        let Account {
            held,
            most,
            figures,
        } = &*self.0;
        let all = match now.checked_sub(before) {
            Some(more) => held.fetch_add(more, Ordering::Relaxed) + more,
            None => held.fetch_sub(before - now, Ordering::Relaxed),
        };
        if now > before && all > *most {
            if let Some(figures) = figures {
                figures.refused(&Rejection::TooMuchPending);
            }
            return Err(Rejection::TooMuchPending);
        }
        Ok(())
    }
}

/// A body whose messages are on an account while they come.
pub(super) struct Gathering<B> {
    body: B,
    account: PendingBytes,
    framing: Framing,
}

impl<B> Drop for Gathering<B> {
    fn drop(&mut self) {
        // Taking away is never refused.
        let _ = self.account.settle(self.framing.held, 0);
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
            }
        }
    }
}

impl<B> HttpBody for Gathering<B>
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
            let before = me.framing.held;
            me.framing.take(bytes);
            if let Err(rejection) = me.account.settle(before, me.framing.held) {
                return Poll::Ready(Some(Err(Status::from(rejection).into())));
            }
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
        let pending = PendingBytes::new(10, None);
        let mut one = pending.counting(());
        let two = pending.counting(());
        for (bytes, is_taken) in [(&[0, 0, 0, 1, 0, 7][..], true), (&[7; 5], false)] {
            let before = one.framing.held;
            one.framing.take(bytes);
            let settled = pending.settle(before, one.framing.held);
            assert_eq!(settled.is_ok(), is_taken);
        }
        assert_eq!(pending.0.held.load(Ordering::Relaxed), 11);
        drop((one, two));
        assert_eq!(pending.0.held.load(Ordering::Relaxed), 0);
    }
}
