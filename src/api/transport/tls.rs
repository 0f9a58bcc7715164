//! TLS on TCP connections, with certificates that are replaced while the service runs.
//!
//! A handshake uses the configuration that is current when it begins. A new certificate/key pair
//! replaces the current one only if it is valid as a whole; otherwise the current pair stays in
//! use, so clients that could connect still can. Client CA certificates are accepted or rejected
//! independently of the pair: a CA that is removed loses its trust even if the new pair is invalid.
//! Identifying a caller by its certificate is not done here.

mod credentials;
mod error;
pub(crate) mod metrics;

use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::credentials::{Authorities, BaseConfig, FileTexts, KeyPair};
pub use self::error::TlsError;
use crate::api::auth::clock::unix_seconds;
use crate::config::api::TlsSettings;
use crate::versioned::Versioned;
use crate::watch::WatchSettings;
use crate::watch::files::{FileReader, Fingerprint, reload_on_change};

/// Interval at which a pair that was rejected for its validity period is checked again.
const VALIDITY_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The expiry of the current certificate, and the counts of reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsMetrics {
    /// Expiry of the current certificate, in Unix seconds; of a chain, the earliest.
    pub not_after_unix_seconds: i64,
    /// Pairs and sets of client CA certificates that were accepted, the first ones included.
    pub accepted: u64,
    /// Pairs and sets of client CA certificates that were rejected.
    pub rejected: u64,
}

/// The server side of TLS.
#[derive(Debug)]
pub struct Tls {
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
    ///
    /// # Errors
    ///
    /// [`TlsError`].
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
                "the certificate has expired or is not valid yet, clients will reject it",
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

    /// Returns the current metrics.
    #[must_use]
    pub fn metrics(&self) -> TlsMetrics {
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
        tracing::info!("client CA certificates replaced, new connections use them");
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
            "certificate replaced, new connections use it",
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

#[cfg(test)]
mod tests;
