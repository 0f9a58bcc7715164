//! Metrics of TLS.

use std::fmt;

use super::{Tls, TlsMetrics};
use crate::counters::page::{Export, Page, metrics};

metrics! {
    CERTIFICATE_EXPIRY = Gauge "cedar_pdp_tls_certificate_expiry_timestamp_seconds" []
        "Expiry of the certificate chain, in seconds since 1970; absent without TLS";
    CERTIFICATES = Counter "cedar_pdp_tls_certificates_total" ["result"]
        "Certificate pairs and CA files read, by result (taken, refused)";
}

impl Export for TlsMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        page.value(&CERTIFICATE_EXPIRY, self.not_after_unix_seconds as f64)?;
        let results = [(["taken"], self.accepted), (["refused"], self.rejected)];
        page.counter(&CERTIFICATES, results)
    }
}

impl Export for Tls {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        self.metrics().export(page)
    }
}
