//! What a verified certificate says of its holder: the names that a caller may be known by.

use x509_parser::extensions::GeneralName;

use crate::api::auth::distinguished_name;

/// The names in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CertificateNames {
    /// Its SPIFFE id, if it is the certificate of a workload.
    pub(crate) spiffe: Option<String>,
    /// Its DNS names, in lower case.
    pub(crate) dns: Vec<String>,
    /// Its subject, as openssl writes it.
    pub(crate) subject: String,
    /// When it expires, in seconds since 1970.
    pub(crate) not_after_unix_seconds: i64,
}

impl CertificateNames {
    /// The names in the certificate with this DER; `None` for what is no certificate, or has names
    /// that could be those of another.
    pub(in crate::api) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = match certificate.subject_alternative_name() {
            Ok(Some(extension)) => extension.value.general_names.as_slice(),
            Ok(None) => &[],
            // Named twice: which of the two was meant?
            Err(_) => return None,
        };
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        for name in names {
            if let GeneralName::URI(uri) = name {
                uris.push(*uri);
            } else if let GeneralName::DNSName(name) = name {
                dns.push(name.to_ascii_lowercase());
            }
        }
        Some(Self {
            // One with more URIs than one is no SPIFFE id, says its specification.
            spiffe: match uris.as_slice() {
                [uri] if uri.starts_with("spiffe://") => Some((*uri).to_owned()),
                _ => None,
            },
            dns,
            subject: distinguished_name::written(certificate.subject())?,
            not_after_unix_seconds: certificate.validity().not_after.timestamp(),
        })
    }

    /// Whether it was no longer good at this time, in seconds since 1970.
    pub(crate) fn has_expired(&self, unix_seconds: i64) -> bool {
        self.not_after_unix_seconds <= unix_seconds
    }
}
