//! Metrics of admission.

use std::fmt;

use super::Admission;
use crate::counters::page::{Export, Page, metrics};

metrics! {
    QUEUE_DELAY = Gauge "cedar_pdp_queue_delay_seconds" []
        "Queueing delay of the last call that waited 1 ms; 0 if none did for 100 ms";
}

impl Export for Admission {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        page.value(&QUEUE_DELAY, self.state().queue_delay.as_secs_f64())
    }
}
