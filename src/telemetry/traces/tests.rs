//! Sampling, and the bound on queued spans.

use super::*;

fn parent(flags: &str) -> Option<TraceParent> {
    let header = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
    TraceParent::parse(&header)
}

fn sampler(is_parent_based: bool, ratio: f64) -> CallSampler {
    CallSampler {
        is_parent_based,
        root: Sampler::TraceIdRatioBased(ratio),
        ids: RandomIdGenerator::default(),
    }
}

#[test]
fn parent_based_sampler_follows_the_caller() {
    let (sampled, unsampled) = (parent("01"), parent("00"));
    for (is_parent_based, ratio, parent, expected) in [
        (true, 0.0, sampled, true),
        (true, 1.0, unsampled, false),
        (true, 1.0, None, true),
        (true, 0.0, None, false),
        (false, 1.0, unsampled, true),
        (false, 0.0, sampled, false),
    ] {
        let trace_id = sampler(is_parent_based, ratio).sample(parent);
        assert_eq!(trace_id.is_some(), expected, "{ratio} {parent:?}");
        if let (Some(trace_id), Some(parent)) = (trace_id, parent) {
            assert_eq!(trace_id, parent.trace_id);
        }
    }
}

#[test]
fn full_queue_drops_and_counts_spans() {
    let metrics = SpanMetrics::default();
    assert!(metrics.enter_queue(2) && metrics.enter_queue(2));
    assert!(!metrics.enter_queue(2));
    assert_eq!(metrics.spans(SpanResult::Dropped), 1);
    metrics.leave_queue(2);
    assert!(metrics.enter_queue(2));
    assert_eq!(metrics.spans(SpanResult::Dropped), 1);
}
