//! Reads OpenTelemetry's environment variables: which calls are traced, and where spans and decision
//! records are sent.
//!
//! These variables are often set for a whole pod, by people who think of other programs. So an
//! invalid value is reported in a warning and replaced by its default, as the specification asks. It
//! never prevents the start. The SDK reads most of them itself, but reports nothing, and a delay or a
//! queue of 0 makes it spin or drop every span.
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

/// The collectors that the service sends to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collectors {
    /// The settings of traces; `None` if calls are not traced.
    pub traces: Option<TracesConfig>,
    /// The collector of the decision log; `None` if the log has another destination.
    pub decisions: Option<CollectorConfig>,
}

/// The connection settings of one collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorConfig {
    /// The transport of OTLP.
    pub protocol: Protocol,
    /// The URL of the collector, with a path if the protocol has one.
    pub endpoint: String,
    /// The file of CA certificates that verify the collector; `None` uses those of the system.
    pub certificate: Option<PathBuf>,
    /// The time limit of sending one batch, retries included.
    pub timeout: Duration,
    /// The headers of each request. Values are marked as sensitive: they may be secrets.
    pub headers: HeaderMap,
    /// The attributes that describe this service.
    pub resource: Vec<(String, String)>,
}

/// The collector of log records when no variable is set.
impl Default for CollectorConfig {
    fn default() -> Self {
        Variables::new([]).collector(LOGS)
    }
}

/// The settings of traces.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesConfig {
    /// The collector of spans.
    pub collector: CollectorConfig,
    /// True if a caller's sampling decision takes precedence.
    pub is_parent_based: bool,
    /// The share of the other calls that are traced, from 0 to 1.
    pub ratio: f64,
    /// True if a call joins the trace that its `traceparent` header names.
    pub joins_caller_trace: bool,
    /// The most spans in the queue; further ones are dropped.
    pub max_queued_spans: usize,
    /// The most spans in one batch; at most `max_queued_spans`.
    pub max_batch_spans: usize,
    /// The longest time between two batches.
    pub schedule_delay: Duration,
}

/// A transport of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// HTTP/1.1 with protobuf bodies.
    HttpProtobuf,
}

/// Reads the variables of this process. Returns the settings, and a warning for each invalid value.
/// `sends_decisions` tells whether the decision log goes to a collector.
#[must_use]
pub fn from_environment(sends_decisions: bool) -> (Collectors, Vec<String>) {
    read(env::vars_os(), sends_decisions)
}

fn read(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    sends_decisions: bool,
) -> (Collectors, Vec<String>) {
    let mut variables = Variables::new(variables);
    let collectors = Collectors {
        traces: variables.traces(),
        decisions: sends_decisions.then(|| variables.collector(LOGS)),
    };
    (collectors, variables.warnings)
}

/// The kinds of telemetry, as variables name them.
const TRACES: &str = "TRACES";
const LOGS: &str = "LOGS";

/// The variables that are set, and the warnings about them.
struct Variables {
    set: BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl Variables {
    fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let set = variables
            .into_iter()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
            // An empty variable counts as unset.
            .filter(|(name, text)| name.starts_with("OTEL_") && !text.trim().is_empty())
            .map(|(name, text)| (name, text.trim().to_owned()))
            .collect();
        Self {
            set,
            warnings: Vec::new(),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.set.get(name).map(String::as_str)
    }

    fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    /// Returns whether the comma-separated list in `name` contains `item`; `None` if it is unset.
    fn lists(&self, name: &str, item: &str) -> Option<bool> {
        let mut items = self.get(name)?.split(',');
        Some(items.any(|it| it.trim() == item))
    }

    /// Returns the name of the variable that applies to `signal`: its own, if that is set.
    fn exporter_name(&self, signal: &str, name: &str) -> String {
        let own = format!("OTEL_EXPORTER_OTLP_{signal}_{name}");
        match self.set.contains_key(&own) {
            true => own,
            false => format!("OTEL_EXPORTER_OTLP_{name}"),
        }
    }

    fn exporter(&self, signal: &str, name: &str) -> Option<&str> {
        self.get(&self.exporter_name(signal, name))
    }

    fn warn(&mut self, name: &str, expected: &str) {
        let text = self.get(name).unwrap_or_default();
        let warning = format!("{name} is `{text}`, expected {expected}");
        self.warnings.push(warning);
    }

    fn traces(&mut self) -> Option<TracesConfig> {
        if self.is_true("OTEL_SDK_DISABLED") || !self.exports_spans() {
            return None;
        }
        let queue = self.number("OTEL_BSP_MAX_QUEUE_SIZE", 1..=100_000, 2_048);
        let batch = self.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1..=100_000, 512);
        let joins_caller_trace = self.lists("OTEL_PROPAGATORS", "tracecontext");
        let (is_parent_based, ratio) = self.sampler();
        Some(TracesConfig {
            collector: self.collector(TRACES),
            is_parent_based,
            ratio,
            joins_caller_trace: joins_caller_trace.unwrap_or(true),
            max_queued_spans: queue,
            max_batch_spans: batch.min(queue),
            schedule_delay: self.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 3_600_000, 5_000),
        })
    }

    fn exports_spans(&mut self) -> bool {
        let name = "OTEL_TRACES_EXPORTER";
        match self.get(name) {
            None => self.exporter(TRACES, "ENDPOINT").is_some(),
            Some("none") => false,
            Some("otlp") => true,
            Some(_) => {
                self.warn(name, "otlp, none");
                self.lists(name, "otlp").unwrap_or(false)
            }
        }
    }

    fn collector(&mut self, signal: &str) -> CollectorConfig {
        let protocol = self.protocol(signal);
        let timeout = self.exporter_name(signal, "TIMEOUT");
        CollectorConfig {
            protocol,
            endpoint: self.endpoint(signal, protocol),
            certificate: self.exporter(signal, "CERTIFICATE").map(PathBuf::from),
            timeout: self.milliseconds(&timeout, 600_000, 10_000),
            headers: self.headers(signal),
            resource: self.resource(),
        }
    }

    fn protocol(&mut self, signal: &str) -> Protocol {
        match self.exporter(signal, "PROTOCOL") {
            Some("grpc") => Protocol::Grpc,
            None | Some("http/protobuf") => Protocol::HttpProtobuf,
            Some(_) => {
                let name = self.exporter_name(signal, "PROTOCOL");
                self.warn(&name, "grpc, http/protobuf");
                Protocol::HttpProtobuf
            }
        }
    }

    fn endpoint(&self, signal: &str, protocol: Protocol) -> String {
        let name = self.exporter_name(signal, "ENDPOINT");
        let endpoint = self.get(&name);
        match protocol {
            Protocol::Grpc => {
                let endpoint = endpoint.unwrap_or("http://localhost:4317");
                let is_insecure = self.is_true(&self.exporter_name(signal, "INSECURE"));
                match (endpoint.contains("://"), is_insecure) {
                    (true, _) => endpoint.to_owned(),
                    (false, true) => format!("http://{endpoint}"),
                    (false, false) => format!("https://{endpoint}"),
                }
            }
            Protocol::HttpProtobuf => match endpoint {
                // A signal's own endpoint includes the path.
                Some(endpoint) if name != "OTEL_EXPORTER_OTLP_ENDPOINT" => endpoint.to_owned(),
                base => {
                    let base = base.unwrap_or("http://localhost:4318");
                    let (base, path) = (base.trim_end_matches('/'), signal.to_lowercase());
                    format!("{base}/v1/{path}")
                }
            },
        }
    }

    fn headers(&mut self, signal: &str) -> HeaderMap {
        let name = self.exporter_name(signal, "HEADERS");
        let headers: Option<_> = pairs(self.get(&name)).map(|pair| header(pair?)).collect();
        headers.unwrap_or_else(|| {
            // The value is left out of the warning: it may be a secret.
            let form = "name=value,name=value with percent-encoding";
            self.warnings.push(format!("{name} is not {form}"));
            HeaderMap::new()
        })
    }

    /// Reads a number; a value out of `range` is replaced by `default`.
    fn number<T>(&mut self, name: &str, range: RangeInclusive<T>, default: T) -> T
    where
        T: Display + FromStr + PartialOrd,
    {
        match self.get(name).map(str::parse) {
            None => default,
            Some(Ok(number)) if range.contains(&number) => number,
            Some(_) => {
                self.warn(name, &format!("{} to {}", range.start(), range.end()));
                default
            }
        }
    }

    fn milliseconds(&mut self, name: &str, max: u64, default: u64) -> Duration {
        Duration::from_millis(self.number(name, 1..=max, default))
    }

    /// Returns whether a caller's sampling decision takes precedence, and the share of other calls.
    fn sampler(&mut self) -> (bool, f64) {
        let name = "OTEL_TRACES_SAMPLER";
        match self.get(name) {
            Some("always_on") => (false, 1.0),
            Some("always_off") => (false, 0.0),
            Some("traceidratio") => (false, self.ratio()),
            None | Some("parentbased_always_on") => (true, 1.0),
            Some("parentbased_always_off") => (true, 0.0),
            Some("parentbased_traceidratio") => (true, self.ratio()),
            Some(_) => {
                let names =
                    "always_on, always_off, traceidratio, or one of these after parentbased_";
                self.warn(name, names);
                (true, 1.0)
            }
        }
    }

    fn ratio(&mut self) -> f64 {
        self.number("OTEL_TRACES_SAMPLER_ARG", 0.0..=1.0, 1.0)
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let mut attributes = BTreeMap::from([
            ("service.name".to_owned(), "cedar-pdp".to_owned()),
            ("service.version".to_owned(), version),
        ]);
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let decoded = |(key, value)| Some((decode(key)?, decode(value)?));
        let sent: Option<Vec<_>> = pairs(self.get(name)).map(|it| decoded(it?)).collect();
        match sent {
            Some(sent) => attributes.extend(sent),
            // The specification asks for all or none.
            None => self.warn(name, "key=value,key=value with percent-encoding"),
        }
        if let Some(name) = self.get("OTEL_SERVICE_NAME") {
            attributes.insert("service.name".to_owned(), name.to_owned());
        }
        attributes.into_iter().collect()
    }
}

/// Splits a list `key=value,key=value`; `None` stands for an item without `=`.
fn pairs(list: Option<&str>) -> impl Iterator<Item = Option<(&str, &str)>> {
    let items = list.unwrap_or_default().split(',').map(str::trim);
    items.filter(|item| !item.is_empty()).map(|item| {
        let (key, value) = item.split_once('=')?;
        Some((key.trim(), value.trim()))
    })
}

/// Decodes a header; `None` if its name or value is invalid.
fn header((name, value): (&str, &str)) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    let mut value = HeaderValue::from_str(&decode(value)?).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// Decodes percent-encoding; `None` if the result is not UTF-8. A `%` without two hex digits stands
/// for itself: many lists are written without percent-encoding.
fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests;
