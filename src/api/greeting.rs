//! How an HTTP/2 connection begins: waited for before anything is spent on it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, Interest, ReadBuf};

use super::listen::Connection;

/// RFC 9113, section 3.4.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a caller that sends its greeting in pieces is left alone between two looks at it: the
/// first time, and at most. What has come is left where it is, so there is no waiting for more.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Whether there is nothing more to wait for: all has come, or what is no greeting.
fn is_over(so_far: &[u8]) -> bool {
    so_far.len() >= HTTP2_PREFACE.len() || !HTTP2_PREFACE.starts_with(so_far)
}

/// Waits until the caller has greeted in full, or has sent what is no greeting, which is then for
/// others to refuse. Takes nothing off the connection.
///
/// Cancel safe.
pub(super) async fn awaited(connection: &Connection) -> io::Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        let (greeting, length) = match connection {
            Connection::Tcp(stream) => {
                stream
                    .async_io(Interest::READABLE, || peek(stream.as_fd()))
                    .await?
            }
            Connection::Unix(stream) => {
                stream
                    .async_io(Interest::READABLE, || peek(stream.as_fd()))
                    .await?
            }
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if is_over(greeting.get(..length).unwrap_or_default()) {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// What has come of a greeting, left where it is, and how many bytes that are.
fn peek(fd: BorrowedFd<'_>) -> io::Result<([u8; HTTP2_PREFACE.len()], usize)> {
    let mut greeting = [0; HTTP2_PREFACE.len()];
    let (length, _) = recv(fd, &mut greeting, RecvFlags::PEEK)?;
    Ok((greeting, length))
}

/// A connection that cannot be looked at without reading: what was read of it comes first.
pub(super) struct Opened<S> {
    /// What was read, backwards.
    read: Vec<u8>,
    stream: S,
}

impl<S: AsyncRead + Unpin> Opened<S> {
    /// Waits as [`awaited`] does.
    pub(super) async fn greeted(mut stream: S) -> io::Result<Self> {
        let mut greeting = [0; HTTP2_PREFACE.len()];
        let mut length = 0;
        while !is_over(greeting.get(..length).unwrap_or_default()) {
            let room = greeting.get_mut(length..).unwrap_or_default();
            match stream.read(room).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => length += more,
            }
        }
        Ok(Self {
            read: greeting.iter().take(length).rev().copied().collect(),
            stream,
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        while buffer.remaining() > 0
            && let Some(byte) = self.read.pop()
        {
            buffer.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
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
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What is read of a connection on which these pieces come.
    async fn read_of(pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut caller, stream) = tokio::io::duplex(4);
        let sending = async move {
            for piece in pieces {
                caller.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let reading = async {
            let mut all = Vec::new();
            Opened::greeted(stream).await?.read_to_end(&mut all).await?;
            Ok(all)
        };
        tokio::join!(sending, reading).1
    }

    #[tokio::test]
    async fn what_was_read_of_a_greeting_is_not_lost() {
        for pieces in [
            &[&HTTP2_PREFACE[..], b"more"][..],
            &[b"PRI * HT", b"TP/2.0\r\n\r\nSM\r\n\r\nmore"],
            &[b"GET / HTTP/1.1"],
            &[b"PRI * HTTP/1.0"],
        ] {
            assert_eq!(read_of(pieces).await.unwrap(), pieces.concat());
        }
    }

    #[tokio::test]
    async fn half_a_greeting_is_none() {
        let ended = read_of(&[b"PRI * HT"]).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
