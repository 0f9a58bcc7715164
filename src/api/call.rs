//! What is known of a call besides its message: who makes it, how long its caller waits, and which
//! trace it is part of.

use std::str;

use super::callers::{Admitted, IdentityKind, Right};
use super::deadline::Deadline;
use super::status::Rejection;
use crate::decision_log::{Method, Origin};

/// One call, from when its headers came.
#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    /// Who makes it; by default nobody, who may nothing.
    pub(super) caller: Admitted,
    /// When its caller stops waiting.
    pub(super) deadline: Deadline,
    /// Which trace it is part of, where that is told.
    pub(super) trace_id: Option<TraceId>,
}

/// The id of a trace, as W3C's trace context has it: 32 lower-case hex digits, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceId([u8; Self::LENGTH]);

impl TraceId {
    const LENGTH: usize = 32;

    /// The trace that the `traceparent` header names.
    /// <https://www.w3.org/TR/trace-context/#traceparent-header>
    pub(super) fn of(headers: &http::HeaderMap) -> Option<Self> {
        let header = headers.get("traceparent")?.as_bytes();
        let is_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        // Version 00 is this long; a later one may be longer, and begins like it.
        let (begin, more) = header.split_at_checked(55)?;
        let version = begin.get(..2)?;
        let dashes = [2, 35, 52].map(|at| begin.get(at) == Some(&b'-'));
        let is_sound = version.iter().all(is_hex)
            && version != b"ff"
            && dashes == [true; 3]
            && match more.first() {
                None => true,
                Some(next) => version != b"00" && *next == b'-',
            };
        let id: [u8; Self::LENGTH] = begin.get(3..35)?.try_into().ok()?;
        let is_id = id.iter().all(is_hex) && id != [b'0'; Self::LENGTH];
        (is_sound && is_id).then_some(Self(id))
    }

    fn as_str(&self) -> &str {
        // INVARIANT: they are ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Call {
    /// What the decision log tells of it.
    pub(super) fn origin(&self, method: Method) -> Origin<'_> {
        Origin {
            method,
            trace_id: self.trace_id.as_ref().map(TraceId::as_str),
            caller: self.caller.listed_name(),
        }
    }

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

    /// Whether its caller may ask on behalf of whom `identity` tells, and, if it `explains`, why.
    pub(super) fn check(&self, identity: IdentityKind, explains: bool) -> Result<(), Rejection> {
        if !self.caller.may_send(identity) {
            return Err(Rejection::IdentityNotAllowed(identity));
        }
        match explains {
            true => self.caller.check(Right::Explain),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_id(header: &str) -> Option<String> {
        let mut headers = http::HeaderMap::new();
        headers.insert("traceparent", header.parse().unwrap());
        TraceId::of(&headers).map(|id| id.as_str().to_owned())
    }

    #[test]
    fn a_trace_is_known_by_its_id() {
        const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        for good in [
            format!("00-{ID}-00f067aa0ba902b7-01"),
            format!("01-{ID}-00f067aa0ba902b7-01"),
            format!("01-{ID}-00f067aa0ba902b7-01-more"),
        ] {
            assert_eq!(trace_id(&good).as_deref(), Some(ID), "{good}");
        }
        for bad in [
            String::new(),
            ID.to_owned(),
            format!("ff-{ID}-00f067aa0ba902b7-01"),
            format!("00-{ID}-00f067aa0ba902b7-01-more"),
            format!("00-{}-00f067aa0ba902b7-01", ID.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}\"-00f067aa0ba902b7-01", &ID[1..]),
            format!("00_{ID}_00f067aa0ba902b7_01"),
        ] {
            assert_eq!(trace_id(&bad), None, "{bad}");
        }
    }
}
