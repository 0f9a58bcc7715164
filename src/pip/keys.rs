//! The keys of one issuer: what a JWKS holds, and which of it may verify which signature.
//!
//! Where the text comes from (a file, a URL) and when is told elsewhere; nothing here does I/O.

pub(super) mod fetch;
pub(super) mod refresh;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// The most keys that are taken of one set.
const MAX_KEYS: usize = 256;

/// The most keys that are tried on a token that names none.
///
/// Each costs a verification, and whoever sends tokens could have all of them tried each time.
const MAX_TRIED: usize = 4;

/// The shortest RSA modulus that is taken, in bytes.
const MIN_RSA_BYTES: usize = 256;

/// Why a text gives no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// It is not what it should be.
    #[error("it is no JWKS, a JSON object with a list `keys`")]
    NoSet,
    /// It is too long a list.
    #[error("it holds more than {MAX_KEYS} keys")]
    TooMany,
    /// A shared secret that could be guessed.
    #[error("a secret for these algorithms has at least {least} bytes")]
    ShortSecret {
        /// The least.
        least: usize,
    },
}

/// The keys of one issuer, at one time.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    digest: [u8; 32],
}

/// More keys fit a token than are tried on one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyFit;

/// A key that verifies signatures.
#[derive(Debug)]
pub(super) struct Key {
    kid: Kid,
    /// By which algorithms.
    fits: Vec<Algorithm>,
    decoding: DecodingKey,
}

#[derive(Debug, PartialEq, Eq)]
enum Kid {
    Named(String),
    Unnamed,
    /// A secret from a file of its own: there is just the one.
    Any,
}

impl KeySet {
    /// The keys of the JWKS in `text` that verify by one of `allowed`: none, where an issuer has
    /// withdrawn all that it had.
    ///
    /// What cannot be used (for encryption, of a kind that is not known, too weak, private) is
    /// passed over: a set may hold keys for others.
    pub(super) fn from_jwks(text: &[u8], allowed: &[Algorithm]) -> Result<Self, BadKeys> {
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<serde_json::Value>,
        }
        let Jwks { keys } = serde_json::from_slice(text).map_err(|_| BadKeys::NoSet)?;
        if keys.len() > MAX_KEYS {
            return Err(BadKeys::TooMany);
        }
        let keys: Vec<Key> = keys
            .into_iter()
            .filter_map(|key| Jwk::deserialize(key).ok()?.into_key(allowed))
            .collect();
        Ok(Self {
            keys,
            digest: Sha256::digest(text).into(),
        })
    }

    /// The shared secret in `text`, but for a line's end behind it.
    pub(super) fn from_secret(text: &[u8], allowed: &[Algorithm]) -> Result<Self, BadKeys> {
        let secret = text.strip_suffix(b"\n").unwrap_or(text);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        // RFC 7518, 3.2: no shorter than the hash.
        let least = allowed
            .iter()
            .map(|algorithm| hash_bytes(*algorithm))
            .max()
            .unwrap_or(32);
        if secret.len() < least {
            return Err(BadKeys::ShortSecret { least });
        }
        let fits = allowed
            .iter()
            .copied()
            .filter(|algorithm| algorithm.family() == AlgorithmFamily::Hmac)
            .collect();
        Ok(Self {
            keys: vec![Key {
                kid: Kid::Any,
                fits,
                decoding: DecodingKey::from_secret(secret),
            }],
            digest: Sha256::digest(text).into(),
        })
    }

    /// How many keys can be used.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it was made from the same text.
    pub(super) fn is_of_the_text_of(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// The keys that may have made a signature by `algorithm`.
    pub(super) fn candidates(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<&Key>, TooManyFit> {
        let found: Vec<&Key> = self
            .keys
            .iter()
            .filter(|key| key.fits.contains(&algorithm))
            .filter(|key| match (&key.kid, kid) {
                (Kid::Any, _) | (_, None) => true,
                (Kid::Named(name), Some(kid)) => name == kid,
                (Kid::Unnamed, Some(_)) => false,
            })
            .collect();
        if found.len() > MAX_TRIED {
            return Err(TooManyFit);
        }
        Ok(found)
    }
}

impl Key {
    /// Its name in the set.
    pub(super) fn kid(&self) -> Option<&str> {
        match &self.kid {
            Kid::Named(name) => Some(name),
            Kid::Unnamed | Kid::Any => None,
        }
    }

    /// Whether `signature`, in base64url, is this key's under `signed`.
    pub(super) fn has_signed(&self, signed: &str, signature: &str, algorithm: Algorithm) -> bool {
        self.fits.contains(&algorithm)
            && jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &self.decoding, algorithm)
                .unwrap_or(false)
    }
}

/// How long the hash of an algorithm with a secret is.
fn hash_bytes(algorithm: Algorithm) -> usize {
    if algorithm == Algorithm::HS512 {
        64
    } else if algorithm == Algorithm::HS384 {
        48
    } else {
        32
    }
}

/// A member of a JWKS, as far as it is read.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    /// The key, if it verifies signatures by one of `allowed`.
    fn into_key(self, allowed: &[Algorithm]) -> Option<Key> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        if let Some(operations) = &self.key_ops
            && !operations.iter().any(|operation| operation == "verify")
        {
            return None;
        }
        let (kind, decoding) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let modulus = bytes(self.n.as_deref()?)?;
                // A leading zero is not of the number.
                let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
                if significant < MIN_RSA_BYTES {
                    return None;
                }
                let exponent = bytes(self.e.as_deref()?)?;
                let decoding = DecodingKey::from_rsa_raw_components(&modulus, &exponent);
                (AlgorithmFamily::Rsa.algorithms(), decoding)
            }
            ("EC", Some("P-256")) => (&[Algorithm::ES256][..], self.point(32)?),
            ("EC", Some("P-384")) => (&[Algorithm::ES384][..], self.point(48)?),
            ("OKP", Some("Ed25519")) => {
                let public = bytes(self.x.as_deref()?).filter(|public| public.len() == 32)?;
                (&[Algorithm::EdDSA][..], DecodingKey::from_ed_der(&public))
            }
            // A secret (`oct`) has no place in a set that is published.
            (_, _) => return None,
        };
        let own: Option<Algorithm> = match self.alg {
            None => None,
            // One that is not ours fits nothing.
            Some(name) => Some(name.parse().ok()?),
        };
        let fits: Vec<Algorithm> = kind
            .iter()
            .copied()
            .filter(|algorithm| own.is_none_or(|own| own == *algorithm))
            .filter(|algorithm| allowed.contains(algorithm))
            .collect();
        (!fits.is_empty()).then_some(Key {
            kid: self.kid.map_or(Kid::Unnamed, Kid::Named),
            fits,
            decoding,
        })
    }

    fn point(&self, size: usize) -> Option<DecodingKey> {
        let coordinate =
            |text: &Option<String>| bytes(text.as_deref()?).filter(|bytes| bytes.len() == size);
        let point = [&[4][..], &coordinate(&self.x)?, &coordinate(&self.y)?].concat();
        Some(DecodingKey::from_ec_der(&point))
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests;
