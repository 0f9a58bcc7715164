//! What is known of a call besides its message: how long its caller waits.

use super::deadline::Deadline;

/// One call, from when its headers came.
#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    /// When its caller stops waiting.
    pub(super) deadline: Deadline,
}

impl Call {
    /// Puts it with the call's request, for [`of`](Self::of).
    pub(super) fn put_with<T>(&self, mut request: http::Request<T>) -> http::Request<T> {
        request.extensions_mut().insert(self.clone());
        request
    }

    /// What was put with the request when its headers came.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .unwrap_or_default()
    }
}
