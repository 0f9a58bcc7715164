//! Listeners on TCP addresses and Unix sockets, and the removal of socket files.

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::config::listen::Listen;

/// The reason why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on `{address}`: {source}")]
    Bind { address: String, source: io::Error },
    #[error("cannot listen on `unix:{}`: another process is listening on the socket", path.display())]
    SocketInUse { path: PathBuf },
    #[error("cannot listen on `unix:{}`: the file exists and is not a socket", path.display())]
    NotASocket { path: PathBuf },
}

/// An address that a listener is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoundAddress {
    /// A TCP address with the port that the system assigned if 0 was configured.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl BoundAddress {
    /// Returns whether only callers on this machine can connect to it.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

#[derive(Debug)]
pub(crate) enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Listens on `address`. A Unix socket's file gets the mode `socket_mode`.
    pub(crate) async fn bind(address: &Listen, socket_mode: u32) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Bind {
            address: address.to_string(),
            source,
        };
        match address {
            Listen::Tcp(host, port) => {
                let listener = listen_on_port(host, *port).await;
                listener.map(Self::Tcp).map_err(failed)
            }
            Listen::Unix(path) => {
                remove_stale(path)?;
                let listener = listen_on_file(path, socket_mode).map_err(failed)?;
                let id = file_id(path).map_err(failed)?;
                let path = path.clone();
                Ok(Self::Unix(listener, SocketFile { path, id }))
            }
        }
    }

    pub(crate) fn address(&self) -> io::Result<BoundAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(BoundAddress::Tcp),
            Self::Unix(_, file) => Ok(BoundAddress::Unix(file.path.clone())),
        }
    }

    /// Accepts the next connection.
    ///
    /// Cancel safe: no connection is lost if the future is dropped.
    pub(crate) async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are small and written as a whole. Without this, the last answer of a
                // burst waits some 40 ms for the caller's delayed acknowledgement.
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream))
            }
            Self::Unix(listener, _) => Ok(Connection::Unix(listener.accept().await?.0)),
        }
    }
}

/// Listens on a new socket file. Nobody can connect to it before it has its mode.
fn listen_on_file(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    rustix::net::listen(&socket, BACKLOG.cast_signed())?;
    UnixListener::from_std(socket.into())
}

/// Listens on the first address of `host` that is available.
async fn listen_on_port(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in tokio::net::lookup_host((host, port)).await? {
        let listen = || {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            // Otherwise a restart fails while connections of the last run are in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        match listen() {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

/// Most connections that wait to be accepted. A caller beyond that retries after a second.
///
/// After a restart all callers reconnect at once, which soon exceeds the usual 128.
const BACKLOG: u32 = 4096;

/// A Unix socket's file, which is removed on drop.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// The device and inode.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have replaced the file. Its socket must stay.
        if file_id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Removes a socket file that no process listens on.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let path = path.to_owned();
    if !meta.file_type().is_socket() {
        return Err(ListenError::NotASocket { path });
    }
    let address = format!("unix:{}", path.display());
    match StdUnixStream::connect(&path) {
        Ok(_) => Err(ListenError::SocketInUse { path }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| ListenError::Bind { address, source })
        }
        // For example a full backlog or no permission: a process may listen on it.
        Err(source) => Err(ListenError::Bind { address, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pdp.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listen = Listen::Unix(path.clone());
        let live = Listener::bind(&listen, 0o660).await.unwrap();
        assert!(matches!(
            Listener::bind(&listen, 0o660).await,
            Err(ListenError::SocketInUse { .. })
        ));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(live);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn file_that_is_no_socket_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "text").unwrap();
        assert!(matches!(
            Listener::bind(&Listen::Unix(path.clone()), 0o660).await,
            Err(ListenError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read_to_string(path).unwrap(), "text");
    }
}
