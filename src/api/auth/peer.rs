//! The other end of a connection, the names in its certificate, and the bearer key of a call.

use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::extensions::GeneralName;

use super::distinguished_name;

/// The identity of the other end of a connection, known before its first call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The names in its certificate, which the TLS handshake has verified.
    pub(crate) certificate: Option<CertificateNames>,
    /// The user id of the process, on a Unix socket.
    pub(crate) uid: Option<u32>,
}

impl Peer {
    /// Returns whether its certificate is still valid. A connection may outlive a certificate.
    pub(super) fn is_current(&self) -> bool {
        self.certificate
            .as_ref()
            .is_none_or(|names| names.not_after_unix_seconds > unix_seconds())
    }
}

/// The names in a certificate that can identify a caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CertificateNames {
    /// The SPIFFE id, if the certificate has exactly one URI and that is one.
    pub(crate) spiffe: Option<String>,
    /// The DNS names, in lower case.
    pub(crate) dns: Vec<String>,
    /// The subject, as openssl prints it.
    pub(crate) subject: String,
    /// The expiry, in seconds since 1970.
    pub(crate) not_after_unix_seconds: i64,
}

impl CertificateNames {
    /// Returns the names in the DER of a certificate. `None` if it is not a certificate, or its names
    /// could also be those of another one.
    pub(in crate::api) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = match certificate.subject_alternative_name() {
            Ok(Some(extension)) => extension.value.general_names.as_slice(),
            Ok(None) => &[],
            // The extension occurs twice, so it is ambiguous.
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
            // A SPIFFE certificate has exactly one URI, by its specification.
            spiffe: match uris.as_slice() {
                [uri] if uri.starts_with("spiffe://") => Some((*uri).to_owned()),
                _ => None,
            },
            dns,
            subject: distinguished_name::to_text(certificate.subject())?,
            not_after_unix_seconds: certificate.validity().not_after.timestamp(),
        })
    }
}

/// Returns the time that certificates are compared with, in seconds since 1970.
pub(crate) fn unix_seconds() -> i64 {
    // With a clock before 1970 nothing has expired.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().cast_signed())
}

/// Returns the key in `authorization: Bearer …`. Several headers yield a key that nobody has.
pub(super) fn bearer_key(headers: &http::HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    const UNKNOWN_KEY: &[u8] = b"";
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let first = values.next()?;
    if values.next().is_some() {
        return Some(UNKNOWN_KEY);
    }
    let (scheme, key) = first.as_bytes().split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, date_time_ymd};

    use super::*;

    #[test]
    fn names_are_read_from_a_certificate() {
        let names = |names: Vec<SanType>, subject: &[(DnType, &str)]| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = names;
            params.not_after = date_time_ymd(2050, 1, 1);
            params.distinguished_name = DistinguishedName::new();
            for (kind, value) in subject {
                params.distinguished_name.push(kind.clone(), *value);
            }
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            CertificateNames::of(certificate.der()).unwrap()
        };
        let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let read = names(
            vec![
                uri("spiffe://shop/orders"),
                dns("Orders.Shop"),
                dns("o.shop"),
            ],
            &[
                (DnType::CountryName, "NL"),
                (DnType::OrganizationName, "Shop, \"the\" + one"),
                (DnType::CommonName, " orders"),
            ],
        );
        assert_eq!(
            read,
            CertificateNames {
                spiffe: Some("spiffe://shop/orders".to_owned()),
                dns: vec!["orders.shop".to_owned(), "o.shop".to_owned()],
                subject: r#"CN=\ orders,O=Shop\, \"the\" \+ one,C=NL"#.to_owned(),
                not_after_unix_seconds: 2_524_608_000,
            }
        );
        let two = names(vec![uri("spiffe://shop/a"), uri("spiffe://shop/b")], &[]);
        assert_eq!(two.spiffe, None, "two URIs are ambiguous");
        let other = names(vec![uri("https://shop/a")], &[]);
        assert_eq!(other.spiffe, None);
        assert_eq!(other.subject, "");
        assert_eq!(CertificateNames::of(b"nonsense"), None);
    }
}
