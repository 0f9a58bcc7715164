//! Tests of loading and reloading TLS files.

use std::fs;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::*;
use crate::config::api::ClientCertificates;

/// Creates a certificate and its key, in PEM.
fn pair(not_after: i32) -> (String, String) {
    pair_from(1975, not_after)
}

fn pair_from(not_before: i32, not_after: i32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["pdp.test".to_owned()]).unwrap();
    params.not_before = date_time_ymd(not_before, 1, 1);
    params.not_after = date_time_ymd(not_after, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// The files of a TLS configuration, in a temporary directory.
struct Files {
    dir: TempDir,
    settings: TlsSettings,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = TlsSettings {
            certificate: dir.path().join("tls.crt"),
            key: dir.path().join("tls.key"),
            clients: ClientCertificates::None,
        };
        Self { dir, settings }
    }

    fn with(certificate: &str, key: &str) -> Self {
        let files = Self::new();
        files.write(certificate, key);
        files
    }

    fn write(&self, certificate: &str, key: &str) {
        fs::write(&self.settings.certificate, certificate).unwrap();
        fs::write(&self.settings.key, key).unwrap();
    }

    fn open(&self) -> Result<Arc<Tls>, TlsError> {
        Tls::open(self.settings.clone()).map(|(tls, _)| tls)
    }

    /// Reloads `tls` from the current files.
    fn reload(&self, tls: &Tls) {
        tls.reload(credentials::read(
            &self.settings,
            &mut FileReader::default(),
        ));
    }
}

#[track_caller]
fn check_rejected(files: &Files, message: &str) {
    let error = files.open().unwrap_err().to_string();
    let error = error.replace(&files.dir.path().display().to_string(), "");
    assert!(error.contains(message), "{error}");
}

#[test]
fn invalid_pair_is_rejected_with_its_reason() {
    let (certificate, key) = pair(2100);
    let (_, other_key) = pair(2100);
    check_rejected(&Files::new(), "cannot read `/tls.crt`: No such file");
    check_rejected(
        &Files::with(&certificate, &other_key),
        "`/tls.crt` and `/tls.key` are not a usable certificate and key",
    );
    check_rejected(
        &Files::with("", &key),
        "`/tls.crt` does not contain a certificate in PEM: no certificate found",
    );
    check_rejected(
        &Files::with(&certificate[..certificate.len() / 2], &key),
        "`/tls.crt` does not contain a certificate in PEM",
    );
    check_rejected(
        &Files::with(&certificate, "garbage"),
        "`/tls.key` does not contain a private key in PEM",
    );
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    check_rejected(
        &Files::with(garbage, &key),
        "`/tls.crt` contains an invalid certificate",
    );
    let mut files = Files::with(&certificate, &key);
    let authorities = files.dir.path().join("ca.crt");
    fs::write(&authorities, "nothing").unwrap();
    files.settings.clients = ClientCertificates::Required(authorities);
    check_rejected(&files, "`/ca.crt` does not contain a certificate in PEM");
}

#[test]
fn expiry_is_the_earliest_of_the_chain() {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.not_after = date_time_ymd(2050, 1, 1);
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec!["pdp.test".to_owned()]).unwrap();
    leaf.not_after = date_time_ymd(2060, 1, 1);
    let leaf = leaf.signed_by(&key, &root).unwrap();
    let files = Files::with(
        &format!("{}{}", leaf.pem(), root.pem()),
        &key.serialize_pem(),
    );
    let metrics = files.open().unwrap().metrics();
    assert_eq!(metrics.not_after_unix_seconds, 2_524_608_000);
}

#[test]
fn only_valid_pair_replaces_the_current_one() {
    let (certificate, key) = pair(2100);
    let files = Files::with(&certificate, &key);
    let tls = files.open().unwrap();
    let first = tls.config.load();

    let (expired, expired_key) = pair(2001);
    let (_, other_key) = pair(2100);
    for (certificate, key) in [
        (&certificate[..100], &key[..]),
        (&certificate, &other_key),
        ("", ""),
        (&expired, &expired_key),
    ] {
        files.write(certificate, key);
        files.reload(&tls);
        assert!(Arc::ptr_eq(&first, &tls.config.load()));
    }
    fs::remove_file(&files.settings.key).unwrap();
    files.reload(&tls);
    assert!(Arc::ptr_eq(&first, &tls.config.load()));

    let (certificate, key) = pair(2090);
    files.write(&certificate, &key);
    files.reload(&tls);
    assert!(!Arc::ptr_eq(&first, &tls.config.load()));
    assert_eq!(
        tls.metrics(),
        TlsMetrics {
            not_after_unix_seconds: 3_786_912_000,
            accepted: 2,
            rejected: 5,
        }
    );
}

#[test]
fn future_pair_is_used_once_it_is_valid() {
    let (certificate, key) = pair(2100);
    let files = Files::with(&certificate, &key);
    let tls = files.open().unwrap();
    let (later, later_key) = pair_from(2090, 2110);
    files.write(&later, &later_key);
    files.reload(&tls);
    assert_eq!((tls.metrics().accepted, tls.metrics().rejected), (1, 1));
    let begins = 3_786_912_000;
    tls.use_pair_that_became_valid(begins - 1);
    assert_eq!(tls.metrics().accepted, 1);
    tls.use_pair_that_became_valid(begins);
    assert_eq!(tls.metrics().accepted, 2);
    tls.use_pair_that_became_valid(begins);
    assert_eq!(tls.metrics().accepted, 2, "once");
}

#[test]
fn later_write_discards_a_future_pair() {
    let (certificate, key) = pair(2100);
    let files = Files::with(&certificate, &key);
    let tls = files.open().unwrap();
    for since in ["", certificate.as_str()] {
        let (later, later_key) = pair_from(2090, 2110);
        files.write(&later, &later_key);
        files.reload(&tls);
        files.write(since, &key);
        files.reload(&tls);
        tls.use_pair_that_became_valid(3_786_912_000);
        assert_eq!(tls.metrics().accepted, 1);
    }
}

#[test]
fn expired_pair_may_replace_an_expired_one() {
    let (certificate, key) = pair(2001);
    let files = Files::with(&certificate, &key);
    let tls = files.open().unwrap();
    let (certificate, key) = pair(2002);
    files.write(&certificate, &key);
    files.reload(&tls);
    assert_eq!(tls.metrics().accepted, 2);
}

/// Creates a CA certificate, in PEM.
fn authority(name: &str) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

#[test]
fn pair_and_authorities_reload_independently() {
    let (certificate, key) = pair(2100);
    let mut files = Files::with(&certificate, &key);
    let file = files.dir.path().join("ca.crt");
    files.settings.clients = ClientCertificates::Required(file.clone());
    let (kept, removed) = (authority("kept"), authority("removed"));
    fs::write(&file, format!("{kept}{removed}")).unwrap();
    let tls = files.open().unwrap();
    // The number of trusted CA certificates, of accepted files and of rejected ones.
    let counts = || {
        let loaded = tls.loaded();
        let trusted = loaded.authorities.as_ref().unwrap().roots.len();
        (trusted, loaded.metrics.accepted, loaded.metrics.rejected)
    };
    assert_eq!(counts(), (2, 2, 0));
    let first = Arc::clone(&tls.loaded().pair.key);
    let config = tls.config.load();

    let (expired, expired_key) = pair(2001);
    fs::write(&file, &kept).unwrap();
    files.write(&expired, &expired_key);
    files.reload(&tls);
    assert_eq!(
        counts(),
        (1, 3, 1),
        "a CA was removed, the pair has expired"
    );
    assert!(Arc::ptr_eq(&first, &tls.loaded().pair.key));
    assert!(!Arc::ptr_eq(&config, &tls.config.load()));

    fs::write(&file, format!("{kept}{}", authority("added"))).unwrap();
    files.write("", &key);
    files.reload(&tls);
    assert_eq!(counts(), (2, 4, 2), "a CA was added, the pair is invalid");

    let (certificate, key) = pair(2090);
    for (at, bad) in [Some("nonsense"), None].into_iter().enumerate() {
        match bad {
            Some(bad) => fs::write(&file, bad).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        files.write(&certificate, &key);
        files.reload(&tls);
        assert_eq!(
            counts(),
            (2, 5, 3 + at as u64),
            "a valid pair, accepted once"
        );
    }
    assert_eq!(tls.metrics().not_after_unix_seconds, 3_786_912_000);

    let config = tls.config.load();
    fs::write(&file, &kept).unwrap();
    files.reload(&tls);
    assert_eq!(counts(), (1, 6, 4));
    assert!(!Arc::ptr_eq(&config, &tls.config.load()));
}
