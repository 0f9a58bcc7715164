//! What OpenTelemetry's environment variables ask for: whether calls are traced and which, and where
//! spans go, and records of decisions if they are to go to a collector.
//!
//! These variables are not ours: they are often set for everything in a pod at once, by someone who
//! thinks of other programs. So what makes no sense here is warned about and has its default, as
//! OpenTelemetry's specification says, and never keeps the service from starting.
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The collectors that things are sent to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collectors {
    /// How calls are traced, if they are.
    pub traces: Option<TracesConfig>,
    /// Where records of decisions go, if they go to a collector.
    pub decisions: Option<CollectorConfig>,
}

/// How a collector is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorConfig {
    /// How things are sent.
    pub protocol: Protocol,
    /// Where they are sent to, with the path where the protocol has one.
    pub endpoint: String,
    /// The authorities that the collector's certificate is verified by; `None` is the system's.
    pub certificate: Option<PathBuf>,
    /// How long sending a batch may take, further attempts included.
    pub timeout: Duration,
    /// What is sent along with each batch.
    pub headers: Headers,
    /// What is said of the service that sends.
    pub resource: Vec<(String, String)>,
}

/// Headers, each with a name and a value that HTTP takes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Their names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl fmt::Debug for Headers {
    /// Without the values, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

/// Where log records go when no variable is set.
impl Default for CollectorConfig {
    fn default() -> Self {
        Variables::of([]).collector(Signal::Logs)
    }
}

/// How calls are traced.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesConfig {
    /// Where spans go.
    pub collector: CollectorConfig,
    /// Which calls are traced.
    pub sampler: Sampler,
    /// Whether a call belongs to the trace that its caller names.
    pub takes_context: bool,
    /// The most spans that wait to be sent; what comes beyond is dropped.
    pub queue_spans: usize,
    /// The most spans that are sent at once; no more than wait.
    pub batch_spans: usize,
    /// How long a span waits for others to be sent with.
    pub delay: Duration,
}

/// How things are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP/1.1, as protobuf.
    HttpProtobuf,
}

/// Which calls are traced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether a caller that says whether its trace is sampled has the word.
    pub asks_parent: bool,
    /// Which of the others are.
    pub root: RootSampler,
}

/// Which calls are traced of those that nobody decided on before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RootSampler {
    /// All.
    On,
    /// None.
    Off,
    /// This share, from 0 to 1.
    Ratio(f64),
}

/// What the variables of this process ask for, and what about them makes no sense. Whether
/// decisions go to a collector is not for them to say, and told here.
#[must_use]
pub fn from_environment(sends_decisions: bool) -> (Collectors, Vec<String>) {
    read(env::vars_os(), sends_decisions)
}

fn read(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    sends_decisions: bool,
) -> (Collectors, Vec<String>) {
    let mut variables = Variables::of(variables);
    let collectors = Collectors {
        traces: variables.traces(),
        decisions: sends_decisions.then(|| variables.collector(Signal::Logs)),
    };
    (collectors, variables.warnings)
}

/// What is sent, as the names of variables and paths have it.
#[derive(Clone, Copy)]
enum Signal {
    Traces,
    Logs,
}

impl Signal {
    fn variable(self, name: &str) -> String {
        let signal = match self {
            Self::Traces => "TRACES",
            Self::Logs => "LOGS",
        };
        format!("OTEL_EXPORTER_OTLP_{signal}_{name}")
    }

    fn path(self) -> &'static str {
        match self {
            Self::Traces => "v1/traces",
            Self::Logs => "v1/logs",
        }
    }
}

/// OpenTelemetry's variables that are set, and the complaints about them.
struct Variables {
    set: BTreeMap<String, String>,
    warnings: Vec<String>,
}

const SAMPLERS: &[(&str, bool, RootSampler)] = &[
    ("always_on", false, RootSampler::On),
    ("always_off", false, RootSampler::Off),
    ("traceidratio", false, RootSampler::Ratio(1.0)),
    ("parentbased_always_on", true, RootSampler::On),
    ("parentbased_always_off", true, RootSampler::Off),
    ("parentbased_traceidratio", true, RootSampler::Ratio(1.0)),
];

impl Variables {
    fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let set = variables
            .into_iter()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
            // Empty is not set.
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

    /// The variable that is set for this signal, or else the one for all.
    fn name(&self, signal: Signal, name: &str) -> String {
        let own = signal.variable(name);
        match self.get(&own) {
            Some(_) => own,
            None => format!("OTEL_EXPORTER_OTLP_{name}"),
        }
    }

    fn exporter(&self, signal: Signal, name: &str) -> Option<&str> {
        self.get(&self.name(signal, name))
    }

    fn warn(&mut self, name: &str, takes: &str) {
        let text = self.get(name).unwrap_or_default().to_owned();
        self.warnings
            .push(format!("{name} is `{text}`; taken: {takes}"));
    }

    fn traces(&mut self) -> Option<TracesConfig> {
        if self
            .get("OTEL_SDK_DISABLED")
            .is_some_and(|text| text.eq_ignore_ascii_case("true"))
        {
            return None;
        }
        let is_on = match self.get("OTEL_TRACES_EXPORTER") {
            None => self.exporter(Signal::Traces, "ENDPOINT").is_some(),
            Some("none") => false,
            Some(names) => {
                let names: Vec<_> = names.split(',').map(str::trim).collect();
                if names != ["otlp"] {
                    self.warn("OTEL_TRACES_EXPORTER", "otlp, none");
                }
                self.get("OTEL_TRACES_EXPORTER")
                    .is_some_and(|names| names.split(',').any(|name| name.trim() == "otlp"))
            }
        };
        if !is_on {
            return None;
        }
        let queue_spans = self.number("OTEL_BSP_MAX_QUEUE_SIZE", 1, 100_000, 2_048);
        let batch_spans = self.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1, 100_000, 512);
        let delay = self.number("OTEL_BSP_SCHEDULE_DELAY", 1, 3_600_000, 5_000);
        Some(TracesConfig {
            collector: self.collector(Signal::Traces),
            sampler: self.sampler(),
            takes_context: self
                .get("OTEL_PROPAGATORS")
                .is_none_or(|names| names.split(',').any(|name| name.trim() == "tracecontext")),
            queue_spans,
            batch_spans: batch_spans.min(queue_spans),
            delay: Duration::from_millis(delay as u64),
        })
    }

    fn collector(&mut self, signal: Signal) -> CollectorConfig {
        let protocol = self.protocol(signal);
        let timeout = self.name(signal, "TIMEOUT");
        let mut endpoint = self.endpoint(signal, protocol);
        if protocol == Protocol::Grpc && !endpoint.contains("://") {
            let is_insecure = self
                .exporter(signal, "INSECURE")
                .is_some_and(|text| text.eq_ignore_ascii_case("true"));
            let scheme = if is_insecure { "http" } else { "https" };
            endpoint = format!("{scheme}://{endpoint}");
        }
        CollectorConfig {
            protocol,
            endpoint,
            certificate: self.exporter(signal, "CERTIFICATE").map(PathBuf::from),
            timeout: Duration::from_millis(self.number(&timeout, 1, 600_000, 10_000) as u64),
            headers: self.headers(signal),
            resource: self.resource(),
        }
    }

    fn protocol(&mut self, signal: Signal) -> Protocol {
        match self.exporter(signal, "PROTOCOL") {
            Some("grpc") => Protocol::Grpc,
            None | Some("http/protobuf") => Protocol::HttpProtobuf,
            Some(_) => {
                let name = self.name(signal, "PROTOCOL");
                self.warn(&name, "grpc, http/protobuf");
                Protocol::HttpProtobuf
            }
        }
    }

    fn headers(&mut self, signal: Signal) -> Headers {
        let pairs = self.exporter(signal, "HEADERS").unwrap_or_default();
        let pairs = pairs.split(',').filter(|pair| !pair.trim().is_empty());
        let headers: Option<_> = pairs.map(header).collect();
        headers.map(Headers).unwrap_or_else(|| {
            let name = self.name(signal, "HEADERS");
            // Without what it is set to, which may be a secret.
            let takes = "name=value,name=value with percent-encoding";
            self.warnings.push(format!("{name} is not {takes}"));
            Headers::default()
        })
    }

    fn endpoint(&self, signal: Signal, protocol: Protocol) -> String {
        match (protocol, self.get(&signal.variable("ENDPOINT"))) {
            // Of this one the path is meant as it stands.
            (_, Some(endpoint)) => endpoint.to_owned(),
            (Protocol::Grpc, None) => self
                .get("OTEL_EXPORTER_OTLP_ENDPOINT")
                .unwrap_or("http://localhost:4317")
                .to_owned(),
            (Protocol::HttpProtobuf, None) => {
                let base = self.get("OTEL_EXPORTER_OTLP_ENDPOINT");
                let base = base
                    .unwrap_or("http://localhost:4318")
                    .trim_end_matches('/');
                format!("{base}/{}", signal.path())
            }
        }
    }

    fn number(&mut self, name: &str, least: usize, most: usize, default: usize) -> usize {
        let Some(text) = self.get(name) else {
            return default;
        };
        match text.parse() {
            Ok(number) if (least..=most).contains(&number) => number,
            Ok(_) | Err(_) => {
                self.warn(name, &format!("{least} to {most}"));
                default
            }
        }
    }

    fn sampler(&mut self) -> Sampler {
        let name = self
            .get("OTEL_TRACES_SAMPLER")
            .unwrap_or("parentbased_always_on");
        let known = SAMPLERS.iter().find(|(known, ..)| *known == name);
        let Some(&(_, asks_parent, root)) = known else {
            let names: Vec<_> = SAMPLERS.iter().map(|(name, ..)| *name).collect();
            self.warn("OTEL_TRACES_SAMPLER", &names.join(", "));
            return Sampler {
                asks_parent: true,
                root: RootSampler::On,
            };
        };
        let root = match root {
            RootSampler::Ratio(all) => RootSampler::Ratio(self.ratio().unwrap_or(all)),
            RootSampler::On | RootSampler::Off => root,
        };
        Sampler { asks_parent, root }
    }

    fn ratio(&mut self) -> Option<f64> {
        let text = self.get("OTEL_TRACES_SAMPLER_ARG")?;
        let ratio = text
            .parse()
            .ok()
            .filter(|ratio| (0.0..=1.0).contains(ratio));
        if ratio.is_none() {
            self.warn("OTEL_TRACES_SAMPLER_ARG", "0 to 1");
        }
        ratio
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        let mut attributes = BTreeMap::from([
            ("service.name".to_owned(), "cedar-pdp".to_owned()),
            (
                "service.version".to_owned(),
                env!("CARGO_PKG_VERSION").to_owned(),
            ),
        ]);
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let pairs: Option<Vec<_>> = self
            .get(name)
            .unwrap_or_default()
            .split(',')
            .filter(|pair| !pair.trim().is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=')?;
                Some((decoded(key.trim())?, decoded(value.trim())?))
            })
            .collect();
        match pairs {
            Some(pairs) => attributes.extend(pairs),
            // As the specification says: all or none.
            None => self.warn(name, "key=value,key=value with percent-encoding"),
        }
        if let Some(name) = self.get("OTEL_SERVICE_NAME") {
            attributes.insert("service.name".to_owned(), name.to_owned());
        }
        attributes.into_iter().collect()
    }
}

/// The header that `pair` stands for.
fn header(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    // Many are written without thinking of percent-encoding.
    let value = decoded(value).unwrap_or_else(|| value.to_owned());
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_name = !name.is_empty() && name.bytes().all(is_of_names);
    let is_value = value.bytes().all(|byte| byte >= b' ' && byte != 0x7f);
    (is_name && is_value).then(|| (name.to_owned(), value))
}

/// `text` without percent-encoding; `None` when that is broken.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (Option<TracesConfig>, Vec<String>) {
        let owned = variables
            .iter()
            .map(|(name, text)| (name.into(), text.into()));
        let (collectors, warnings) = super::read(owned, false);
        assert_eq!(collectors.decisions, None);
        (collectors.traces, warnings)
    }

    fn on(variables: &[(&str, &str)]) -> TracesConfig {
        let (config, warnings) = read(variables);
        assert_eq!(warnings, [] as [&str; 0]);
        config.expect("traces are on")
    }

    #[test]
    fn nothing_is_traced_unless_it_is_asked_for() {
        for off in [
            &[][..],
            &[("OTEL_SERVICE_NAME", "x")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[
                ("OTEL_TRACES_EXPORTER", "none"),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ],
            &[
                ("OTEL_SDK_DISABLED", "True"),
                ("OTEL_TRACES_EXPORTER", "otlp"),
            ],
        ] {
            assert_eq!(read(off), (None, Vec::new()), "{off:?}");
        }
    }

    #[test]
    fn what_is_left_out_has_the_default_of_the_specification() {
        assert_eq!(
            on(&[("OTEL_TRACES_EXPORTER", "otlp")]),
            TracesConfig {
                collector: CollectorConfig {
                    protocol: Protocol::HttpProtobuf,
                    endpoint: "http://localhost:4318/v1/traces".to_owned(),
                    certificate: None,
                    timeout: Duration::from_secs(10),
                    headers: Headers::default(),
                    resource: vec![
                        ("service.name".to_owned(), "cedar-pdp".to_owned()),
                        (
                            "service.version".to_owned(),
                            env!("CARGO_PKG_VERSION").to_owned()
                        ),
                    ],
                },
                sampler: Sampler {
                    asks_parent: true,
                    root: RootSampler::On
                },
                takes_context: true,
                queue_spans: 2_048,
                batch_spans: 512,
                delay: Duration::from_secs(5),
            }
        );
    }

    #[test]
    fn the_endpoint_is_that_of_traces_or_else_that_of_all_with_the_protocols_path() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1/");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:2/x");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(on(&[general]).collector.endpoint, "http://c:1/v1/traces");
        assert_eq!(on(&[general, grpc]).collector.endpoint, "http://c:1/");
        assert_eq!(on(&[general, own]).collector.endpoint, "http://t:2/x");
        assert_eq!(
            on(&[grpc, ("OTEL_TRACES_EXPORTER", "otlp")])
                .collector
                .endpoint,
            "http://localhost:4317"
        );
    }

    #[test]
    fn records_of_decisions_go_where_the_variables_say_and_only_if_they_are_to() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1/"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "70"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "80"),
            ("OTEL_SDK_DISABLED", "true"),
        ]
        .map(|(name, text)| (name.into(), text.into()));
        let (collectors, warnings) = super::read(variables, true);
        assert_eq!((collectors.traces, warnings), (None, Vec::new()));
        let collector = collectors.decisions.unwrap();
        assert_eq!(collector.endpoint, "http://c:1/v1/logs");
        assert_eq!(collector.timeout, Duration::from_millis(70));
    }

    fn of_decisions(variables: &[(&str, &str)]) -> (CollectorConfig, Vec<String>) {
        let owned = variables
            .iter()
            .map(|(name, text)| (name.into(), text.into()));
        let (collectors, warnings) = super::read(owned, true);
        (collectors.decisions.unwrap(), warnings)
    }

    #[test]
    fn headers_for_records_are_read_and_never_shown() {
        let (config, warnings) = of_decisions(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-other=1"),
            (
                "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
                "authorization=Bearer%20s3cret, x-tenant = a=b%,",
            ),
        ]);
        assert_eq!(warnings, [] as [&str; 0]);
        let headers: Vec<_> = config.headers.iter().collect();
        let wanted = [("authorization", "Bearer s3cret"), ("x-tenant", "a=b%")];
        assert_eq!(headers, wanted);
        assert!(!format!("{config:?}").contains("s3cret"));

        for text in ["s3cret", "a b=s3cret", "a=s3cret%0A", "=s3cret"] {
            let (config, warnings) = of_decisions(&[("OTEL_EXPORTER_OTLP_HEADERS", text)]);
            assert_eq!(config.headers, Headers::default(), "{text}");
            assert_eq!(
                warnings,
                ["OTEL_EXPORTER_OTLP_HEADERS is not name=value,name=value with percent-encoding"]
            );
        }
    }

    #[test]
    fn an_address_without_a_scheme_has_tls_unless_that_is_said() {
        let with = |insecure: &str| {
            let (config, _) = of_decisions(&[
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317"),
                ("OTEL_EXPORTER_OTLP_INSECURE", insecure),
            ]);
            config.endpoint
        };
        assert_eq!(with("false"), "https://c:4317");
        assert_eq!(with("True"), "http://c:4317");
    }

    #[test]
    fn samplers_resource_and_sizes_are_read() {
        let config = on(&[
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=prod, a=b%20c,service.name=x",
            ),
            ("OTEL_SERVICE_NAME", "pdp"),
            ("OTEL_PROPAGATORS", "baggage"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ]);
        assert_eq!(
            config.sampler,
            Sampler {
                asks_parent: true,
                root: RootSampler::Ratio(0.25)
            }
        );
        let wanted = [
            ("a", "b c"),
            ("deployment.environment.name", "prod"),
            ("service.name", "pdp"),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ];
        let resource: Vec<_> = config
            .collector
            .resource
            .iter()
            .map(|(k, v)| (&**k, &**v))
            .collect();
        assert_eq!(resource, wanted);
        assert!(!config.takes_context);
        assert_eq!((config.queue_spans, config.batch_spans), (10, 10));
        assert_eq!(config.collector.timeout, Duration::from_millis(500));
        assert_eq!(config.collector.certificate, Some("/ca.pem".into()));
    }

    #[test]
    fn what_makes_no_sense_is_warned_about_and_has_its_default() {
        for (name, text) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%2"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%+1"),
        ] {
            let (config, warnings) =
                read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), (name, text)]);
            assert_eq!(
                config,
                Some(on(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")])),
                "{name}"
            );
            assert_eq!(warnings.len(), 1, "{name}: {warnings:?}");
            assert!(
                warnings[0].starts_with(&format!("{name} is `{text}`; taken: ")),
                "{warnings:?}"
            );
        }
        let (config, warnings) = read(&[("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert_eq!((config, warnings.len()), (None, 1));
    }
}
