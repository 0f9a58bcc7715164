//! Tests of shedding, its report, and call slots.

use std::sync::Mutex;

use super::*;

/// The target delay, in milliseconds.
const TARGET: u64 = 10;

fn admission() -> Arc<Admission> {
    with_limits(Some(Duration::from_millis(TARGET)), 2)
}

fn with_limits(delay: Option<Duration>, calls: usize) -> Arc<Admission> {
    Admission::new(&AdmissionLimits { delay, calls })
}

/// Returns whether a call is admitted that starts at this millisecond and has waited this long.
fn admits(admission: &Admission, at: u64, waited: u64) -> bool {
    let time = MonotonicNanos::from_millis;
    admission.admit(time(at - waited), time(at)).is_ok()
}

fn state(admission: &Admission, at: u64) -> OverloadState {
    admission.state_at(MonotonicNanos::from_millis(at))
}

#[test]
fn short_burst_is_not_shed() {
    let admission = admission();
    for at in 1_000..1_090 {
        assert!(admits(&admission, at, at - 1_000));
    }
    assert!(admits(&admission, 1_091, 1));
    for at in 1_120..1_210 {
        assert!(admits(&admission, at, at - 1_115));
    }
}

#[test]
fn lasting_delay_is_shed_until_it_ends() {
    let admission = admission();
    let mut first_shed = None;
    for at in 1_000..1_300 {
        if !admits(&admission, at, 50) {
            first_shed.get_or_insert(at);
        } else {
            assert_eq!(first_shed, None, "every later call is shed");
        }
    }
    assert_eq!(first_shed, Some(1_101));
    // A call below the target is admitted at any time. It does not end shedding: it may have
    // started before others that have waited longer.
    assert!(admits(&admission, 1_301, TARGET));
    assert!(!admits(&admission, 1_302, TARGET + 1));
    // Shedding ends after an interval without a shed call.
    for at in 1_303..1_420 {
        assert!(admits(&admission, at, 1));
    }
    assert!(admits(&admission, 1_421, 50));
}

#[test]
fn fast_calls_do_not_hide_slow_ones() {
    let admission = admission();
    for at in 1_000..1_300 {
        assert!(admits(&admission, at, 0));
        let is_admitted = admits(&admission, at, 50);
        assert_eq!(is_admitted, at <= 1_100, "at {at}");
    }
}

#[test]
fn rare_late_calls_are_no_overload() {
    let admission = admission();
    for n in 1..100 {
        assert!(admits(&admission, n * 1_000, 500));
    }
}

#[test]
fn nothing_is_shed_without_a_target() {
    let admission = with_limits(None, 1);
    for at in 10_000..11_000 {
        assert!(admits(&admission, at, 9_000));
    }
    // The delay is measured all the same.
    let state = state(&admission, 11_000);
    assert_eq!(state.queue_delay, Duration::from_secs(9));
    assert_eq!((state.shedding_since, state.shed), (None, 0));
}

#[test]
fn state_shows_delay_and_shed_calls() {
    let admission = admission();
    assert!(admits(&admission, 1_000, 0));
    let idle = OverloadState {
        shedding_since: None,
        queue_delay: Duration::ZERO,
        shed: 0,
    };
    assert_eq!(state(&admission, 1_000), idle);

    for at in 1_001..1_200 {
        admits(&admission, at, 50);
    }
    let overloaded = state(&admission, 1_200);
    let since = overloaded.shedding_since.expect("shedding");
    // Shed from 1,102 on; the system clock is read a moment after the test's time.
    let age = since.elapsed().unwrap();
    assert!(age >= Duration::from_millis(98) && age < Duration::from_secs(20));
    assert_eq!(overloaded.queue_delay, Duration::from_millis(50));
    assert_eq!(overloaded.shed, 98);

    assert_eq!(state(&admission, 1_320), OverloadState { shed: 98, ..idle });
}

#[test]
fn delay_is_written_at_most_every_few_milliseconds() {
    let admission = admission();
    for (at, waited, measured) in [(1_000, 3, 3), (1_004, 7, 3), (1_006, 2, 2), (1_007, 0, 2)] {
        assert!(admits(&admission, at, waited));
        let measured = Duration::from_millis(measured);
        assert_eq!(state(&admission, at).queue_delay, measured, "at {at}");
    }
}

/// A log writer that keeps the lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    async fn wait_for(&self, text: &str) -> String {
        loop {
            let lines = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if let Some(line) = lines.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn start_and_stop_of_shedding_are_logged() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let admission = admission();
    let report = tokio::spawn(Arc::clone(&admission).report());
    let arrived = MonotonicNanos::now();
    while admission.admit(arrived, MonotonicNanos::now()).is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let start = lines.wait_for("overload started").await;
    assert!(
        start.contains("INFO") && start.contains("queue_delay=1"),
        "{start}"
    );
    // No further call arrives.
    let stop = lines.wait_for("overload ended").await;
    assert!(stop.contains("INFO") && stop.contains("shed=1 "), "{stop}");
    report.abort();
}

#[test]
fn streams_leave_slots_to_other_calls() {
    let admission = with_limits(None, 3);
    let streams = [(); 2].map(|()| admission.stream_slot().unwrap());
    assert_eq!(
        admission.stream_slot().unwrap_err(),
        Rejection::TooManyCalls
    );
    let other = admission.slot().unwrap();
    drop(streams);
    let _streams = [(); 2].map(|()| admission.stream_slot().unwrap());
    assert_eq!(admission.slot().unwrap_err(), Rejection::TooManyCalls);
    drop(other);
    assert!(admission.slot().is_ok());
}

#[test]
fn slots_are_returned_on_drop() {
    let admission = admission();
    let slots = [admission.slot().unwrap(), admission.slot().unwrap()];
    assert_eq!(admission.slot().unwrap_err(), Rejection::TooManyCalls);
    drop(slots);
    assert!(admission.slot().is_ok());
}
