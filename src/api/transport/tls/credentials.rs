//! Reads certificates, keys and client CA certificates, and builds a TLS configuration from them.
//!
//! Nothing here decides whether new files replace the current ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};

use super::TlsError;
use crate::config::api::{ClientCertificates, TlsSettings};
use crate::watch::files::FileReader;

/// A builder with the cryptography and protocol versions that every configuration shares.
pub(super) type BaseConfig = ConfigBuilder<ServerConfig, WantsVerifier>;

/// The content of all files. An unreadable file does not affect the others.
pub(super) struct FileTexts {
    /// The certificate and its key.
    pub(super) pair: Result<(Vec<u8>, Vec<u8>), TlsError>,
    /// The client CA certificates, with their file; `None` if client certificates are not
    /// requested.
    pub(super) authorities: Option<Result<(PathBuf, Vec<u8>), TlsError>>,
}

/// The server's certificate chain with its private key.
#[derive(Debug)]
pub(super) struct KeyPair {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) validity: Validity,
}

/// The client CA certificates, and the verifier that uses them.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) roots: Arc<RootCertStore>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// The period in which a whole chain is valid, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

impl Validity {
    pub(super) fn contains(self, unix_seconds: i64) -> bool {
        self.not_before <= unix_seconds && unix_seconds < self.not_after
    }
}

impl KeyPair {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        // INVARIANT: the key matches its certificate, so an equal certificate has the same key.
        self.key.cert == other.key.cert
    }

    pub(super) fn parse(
        settings: &TlsSettings,
        base: &BaseConfig,
        (certificate, key): &(Vec<u8>, Vec<u8>),
    ) -> Result<Self, TlsError> {
        let chain = parse_certificates(&settings.certificate, certificate)?;
        let validity = chain_validity(&settings.certificate, &chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem {
            file: settings.key.clone(),
            expected: "a private key",
            reason: error.to_string(),
        })?;
        let key = CertifiedKey::from_der(chain, key, base.crypto_provider())
            .map_err(|error| unusable_pair(settings, &error))?;
        Ok(Self {
            key: Arc::new(key),
            validity,
        })
    }
}

impl Authorities {
    /// Parses the client CA certificates. `settings` say whether a client must send a certificate.
    pub(super) fn parse(
        settings: &TlsSettings,
        base: &BaseConfig,
        (file, text): &(PathBuf, Vec<u8>),
    ) -> Result<Self, TlsError> {
        let unusable = |reason: String| TlsError::Authorities {
            file: file.clone(),
            reason,
        };
        let mut roots = RootCertStore::empty();
        for certificate in parse_certificates(file, text)? {
            roots
                .add(certificate)
                .map_err(|error| unusable(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::clone(base.crypto_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider);
        let verifier = match settings.clients {
            ClientCertificates::Optional(_) => verifier.allow_unauthenticated(),
            ClientCertificates::None | ClientCertificates::Required(_) => verifier,
        };
        let verifier = verifier
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { roots, verifier })
    }
}

pub(super) fn read(settings: &TlsSettings, reader: &mut FileReader) -> FileTexts {
    // Every file is read even if another one fails: only files that were read are watched.
    let certificate = reader.read(&settings.certificate);
    let key = reader.read(&settings.key);
    let authorities = match &settings.clients {
        ClientCertificates::None => None,
        ClientCertificates::Optional(file) | ClientCertificates::Required(file) => Some(file),
    };
    FileTexts {
        pair: certificate
            .and_then(|certificate| Ok((certificate, key?)))
            .map_err(TlsError::from),
        authorities: authorities.map(|file| Ok((file.clone(), reader.read(file)?))),
    }
}

/// Creates the part that every configuration shares.
pub(super) fn base_config(settings: &TlsSettings) -> Result<BaseConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable_pair(settings, &error))
}

fn unusable_pair(settings: &TlsSettings, error: &rustls::Error) -> TlsError {
    TlsError::Pair {
        certificate: settings.certificate.clone(),
        key: settings.key.clone(),
        reason: error.to_string(),
    }
}

pub(super) fn server_config(
    base: &BaseConfig,
    pair: &KeyPair,
    authorities: Option<&Authorities>,
) -> ServerConfig {
    let base = base.clone();
    let builder = match authorities {
        None => base.with_no_client_auth(),
        Some(authorities) => base.with_client_cert_verifier(Arc::clone(&authorities.verifier)),
    };
    let pair = SingleCertAndKey::from(Arc::clone(&pair.key));
    let mut config = builder.with_cert_resolver(Arc::new(pair));
    config.alpn_protocols = vec![b"h2".to_vec()];
    if authorities.is_some() {
        // A resumed session keeps the client certificate of its first handshake, unverified. It
        // would outlive the certificate's expiry and the removal of its CA. gRPC connections are
        // long, so full handshakes cost little.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config
}

/// Parses the certificates in `text`, at least one.
fn parse_certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::Pem {
        file: file.to_owned(),
        expected: "a certificate",
        reason,
    };
    let all: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    match all.is_empty() {
        true => Err(failed("no certificate found".to_owned())),
        false => Ok(all),
    }
}

/// Returns the period in which all certificates of the chain are valid.
fn chain_validity(file: &Path, chain: &[CertificateDer<'_>]) -> Result<Validity, TlsError> {
    let mut all = Validity {
        not_before: i64::MIN,
        not_after: i64::MAX,
    };
    for certificate in chain {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| {
            TlsError::Certificate {
                file: file.to_owned(),
                reason: error.to_string(),
            }
        })?;
        let own = parsed.validity();
        all.not_before = all.not_before.max(own.not_before.timestamp());
        all.not_after = all.not_after.min(own.not_after.timestamp());
    }
    Ok(all)
}
