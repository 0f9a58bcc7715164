//! The keys of one issuer: parses a JWKS or a secret, and selects the keys that may verify a token.
//!
//! Nothing here does I/O: `fetch` and `refresh` get the text.

pub(super) mod fetch;
pub(super) mod refresh;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

const MAX_KEYS: usize = 256;

/// Most keys that are tried for one token.
///
/// Each costs a verification, and a token that names no key could make the service try all of them.
const MAX_CANDIDATES: usize = 4;

/// Length of the shortest accepted RSA modulus, in bytes.
const MIN_RSA_BYTES: usize = 256;

/// An error in a text that should hold keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// The text is not a JWKS.
    #[error("not a JWKS, a JSON object with a list `keys`")]
    NotJwks,
    /// The set has too many keys.
    #[error("more than {MAX_KEYS} keys")]
    TooMany,
    /// The shared secret is short enough to be guessed.
    #[error("a secret for these algorithms must have at least {0} bytes")]
    ShortSecret(usize),
}

/// The usable keys of one issuer.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// The SHA-256 of the text that the keys were parsed from.
    digest: [u8; 32],
}

/// An error: more keys could have signed a token than are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyCandidates;

/// A key that can verify signatures.
#[derive(Debug)]
pub(super) struct Key {
    kid: Kid,
    /// The algorithms that it may be used with.
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

#[derive(Debug, PartialEq, Eq)]
enum Kid {
    Named(String),
    Unnamed,
    /// The id of a shared secret, which is the only key and matches any `kid`.
    Any,
}

impl KeySet {
    /// Parses a JWKS and keeps the keys that can verify by one of the `allowed` algorithms.
    ///
    /// Unusable keys (for encryption, of an unknown kind, too weak, private) are skipped: a set may
    /// hold keys for other services. The result may be empty: an issuer can withdraw all its keys.
    pub(super) fn from_jwks(text: &[u8], allowed: &[Algorithm]) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<serde_json::Value>,
        }
        let Jwks { keys } = serde_json::from_slice(text).map_err(|_| KeySetError::NotJwks)?;
        if keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
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

    /// Reads a shared secret, without a final line break.
    pub(super) fn from_secret(text: &[u8], allowed: &[Algorithm]) -> Result<Self, KeySetError> {
        let secret = text.strip_suffix(b"\n").unwrap_or(text);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        // RFC 7518, 3.2: a secret must be at least as long as the hash.
        let hash_sizes = allowed.iter().map(|algorithm| hash_bytes(*algorithm));
        let min_bytes = hash_sizes.max().unwrap_or(32);
        if secret.len() < min_bytes {
            return Err(KeySetError::ShortSecret(min_bytes));
        }
        let algorithms = allowed
            .iter()
            .copied()
            .filter(|algorithm| algorithm.family() == AlgorithmFamily::Hmac)
            .collect();
        Ok(Self {
            keys: vec![Key {
                kid: Kid::Any,
                algorithms,
                decoding: DecodingKey::from_secret(secret),
            }],
            digest: Sha256::digest(text).into(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn has_same_text(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Returns the keys that may have made a signature by `algorithm`.
    pub(super) fn candidates(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<&Key>, TooManyCandidates> {
        let found: Vec<&Key> = self
            .keys
            .iter()
            .filter(|key| key.algorithms.contains(&algorithm))
            .filter(|key| match (&key.kid, kid) {
                (Kid::Any, _) | (_, None) => true,
                (Kid::Named(name), Some(kid)) => name == kid,
                (Kid::Unnamed, Some(_)) => false,
            })
            .collect();
        if found.len() > MAX_CANDIDATES {
            return Err(TooManyCandidates);
        }
        Ok(found)
    }
}

impl Key {
    /// Returns the key's id in its set.
    pub(super) fn kid(&self) -> Option<&str> {
        match &self.kid {
            Kid::Named(name) => Some(name),
            Kid::Unnamed | Kid::Any => None,
        }
    }

    /// Returns whether this key made `signature`, in base64url, over the text `signed`.
    pub(super) fn has_signed(&self, signed: &str, signature: &str, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
            && jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &self.decoding, algorithm)
                .unwrap_or(false)
    }
}

fn hash_bytes(algorithm: Algorithm) -> usize {
    if algorithm == Algorithm::HS512 {
        64
    } else if algorithm == Algorithm::HS384 {
        48
    } else {
        32
    }
}

/// A key of a JWKS (RFC 7517), with the members that are used.
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
    /// Returns the key, if it can verify by one of the `allowed` algorithms.
    fn into_key(self, allowed: &[Algorithm]) -> Option<Key> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        if let Some(operations) = &self.key_ops
            && !operations.iter().any(|operation| operation == "verify")
        {
            return None;
        }
        let (supported, decoding) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => (AlgorithmFamily::Rsa.algorithms(), self.rsa_key()?),
            ("EC", Some("P-256")) => (&[Algorithm::ES256][..], self.ec_key(32)?),
            ("EC", Some("P-384")) => (&[Algorithm::ES384][..], self.ec_key(48)?),
            ("OKP", Some("Ed25519")) => {
                let public = decode(self.x.as_deref()?).filter(|public| public.len() == 32)?;
                (&[Algorithm::EdDSA][..], DecodingKey::from_ed_der(&public))
            }
            // A secret (`oct`) is never accepted from a published set.
            (_, _) => return None,
        };
        let only: Option<Algorithm> = match self.alg {
            None => None,
            // A key for an unsupported algorithm is unusable.
            Some(name) => Some(name.parse().ok()?),
        };
        let algorithms: Vec<Algorithm> = supported
            .iter()
            .copied()
            .filter(|algorithm| only.is_none_or(|only| only == *algorithm))
            .filter(|algorithm| allowed.contains(algorithm))
            .collect();
        (!algorithms.is_empty()).then_some(Key {
            kid: self.kid.map_or(Kid::Unnamed, Kid::Named),
            algorithms,
            decoding,
        })
    }

    fn rsa_key(&self) -> Option<DecodingKey> {
        let modulus = decode(self.n.as_deref()?)?;
        // Leading zeros do not count.
        let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
        if significant < MIN_RSA_BYTES {
            return None;
        }
        let exponent = decode(self.e.as_deref()?)?;
        Some(DecodingKey::from_rsa_raw_components(&modulus, &exponent))
    }

    fn ec_key(&self, coordinate_bytes: usize) -> Option<DecodingKey> {
        let coordinate = |text: &Option<String>| {
            decode(text.as_deref()?).filter(|bytes| bytes.len() == coordinate_bytes)
        };
        let point = [&[4][..], &coordinate(&self.x)?, &coordinate(&self.y)?].concat();
        Some(DecodingKey::from_ec_der(&point))
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests;
