//! What is served with, and what is not taken for it.

use std::fs;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::*;

/// A certificate and its key, PEM.
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

    /// Has it take what the files hold now.
    fn take(&self, tls: &Tls) {
        tls.take(read(&self.settings, &mut FileReader::default()));
    }
}

#[track_caller]
fn refused(files: &Files, message: &str) {
    let error = files.open().unwrap_err().to_string();
    let error = error.replace(&files.dir.path().display().to_string(), "");
    assert!(error.contains(message), "{error}");
}

#[test]
fn a_pair_that_is_none_is_refused_with_its_reason() {
    let (certificate, key) = pair(2100);
    let (_, other_key) = pair(2100);
    refused(&Files::new(), "cannot read `/tls.crt`: No such file");
    refused(
        &Files::with(&certificate, &other_key),
        "`/tls.crt` and `/tls.key` are no pair to serve with",
    );
    refused(
        &Files::with("", &key),
        "`/tls.crt` does not hold a certificate in PEM: there is none",
    );
    refused(
        &Files::with(&certificate[..certificate.len() / 2], &key),
        "`/tls.crt` does not hold a certificate in PEM",
    );
    refused(
        &Files::with(&certificate, "garbage"),
        "`/tls.key` does not hold a private key in PEM",
    );
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    refused(
        &Files::with(garbage, &key),
        "`/tls.crt` holds what is no certificate",
    );
    let mut files = Files::with(&certificate, &key);
    let authorities = files.dir.path().join("ca.crt");
    fs::write(&authorities, "nothing").unwrap();
    files.settings.clients = ClientCertificates::Required(authorities);
    refused(&files, "`/ca.crt` does not hold a certificate in PEM");
}

#[test]
fn the_first_of_a_chain_to_expire_is_told() {
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
fn a_good_pair_replaces_and_a_bad_one_changes_nothing() {
    let (certificate, key) = pair(2100);
    let files = Files::with(&certificate, &key);
    let tls = files.open().unwrap();
    let first = Arc::clone(&tls.in_force().config);

    let (expired, expired_key) = pair(2001);
    let (_, other_key) = pair(2100);
    for (certificate, key) in [
        (&certificate[..100], &key[..]),
        (&certificate, &other_key),
        ("", ""),
        (&expired, &expired_key),
    ] {
        files.write(certificate, key);
        files.take(&tls);
        assert!(Arc::ptr_eq(&first, &tls.in_force().config));
    }
    fs::remove_file(&files.settings.key).unwrap();
    files.take(&tls);
    assert!(Arc::ptr_eq(&first, &tls.in_force().config));

    let (certificate, key) = pair(2090);
    files.write(&certificate, &key);
    files.take(&tls);
    assert!(!Arc::ptr_eq(&first, &tls.in_force().config));
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
fn one_that_is_not_valid_yet_is_taken_when_its_time_has_come() {
    let (certificate, key) = pair(2100);
    let files = Files::with(&certificate, &key);
    let tls = files.open().unwrap();
    let (later, later_key) = pair_from(2090, 2110);
    files.write(&later, &later_key);
    files.take(&tls);
    assert_eq!((tls.metrics().accepted, tls.metrics().rejected), (1, 1));
    let begins = 3_786_912_000;
    tls.take_held(begins - 1);
    assert_eq!(tls.metrics().accepted, 1);
    tls.take_held(begins);
    assert_eq!(tls.metrics().accepted, 2);
    tls.take_held(begins);
    assert_eq!(tls.metrics().accepted, 2, "once");
}

#[test]
fn one_that_is_not_valid_yet_is_forgotten_for_what_is_written_since() {
    let (certificate, key) = pair(2100);
    let files = Files::with(&certificate, &key);
    let tls = files.open().unwrap();
    for since in ["", certificate.as_str()] {
        let (later, later_key) = pair_from(2090, 2110);
        files.write(&later, &later_key);
        files.take(&tls);
        files.write(since, &key);
        files.take(&tls);
        tls.take_held(3_786_912_000);
        assert_eq!(tls.metrics().accepted, 1);
    }
}

#[test]
fn one_that_has_expired_is_replaced_by_another_if_there_is_no_better() {
    let (certificate, key) = pair(2001);
    let files = Files::with(&certificate, &key);
    let tls = files.open().unwrap();
    let (certificate, key) = pair(2002);
    files.write(&certificate, &key);
    files.take(&tls);
    assert_eq!(tls.metrics().accepted, 2);
}

/// A certificate that may sign others, PEM.
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
fn a_pair_and_authorities_hold_each_other_not_back() {
    let (certificate, key) = pair(2100);
    let mut files = Files::with(&certificate, &key);
    let file = files.dir.path().join("ca.crt");
    files.settings.clients = ClientCertificates::Required(file.clone());
    let (staying, leaving) = (authority("staying"), authority("leaving"));
    fs::write(&file, format!("{staying}{leaving}")).unwrap();
    let tls = files.open().unwrap();
    // How many authorities are trusted, what was taken, and what was refused.
    let stands = || {
        let in_force = tls.in_force();
        let trusted = in_force.authorities.as_ref().unwrap().roots.len();
        (
            trusted,
            in_force.metrics.accepted,
            in_force.metrics.rejected,
        )
    };
    assert_eq!(stands(), (2, 2, 0));
    let first = Arc::clone(&tls.in_force().pair.key);
    let config = Arc::clone(&tls.in_force().config);

    let (expired, expired_key) = pair(2001);
    fs::write(&file, &staying).unwrap();
    files.write(&expired, &expired_key);
    files.take(&tls);
    assert_eq!(stands(), (1, 3, 1), "one that leaves, a pair that is late");
    assert!(Arc::ptr_eq(&first, &tls.in_force().pair.key));
    assert!(!Arc::ptr_eq(&config, &tls.in_force().config));

    fs::write(&file, format!("{staying}{}", authority("coming"))).unwrap();
    files.write("", &key);
    files.take(&tls);
    assert_eq!(stands(), (2, 4, 2), "one that comes, a pair that is none");

    let (certificate, key) = pair(2090);
    for (at, bad) in [Some("nonsense"), None].into_iter().enumerate() {
        match bad {
            Some(bad) => fs::write(&file, bad).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        files.write(&certificate, &key);
        files.take(&tls);
        assert_eq!(stands(), (2, 5, 3 + at as u64), "a good pair, taken once");
    }
    assert_eq!(tls.metrics().not_after_unix_seconds, 3_786_912_000);

    let config = Arc::clone(&tls.in_force().config);
    fs::write(&file, &staying).unwrap();
    files.take(&tls);
    assert_eq!(stands(), (1, 6, 4));
    assert!(!Arc::ptr_eq(&config, &tls.in_force().config));
}
