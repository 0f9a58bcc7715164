//! Parses a token: a JWS in compact serialisation, read strictly. Nothing is verified here.
//!
//! Header members that hold or locate keys (`jku`, `x5u`, `x5c`, `jwk`) are never read: an issuer's
//! keys come from where the operator configured.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;

use super::json::{Json, Object, parse_object};
use super::rejection::{RejectionReason, TokenRejection};

/// A token in valid form, not verified.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ParsedToken<'a> {
    /// The text that the signature covers.
    pub(super) signed: &'a str,
    /// The signature, in base64url.
    pub(super) signature: &'a str,
    pub(super) header: Header,
    pub(super) claims: Object,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `None` for an unsupported algorithm, `none` among them.
    pub(super) algorithm: Option<Algorithm>,
    pub(super) kid: Option<String>,
    /// The media type in lower case, without an `application/` prefix.
    pub(super) typ: Option<String>,
}

pub(super) fn parse(text: &str) -> Result<ParsedToken<'_>, TokenRejection> {
    let not_three_parts = || malformed("the token is not three parts separated by dots");
    let (signed, signature) = text.rsplit_once('.').ok_or_else(not_three_parts)?;
    let (header, claims) = signed
        .split_once('.')
        .filter(|(_, claims)| !claims.contains('.'))
        .ok_or_else(not_three_parts)?;
    let header = decode(header, "header")?;
    let claims = decode(claims, "payload")?;
    decode(signature, "signature")?;
    Ok(ParsedToken {
        signed,
        signature,
        header: parse_header(parse_part(&header, "header")?)?,
        claims: parse_part(&claims, "payload")?,
    })
}

fn malformed(detail: impl Into<Cow<'static, str>>) -> TokenRejection {
    TokenRejection::new(RejectionReason::Malformed, detail)
}

/// Decodes strict base64url: no padding, no unused bits, so that each content has just one text.
fn decode(text: &str, part: &str) -> Result<Vec<u8>, TokenRejection> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| malformed(format!("the token's {part} is not base64url")))
}

fn parse_part(text: &[u8], part: &str) -> Result<Object, TokenRejection> {
    parse_object(text).map_err(|problem| malformed(format!("the token's {part} {problem}")))
}

fn parse_header(mut members: Object) -> Result<Header, TokenRejection> {
    // `crit` lists extensions that a reader must understand. None is supported.
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
    let typ = text("typ")?.map(|typ| normalize_media_type(&typ));
    Ok(Header {
        algorithm: algorithm.parse().ok(),
        kid,
        typ,
    })
}

/// Returns a media type in the form in which types are compared.
pub(super) fn normalize_media_type(text: &str) -> String {
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
    fn check_malformed(text: &str) {
        assert_eq!(
            parse(text).map_err(|rejection| rejection.reason),
            Err(RejectionReason::Malformed),
            "{text}"
        );
    }

    #[test]
    fn header_and_claims_are_parsed_without_keys() {
        let text = token(
            r#"{"alg": "ES256", "kid": "k", "typ": "application/AT+JWT", "jku": "https://evil.example",
                "x5u": "https://evil.example", "x5c": ["x"], "jwk": {"kty": "oct", "k": "x"}}"#,
            r#"{"iss": "i"}"#,
        );
        let parsed = parse(&text).unwrap();
        assert_eq!(
            parsed.header,
            Header {
                algorithm: Some(Algorithm::ES256),
                kid: Some("k".to_owned()),
                typ: Some("at+jwt".to_owned()),
            }
        );
        assert_eq!(parsed.claims["iss"], Json::String("i".to_owned()));
        assert_eq!(format!("{}.{}", parsed.signed, parsed.signature), text);
    }

    #[test]
    fn unsupported_algorithm_is_none() {
        for name in ["none", "None", "NONE", "", "es256", "ES256K", "RSA-OAEP"] {
            let text = token(&format!(r#"{{"alg": "{name}"}}"#), "{}");
            assert_eq!(parse(&text).unwrap().header.algorithm, None, "{name}");
        }
    }

    #[test]
    fn other_serialisations_are_rejected() {
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
            // The last letter has unused bits that are not zero.
            format!("{header}.{claims}.c3"),
            format!(" {header}.{claims}.c2ln"),
            format!("{header}.{claims}.c2ln\n"),
            r#"{"payload": "", "signatures": []}"#.to_owned(),
        ] {
            check_malformed(&text);
        }
    }

    #[test]
    fn invalid_header_or_claims_are_rejected() {
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
            check_malformed(&token(header, "{}"));
        }
        check_malformed(&token(r#"{"alg": "ES256"}"#, r#"{"sub": "a", "sub": "b"}"#));
        check_malformed(&token(r#"{"alg": "ES256"}"#, "[]"));
    }
}
