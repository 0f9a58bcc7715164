//! Callers of connections, with and without a list, and after the list changes.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::api::auth::callers::CallersMetrics;
use crate::api::auth::peer::{CertificateNames, unix_seconds};
use crate::api::auth::registry;
use crate::api::auth::tests::{CALLERS, KEYS, directory};
use crate::watch::files::FileReader;

fn certificate(names: CertificateNames) -> Peer {
    Peer {
        certificate: Some(names),
        uid: None,
    }
}

fn open(dir: &TempDir) -> Arc<Callers> {
    Arc::new(Callers::open(&dir.path().join("callers.toml")).unwrap().0)
}

/// Returns the name of the caller of a call with this `authorization`.
fn authenticate(
    connection: &Arc<ConnectionAuthenticator>,
    authorization: Option<&str>,
) -> Result<String, Denied> {
    let mut headers = http::HeaderMap::new();
    if let Some(value) = authorization {
        headers.insert("authorization", value.parse().unwrap());
    }
    let caller = connection.authenticate(&headers)?;
    Ok(caller.name().to_owned())
}

#[test]
fn caller_is_identified_by_listed_credentials_only() {
    let dir = directory(&[("callers.toml", CALLERS), ("key", KEYS)]);
    let callers = open(&dir);
    let call = |peer: Peer, authorization: Option<&str>| {
        let connection = ConnectionAuthenticator::new(Arc::clone(&callers), peer);
        // The second call uses the cached lookups of the first.
        let first = authenticate(&connection, authorization);
        assert_eq!(first, authenticate(&connection, authorization));
        first
    };
    let good = || CertificateNames {
        not_after_unix_seconds: i64::MAX,
        ..CertificateNames::default()
    };
    let orders = || CertificateNames {
        spiffe: Some("spiffe://shop/orders".to_owned()),
        ..good()
    };
    let named = |dns: &str| CertificateNames {
        dns: vec!["other.shop".to_owned(), dns.to_owned()],
        ..good()
    };
    let subject = |subject: &str| CertificateNames {
        subject: subject.to_owned(),
        ..good()
    };
    let user = |uid| Peer {
        certificate: None,
        uid: Some(uid),
    };
    let caller = |name: &str| Ok(name.to_owned());
    assert_eq!(call(certificate(orders()), None), caller("orders"));
    assert_eq!(
        call(certificate(named("orders.shop")), None),
        caller("orders")
    );
    assert_eq!(
        call(certificate(subject("CN=desk,O=Shop")), None),
        caller("desk")
    );
    assert_eq!(call(user(1000), None), caller("desk"));
    for peer in [
        certificate(named("orders.shop.evil")),
        certificate(subject("O=Shop,CN=desk")),
        certificate(good()),
        // The connection outlives its certificate.
        certificate(CertificateNames {
            not_after_unix_seconds: unix_seconds() - 1,
            ..orders()
        }),
        user(0),
        Peer::default(),
    ] {
        assert_eq!(call(peer, None), Err(Denied::UnknownCaller));
    }
    for key in ["the-first-of-two-keys", "the-second-of-two-keys"] {
        for scheme in ["Bearer", "bearer"] {
            let header = format!("{scheme} {key}");
            assert_eq!(call(Peer::default(), Some(&header)), caller("operator"));
            assert_eq!(call(user(1000), Some(&header)), caller("operator"));
        }
    }
    // A wrong key is not ignored in favour of the connection's peer.
    assert_eq!(
        call(user(1000), Some("Bearer the-first-of-two-key")),
        Err(Denied::UnknownKey)
    );
    assert_eq!(call(user(1000), Some("Basic eDp5")), caller("desk"));
}

#[test]
fn new_list_applies_to_open_connections_and_streams() {
    let dir = directory(&[("callers.toml", CALLERS), ("key", KEYS)]);
    let callers = open(&dir);
    let Callers::Listed(listed) = &*callers else {
        panic!("no list");
    };
    let replace = |toml: &str| {
        fs::write(dir.path().join("callers.toml"), toml).unwrap();
        listed.replace(registry::read(&listed.file, &mut FileReader::default()));
    };
    let user = Peer {
        certificate: None,
        uid: Some(1000),
    };
    let connection = ConnectionAuthenticator::new(Arc::clone(&callers), user);
    let mut headers = http::HeaderMap::new();
    let mut by_uid = connection.authenticate(&headers).unwrap();
    headers.insert(
        "authorization",
        "Bearer the-first-of-two-keys".parse().unwrap(),
    );
    let mut by_key = connection.authenticate(&headers).unwrap();

    // Nothing changes for these two callers.
    replace(&format!(
        "{CALLERS}\n[[caller]]\nname = 'new'\nuid = [7]\nrights = []"
    ));
    by_uid.refresh(Right::Authorize).unwrap();
    by_key.refresh(Right::Store).unwrap();

    // An invalid list changes nothing.
    replace("nonsense");
    by_uid.refresh(Right::Authorize).unwrap();
    assert_eq!(authenticate(&connection, None).unwrap(), "desk");

    // One caller loses a right, the other its key.
    fs::write(dir.path().join("key"), "the-third-of-two-keys").unwrap();
    replace(&CALLERS.replace(r#"["authorize", "explain"]"#, r#"["explain"]"#));
    // A call that was authenticated before, and whose message arrives after.
    let earlier = by_uid.clone();
    assert_eq!(
        earlier.recheck(Right::Authorize),
        by_uid.clone().refresh(Right::Authorize)
    );
    earlier.recheck(Right::Authorize).unwrap_err();
    assert_eq!(by_key.recheck(Right::Store), Err(Denied::UnknownKey));
    assert_eq!(
        by_uid.refresh(Right::Authorize),
        Err(Denied::MissingRight(Right::Authorize))
    );
    assert_eq!(by_key.refresh(Right::Store), Err(Denied::UnknownKey));
    assert_eq!(
        authenticate(&connection, Some("Bearer the-first-of-two-keys")),
        Err(Denied::UnknownKey)
    );
    assert_eq!(
        authenticate(&connection, Some("Bearer the-third-of-two-keys")).unwrap(),
        "operator"
    );

    // A caller is removed from the list.
    replace(&CALLERS.replace("uid = [1000]", "uid = [1001]"));
    assert_eq!(authenticate(&connection, None), Err(Denied::UnknownCaller));
    assert_eq!(by_uid.refresh(Right::Explain), Err(Denied::UnknownCaller));
    assert_eq!(
        callers.metrics(),
        Some(CallersMetrics {
            callers: 3,
            accepted: 4,
            rejected: 1,
        })
    );
}

#[test]
fn connection_keeps_digest_of_last_valid_key() {
    let dir = directory(&[("callers.toml", CALLERS), ("key", KEYS)]);
    let connection = ConnectionAuthenticator::new(open(&dir), Peer::default());
    let cached_key = || {
        let cached = connection.cached();
        cached
            .key
            .as_ref()
            .map(|(digest, caller)| (*digest, caller.name().to_owned()))
    };
    for (key, is_valid) in [
        ("the-first-of-two-keys", true),
        ("the-first-of-two-keyz", false),
        ("the-second-of-two-keys", true),
        ("the-second-of-two-keys", true),
    ] {
        let before = cached_key();
        let result = authenticate(&connection, Some(&format!("Bearer {key}")));
        match is_valid {
            true => {
                assert_eq!(result.as_deref(), Ok("operator"));
                let digest = KeyDigest::of(key.as_bytes());
                assert_eq!(cached_key(), Some((digest, "operator".to_owned())));
            }
            false => {
                assert_eq!(result, Err(Denied::UnknownKey));
                assert_eq!(cached_key(), before);
            }
        }
    }
}

#[test]
fn missing_list_gives_anyone_every_right() {
    let anyone = ConnectionAuthenticator::new(Arc::new(Callers::Anyone), Peer::default());
    assert_eq!(authenticate(&anyone, None).unwrap(), "anyone");
    // The key may be meant for a proxy.
    assert_eq!(
        authenticate(&anyone, Some("Bearer of-what-ever")).unwrap(),
        "anyone"
    );
    let mut caller = anyone.authenticate(&http::HeaderMap::new()).unwrap();
    for right in [
        Right::Authorize,
        Right::Explain,
        Right::Store,
        Right::Administer,
    ] {
        caller.check(right).unwrap();
        caller.refresh(right).unwrap();
    }
}

#[test]
fn unauthenticated_caller_has_no_rights() {
    let mut nobody = AuthenticatedCaller::default();
    let missing = Err(Denied::MissingRight(Right::Store));
    assert_eq!(nobody.check(Right::Store), missing);
    assert_eq!(nobody.recheck(Right::Store), missing);
    assert_eq!(nobody.refresh(Right::Store), missing);
}
