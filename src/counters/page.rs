//! The metrics page: how each part declares its metrics and exports their values to Prometheus.
//!
//! Nothing here counts, and nothing here knows which parts there are.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::Distribution;

/// The media type of a metrics page.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Nanoseconds per second: durations are counted in nanoseconds and exported in seconds.
pub(crate) const NANOSECONDS: f64 = 1e9;

/// The declaration of a metric: name, type, labels and HELP text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The full name.
    pub name: &'static str,
    /// The type.
    pub kind: Kind,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The HELP text, one line.
    pub help: &'static str,
}

/// The Prometheus type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value that only goes up.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Counts of values by size.
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

/// Declares the metrics of a part as constants, and `METRICS`, the list of them.
macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(const $constant: $crate::counters::page::Metric = $crate::counters::page::Metric {
            name: $name,
            kind: $crate::counters::page::Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)+

        /// The metrics that this file exports, in the order of the page.
        pub(crate) const METRICS: &[$crate::counters::page::Metric] = &[$($constant),+];
    };
}
pub(crate) use metrics;

/// A part of the service that exports metrics.
pub trait Export: Send + Sync {
    /// Writes the current values to `page`.
    fn export(&self, page: &mut Page<'_>) -> fmt::Result;
}

/// The parts whose metrics make up the page, in its order.
pub struct Exporters(Registry);

impl Exporters {
    /// Creates a page of the metrics of `parts`.
    #[must_use]
    pub fn new(parts: Vec<Arc<dyn Export>>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Parts(parts)));
        Self(registry)
    }

    /// Returns the page with the current values, in Prometheus' text format.
    ///
    /// Takes about 200 us: it reads files of the kernel, and takes each lock of the cache for a
    /// moment. Do not call it on a thread that serves calls.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(32 << 10);
        // INVARIANT: writing to a `String` cannot fail.
        let _ = prometheus_text::encode(&mut text, &self.0);
        text
    }
}

struct Parts(Vec<Arc<dyn Export>>);

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} parts", self.0.len())
    }
}

impl Collector for Parts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.0.iter().try_for_each(|part| part.export(&mut page))
    }
}

/// A metrics page that is being written. A metric without series is left out.
pub struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    pub(crate) fn counter<'a, const N: usize>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = ([&'a str; N], u64)>,
    ) -> fmt::Result {
        self.write(metric, series, |encoder, count: u64| {
            encoder.encode_counter(&count, None::<&Exemplar<NoLabelSet, f64>>)
        })
    }

    /// Writes a counter of seconds; `None` leaves it out.
    pub(crate) fn seconds_counter(&mut self, metric: &Metric, seconds: Option<f64>) -> fmt::Result {
        let series = seconds.map(|seconds| ([], seconds));
        self.write(metric, series, |encoder, seconds: f64| {
            encoder.encode_counter(&seconds, None::<&Exemplar<NoLabelSet, f64>>)
        })
    }

    pub(crate) fn gauge<const N: usize>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = ([&'static str; N], f64)>,
    ) -> fmt::Result {
        self.write(metric, series, |encoder, value: f64| {
            encoder.encode_gauge(&value)
        })
    }

    /// Writes a gauge without labels; `None` leaves it out.
    pub(crate) fn value(&mut self, metric: &Metric, value: impl Into<Option<f64>>) -> fmt::Result {
        self.gauge(metric, value.into().map(|value| ([], value)))
    }

    /// Writes a gauge of a time, in seconds since 1970; `None` leaves it out.
    pub(crate) fn timestamp(&mut self, metric: &Metric, at: Option<SystemTime>) -> fmt::Result {
        let since = at.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default());
        self.value(metric, since.map(|since| since.as_secs_f64()))
    }

    /// Writes a histogram. `bounds` and sums are divided by `unit`.
    pub(crate) fn histogram<const N: usize>(
        &mut self,
        metric: &Metric,
        bounds: &[u64],
        unit: f64,
        series: impl IntoIterator<Item = ([&'static str; N], Distribution)>,
    ) -> fmt::Result {
        let bounds = bounds.iter().map(|bound| *bound as f64 / unit);
        let bounds: Vec<f64> = bounds.chain([f64::INFINITY]).collect();
        self.write(metric, series, |encoder, values: Distribution| {
            let buckets = bounds.iter().copied().zip(values.buckets.iter().copied());
            let buckets: Vec<(f64, u64)> = buckets.collect();
            let sum = values.sum as f64 / unit;
            encoder.encode_histogram::<NoLabelSet>(sum, values.count(), &buckets, None)
        })
    }

    fn write<'a, const N: usize, V>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = ([&'a str; N], V)>,
        mut write: impl FnMut(&mut MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let (name, kind) = match metric.kind {
            // The encoder adds the suffix again.
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
