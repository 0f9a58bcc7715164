//! Reads the HTTP/2 connection preface, before any resources are spent on a connection.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The preface of RFC 9113, section 3.4.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Returns whether these bytes are the whole preface, or not the beginning of one.
fn is_complete(so_far: &[u8]) -> bool {
    so_far.len() >= HTTP2_PREFACE.len() || !HTTP2_PREFACE.starts_with(so_far)
}

/// Reads the preface, or the first bytes of another protocol, which hyper then rejects.
///
/// Returns the bytes that were read. They are lost if the future is dropped.
pub(crate) async fn read_preface(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut read = Vec::with_capacity(HTTP2_PREFACE.len());
    while !is_complete(&read) {
        let missing = HTTP2_PREFACE.len() - read.len();
        let bytes = (&mut *stream)
            .take(missing as u64)
            .read_buf(&mut read)
            .await?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::api::transport::stream::ConnectionStream;

    /// Returns the bytes that are read from a connection on which these pieces are sent.
    async fn read_pieces(pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut caller, mut stream) = tokio::io::duplex(4);
        let sending = async move {
            for piece in pieces {
                caller.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let reading = async {
            let mut all = Vec::new();
            let read = read_preface(&mut stream).await?;
            ConnectionStream::new(stream, read)
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
