//! Settings that OpenTelemetry's variables result in.

use super::*;

fn read(variables: &[(&str, &str)], sends_decisions: bool) -> (Collectors, Vec<String>) {
    let owned = variables
        .iter()
        .map(|(name, text)| (name.into(), text.into()));
    super::read(owned, sends_decisions)
}

fn read_traces(variables: &[(&str, &str)]) -> (Option<TracesConfig>, Vec<String>) {
    let (collectors, warnings) = read(variables, false);
    assert_eq!(collectors.decisions, None);
    (collectors.traces, warnings)
}

fn read_decisions(variables: &[(&str, &str)]) -> (CollectorConfig, Vec<String>) {
    let (collectors, warnings) = read(variables, true);
    (collectors.decisions.unwrap(), warnings)
}

/// Reads variables that are valid and enable traces.
fn enabled(variables: &[(&str, &str)]) -> TracesConfig {
    let (config, warnings) = read_traces(variables);
    assert_eq!(warnings, [] as [&str; 0]);
    config.expect("traces are enabled")
}

#[test]
fn traces_are_off_by_default() {
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
        assert_eq!(read_traces(off), (None, Vec::new()), "{off:?}");
    }
}

#[test]
fn defaults_are_those_of_the_specification() {
    assert_eq!(
        enabled(&[("OTEL_TRACES_EXPORTER", "otlp")]),
        TracesConfig {
            collector: CollectorConfig {
                protocol: Protocol::HttpProtobuf,
                endpoint: "http://localhost:4318/v1/traces".to_owned(),
                certificate: None,
                timeout: Duration::from_secs(10),
                headers: HeaderMap::new(),
                resource: vec![
                    ("service.name".to_owned(), "cedar-pdp".to_owned()),
                    (
                        "service.version".to_owned(),
                        env!("CARGO_PKG_VERSION").to_owned()
                    ),
                ],
            },
            is_parent_based: true,
            ratio: 1.0,
            joins_caller_trace: true,
            max_queued_spans: 2_048,
            max_batch_spans: 512,
            schedule_delay: Duration::from_secs(5),
        }
    );
}

#[test]
fn endpoint_of_a_signal_overrides_the_general_one() {
    let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1/");
    let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:2/x");
    let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let on = ("OTEL_TRACES_EXPORTER", "otlp");
    for (variables, endpoint) in [
        (&[general][..], "http://c:1/v1/traces"),
        (&[general, grpc], "http://c:1/"),
        (&[general, own], "http://t:2/x"),
        (&[grpc, on], "http://localhost:4317"),
    ] {
        assert_eq!(enabled(variables).collector.endpoint, endpoint);
    }
}

#[test]
fn decision_log_uses_the_variables_of_logs() {
    // `OTEL_SDK_DISABLED` turns traces off and leaves the decision log on.
    let (collectors, warnings) = read(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1/"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "70"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "80"),
            ("OTEL_SDK_DISABLED", "true"),
        ],
        true,
    );
    assert_eq!((collectors.traces, warnings), (None, Vec::new()));
    let collector = collectors.decisions.unwrap();
    assert_eq!(collector.endpoint, "http://c:1/v1/logs");
    assert_eq!(collector.timeout, Duration::from_millis(70));
}

#[test]
fn headers_are_decoded_and_their_values_hidden() {
    let (config, warnings) = read_decisions(&[
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-other=1"),
        (
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
            "authorization=Bearer%20s3cret, x-tenant = a=b%,",
        ),
    ]);
    assert_eq!(warnings, [] as [&str; 0]);
    assert_eq!(config.headers.len(), 2);
    assert_eq!(config.headers["authorization"], "Bearer s3cret");
    assert_eq!(config.headers["x-tenant"], "a=b%");
    assert!(!format!("{config:?}").contains("s3cret"));

    for text in ["s3cret", "a b=s3cret", "a=s3cret%0A", "=s3cret"] {
        let (config, warnings) = read_decisions(&[("OTEL_EXPORTER_OTLP_HEADERS", text)]);
        assert_eq!(config.headers, HeaderMap::new(), "{text}");
        assert_eq!(
            warnings,
            ["OTEL_EXPORTER_OTLP_HEADERS is not name=value,name=value with percent-encoding"]
        );
    }
}

#[test]
fn grpc_address_without_scheme_uses_tls_unless_insecure() {
    let endpoint = |insecure: &str| {
        let (config, _) = read_decisions(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317"),
            ("OTEL_EXPORTER_OTLP_INSECURE", insecure),
        ]);
        config.endpoint
    };
    assert_eq!(endpoint("false"), "https://c:4317");
    assert_eq!(endpoint("True"), "http://c:4317");
}

#[test]
fn samplers_are_those_of_the_specification() {
    for (name, is_parent_based, ratio) in [
        ("always_on", false, 1.0),
        ("always_off", false, 0.0),
        ("traceidratio", false, 0.25),
        ("parentbased_always_on", true, 1.0),
        ("parentbased_always_off", true, 0.0),
        ("parentbased_traceidratio", true, 0.25),
    ] {
        let config = enabled(&[
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_TRACES_SAMPLER", name),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let found = (config.is_parent_based, config.ratio);
        assert_eq!(found, (is_parent_based, ratio), "{name}");
    }
}

#[test]
fn resource_sizes_and_certificate_are_read() {
    let config = enabled(&[
        ("OTEL_TRACES_EXPORTER", "otlp"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=prod, a=b%20c,b=100%,service.name=x",
        ),
        ("OTEL_SERVICE_NAME", "pdp"),
        ("OTEL_PROPAGATORS", "baggage"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
    ]);
    let expected = [
        ("a", "b c"),
        ("b", "100%"),
        ("deployment.environment.name", "prod"),
        ("service.name", "pdp"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let resource = config.collector.resource.iter();
    let resource: Vec<_> = resource.map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(resource, expected);
    assert!(!config.joins_caller_trace);
    assert_eq!((config.max_queued_spans, config.max_batch_spans), (10, 10));
    assert_eq!(config.collector.timeout, Duration::from_millis(500));
    assert_eq!(config.collector.certificate, Some("/ca.pem".into()));
}

#[test]
fn invalid_values_cause_warnings_and_defaults() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
    for (name, text) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER", "parentbased_"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff"),
    ] {
        let (config, warnings) = read_traces(&[endpoint, (name, text)]);
        assert_eq!(config, Some(enabled(&[endpoint])), "{name}");
        let [warning] = &warnings[..] else {
            panic!("{name}: {warnings:?}");
        };
        let start = format!("{name} is `{text}`, expected ");
        assert!(warning.starts_with(&start), "{warning}");
    }
    let (config, warnings) = read_traces(&[("OTEL_TRACES_EXPORTER", "zipkin")]);
    assert_eq!((config, warnings.len()), (None, 1));
}
