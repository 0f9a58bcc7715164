//! Issuer keys, and tokens signed with them, valid or not.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

/// One signing key of an issuer.
pub struct Signer {
    pub kid: String,
    pub algorithm: Algorithm,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    /// Generates a key.
    pub fn new(kid: &str, algorithm: Algorithm) -> Self {
        let (key, mut jwk) = match algorithm {
            Algorithm::ES256 => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
                let point = pair.der_bytes();
                let jwk = json!({
                    "kty": "EC", "crv": "P-256",
                    "x": encoded(&point[1..33]), "y": encoded(&point[33..]),
                });
                (EncodingKey::from_ec_der(&pair.serialize_der()), jwk)
            }
            Algorithm::EdDSA => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
                let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": encoded(pair.der_bytes())});
                (EncodingKey::from_ed_der(&pair.serialize_der()), jwk)
            }
            Algorithm::RS256 | Algorithm::PS256 => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
                let key = EncodingKey::from_rsa_der(&inner_key(&pair.serialize_der()));
                let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
                (key, serde_json::to_value(jwk).unwrap())
            }
            other => panic!("no test signs by {other:?}"),
        };
        jwk["kid"] = json!(kid);
        jwk["use"] = json!("sig");
        Self {
            kid: kid.to_owned(),
            algorithm,
            key,
            jwk,
        }
    }

    /// Creates a signer with a shared secret.
    pub fn secret(secret: &[u8]) -> Self {
        Self {
            kid: String::new(),
            algorithm: Algorithm::HS256,
            key: EncodingKey::from_secret(secret),
            jwk: Value::Null,
        }
    }

    /// Returns the public key.
    pub fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// Returns the header of its tokens.
    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm, "typ": "at+jwt", "kid": self.kid})
    }

    /// Signs a token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }

    /// Signs any header and claims.
    pub fn sign(&self, header: &str, claims: &str) -> String {
        let message = format!(
            "{}.{}",
            encoded(header.as_bytes()),
            encoded(claims.as_bytes())
        );
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

/// Returns a JWKS of these keys.
pub fn jwks(signers: &[&Signer]) -> String {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

/// Encodes bytes in base64url.
pub fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Extracts the PKCS #1 key from a PKCS #8 one, where it is the last member.
fn inner_key(der: &[u8]) -> Vec<u8> {
    let (_, sequence, _) = element(der);
    let (_, _version, rest) = element(sequence);
    let (_, _algorithm, rest) = element(rest);
    let (tag, key, _) = element(rest);
    assert_eq!(tag, 4, "an octet string");
    key.to_vec()
}

/// Returns the tag and content of the first DER element, and the bytes after it.
fn element(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (length, begin) = match usize::from(der[1]) {
        short @ 0..=0x7f => (short, 2),
        long => {
            let count = long - 0x80;
            let length = der[2..2 + count]
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte));
            (length, 2 + count)
        }
    };
    (der[0], &der[begin..begin + length], &der[begin + length..])
}
