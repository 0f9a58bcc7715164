//! Parses the `traceparent` header of W3C Trace Context.
//! <https://www.w3.org/TR/trace-context/#traceparent-header>
//!
//! The SDK's propagator does the same with three allocations a call. The decision log reads the
//! header of each call, traced or not.

use opentelemetry::{SpanId, TraceId};

/// The caller's span that a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace id as 32 hex digits.
    pub trace_hex: [u8; 32],
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) is_sampled: bool,
}

impl TraceParent {
    /// Parses the value of the header; `None` if it is invalid.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let (version, rest) = header.split_at_checked(2)?;
        let (trace_id, rest) = rest.strip_prefix('-')?.split_at_checked(32)?;
        let (span_id, rest) = rest.strip_prefix('-')?.split_at_checked(16)?;
        let (flags, rest) = rest.strip_prefix('-')?.split_at_checked(2)?;
        let fields = [version, trace_id, span_id, flags];
        let is_lower_hex =
            |field: &str| (field.bytes()).all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        // A later version may append fields, each after a dash.
        let has_valid_end = match version {
            "ff" => false,
            "00" => rest.is_empty(),
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        if !has_valid_end || !fields.into_iter().all(is_lower_hex) {
            return None;
        }
        let trace_hex = trace_id.as_bytes().try_into().ok()?;
        let trace_id = TraceId::from_hex(trace_id).ok()?;
        let span_id = SpanId::from_hex(span_id).ok()?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        let is_valid = trace_id != TraceId::INVALID && span_id != SpanId::INVALID;
        is_valid.then_some(Self {
            trace_hex,
            trace_id,
            span_id,
            is_sampled: flags & 1 == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn valid_header_is_parsed() {
        let parse = |flags| TraceParent::parse(&format!("00-{TRACE}-{SPAN}-{flags}")).unwrap();
        let sampled = parse("01");
        assert_eq!(sampled.trace_id, TraceId::from_hex(TRACE).unwrap());
        assert_eq!(sampled.span_id, SpanId::from_hex(SPAN).unwrap());
        assert_eq!(sampled.trace_hex, TRACE.as_bytes());
        assert!(sampled.is_sampled);
        assert!(!parse("00").is_sampled);
        assert!(parse("03").is_sampled, "other flags may be set");
        let later = format!("01-{TRACE}-{SPAN}-01-what-comes-later");
        assert_eq!(TraceParent::parse(&later), Some(sampled));
    }

    #[test]
    fn invalid_header_is_ignored() {
        let zeros = "0".repeat(32);
        for bad in [
            "",
            "00",
            &format!("00-{TRACE}-{SPAN}"),
            &format!("00-{TRACE}-{SPAN}-1"),
            &format!("00-{TRACE}-{SPAN}-01-more"),
            &format!("01-{TRACE}-{SPAN}-01more"),
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            &format!("00-{zeros}-{SPAN}-01"),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
            &format!("00-{TRACE}-{SPAN}-0g"),
            &format!("00-{TRACE}-{SPAN}-+1"),
            &format!("00_{TRACE}-{SPAN}-01"),
            &format!("00-{TRACE}é{SPAN}-01"),
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }
}
