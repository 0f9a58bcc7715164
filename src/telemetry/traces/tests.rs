//! Which calls are sampled, and what is read off `traceparent`.

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn parent(flags: &str) -> Option<TraceParent> {
    TraceParent::read(&format!("00-{TRACE}-{SPAN}-{flags}"))
}

#[test]
fn the_header_is_read_as_w3c_writes_it() {
    let sampled = parent("01").unwrap();
    assert_eq!(sampled.trace, TraceId::from_hex(TRACE).unwrap());
    assert_eq!(sampled.span, SpanId::from_hex(SPAN).unwrap());
    assert_eq!(sampled.trace_hex(), TRACE.as_bytes());
    assert!(sampled.is_sampled);
    assert!(!parent("00").unwrap().is_sampled);
    assert!(parent("03").unwrap().is_sampled, "other flags may be set");
    let later = format!("01-{TRACE}-{SPAN}-01-what-comes-later");
    assert_eq!(TraceParent::read(&later), Some(sampled));
}

#[test]
fn what_is_no_header_is_no_parent() {
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
        assert_eq!(TraceParent::read(bad), None, "{bad}");
    }
}

#[test]
fn a_parent_has_the_word_where_it_is_asked() {
    let sampled = |asks_parent, root, parent| {
        let sampler = Sampler { asks_parent, root };
        sampler.sample(parent, || TraceId::from(1)).is_some()
    };
    let (yes, no) = (parent("01"), parent("00"));
    assert!(sampled(true, RootSampler::Off, yes));
    assert!(!sampled(true, RootSampler::On, no));
    assert!(sampled(true, RootSampler::On, None));
    assert!(!sampled(true, RootSampler::Off, None));
    assert!(sampled(false, RootSampler::On, no));
    assert!(!sampled(false, RootSampler::Off, yes));
}

#[test]
fn a_sampled_call_belongs_to_its_callers_trace() {
    let sampler = Sampler {
        asks_parent: true,
        root: RootSampler::On,
    };
    let own = TraceId::from(7);
    assert_eq!(sampler.sample(None, || own), Some(own));
    let trace = TraceId::from_hex(TRACE).unwrap();
    assert_eq!(sampler.sample(parent("01"), || own), Some(trace));
}

#[test]
fn a_ratio_takes_its_share_and_a_larger_one_the_same_and_more() {
    let ids = RandomIdGenerator::default();
    let traces: Vec<_> = (0..10_000).map(|_| ids.new_trace_id()).collect();
    let taken = |ratio| traces.iter().filter(move |trace| is_in(ratio, **trace));
    assert_eq!(taken(0.0).count(), 0);
    assert_eq!(taken(1.0).count(), traces.len());
    let quarter = taken(0.25).count();
    assert!((2_000..3_000).contains(&quarter), "{quarter}");
    assert!(taken(0.25).all(|trace| is_in(0.5, *trace)));
}
