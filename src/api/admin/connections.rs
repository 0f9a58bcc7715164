//! The connections of the admin server: their number, their age, and HTTP/1.1 on each.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::access::Origin;
use super::service::AdminService;
use crate::api::transport::listener::Connection;

/// Most open connections. A further one replaces the one that has been idle for longest.
const MAX_CONNECTIONS: usize = 64;
/// Most age of a connection: long enough for several scrapes.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Time without a request after which a connection is idle. A new connection is not idle, because
/// its request may be on the way.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// Time limit for the head of a request, counted from the end of the request before.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Most header fields of a request.
const MAX_HEADERS: usize = 64;

/// The tasks of open connections, the oldest first. They are aborted when this is dropped.
#[derive(Default)]
pub(super) struct OpenConnections(VecDeque<(AbortHandle, Arc<Activity>)>);

impl OpenConnections {
    /// Adds a connection. At the limit another one is closed, so that a client that only holds
    /// connections cannot keep others out.
    pub(super) fn push(&mut self, connection: AbortHandle, activity: Arc<Activity>) {
        self.0.retain(|(connection, _)| !connection.is_finished());
        if self.0.len() >= MAX_CONNECTIONS {
            let excess = self.longest_idle().unwrap_or(0);
            if let Some((connection, _)) = self.0.remove(excess) {
                connection.abort();
            }
        }
        self.0.push_back((connection, activity));
    }

    /// Returns the index of the connection that has been idle for longest; `None` if none is idle.
    fn longest_idle(&self) -> Option<usize> {
        let idle = self.0.iter().enumerate().filter_map(|(at, (_, activity))| {
            let since = activity.idle_since()?;
            (since.elapsed() >= IDLE_AFTER).then_some((since, at))
        });
        idle.min().map(|(_, at)| at)
    }
}

impl Drop for OpenConnections {
    fn drop(&mut self) {
        for (connection, _) in &self.0 {
            connection.abort();
        }
    }
}

/// The time since when a connection has had no request; `None` during a request.
pub(super) struct Activity(Mutex<Option<Instant>>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }
}

impl Activity {
    fn set(&self, idle_since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = idle_since;
    }

    fn idle_since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one connection until it ends.
pub(super) async fn serve(
    connection: Connection,
    service: Arc<AdminService>,
    activity: Arc<Activity>,
) {
    match connection {
        Connection::Tcp(stream) => {
            let peer = stream.peer_addr();
            let origin = peer.map_or(Origin::Remote, |peer| Origin::of_ip(peer.ip()));
            serve_http(stream, origin, service, activity).await;
        }
        Connection::Unix(stream) => {
            serve_http(stream, Origin::UnixSocket, service, activity).await;
        }
    }
}

pub(super) async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    origin: Origin,
    service: Arc<AdminService>,
    activity: Arc<Activity>,
) {
    let service = service_fn(move |request| {
        let (service, activity) = (Arc::clone(&service), Arc::clone(&activity));
        async move {
            activity.set(None);
            let response = service.respond(request, origin).await;
            activity.set(Some(Instant::now()));
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(MAX_CONNECTION_AGE, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection failed"),
        Err(_elapsed) => {
            tracing::debug!("admin connection reached the maximum age, closing the connection")
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    /// Returns as many connections as allowed.
    fn full() -> (OpenConnections, Vec<JoinHandle<()>>, Vec<Arc<Activity>>) {
        let mut open = OpenConnections::default();
        let (mut tasks, mut activities) = (Vec::new(), Vec::new());
        for _ in 0..MAX_CONNECTIONS {
            let task = tokio::spawn(std::future::pending::<()>());
            let activity = Arc::new(Activity::default());
            open.push(task.abort_handle(), Arc::clone(&activity));
            tasks.push(task);
            activities.push(activity);
        }
        (open, tasks, activities)
    }

    fn push_one(open: &mut OpenConnections) -> JoinHandle<()> {
        let task = tokio::spawn(std::future::pending::<()>());
        open.push(task.abort_handle(), Arc::default());
        task
    }

    /// Makes all connections idle, the first one for longest.
    fn make_idle(activities: &[Arc<Activity>]) {
        let since = Instant::now().checked_sub(IDLE_AFTER * 60).unwrap();
        for (n, activity) in (0..).zip(activities) {
            activity.set(Some(since + Duration::from_millis(n)));
        }
    }

    #[tokio::test]
    async fn longest_idle_connection_is_replaced() {
        let (mut open, mut tasks, activities) = full();
        make_idle(&activities);
        // The oldest has a request, and the next one was answered just now.
        activities[0].set(None);
        activities[1].set(Some(Instant::now()));
        let newest = push_one(&mut open);
        assert!(tasks.remove(2).await.unwrap_err().is_cancelled());
        assert!(tasks.iter().all(|task| !task.is_finished()));
        drop(open);
        for task in tasks.into_iter().chain([newest]) {
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }

    #[tokio::test]
    async fn oldest_busy_connection_is_replaced() {
        let (mut open, mut tasks, activities) = full();
        for activity in &activities {
            activity.set(None);
        }
        // A new connection whose request has not arrived is not idle.
        let probe = push_one(&mut open);
        let _another = push_one(&mut open);
        for _ in 0..2 {
            assert!(tasks.remove(0).await.unwrap_err().is_cancelled());
        }
        assert!(!probe.is_finished());
        assert!(tasks.iter().all(|task| !task.is_finished()));
    }
}
