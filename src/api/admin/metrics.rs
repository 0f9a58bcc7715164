//! What is counted, as Prometheus reads it: the name, the help and the labels of every metric.
//!
//! The counting is done elsewhere, where things happen; a page is made of the figures as they are
//! when it is asked for. Labels have few and fixed values: never who asked, for what, or a policy.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use crate::api::admin::process::ProcessFigures;
use crate::api::metrics::{CallFigures, Closing, RejectionLabel, Transport};
use crate::api::{CallersFigures, OverloadState, TlsMetrics};
use crate::counters::Distribution;
use crate::decision_log::{DecisionLog, DecisionLogMetrics};
use crate::engine::Source;
use crate::engine::cache::CacheMetrics;
use crate::engine::metrics::{DURATION_BOUNDS, DecisionMetrics};
use crate::pdp::answer::Decision;
use crate::pip::{IssuerKeyMetrics, TokenMetrics};
use crate::policy_store::{ReloadCounts, StatusReader};
use crate::readiness::{Health, ReadinessReader};
use crate::telemetry::traces::{SpanMetrics, SpanResult};

/// The most series that a page holds, whoever asks for what and however often.
pub const MOST_SERIES: usize = 600;

/// The media type of a page.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// What a metric is called and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The whole name.
    pub name: &'static str,
    /// What Prometheus takes it for.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, in a line.
    pub help: &'static str,
}

/// What Prometheus takes a metric for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// Declares the metrics, and the list of them all.
macro_rules! metrics {
    ($($place:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(const $place: Metric = Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)+

        /// Every metric that there is, in the order of the page.
        pub const METRICS: &[Metric] = &[$($place),+];
    };
}

metrics! {
    BUILD = Gauge "cedar_pdp_build_info" ["version"]
        "Always 1; the label is the version";
    READY = Gauge "cedar_pdp_ready" []
        "Whether calls are welcome: 1 or 0";
    DECISIONS = Counter "cedar_pdp_decisions_total" ["decision", "source"]
        "Answers given, items of batches and streams included, by whether they were remembered";
    DECISION_SECONDS = Histogram "cedar_pdp_decision_duration_seconds" ["source"]
        "Time from a request that has been read to its answer, by whether it was remembered";
    CANDIDATES = Histogram "cedar_pdp_decision_candidates" []
        "Policies whose scope matched, of each request that was decided and not remembered";
    POLICY_ERRORS = Counter "cedar_pdp_policy_errors_total" []
        "Evaluations of a policy that failed; a remembered answer counts no more";
    REFUSED = Counter "cedar_pdp_requests_refused_total" ["reason"]
        "Requests, items of batches and streams included, that were not decided";
    QUEUE_DELAY = Gauge "cedar_pdp_queue_delay_seconds" []
        "Time that the last call waited for a thread, if at least 1 ms; 0 after 100 ms without such a call";
    CALLS = Counter "cedar_pdp_grpc_calls_total" ["method", "code"]
        "Calls that are over, by the status that they ended with";
    CALL_SECONDS = Histogram "cedar_pdp_grpc_call_duration_seconds" ["method"]
        "Time from a unary call's headers to the end of its answer";
    CONNECTIONS = Counter "cedar_pdp_connections_total" ["transport"]
        "Connections accepted from callers";
    OPEN_CONNECTIONS = Gauge "cedar_pdp_open_connections" ["transport"]
        "Connections from callers that are open";
    CLOSED = Counter "cedar_pdp_connections_closed_total" ["reason"]
        "Connections that the service closed, or that ended before their first call";
    CERTIFICATE_EXPIRY = Gauge "cedar_pdp_tls_certificate_expiry_timestamp_seconds" []
        "When the certificate in force expires, or the first of its chain to; absent without TLS";
    CERTIFICATES = Counter "cedar_pdp_tls_certificates_total" ["result"]
        "Certificates with their keys, and files of client authorities, that were read: taken or refused, each for itself; absent without TLS";
    CALLER_LISTS = Counter "cedar_pdp_caller_lists_total" ["result"]
        "Lists of callers that were read: taken or refused; absent where there is no list";
    TOKENS = Counter "cedar_pdp_tokens_total" ["result"]
        "Tokens that were believed: their signature was verified now (verified) or before (remembered); absent without issuers, as are all that follow of tokens";
    TOKENS_REFUSED = Counter "cedar_pdp_tokens_refused_total" ["reason"]
        "Tokens that were not believed, by the reason that callers are told";
    TOKENS_HELD = Gauge "cedar_pdp_remembered_tokens" []
        "Tokens whose verification is remembered";
    ISSUERS_WITHOUT_KEYS = Gauge "cedar_pdp_issuers_without_keys" []
        "Issuers none of whose tokens can be believed, for want of a key";
    KEYS_AGE = Gauge "cedar_pdp_issuer_keys_age_seconds" []
        "Time since the keys of an issuer were last fetched from its URL, of the issuer for whom it is longest; absent while there is none";
    KEY_SETS = Counter "cedar_pdp_issuer_key_sets_total" ["result"]
        "Sets of keys that were fetched or read (taken), and attempts that failed or gave a bad set (failed), of all issuers";
    REVOCATIONS = Gauge "cedar_pdp_revocations" []
        "Entries of the revocation list in force";
    REVOCATIONS_REFUSED = Counter "cedar_pdp_revocation_lists_refused_total" []
        "Revocation lists that were read and refused; the one before stays in force";
    REVOCATIONS_SHRUNK = Counter "cedar_pdp_revocation_lists_shrunk_total" []
        "Revocation lists that were taken and are shorter than the one before";
    SPANS = Counter "cedar_pdp_spans_total" ["result"]
        "Spans of traced calls: sent to the collector, failed to be, or dropped because too many waited";
    RELOADS = Counter "cedar_pdp_reloads_total" ["result"]
        "Looks at the policy directory: new content in force (reloaded), the same (unchanged), new content refused (refused), or one that does not come to rest (held_back)";
    STORE_REFUSED = Gauge "cedar_pdp_store_refused" []
        "Whether what the policy directory holds is refused, and something else in force: 1 or 0";
    STORE_WARNINGS = Gauge "cedar_pdp_store_warnings" []
        "Warnings about what is in force, of which the first 100 are kept";
    LOADED_AT = Gauge "cedar_pdp_revision_loaded_timestamp_seconds" []
        "When the revision in force was put in force";
    AGE = Gauge "cedar_pdp_revision_age_seconds" []
        "How long the revision in force has been in force";
    POLICIES = Gauge "cedar_pdp_policies" []
        "Static policies in force";
    TEMPLATES = Gauge "cedar_pdp_templates" []
        "Templates in force";
    LINKS = Gauge "cedar_pdp_template_links" []
        "Template links in force";
    ENTITIES = Gauge "cedar_pdp_stored_entities" []
        "Entities in force that are stored";
    CACHE_HITS = Counter "cedar_pdp_cache_hits_total" []
        "Requests whose answer was remembered";
    CACHE_MISSES = Counter "cedar_pdp_cache_misses_total" []
        "Requests whose answer was not remembered";
    CACHE_EVICTIONS = Counter "cedar_pdp_cache_evictions_total" []
        "Answers that were forgotten to make room";
    CACHE_ENTRIES = Gauge "cedar_pdp_cache_entries" []
        "Answers that are remembered";
    CACHE_BYTES = Gauge "cedar_pdp_cache_bytes" []
        "Memory that remembered answers take";
    CACHE_CAPACITY = Gauge "cedar_pdp_cache_capacity_bytes" []
        "Memory that remembered answers may take; 0 when nothing is remembered";
    RECORDS = Counter "cedar_pdp_decision_log_records_total" ["result"]
        "Decisions and refusals for the decision log that were written, dropped because it did not keep up or the end came, or refused by the collector for good";
    WRITE_FAILURES = Counter "cedar_pdp_decision_log_write_failures_total" []
        "Attempts at writing the decision log that failed; what they were to write is tried again";
    LOG_QUEUE_BYTES = Gauge "cedar_pdp_decision_log_queue_bytes" []
        "Memory of records that wait to be written to the decision log";
    CPU_SECONDS = Counter "process_cpu_seconds_total" []
        "User and system time of the process";
    RESIDENT = Gauge "process_resident_memory_bytes" []
        "Memory of the process that is resident";
    VIRTUAL = Gauge "process_virtual_memory_bytes" []
        "Address space of the process";
    THREADS = Gauge "process_threads" []
        "Threads of the process";
    OPEN_FDS = Gauge "process_open_fds" []
        "File descriptors that are open";
    MAX_FDS = Gauge "process_max_fds" []
        "File descriptors that may be open";
    STARTED_AT = Gauge "process_start_time_seconds" []
        "When the process was started";
}

/// Where the figures of a page come from; each is asked anew for each page.
pub struct Sources {
    /// Of the engine.
    pub decisions: Arc<DecisionMetrics>,
    /// Of the router.
    pub calls: Arc<CallFigures>,
    /// Of TLS; nothing without.
    pub tls: Box<dyn Fn() -> Option<TlsMetrics> + Send + Sync>,
    /// Of load shedding.
    pub overload: Box<dyn Fn() -> OverloadState + Send + Sync>,
    /// Of the list of callers; nothing without.
    pub callers: Box<dyn Fn() -> Option<CallersFigures> + Send + Sync>,
    /// Of tokens; nothing when there are no issuers.
    pub tokens: Box<dyn Fn() -> Option<TokenMetrics> + Send + Sync>,
    /// Of traces.
    pub spans: Arc<SpanMetrics>,
    /// Of the policy store.
    pub store: StatusReader,
    /// Whether calls are welcome.
    pub readiness: ReadinessReader,
    /// Of the cache; nothing when there is none.
    pub cache: Box<dyn Fn() -> Option<CacheMetrics> + Send + Sync>,
    /// Of the decision log; nothing when there is none.
    pub decision_log: Option<DecisionLog>,
    /// When the process was started.
    pub started_at: SystemTime,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// The page of metrics.
#[derive(Debug)]
pub struct Page(Registry);

impl Page {
    /// A page that is made from these figures.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(sources));
        Self(registry)
    }

    /// The page as it is now, in Prometheus' text format.
    ///
    /// Reads a few files of the system and takes the locks of the cache for a moment each: some
    /// 200 us in all, so not for a thread that answers callers.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(32 << 10);
        // INVARIANT: writing to a `String` cannot fail.
        let _ = prometheus_text::encode(&mut text, &self.0);
        text
    }
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Writer(encoder);
        page.gauge(&BUILD, [([env!("CARGO_PKG_VERSION")], 1.0)])?;
        let is_ready = self.readiness.health() == Health::Serving;
        page.gauge(&READY, [([], truth(is_ready))])?;
        self.decisions(&mut page)?;
        self.calls(&mut page)?;
        self.store(&mut page)?;
        self.cache(&mut page)?;
        self.decision_log(&mut page)?;
        self.process(&mut page)
    }
}

impl Sources {
    fn decisions(&self, page: &mut Writer<'_>) -> fmt::Result {
        let figures = &self.decisions;
        let sources = [(Source::Cache, "cache"), (Source::Decided, "decided")];
        let decisions = [(Decision::Allow, "allow"), (Decision::Deny, "deny")];
        let all = decisions.iter().flat_map(|(decision, decision_label)| {
            sources.iter().map(move |(source, source_label)| {
                let count = figures.decisions(*decision, *source);
                ([*decision_label, *source_label], count)
            })
        });
        page.counter(&DECISIONS, all)?;
        let durations = sources.map(|(source, label)| ([label], figures.durations(source)));
        page.histogram(&DECISION_SECONDS, DURATION_BOUNDS, NANOSECONDS, durations)?;
        let (bounds, candidates) = figures.candidates();
        page.histogram(&CANDIDATES, bounds, 1.0, [([], candidates)])?;
        page.counter(&POLICY_ERRORS, [([], figures.policy_errors())])
    }

    fn calls(&self, page: &mut Writer<'_>) -> fmt::Result {
        let figures = &self.calls;
        let refusals = RejectionLabel::ALL.iter();
        page.counter(
            &REFUSED,
            refusals.map(|refusal| ([refusal.label()], figures.rejections(*refusal))),
        )?;
        let queue_delay = (self.overload)().queue_delay.as_secs_f64();
        page.gauge(&QUEUE_DELAY, [([], queue_delay)])?;
        let calls = figures.calls();
        page.counter(
            &CALLS,
            calls.map(|(method, code, count)| ([method.label(), code], count)),
        )?;
        let durations = figures.durations();
        page.histogram(
            &CALL_SECONDS,
            DURATION_BOUNDS,
            NANOSECONDS,
            durations.map(|(method, durations)| ([method.label()], durations)),
        )?;
        let transports = || Transport::ALL.iter().copied();
        page.counter(
            &CONNECTIONS,
            transports().map(|it| ([it.label()], figures.connections(it))),
        )?;
        page.gauge(
            &OPEN_CONNECTIONS,
            transports().map(|it| ([it.label()], figures.open_connections(it) as f64)),
        )?;
        let closings = Closing::ALL.iter();
        page.counter(
            &CLOSED,
            closings.map(|closing| ([closing.label()], figures.closings(*closing))),
        )?;
        self.tls(page)?;
        self.callers(page)?;
        self.tokens(page)?;
        let spans = [
            (["sent"], SpanResult::Sent),
            (["failed"], SpanResult::Failed),
            (["dropped"], SpanResult::Dropped),
        ];
        page.counter(
            &SPANS,
            spans.map(|(label, fate)| (label, self.spans.spans(fate))),
        )
    }

    fn tls(&self, page: &mut Writer<'_>) -> fmt::Result {
        let Some(figures) = (self.tls)() else {
            return Ok(());
        };
        let TlsMetrics {
            not_after_unix_seconds,
            accepted: taken,
            rejected: refused,
        } = figures;
        page.gauge(&CERTIFICATE_EXPIRY, [([], not_after_unix_seconds as f64)])?;
        page.counter(&CERTIFICATES, [(["taken"], taken), (["refused"], refused)])
    }

    fn callers(&self, page: &mut Writer<'_>) -> fmt::Result {
        let Some(figures) = (self.callers)() else {
            return Ok(());
        };
        let CallersFigures {
            callers: _,
            taken,
            refused,
        } = figures;
        page.counter(&CALLER_LISTS, [(["taken"], taken), (["refused"], refused)])
    }

    fn tokens(&self, page: &mut Writer<'_>) -> fmt::Result {
        let Some(figures) = (self.tokens)() else {
            return Ok(());
        };
        let TokenMetrics {
            verified,
            cached,
            cache_entries,
            rejected,
            keys,
            revocations,
            revocations_rejected,
            revocations_shrunk,
        } = figures;
        let believed = [(["verified"], verified), (["remembered"], cached)];
        page.counter(&TOKENS, believed)?;
        let refused = rejected
            .iter()
            .map(|(reason, count)| ([reason.code()], *count));
        page.counter(&TOKENS_REFUSED, refused)?;
        page.gauge(&TOKENS_HELD, [([], cache_entries as f64)])?;
        // Issuers are no label: there may be any number, and /status tells of each.
        let without = keys.iter().filter(|keys| keys.keys == 0).count();
        page.gauge(&ISSUERS_WITHOUT_KEYS, [([], without as f64)])?;
        let oldest = keys.iter().filter_map(|keys| keys.age).max();
        page.gauge(&KEYS_AGE, oldest.map(|age| ([], age.as_secs_f64())))?;
        let sum = |count: fn(&IssuerKeyMetrics) -> u64| keys.iter().map(count).sum();
        let sets = [
            (["taken"], sum(|keys| keys.accepted)),
            (["failed"], sum(|keys| keys.failed)),
        ];
        page.counter(&KEY_SETS, sets)?;
        page.gauge(&REVOCATIONS, [([], revocations as f64)])?;
        page.counter(&REVOCATIONS_REFUSED, [([], revocations_rejected)])?;
        page.counter(&REVOCATIONS_SHRUNK, [([], revocations_shrunk)])
    }

    fn store(&self, page: &mut Writer<'_>) -> fmt::Result {
        let status = self.store.load();
        let ReloadCounts {
            reloaded,
            unchanged,
            rejected: refused,
            held_back,
        } = status.reloads;
        let reloads = [
            (["reloaded"], reloaded),
            (["unchanged"], unchanged),
            (["refused"], refused),
            (["held_back"], held_back),
        ];
        page.counter(&RELOADS, reloads)?;
        let is_refused = truth(status.rejected.is_some());
        page.gauge(&STORE_REFUSED, [([], is_refused)])?;
        page.gauge(&STORE_WARNINGS, [([], status.warnings.len() as f64)])?;
        // Nothing is told of a revision while there is none.
        let at = status.loaded.as_ref().map(|loaded| loaded.at);
        page.gauge(&LOADED_AT, at.map(|at| ([], since_epoch(at))))?;
        // A clock that was set back makes it no younger than new.
        let age = at.map(|at| at.elapsed().unwrap_or_default());
        page.gauge(&AGE, age.map(|age| ([], age.as_secs_f64())))?;
        let loaded = status.loaded.as_ref();
        let counts = loaded.map(|loaded| loaded.counts).unwrap_or_default();
        page.gauge(&POLICIES, [([], counts.policies as f64)])?;
        page.gauge(&TEMPLATES, [([], counts.templates as f64)])?;
        page.gauge(&LINKS, [([], counts.links as f64)])?;
        page.gauge(&ENTITIES, [([], counts.entities as f64)])
    }

    fn cache(&self, page: &mut Writer<'_>) -> fmt::Result {
        let CacheMetrics {
            hits,
            misses,
            evictions,
            entries,
            bytes,
            capacity_bytes,
        } = (self.cache)().unwrap_or_default();
        page.counter(&CACHE_HITS, [([], hits)])?;
        page.counter(&CACHE_MISSES, [([], misses)])?;
        page.counter(&CACHE_EVICTIONS, [([], evictions)])?;
        page.gauge(&CACHE_ENTRIES, [([], entries as f64)])?;
        page.gauge(&CACHE_BYTES, [([], bytes as f64)])?;
        page.gauge(&CACHE_CAPACITY, [([], capacity_bytes as f64)])
    }

    fn decision_log(&self, page: &mut Writer<'_>) -> fmt::Result {
        let log = self.decision_log.as_ref();
        let DecisionLogMetrics {
            written,
            dropped,
            refused,
            failed,
            queue_bytes,
        } = log.map(DecisionLog::metrics).unwrap_or_default();
        let results = [
            (["written"], written),
            (["dropped"], dropped),
            (["refused"], refused),
        ];
        page.counter(&RECORDS, results)?;
        page.counter(&WRITE_FAILURES, [([], failed)])?;
        page.gauge(&LOG_QUEUE_BYTES, [([], queue_bytes as f64)])
    }

    fn process(&self, page: &mut Writer<'_>) -> fmt::Result {
        let ProcessFigures {
            cpu_seconds,
            resident_bytes,
            virtual_bytes,
            threads,
            open_fds,
            max_fds,
        } = ProcessFigures::now();
        page.seconds(&CPU_SECONDS, cpu_seconds)?;
        for (metric, figure) in [
            (&RESIDENT, resident_bytes),
            (&VIRTUAL, virtual_bytes),
            (&THREADS, threads),
            (&OPEN_FDS, open_fds),
            (&MAX_FDS, max_fds),
        ] {
            page.gauge(metric, figure.map(|figure| ([], figure as f64)))?;
        }
        page.gauge(&STARTED_AT, [([], since_epoch(self.started_at))])
    }
}

/// Durations are counted in nanoseconds and told in seconds.
const NANOSECONDS: f64 = 1e9;

fn truth(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}

fn since_epoch(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs_f64()
}

/// Writes metrics; one that has no series is left out.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counter<const N: usize>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = ([&'static str; N], u64)>,
    ) -> fmt::Result {
        self.write(metric, series, |encoder, count: u64| {
            encoder.encode_counter(&count, None::<&Exemplar<NoLabelSet, f64>>)
        })
    }

    fn seconds(&mut self, metric: &Metric, seconds: Option<f64>) -> fmt::Result {
        let series = seconds.map(|seconds| ([], seconds));
        self.write(metric, series, |encoder, seconds: f64| {
            encoder.encode_counter(&seconds, None::<&Exemplar<NoLabelSet, f64>>)
        })
    }

    fn gauge<const N: usize>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = ([&'static str; N], f64)>,
    ) -> fmt::Result {
        self.write(metric, series, |encoder, value: f64| {
            encoder.encode_gauge(&value)
        })
    }

    /// Bounds and values are so many times what is told.
    fn histogram<const N: usize>(
        &mut self,
        metric: &Metric,
        bounds: &[u64],
        times: f64,
        series: impl IntoIterator<Item = ([&'static str; N], Distribution)>,
    ) -> fmt::Result {
        let bounds: Vec<f64> = bounds
            .iter()
            .map(|bound| *bound as f64 / times)
            .chain([f64::INFINITY])
            .collect();
        self.write(metric, series, |encoder, seen: Distribution| {
            let buckets: Vec<(f64, u64)> = bounds
                .iter()
                .copied()
                .zip(seen.buckets.iter().copied())
                .collect();
            encoder.encode_histogram::<NoLabelSet>(
                seen.sum as f64 / times,
                seen.count(),
                &buckets,
                None,
            )
        })
    }

    fn write<const N: usize, V>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = ([&'static str; N], V)>,
        mut write: impl FnMut(&mut MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let (name, kind) = match metric.kind {
            // The encoder adds it again.
            Kind::Counter => (
                metric.name.strip_suffix("_total").unwrap_or(metric.name),
                MetricType::Counter,
            ),
            Kind::Gauge => (metric.name, MetricType::Gauge),
            Kind::Histogram => (metric.name, MetricType::Histogram),
        };
        let mut encoder = self.0.encode_descriptor(name, metric.help, None, kind)?;
        for (values, value) in series {
            let labels: Vec<(&str, &str)> = metric.labels.iter().copied().zip(values).collect();
            match labels.is_empty() {
                true => write(&mut encoder, value)?,
                false => write(&mut encoder.encode_family(&labels)?, value)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
