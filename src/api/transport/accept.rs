//! Accepts connections, and performs their TLS handshake and HTTP/2 preface.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_rustls::server::TlsStream;

use super::http2::{self, ServerState, Service};
use super::listener::{Connection, Listener};
use super::stream::ConnectionStream;
use super::tls::Tls;
use crate::api::auth::authenticator::ConnectionAuthenticator;
use crate::api::auth::peer::{CertificateNames, Peer};
use crate::api::metrics::{CallMetrics, Closing, Transport};

/// Pause of the accept loop when the system is out of file descriptors: long enough not to spin,
/// short enough that a caller's connect does not time out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time limit for the preface of a connection that is accepted during a drain. Its caller gets a
/// GOAWAY, and so knows that no call was started.
const DRAIN_PREFACE_TIMEOUT: Duration = Duration::from_millis(250);

/// A token that each connection holds. Once all are dropped, the last connection has ended.
pub(crate) type ConnectionToken = mpsc::Sender<Infallible>;

/// Accepts connections from `listener` until draining begins.
pub(crate) async fn accept_loop<S: Service>(
    listener: Listener,
    state: Arc<ServerState<S>>,
    token: ConnectionToken,
) {
    let mut draining = state.readiness.clone();
    let mut is_failing = false;
    let mut is_full = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.draining() => match listener.accept().now_or_never() {
                // Already connected: closing the listener would reset it.
                Some(accepted) => accepted,
                None => return,
            },
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(connection) => {
                is_failing = false;
                let permit = Arc::clone(&state.connection_permits).try_acquire_owned();
                let permit = permit.ok();
                let was_full = std::mem::replace(&mut is_full, permit.is_none());
                match permit {
                    Some(permit) => {
                        let guards = (token.clone(), permit);
                        tokio::spawn(serve(connection, Arc::clone(&state), guards));
                    }
                    // Closed at once, which its caller notices. If it stayed unaccepted, it would
                    // hang.
                    None => close_excess(connection, &state, was_full),
                }
            }
            // The caller disconnected before the accept. The next connection may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if draining.is_draining() {
                    return;
                }
                // Logged once for each period of failures: every attempt meets the same one.
                if !is_failing {
                    tracing::warn!(%error, "cannot accept connections");
                }
                is_failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Closes a connection beyond the limit. Logs it unless the last one was closed too.
fn close_excess<S>(connection: Connection, state: &ServerState<S>, is_logged: bool) {
    drop(connection);
    if !is_logged {
        tracing::warn!(
            max_connections = state.limits.max_connections,
            "connection limit reached, closing new connections",
        );
    }
    state.count_closed(Closing::TooMany);
}

/// Serves one connection until it ends.
async fn serve<S: Service>(
    connection: Connection,
    state: Arc<ServerState<S>>,
    _guards: (ConnectionToken, OwnedSemaphorePermit),
) {
    let mut draining = state.readiness.clone();
    let _counted = state.metrics.clone().map(|metrics| {
        let transport = match &connection {
            Connection::Tcp(_) => Transport::Tcp,
            Connection::Unix(_) => Transport::Unix,
        };
        metrics.count_opened(transport);
        OpenConnection(metrics, transport)
    });
    let handshake = handshake(connection, state.tls.as_deref());
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(state.limits.handshake_timeout, handshake) => accepted,
        () = async {
            draining.draining().await;
            tokio::time::sleep(DRAIN_PREFACE_TIMEOUT).await;
        } => return,
    };
    match accepted {
        Ok(Ok((connection, peer))) => serve_http2(connection, peer, state).await,
        Ok(Err(error)) => {
            state.count_closed(Closing::Handshake);
            tracing::debug!(%error, "connection ended before the first call");
        }
        Err(_elapsed) => {
            state.count_closed(Closing::HandshakeTimeout);
            tracing::debug!("connection closed: no HTTP/2 preface within the handshake timeout");
        }
    }
}

async fn serve_http2<S: Service>(accepted: Accepted, peer: Peer, state: Arc<ServerState<S>>) {
    let caller = ConnectionAuthenticator::new(Arc::clone(&state.callers), peer);
    match accepted {
        Accepted::Tcp(stream) => http2::serve(stream, caller, state).await,
        Accepted::Unix(stream) => http2::serve(stream, caller, state).await,
        Accepted::Tls(stream) => http2::serve(*stream, caller, state).await,
    }
}

/// A connection after its handshake.
enum Accepted {
    Tcp(ConnectionStream<TcpStream>),
    Unix(ConnectionStream<UnixStream>),
    Tls(Box<ConnectionStream<TlsStream<TcpStream>>>),
}

/// Performs the TLS handshake, if TLS is on, and reads the preface.
///
/// hyper pings a silent caller only after the preface, for which it would wait forever.
async fn handshake(connection: Connection, tls: Option<&Tls>) -> io::Result<(Accepted, Peer)> {
    let mut peer = Peer::default();
    let accepted = match (connection, tls) {
        (Connection::Tcp(stream), Some(tls)) => {
            let stream = tls.accept(stream).await?;
            // The handshake has verified the certificate, if there is one.
            peer.certificate = (stream.get_ref().1.peer_certificates())
                .and_then(<[_]>::first)
                .and_then(|certificate| CertificateNames::of(certificate));
            Accepted::Tls(Box::new(ConnectionStream::begin(stream).await?))
        }
        (Connection::Tcp(stream), None) => Accepted::Tcp(ConnectionStream::begin(stream).await?),
        (Connection::Unix(stream), _) => {
            peer.uid = Some(stream.peer_cred()?.uid());
            Accepted::Unix(ConnectionStream::begin(stream).await?)
        }
    };
    Ok((accepted, peer))
}

/// A guard that counts a connection as open until it is dropped.
struct OpenConnection(Arc<CallMetrics>, Transport);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.count_closed(self.1);
    }
}
