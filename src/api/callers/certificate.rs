//! What a verified certificate says of its holder: the names that a caller may be known by.

use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::Oid;
use x509_parser::x509::X509Name;

/// The names in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::api) struct CertificateNames {
    /// Its SPIFFE id, if it is the certificate of a workload.
    pub(super) spiffe: Option<String>,
    /// Its DNS names, in lower case.
    pub(super) dns: Vec<String>,
    /// Its subject, as RFC 4514 writes it.
    pub(super) subject: String,
    /// When it expires, in seconds since 1970.
    pub(super) not_after_unix_seconds: i64,
}

impl CertificateNames {
    /// The names in the certificate with this DER; `None` for what is no certificate.
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
            subject: subject(certificate.subject()),
            not_after_unix_seconds: certificate.validity().not_after.timestamp(),
        })
    }

    /// Whether it was no longer good at this time, in seconds since 1970.
    pub(super) fn has_expired(&self, unix_seconds: i64) -> bool {
        self.not_after_unix_seconds <= unix_seconds
    }
}

/// A name as RFC 4514 writes it, the last part first.
fn subject(name: &X509Name<'_>) -> String {
    let parts: Vec<String> = name
        .iter()
        .map(|part| {
            let attributes: Vec<String> = part
                .iter()
                .map(|attribute| {
                    let value = attribute.as_str().map_or_else(
                        // Not text: as its bytes, which no text is written like.
                        |_| format!("#{}", hex(attribute.as_slice())),
                        escaped,
                    );
                    format!("{}={value}", kind(attribute.attr_type()))
                })
                .collect();
            attributes.join("+")
        })
        .collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

/// The short name of a kind of attribute, or its number.
fn kind(oid: &Oid<'_>) -> String {
    const KNOWN: &[(&str, &str)] = &[
        ("2.5.4.3", "CN"),
        ("2.5.4.6", "C"),
        ("2.5.4.7", "L"),
        ("2.5.4.8", "ST"),
        ("2.5.4.9", "STREET"),
        ("2.5.4.10", "O"),
        ("2.5.4.11", "OU"),
        ("0.9.2342.19200300.100.1.1", "UID"),
        ("0.9.2342.19200300.100.1.25", "DC"),
    ];
    let number = oid.to_id_string();
    KNOWN
        .iter()
        .find(|(id, _)| *id == number)
        .map_or(number, |(_, name)| (*name).to_owned())
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    let last = text.chars().count().saturating_sub(1);
    for (at, letter) in text.chars().enumerate() {
        match letter {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => escaped.extend(['\\', letter]),
            '#' if at == 0 => escaped.extend(['\\', letter]),
            ' ' if at == 0 || at == last => escaped.extend(['\\', letter]),
            '\0' => escaped.push_str("\\00"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
