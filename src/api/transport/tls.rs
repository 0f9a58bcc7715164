//! Certificates to handshakes: what TLS is spoken with, replaced while connections go on.
//!
//! A handshake takes what is in force when it begins. A pair that is written while the service runs
//! is taken when it is good as a whole, and otherwise changes nothing: what callers could connect
//! with a moment ago they still can. The authorities that callers are verified by are taken or
//! refused for themselves: one that is taken away is trusted no longer, however bad the pair beside
//! it is. Who a certificate makes its holder is not known here.

pub(crate) mod metrics;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::api::auth::clock::unix_seconds;
use crate::config::api::{ClientCertificates, TlsSettings};
use crate::watch::WatchSettings;
use crate::watch::files::{FileReader, Fingerprint, ReadError, reload_on_change};

impl ClientCertificates {
    fn authorities(&self) -> Option<&Path> {
        match self {
            Self::None => None,
            Self::Optional(file) | Self::Required(file) => Some(file),
        }
    }
}

/// Why there is nothing to speak TLS with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file holds no PEM, or cut-off PEM.
    #[error("`{}` does not hold {what} in PEM: {reason}", file.display())]
    Pem {
        /// The file.
        file: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A certificate that is none.
    #[error("`{}` holds what is no certificate: {reason}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// The key is not that of the certificate, or is none that can be used.
    #[error("`{}` and `{}` are no pair to serve with: {reason}", certificate.display(), key.display())]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// No caller could ever connect with what these authorities sign.
    #[error("`{}` holds no authorities to verify callers by: {reason}", file.display())]
    Authorities {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It has expired, or is not valid yet, and what is in force is.
    #[error("the certificate in `{}` {}", file.display(), match is_past { true => "has expired", false => "is not valid yet" })]
    OutOfTime {
        /// The file.
        file: PathBuf,
        /// Whether its time is over; else it is to come.
        is_past: bool,
    },
}

/// What TLS is spoken with, and how it came to be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsMetrics {
    /// When the certificate in force expires, in seconds since 1970; of a chain, the first to.
    pub not_after_unix_seconds: i64,
    /// How many pairs, and how many sets of authorities, were taken, the first ones included.
    pub accepted: u64,
    /// How many were refused.
    pub rejected: u64,
}

/// What handshakes are made with.
#[derive(Debug)]
pub struct Tls {
    settings: TlsSettings,
    begun: Begun,
    in_force: RwLock<InForce>,
}

/// What every configuration begins with.
type Begun = ConfigBuilder<ServerConfig, WantsVerifier>;

#[derive(Debug)]
struct InForce {
    /// What the pair and the authorities make.
    config: Arc<ServerConfig>,
    pair: Pair,
    /// `None` where callers are asked for no certificate.
    authorities: Option<Authorities>,
    metrics: TlsMetrics,
    /// The last pair that was refused for its time alone: it comes, or the clock was wrong.
    held: Option<Pair>,
}

/// What the service shows.
#[derive(Debug)]
struct Pair {
    key: Arc<CertifiedKey>,
    validity: Validity,
}

impl Pair {
    fn is(&self, other: &Self) -> bool {
        // INVARIANT: a key fits its certificate, so there is no other key to the same one.
        self.key.cert == other.key.cert
    }
}

/// What callers are verified by.
#[derive(Debug)]
struct Authorities {
    roots: Arc<RootCertStore>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// When a whole chain is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Validity {
    not_before: i64,
    not_after: i64,
}

impl Validity {
    fn holds(self, unix_seconds: i64) -> bool {
        self.not_before <= unix_seconds && unix_seconds < self.not_after
    }
}

/// How often a pair that was refused for its time is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The text of the files; what cannot be read is no matter to the rest.
struct Texts {
    pair: Result<PairText, TlsError>,
    authorities: Option<Result<AuthoritiesText, TlsError>>,
}

struct PairText {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

struct AuthoritiesText {
    file: PathBuf,
    text: Vec<u8>,
}

impl Tls {
    /// Reads the files; gives their trace too, for [`follow`](Self::follow).
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub(crate) fn open(settings: TlsSettings) -> Result<(Arc<Self>, Fingerprint), TlsError> {
        let mut reading = FileReader::default();
        let texts = read(&settings, &mut reading);
        let begun = begin(&settings)?;
        let pair = pair(&settings, &begun, &texts.pair?)?;
        let authorities = texts
            .authorities
            .map(|text| authorities(&settings, &begun, &text?))
            .transpose()?;
        if !pair.validity.holds(unix_seconds()) {
            tracing::warn!(
                file = %settings.certificate.display(),
                "the certificate has expired, or is not valid yet: no caller that looks will connect",
            );
        }
        let in_force = RwLock::new(InForce {
            config: Arc::new(server_config(&begun, &pair, authorities.as_ref())),
            metrics: TlsMetrics {
                not_after_unix_seconds: pair.validity.not_after,
                accepted: 1 + u64::from(authorities.is_some()),
                rejected: 0,
            },
            pair,
            authorities,
            held: None,
        });
        let tls = Self {
            settings,
            begun,
            in_force,
        };
        Ok((Arc::new(tls), reading.fingerprint()))
    }

    /// Takes what is written to the files from here on, when it is good. Never returns.
    pub(crate) async fn follow(self: Arc<Self>, how: WatchSettings, first: Fingerprint) {
        let settings = self.settings.clone();
        let load = move |reading: &mut FileReader| read(&settings, reading);
        let following = reload_on_change(how, first, load, |texts| self.take(texts));
        let waiting = async {
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                self.take_held(unix_seconds());
            }
        };
        tokio::join!(following, waiting);
    }

    /// How it stands.
    #[must_use]
    pub fn metrics(&self) -> TlsMetrics {
        self.in_force().metrics
    }

    /// Shakes hands; bounding the time is the caller's affair.
    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.in_force().config);
        TlsAcceptor::from(config).accept(stream).await
    }

    fn in_force(&self) -> std::sync::RwLockReadGuard<'_, InForce> {
        // It is replaced as a whole, so a panic elsewhere left it whole.
        self.in_force.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, texts: Texts) {
        let pair = texts
            .pair
            .and_then(|text| pair(&self.settings, &self.begun, &text));
        let authorities = texts
            .authorities
            .map(|text| authorities(&self.settings, &self.begun, &text?));
        let mut in_force = self.to_change();
        if let Some(authorities) = authorities {
            in_force.take_authorities(&self.begun, authorities);
        }
        in_force.held = None;
        let taken = pair.and_then(|pair| self.take_pair(&mut in_force, pair));
        if let Err(error) = taken {
            in_force.metrics.rejected += 1;
            tracing::error!(%error, "the new certificate is refused; the old one stays in force");
        }
    }

    fn take_pair(&self, in_force: &mut InForce, pair: Pair) -> Result<(), TlsError> {
        if in_force.pair.is(&pair) {
            return Ok(());
        }
        let now = unix_seconds();
        if pair.validity.holds(now) || !in_force.pair.validity.holds(now) {
            in_force.put_pair(&self.begun, pair);
            return Ok(());
        }
        let is_past = pair.validity.not_after <= now;
        in_force.held = Some(pair);
        let file = self.settings.certificate.clone();
        Err(TlsError::OutOfTime { file, is_past })
    }

    /// Takes the pair that was refused for its time, once that has come.
    fn take_held(&self, now: i64) {
        let mut in_force = self.to_change();
        if let Some(pair) = in_force.held.take_if(|held| held.validity.holds(now)) {
            in_force.put_pair(&self.begun, pair);
        }
    }

    fn to_change(&self) -> std::sync::RwLockWriteGuard<'_, InForce> {
        self.in_force
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl InForce {
    fn take_authorities(&mut self, begun: &Begun, authorities: Result<Authorities, TlsError>) {
        match authorities {
            Ok(new) => {
                let is_same = |old: &Authorities| old.roots.roots == new.roots.roots;
                if self.authorities.as_ref().is_some_and(is_same) {
                    return;
                }
                self.authorities = Some(new);
                self.taken(begun);
                tracing::info!("callers of new connections are verified by new authorities");
            }
            Err(error) => {
                self.metrics.rejected += 1;
                tracing::error!(%error, "the new client authorities are refused; the old ones stay in force");
            }
        }
    }

    fn put_pair(&mut self, begun: &Begun, pair: Pair) {
        let not_after_unix_seconds = pair.validity.not_after;
        self.pair = pair;
        self.metrics.not_after_unix_seconds = not_after_unix_seconds;
        self.taken(begun);
        tracing::info!(
            not_after_unix_seconds,
            "new connections are served with a new certificate",
        );
    }

    fn taken(&mut self, begun: &Begun) {
        self.config = Arc::new(server_config(begun, &self.pair, self.authorities.as_ref()));
        self.metrics.accepted += 1;
    }
}

fn read(settings: &TlsSettings, reading: &mut FileReader) -> Texts {
    // All are read whatever becomes of the first: each leaves its trace, by which it is followed.
    let certificate = reading.read(&settings.certificate);
    let key = reading.read(&settings.key);
    let authorities = settings.clients.authorities().map(|file| {
        Ok(AuthoritiesText {
            file: file.to_owned(),
            text: reading.read(file)?,
        })
    });
    let pair = || {
        Ok(PairText {
            certificate: certificate?,
            key: key?,
        })
    };
    Texts {
        pair: pair(),
        authorities,
    }
}

fn begin(settings: &TlsSettings) -> Result<Begun, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| no_pair(settings, &error))
}

fn no_pair(settings: &TlsSettings, error: &rustls::Error) -> TlsError {
    TlsError::Pair {
        certificate: settings.certificate.clone(),
        key: settings.key.clone(),
        reason: error.to_string(),
    }
}

/// The pair in `text`.
fn pair(settings: &TlsSettings, begun: &Begun, text: &PairText) -> Result<Pair, TlsError> {
    let chain = certificates(&settings.certificate, &text.certificate)?;
    let validity = validity(&settings.certificate, &chain)?;
    let key = PrivateKeyDer::from_pem_slice(&text.key).map_err(|error| TlsError::Pem {
        file: settings.key.clone(),
        what: "a private key",
        reason: error.to_string(),
    })?;
    let key = CertifiedKey::from_der(chain, key, begun.crypto_provider())
        .map_err(|error| no_pair(settings, &error))?;
    Ok(Pair {
        key: Arc::new(key),
        validity,
    })
}

/// The authorities in `text`; whether callers may do without is up to `settings`.
fn authorities(
    settings: &TlsSettings,
    begun: &Begun,
    text: &AuthoritiesText,
) -> Result<Authorities, TlsError> {
    let AuthoritiesText { file, text } = text;
    let refused = |reason: String| TlsError::Authorities {
        file: file.clone(),
        reason,
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, text)? {
        roots
            .add(certificate)
            .map_err(|error| refused(error.to_string()))?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::clone(begun.crypto_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider);
    let verifier = match settings.clients {
        ClientCertificates::Optional(_) => verifier.allow_unauthenticated(),
        ClientCertificates::None | ClientCertificates::Required(_) => verifier,
    };
    let verifier = verifier
        .build()
        .map_err(|error| refused(error.to_string()))?;
    Ok(Authorities { roots, verifier })
}

/// What handshakes are made with.
fn server_config(begun: &Begun, pair: &Pair, authorities: Option<&Authorities>) -> ServerConfig {
    let begun = begun.clone();
    let builder = match authorities {
        None => begun.with_no_client_auth(),
        Some(them) => begun.with_client_cert_verifier(Arc::clone(&them.verifier)),
    };
    let pair = SingleCertAndKey::from(Arc::clone(&pair.key));
    let mut config = builder.with_cert_resolver(Arc::new(pair));
    config.alpn_protocols = vec![b"h2".to_vec()];
    if authorities.is_some() {
        // A resumed session brings the certificate of its first handshake along without anyone
        // looking at it again: an authority that was taken away, or a certificate that expired,
        // would go on being good for it. Connections of gRPC are long, so little is lost.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config
}

/// The certificates in `text`, at least one.
fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::Pem {
        file: file.to_owned(),
        what: "a certificate",
        reason,
    };
    let all: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    match all.is_empty() {
        true => Err(failed("there is none".to_owned())),
        false => Ok(all),
    }
}

/// When all certificates of the chain are valid.
fn validity(file: &Path, chain: &[CertificateDer<'_>]) -> Result<Validity, TlsError> {
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

#[cfg(test)]
mod tests;
