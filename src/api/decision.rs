//! The one path from a parsed request to an answer or a rejection, for every protocol.
//!
//! Nothing here knows a wire format: a protocol parses the request, calls this, and encodes the
//! outcome.

pub(crate) mod admission;
pub(crate) mod call;
pub(crate) mod deadline;
pub(crate) mod decide;
pub(crate) mod error_reason;
pub(crate) mod identity;
pub(crate) mod large_requests;
pub(crate) mod memory;
pub(crate) mod question;
pub(crate) mod rejection;
pub(crate) mod time_slice;
