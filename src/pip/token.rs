//! A token's outer form: a JWS in compact serialisation, read strictly, nothing believed yet.
//!
//! What a header says of keys (`jku`, `x5u`, `x5c`, `jwk`) is never read: an issuer's keys come from
//! where the operator said.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;

use super::json::{self, Json, Object, Unsound};
use super::refusal::{Reason, Refusal};

/// A token whose form is sound.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token<'a> {
    /// What was signed.
    pub(super) signed: &'a str,
    /// The signature, in base64url.
    pub(super) signature: &'a str,
    pub(super) header: Header,
    pub(super) claims: Object,
}

/// What is read of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `None` for a name that is no algorithm of ours, `none` among them.
    pub(super) algorithm: Option<Algorithm>,
    pub(super) kid: Option<String>,
    /// In lower case, without the `application/` that may be left out.
    pub(super) typ: Option<String>,
}

/// Reads a token.
pub(super) fn read(text: &str) -> Result<Token<'_>, Refusal> {
    let malformed = |detail| Refusal::new(Reason::Malformed, detail);
    let (signed, signature) = text
        .rsplit_once('.')
        .ok_or_else(|| malformed("the token is not three parts with dots between"))?;
    let (header, claims) = signed
        .split_once('.')
        .filter(|(_, claims)| !claims.contains('.'))
        .ok_or_else(|| malformed("the token is not three parts with dots between"))?;
    let header = part(header).ok_or_else(|| malformed("the token's header is not base64url"))?;
    let claims = part(claims).ok_or_else(|| malformed("the token's claims are not base64url"))?;
    part(signature).ok_or_else(|| malformed("the token's signature is not base64url"))?;
    let header = json::object(&header).map_err(|unsound| match unsound {
        Unsound::Json => malformed(
            "the token's header is no JSON in which every member stands once and no deeper than needed",
        ),
        Unsound::NoObject => malformed("the token's header is no JSON object"),
    })?;
    let header = self::header(header)?;
    let claims = json::object(&claims).map_err(|unsound| match unsound {
        Unsound::Json => malformed(
            "the token's claims are no JSON in which every member stands once and no deeper than needed",
        ),
        Unsound::NoObject => malformed("the token's claims are no JSON object"),
    })?;
    Ok(Token {
        signed,
        signature,
        header,
        claims,
    })
}

/// Without padding, without bits left over, in the alphabet of URLs: one text for each content.
fn part(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

fn header(mut members: Object) -> Result<Header, Refusal> {
    let malformed = |detail| Refusal::new(Reason::Malformed, detail);
    // What must be understood is not: there is no extension that we know.
    if members.contains_key("crit") {
        return Err(malformed("the token's header has `crit`"));
    }
    let mut text = |name| match members.remove(name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(malformed("a member of the token's header is not text")),
    };
    let algorithm = text("alg")?.ok_or_else(|| malformed("the token's header has no `alg`"))?;
    let kid = text("kid")?;
    let typ = text("typ")?.map(|typ| media_type(&typ));
    Ok(Header {
        algorithm: algorithm.parse().ok(),
        kid,
        typ,
    })
}

/// A media type as it is compared.
pub(super) fn media_type(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    match text.strip_prefix("application/") {
        Some(short) => short.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.{}", encoded(header), encoded(claims), encoded("s"))
    }

    #[track_caller]
    fn malformed(text: &str) {
        assert_eq!(
            read(text).map_err(|refusal| refusal.reason),
            Err(Reason::Malformed),
            "{text}"
        );
    }

    #[test]
    fn header_and_claims_are_read_and_what_points_to_keys_is_not() {
        let text = token(
            r#"{"alg": "ES256", "kid": "k", "typ": "application/AT+JWT", "jku": "https://evil.example",
                "x5u": "https://evil.example", "x5c": ["x"], "jwk": {"kty": "oct", "k": "x"}}"#,
            r#"{"iss": "i"}"#,
        );
        let read = read(&text).unwrap();
        assert_eq!(
            read.header,
            Header {
                algorithm: Some(Algorithm::ES256),
                kid: Some("k".to_owned()),
                typ: Some("at+jwt".to_owned()),
            }
        );
        assert_eq!(read.claims["iss"], Json::String("i".to_owned()));
        assert_eq!(format!("{}.{}", read.signed, read.signature), text);
    }

    #[test]
    fn no_algorithm_is_none_of_ours() {
        for name in ["none", "None", "NONE", "", "es256", "ES256K", "RSA-OAEP"] {
            let text = token(&format!(r#"{{"alg": "{name}"}}"#), "{}");
            assert_eq!(read(&text).unwrap().header.algorithm, None, "{name}");
        }
    }

    #[test]
    fn a_form_that_is_not_the_compact_one_is_refused() {
        let header = encoded(r#"{"alg":"ES256"}"#);
        let claims = encoded("{}");
        for text in [
            String::new(),
            "..".to_owned(),
            "a.b".to_owned(),
            format!("{header}.{claims}"),
            format!("{header}.{claims}.c2ln.c2ln"),
            format!("{header}=.{claims}.c2ln"),
            format!("{header}.{claims}.c2ln="),
            format!("{header}.{claims}.c2l+"),
            // The last letter holds bits that mean nothing.
            format!("{header}.{claims}.c3"),
            format!(" {header}.{claims}.c2ln"),
            format!("{header}.{claims}.c2ln\n"),
            r#"{"payload": "", "signatures": []}"#.to_owned(),
        ] {
            malformed(&text);
        }
    }

    #[test]
    fn a_header_that_wants_more_or_says_a_thing_twice_is_refused() {
        for header in [
            r#"{"alg": "ES256", "crit": ["b64"], "b64": false}"#,
            r#"{"alg": "ES256", "crit": []}"#,
            r#"{"alg": "ES256", "alg": "none"}"#,
            r#"{"alg": "ES256", "kid": 1}"#,
            r#"{"alg": ["ES256"]}"#,
            r#"{"kid": "k"}"#,
            "[]",
            "null",
        ] {
            malformed(&token(header, "{}"));
        }
        malformed(&token(r#"{"alg": "ES256"}"#, r#"{"sub": "a", "sub": "b"}"#));
        malformed(&token(r#"{"alg": "ES256"}"#, "[]"));
    }
}
