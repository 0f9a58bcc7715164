//! TLS on TCP connections, with certificates that are replaced while the service runs.
//!
//! A handshake uses the configuration that is current when it begins. A new certificate/key pair
//! replaces the current one only if it is valid as a whole; otherwise the current pair stays in
//! use, so clients that could connect still can. Client CA certificates are accepted or rejected
//! independently of the pair: a CA that is removed loses its trust even if the new pair is invalid.
//! Identifying a caller by its certificate is not done here.

mod credentials;

use std::fmt;
use std::future::ready;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::credentials::{Authorities, BaseConfig, FileTexts, KeyPair};
use crate::api::auth::peer::unix_seconds;
use crate::config::api::TlsSettings;
use crate::counters::page::{Export, Page, metrics};
use crate::versioned::Versioned;
use crate::watch::WatchSettings;
use crate::watch::files::{FileReader, Fingerprint, ReadError, reload_on_change};

metrics! {
    CERTIFICATE_EXPIRY = Gauge "cedar_pdp_tls_certificate_expiry_timestamp_seconds" []
        "Expiry of the certificate chain, in seconds since 1970; absent without TLS";
    CERTIFICATES = Counter "cedar_pdp_tls_certificates_total" ["result"]
        "Certificate pairs and CA files read, by result (taken, refused)";
}

/// The reason why TLS files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file contains no PEM section of the expected kind, or a truncated one.
    #[error("`{}` does not contain {expected} in PEM: {reason}", file.display())]
    Pem {
        file: PathBuf,
        expected: &'static str,
        reason: String,
    },
    /// A PEM section is not a valid X.509 certificate.
    #[error("`{}` contains an invalid certificate: {reason}", file.display())]
    Certificate { file: PathBuf, reason: String },
    /// The key does not match the certificate, or its kind is not supported.
    #[error("`{}` and `{}` are not a usable certificate and key: {reason}", certificate.display(), key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        reason: String,
    },
    /// No client certificate can be verified with these CA certificates.
    #[error("`{}` contains unusable client CA certificates: {reason}", file.display())]
    Authorities { file: PathBuf, reason: String },
    /// The new certificate is not valid now, and the current one is.
    #[error("the certificate in `{}` {}", file.display(), match has_expired { true => "has expired", false => "is not valid yet" })]
    NotValidNow { file: PathBuf, has_expired: bool },
}

/// Interval at which a pair that was rejected for its validity period is checked again.
const VALIDITY_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The expiry of the current certificate, and the counts of reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TlsMetrics {
    /// The earliest expiry of the certificates of the chain.
    pub(crate) not_after_unix_seconds: i64,
    /// Pairs and sets of client CA certificates that were accepted, the first ones included.
    pub(crate) accepted: u64,
    /// Pairs and sets of client CA certificates that were rejected.
    pub(crate) rejected: u64,
}

/// The server side of TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    settings: TlsSettings,
    base: BaseConfig,
    /// The configuration of new handshakes.
    config: Versioned<ServerConfig>,
    loaded: Mutex<Loaded>,
}

/// The loaded files, from which the configuration is built.
#[derive(Debug)]
struct Loaded {
    pair: KeyPair,
    /// `None` if client certificates are not requested.
    authorities: Option<Authorities>,
    /// The last pair, if it was rejected only for its validity period. It becomes valid later, or
    /// once the system clock is corrected.
    not_yet_valid: Option<KeyPair>,
    metrics: TlsMetrics,
}

impl Tls {
    /// Loads the files. Also returns their fingerprint, for [`reload_on_change`](Self::reload_on_change).
    pub(crate) fn open(settings: TlsSettings) -> Result<(Arc<Self>, Fingerprint), TlsError> {
        let mut reader = FileReader::default();
        let texts = credentials::read(&settings, &mut reader);
        let base = credentials::base_config(&settings)?;
        let pair = KeyPair::parse(&settings, &base, &texts.pair?)?;
        let authorities = texts
            .authorities
            .map(|text| Authorities::parse(&settings, &base, &text?))
            .transpose()?;
        if !pair.validity.contains(unix_seconds()) {
            tracing::warn!(
                file = %settings.certificate.display(),
                "certificate has expired or is not valid yet, clients will reject connections",
            );
        }
        let config = credentials::server_config(&base, &pair, authorities.as_ref());
        let metrics = TlsMetrics {
            not_after_unix_seconds: pair.validity.not_after,
            accepted: 1 + u64::from(authorities.is_some()),
            rejected: 0,
        };
        let tls = Self {
            settings,
            base,
            config: Versioned::new(config),
            loaded: Mutex::new(Loaded {
                pair,
                authorities,
                not_yet_valid: None,
                metrics,
            }),
        };
        Ok((Arc::new(tls), reader.fingerprint()))
    }

    /// Reloads the files whenever they change. Never returns.
    pub(crate) async fn reload_on_change(
        self: Arc<Self>,
        watch: WatchSettings,
        first: Fingerprint,
    ) {
        let settings = self.settings.clone();
        let load = move |reader: &mut FileReader| credentials::read(&settings, reader);
        let reload = |texts| {
            self.reload(texts);
            ready(())
        };
        let reloading = reload_on_change(watch, first, load, reload);
        let checking = async {
            loop {
                tokio::time::sleep(VALIDITY_CHECK_INTERVAL).await;
                self.use_pair_that_became_valid(unix_seconds());
            }
        };
        tokio::join!(reloading, checking);
    }

    pub(crate) fn metrics(&self) -> TlsMetrics {
        self.loaded().metrics
    }

    /// Performs the handshake. The caller limits its time.
    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config.load()).accept(stream).await
    }

    /// Replaces the pair and the client CA certificates, each if the new one is accepted.
    fn reload(&self, texts: FileTexts) {
        let pair = texts
            .pair
            .and_then(|text| KeyPair::parse(&self.settings, &self.base, &text));
        let authorities = texts
            .authorities
            .map(|text| Authorities::parse(&self.settings, &self.base, &text?));
        let mut loaded = self.loaded();
        if let Some(authorities) = authorities
            && let Err(error) = authorities.map(|new| self.replace_authorities(&mut loaded, new))
        {
            loaded.metrics.rejected += 1;
            tracing::error!(%error, "new client CA certificates rejected, the current ones stay in use");
        }
        loaded.not_yet_valid = None;
        if let Err(error) = pair.and_then(|pair| self.check_and_replace_pair(&mut loaded, pair)) {
            loaded.metrics.rejected += 1;
            tracing::error!(%error, "new certificate rejected, the current one stays in use");
        }
    }

    fn replace_authorities(&self, loaded: &mut Loaded, new: Authorities) {
        let is_same = |current: &Authorities| current.roots.roots == new.roots.roots;
        if loaded.authorities.as_ref().is_some_and(is_same) {
            return;
        }
        loaded.authorities = Some(new);
        self.rebuild_config(loaded);
        tracing::info!("client CA certificates replaced for new connections");
    }

    /// Replaces the pair, unless the new one is not valid now and the current one is.
    fn check_and_replace_pair(&self, loaded: &mut Loaded, pair: KeyPair) -> Result<(), TlsError> {
        if loaded.pair.is_same(&pair) {
            return Ok(());
        }
        let now = unix_seconds();
        if pair.validity.contains(now) || !loaded.pair.validity.contains(now) {
            self.replace_pair(loaded, pair);
            return Ok(());
        }
        let has_expired = pair.validity.not_after <= now;
        loaded.not_yet_valid = Some(pair);
        let file = self.settings.certificate.clone();
        Err(TlsError::NotValidNow { file, has_expired })
    }

    /// Replaces the current pair by the one that was rejected for its validity period, if it is
    /// valid `now`.
    fn use_pair_that_became_valid(&self, now: i64) {
        let mut loaded = self.loaded();
        let became_valid = |pair: &mut KeyPair| pair.validity.contains(now);
        if let Some(pair) = loaded.not_yet_valid.take_if(became_valid) {
            self.replace_pair(&mut loaded, pair);
        }
    }

    fn replace_pair(&self, loaded: &mut Loaded, pair: KeyPair) {
        let not_after_unix_seconds = pair.validity.not_after;
        loaded.pair = pair;
        loaded.metrics.not_after_unix_seconds = not_after_unix_seconds;
        self.rebuild_config(loaded);
        tracing::info!(
            not_after_unix_seconds,
            "certificate replaced for new connections",
        );
    }

    fn rebuild_config(&self, loaded: &mut Loaded) {
        self.config.replace(credentials::server_config(
            &self.base,
            &loaded.pair,
            loaded.authorities.as_ref(),
        ));
        loaded.metrics.accepted += 1;
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        // A panic elsewhere leaves the fields whole: each is replaced by one assignment.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

#[cfg(test)]
mod tests;
