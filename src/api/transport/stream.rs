//! A connection's stream: its HTTP/2 preface is read first, before any resources are spent on the
//! connection, and replayed later. It closes without losing answers.
//!
//! Closing a connection while bytes of its caller are unread resets it, and a reset discards the
//! answers that are still on their way. A caller may go on sending for a moment after GOAWAY. So
//! the close is a lingering one: we close our side, and read on until the caller closes its own.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// The preface of RFC 9113, section 3.4.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Limits of a lingering close. A caller that exceeds them does not merely send late.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// A stream that replays the bytes that were read before, and closes by a lingering close.
pub(crate) struct ConnectionStream<S> {
    stream: S,
    /// The bytes to replay, in reverse order.
    replay: Vec<u8>,
    /// The time and the bytes that are left, once our side is closed.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S: AsyncRead + Unpin> ConnectionStream<S> {
    /// Reads the preface, or the first bytes of another protocol, which hyper then rejects.
    pub(crate) async fn begin(mut stream: S) -> io::Result<Self> {
        let mut read = Vec::with_capacity(HTTP2_PREFACE.len());
        while read.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&read) {
            let missing = HTTP2_PREFACE.len() - read.len();
            let mut rest = (&mut stream).take(missing as u64);
            if rest.read_buf(&mut read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        read.reverse();
        Ok(Self {
            stream,
            replay: read,
            lingering: None,
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ConnectionStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        while buffer.remaining() > 0
            && let Some(byte) = self.replay.pop()
        {
            buffer.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ConnectionStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            stream, lingering, ..
        } = &mut *self;
        let (time, left) = match lingering {
            Some(lingering) => lingering,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
                lingering.insert((Box::pin(tokio::time::sleep(LINGER_TIME)), LINGER_BYTES))
            }
        };
        let mut bytes = [0; 4096];
        while *left > 0 && time.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    *left = left.saturating_sub(buffer.filled().len());
                }
                // The caller has closed its side or disconnected.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    /// Creates a connection whose caller has a small receive buffer.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let (caller, accepted) = tokio::join!(socket.connect(address), listener.accept());
        (caller.unwrap(), accepted.unwrap().0)
    }

    fn closing(stream: TcpStream) -> ConnectionStream<TcpStream> {
        ConnectionStream {
            stream,
            replay: Vec::new(),
            lingering: None,
        }
    }

    #[tokio::test]
    async fn late_sender_still_gets_its_answer() {
        let (mut caller, stream) = pair().await;
        let mut stream = closing(stream);
        caller.write_all(b"one more request").await.unwrap();
        let ending = async {
            stream.write_all(&[b'a'; 100_000]).await.unwrap();
            stream.shutdown().await.unwrap();
            drop(stream);
        };
        let reading = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut answer = Vec::new();
            caller.read_to_end(&mut answer).await.unwrap();
            drop(caller);
            answer.len()
        };
        assert_eq!(tokio::join!(ending, reading).1, 100_000);
    }

    #[tokio::test]
    async fn lingering_close_is_limited_in_bytes_and_time() {
        let (mut caller, stream) = pair().await;
        let mut stream = closing(stream);
        let flooding = async { while caller.write_all(&[0; 65_536]).await.is_ok() {} };
        let ending = async {
            stream.shutdown().await.unwrap();
            drop(stream);
        };
        let both = async { tokio::join!(flooding, ending) };
        let ended = tokio::time::timeout(Duration::from_secs(20), both).await;
        assert!(ended.is_ok());

        let (caller, stream) = pair().await;
        let mut stream = closing(stream);
        let ended = tokio::time::timeout(Duration::from_secs(20), stream.shutdown());
        assert!(ended.await.is_ok());
        drop(caller);
    }

    /// Returns the bytes that are read from a connection on which these pieces are sent.
    async fn read_pieces(pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut caller, stream) = tokio::io::duplex(4);
        let sending = async move {
            for piece in pieces {
                caller.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let reading = async {
            let mut all = Vec::new();
            ConnectionStream::begin(stream)
                .await?
                .read_to_end(&mut all)
                .await?;
            Ok(all)
        };
        tokio::join!(sending, reading).1
    }

    #[tokio::test]
    async fn bytes_of_the_preface_are_replayed() {
        for pieces in [
            &[&HTTP2_PREFACE[..], b"more"][..],
            &[b"PRI * HT", b"TP/2.0\r\n\r\nSM\r\n\r\nmore"],
            &[b"GET / HTTP/1.1"],
            &[b"PRI * HTTP/1.0"],
        ] {
            assert_eq!(read_pieces(pieces).await.unwrap(), pieces.concat());
        }
    }

    #[tokio::test]
    async fn truncated_preface_is_an_error() {
        let ended = read_pieces(&[b"PRI * HT"]).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
