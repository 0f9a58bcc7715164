//! Spans of calls, for those who follow a request through several services.
//!
//! Whether a call is sampled is found out first, and one that is not costs a look at its headers.
//! A span is put together when its call is over and sent in the background (`export`): whoever
//! answers callers waits for no collector. What stands in a span names no one: types and numbers,
//! but no principal, no resource and nothing of the context.

pub mod export;

use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId};
use opentelemetry_sdk::trace::{
    IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks,
};

use crate::config::otel::{RootSampler, Sampler};
use crate::counters::Counters;
use crate::engine::Source;
use crate::pdp::answer::Decision;
use export::Queue;

/// Begins spans. Clones share everything.
#[derive(Clone, Debug)]
pub struct Traces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sampler: Sampler,
    takes_context: bool,
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
    queue: Queue,
}

/// What became of spans since the start of the process.
#[derive(Debug, Default)]
pub struct SpanFigures(Counters<3>);

/// What may become of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanFate {
    /// The collector has it.
    Sent,
    /// The collector did not take it.
    Failed,
    /// There was no room for it to wait in.
    Dropped,
}

impl SpanFigures {
    fn count(&self, fate: SpanFate, spans: usize) {
        self.0.add(fate as usize, spans as u64);
    }

    /// Of how many spans that became.
    #[must_use]
    pub fn spans(&self, fate: SpanFate) -> u64 {
        self.0.sum(fate as usize)
    }
}

/// The trace that a caller's call belongs to, as its `traceparent` header says.
/// <https://www.w3.org/TR/trace-context/#traceparent-header>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: TraceId,
    span: SpanId,
    is_sampled: bool,
}

impl TraceParent {
    /// Reads the header; `None` when it is none.
    #[must_use]
    pub fn read(header: &str) -> Option<Self> {
        let (version, rest) = header.split_at_checked(2)?;
        let (trace, rest) = rest.strip_prefix('-')?.split_at_checked(32)?;
        let (span, rest) = rest.strip_prefix('-')?.split_at_checked(16)?;
        let (flags, rest) = rest.strip_prefix('-')?.split_at_checked(2)?;
        let fields = [version, trace, span, flags];
        let is_lower_hex =
            |field: &str| (field.bytes()).all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        // A later version may say more, after another dash.
        let ends = match version {
            "ff" => false,
            "00" => rest.is_empty(),
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let is_well_formed = ends && fields.into_iter().all(is_lower_hex);
        let trace = TraceId::from_hex(trace).ok()?;
        let span = SpanId::from_hex(span).ok()?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        let is_valid = trace != TraceId::INVALID && span != SpanId::INVALID;
        (is_well_formed && is_valid).then_some(Self {
            trace,
            span,
            is_sampled: flags & 1 == 1,
        })
    }
}

impl TraceParent {
    /// The trace: 32 hex digits.
    #[must_use]
    pub fn trace_hex(&self) -> [u8; 32] {
        hex(self.trace)
    }
}

fn hex(trace: TraceId) -> [u8; 32] {
    let number = u128::from_be_bytes(trace.to_bytes());
    std::array::from_fn(|place| {
        // INVARIANT: four bits are one of sixteen digits.
        let digit = (number >> (4 * (31 - place))) & 0xf;
        b"0123456789abcdef"
            .get(digit as usize)
            .copied()
            .unwrap_or(b'0')
    })
}

impl Sampler {
    /// The trace that a call belongs to, if it is sampled.
    fn sample(
        self,
        parent: Option<TraceParent>,
        new_trace: impl FnOnce() -> TraceId,
    ) -> Option<TraceId> {
        let (trace, asked) = match (parent, self.root) {
            (Some(parent), _) => (parent.trace, self.asks_parent.then_some(parent.is_sampled)),
            // Not worth a random number.
            (None, RootSampler::Off) => return None,
            (None, RootSampler::On | RootSampler::Ratio(_)) => (new_trace(), None),
        };
        let is_sampled = asked.unwrap_or_else(|| match self.root {
            RootSampler::On => true,
            RootSampler::Off => false,
            RootSampler::Ratio(ratio) => is_in(ratio, trace),
        });
        is_sampled.then_some(trace)
    }
}

/// Whether `trace` is in this share of all, of which services with the same share judge alike: by
/// the last 63 bits, as OpenTelemetry's libraries do.
fn is_in(ratio: f64, trace: TraceId) -> bool {
    let [.., a, b, c, d, e, f, g, h] = trace.to_bytes();
    let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
    let most = 1_u64 << 63;
    ratio >= 1.0 || number < (ratio * most as f64) as u64
}

impl Traces {
    /// Samples by `sampler` and puts spans into `queue`; without `takes_context` no call belongs
    /// to its caller's trace.
    fn new(sampler: Sampler, takes_context: bool, queue: Queue) -> Self {
        Self(Arc::new(Inner {
            sampler,
            takes_context,
            ids: RandomIdGenerator::default(),
            scope: InstrumentationScope::builder("cedar-pdp")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            queue,
        }))
    }

    /// The span of a call that begins now, if it is sampled. `header` gives the caller's header of
    /// a name.
    #[must_use]
    pub fn begin<'a>(
        &self,
        header: impl Fn(&'static str) -> Option<&'a str>,
    ) -> Option<Arc<CallSpan>> {
        let inner = &self.0;
        let parent = match inner.takes_context {
            true => header("traceparent").and_then(TraceParent::read),
            false => None,
        };
        let trace = (inner.sampler).sample(parent, || inner.ids.new_trace_id())?;
        let state = parent.and_then(|_| TraceState::from_str(header("tracestate")?).ok());
        Some(Arc::new(CallSpan {
            context: SpanContext::new(
                trace,
                inner.ids.new_span_id(),
                TraceFlags::SAMPLED,
                false,
                state.unwrap_or_default(),
            ),
            parent: parent.map(|parent| parent.span),
            begun: (SystemTime::now(), Instant::now()),
            noted: Mutex::default(),
            traces: self.clone(),
        }))
    }
}

/// The span of a call that is sampled.
#[derive(Debug)]
pub struct CallSpan {
    context: SpanContext,
    parent: Option<SpanId>,
    begun: (SystemTime, Instant),
    noted: Mutex<Noted>,
    traces: Traces,
}

/// What happened during a call.
#[derive(Debug, Default)]
struct Noted {
    allowed: i64,
    denied: i64,
    remembered: i64,
    refused: i64,
    /// Of the first request.
    asked: Option<Asked>,
}

/// What was asked, without who and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The type of the principal.
    pub principal_type: String,
    /// The action, as Cedar writes it.
    pub action: String,
    /// The type of the resource.
    pub resource_type: String,
    /// The content that decided.
    pub revision: String,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The whole name of the method.
    pub method: &'static str,
    /// The name of the status.
    pub code: &'static str,
    /// Whether the status says that the service did not do what it should.
    pub is_fault: bool,
}

/// The longest text of a caller in a span, in characters.
const LONGEST_TEXT: usize = 200;

impl CallSpan {
    /// The trace that it belongs to: 32 hex digits.
    #[must_use]
    pub fn trace_hex(&self) -> [u8; 32] {
        hex(self.context.trace_id())
    }

    /// Notes an answer; `asked` is looked at for the first one alone.
    pub fn answered(&self, decision: Decision, source: Source, asked: impl FnOnce() -> Asked) {
        self.note(|noted| {
            match decision {
                Decision::Allow => noted.allowed += 1,
                Decision::Deny => noted.denied += 1,
            }
            if source == Source::Cache {
                noted.remembered += 1;
            }
            noted.asked.get_or_insert_with(asked);
        });
    }

    /// Notes a request that was not decided.
    pub fn refused(&self) {
        self.note(|noted| noted.refused += 1);
    }

    fn note(&self, note: impl FnOnce(&mut Noted)) {
        // A panic elsewhere leaves numbers that are none the worse.
        note(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends it: it is sent when its turn comes, or dropped when too many wait.
    pub fn end(&self, ended: Ended) {
        let (begun, clock) = self.begun;
        let mut attributes = Vec::new();
        self.note(|noted| attributes = attributes_of(ended, noted));
        let inner = &self.traces.0;
        inner.queue.put(SpanData {
            span_context: self.context.clone(),
            parent_span_id: self.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: self.parent.is_some(),
            span_kind: SpanKind::Server,
            name: ended.method.into(),
            start_time: begun,
            end_time: begun + clock.elapsed(),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: match ended.is_fault {
                true => Status::error(""),
                false => Status::Unset,
            },
            instrumentation_scope: inner.scope.clone(),
        });
    }
}

/// What is said of a call: by OpenTelemetry's conventions for calls, and of our own.
/// <https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>
fn attributes_of(ended: Ended, noted: &mut Noted) -> Vec<KeyValue> {
    let Ended {
        method,
        code,
        is_fault,
    } = ended;
    let mut attributes = vec![
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
        KeyValue::new("rpc.response.status_code", code),
    ];
    if is_fault {
        attributes.push(KeyValue::new("error.type", code));
    }
    let Noted {
        allowed,
        denied,
        remembered,
        refused,
        asked,
    } = noted;
    for (name, count) in [
        ("cedar_pdp.allowed", *allowed),
        ("cedar_pdp.denied", *denied),
        ("cedar_pdp.remembered", *remembered),
        ("cedar_pdp.refused", *refused),
    ] {
        if count > 0 {
            attributes.push(KeyValue::new(name, count));
        }
    }
    // Of several requests the first does not speak for the others.
    let is_one = *allowed + *denied == 1;
    if let Some(asked) = asked.take() {
        let Asked {
            principal_type,
            action,
            resource_type,
            revision,
        } = asked;
        attributes.push(KeyValue::new("cedar_pdp.revision", revision));
        if is_one {
            for (name, text) in [
                ("cedar_pdp.principal.type", principal_type),
                ("cedar_pdp.action", action),
                ("cedar_pdp.resource.type", resource_type),
            ] {
                let text: String = text.chars().take(LONGEST_TEXT).collect();
                attributes.push(KeyValue::new(name, text));
            }
        }
    }
    attributes
}

#[cfg(test)]
mod tests;
