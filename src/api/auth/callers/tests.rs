//! Who is known by what, and what is no list of callers.

use std::fs;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, date_time_ymd};
use tempfile::TempDir;

use super::*;
use crate::api::auth::caller::IdentityKind;
use crate::api::auth::certificate::CertificateNames;
use crate::api::auth::clock::unix_seconds;

fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn list(files: &[(&str, &str)]) -> Result<List, String> {
    let dir = directory(files);
    let read = registry::read(&dir.path().join("callers.toml"), &mut FileReader::default());
    read.map_err(|error| {
        let dir = format!("{}/", dir.path().display());
        error.to_string().replace(&dir, "")
    })
}

#[track_caller]
fn refused(toml: &str, message: &str) {
    let error = list(&[("callers.toml", toml), ("short", "x"), ("empty", "\n \n")]).unwrap_err();
    assert_eq!(error, message, "for {toml}");
}

#[test]
fn what_is_no_list_of_callers_is_refused_with_its_reason() {
    refused("", "`callers.toml` lists no callers");
    refused(
        "[[caller]]\nname = 'a'\nrights = []\nuids = [1]",
        "`callers.toml`, line 4: unknown field `uids`, expected one of `name`, `spiffe`, `dns`, \
         `subject`, `uid`, `bearer`, `rights`, `identities`",
    );
    refused(
        "[[caller]]\nname = 'a'\nuid = [1]",
        "`callers.toml`, line 1: missing field `rights`",
    );
    refused(
        "[[caller]]\nname = 'a'\nuid = [1]\nrights = ['all']",
        "`callers.toml`, line 4: expected one of `authorize`, `explain`, \
         `store`, `administer`",
    );
    refused(
        "[[caller]]\nname = 'a b'\nuid = [1]\nrights = []",
        "`callers.toml`: `a b` is no name of a caller; allowed: 1 to 64 of a-z, A-Z, 0-9, `.`, `-` and `_`",
    );
    refused(
        "[[caller]]\nname = 'a'\nrights = []",
        "`callers.toml`: `a` has none of `spiffe`, `dns`, `subject`, `uid` and `bearer`",
    );
    let two = |one: &str, other: &str| {
        format!(
            "[[caller]]\nname = 'a'\n{one}\nrights = []\n[[caller]]\nname = 'b'\n{other}\nrights = []"
        )
    };
    for (one, other, mark) in [
        ("uid = [1, 2]", "uid = [3, 2]", "user id 2"),
        ("dns = ['A.test']", "dns = ['a.TEST']", "DNS name `a.test`"),
        (
            "spiffe = ['spiffe://x']",
            "spiffe = ['spiffe://x']",
            "SPIFFE id `spiffe://x`",
        ),
        ("subject = ['CN=x']", "subject = ['CN=x']", "subject `CN=x`"),
    ] {
        refused(
            &two(one, other),
            &format!("`callers.toml`: `a` and `b` are known by the same {mark}"),
        );
    }
    refused(
        &two("uid = [1]", "uid = [2]").replace("'b'", "'a'"),
        "`callers.toml`: `a` is listed twice",
    );
    let bearer = |file: &str| format!("[[caller]]\nname = 'a'\nbearer = ['{file}']\nrights = []");
    refused(
        &bearer("short"),
        "`short`, line 1: no key of a caller: it needs 16 or more visible ASCII characters",
    );
    refused(&bearer("empty"), "`empty` holds no key");
    refused(
        &bearer("nowhere"),
        "`callers.toml`: cannot read file 1 of the `bearer` of `a`: No such file or directory (os error 2)",
    );
    // A key in the place of its file is not told.
    let inline = bearer("nowhere").replace("['nowhere']", "'a-key-that-is-secret'");
    refused(&inline, "`callers.toml`, line 3: expected a sequence");
    for mark in [
        "spiffe = ['']",
        "spiffe = ['spiffe://']",
        "spiffe = ['shop/a']",
        "dns = ['']",
        "subject = [' ']",
        // Written as M\C3\BCller.
        "subject = ['CN=Müller']",
    ] {
        let kind = mark.split(' ').next().unwrap();
        refused(
            &format!("[[caller]]\nname = 'a'\n{mark}\nrights = []"),
            &format!("`callers.toml`: `a` has a `{kind}` that nothing can be known by"),
        );
    }
}

#[test]
fn a_certificate_is_read_for_its_names() {
    let names = |names: Vec<SanType>, subject: &[(DnType, &str)]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.not_after = date_time_ymd(2050, 1, 1);
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        CertificateNames::of(certificate.der()).unwrap()
    };
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let read = names(
        vec![
            uri("spiffe://shop/orders"),
            dns("Orders.Shop"),
            dns("o.shop"),
        ],
        &[
            (DnType::CountryName, "NL"),
            (DnType::OrganizationName, "Shop, \"the\" + one"),
            (DnType::CommonName, " orders"),
        ],
    );
    assert_eq!(
        read,
        CertificateNames {
            spiffe: Some("spiffe://shop/orders".to_owned()),
            dns: vec!["orders.shop".to_owned(), "o.shop".to_owned()],
            subject: r#"CN=\ orders,O=Shop\, \"the\" \+ one,C=NL"#.to_owned(),
            not_after_unix_seconds: 2_524_608_000,
        }
    );
    let two = names(vec![uri("spiffe://shop/a"), uri("spiffe://shop/b")], &[]);
    assert_eq!(two.spiffe, None, "which of the two?");
    let other = names(vec![uri("https://shop/a")], &[]);
    assert_eq!(other.spiffe, None);
    assert_eq!(other.subject, "");
    assert_eq!(CertificateNames::of(b"nonsense"), None);
}

const CALLERS: &str = r#"
[[caller]]
name = "orders"
spiffe = ["spiffe://shop/orders"]
dns = ["orders.shop"]
rights = ["authorize"]
identities = ["token"]
[[caller]]
name = "desk"
subject = ["CN=desk,O=Shop"]
uid = [1000]
rights = ["authorize", "explain"]
[[caller]]
name = "operator"
bearer = ["key"]
rights = ["store", "administer"]
"#;
const KEYS: &str = "the-first-of-two-keys\nthe-second-of-two-keys\n";

fn certificate(names: CertificateNames) -> Peer {
    Peer {
        certificate: Some(names),
        uid: None,
    }
}

fn open(dir: &TempDir) -> Arc<Callers> {
    Arc::new(Callers::open(&dir.path().join("callers.toml")).unwrap().0)
}

/// Who calls on a connection of `peer` with this `authorization`.
fn admitted(
    identification: &Arc<Identification>,
    authorization: Option<&str>,
) -> Result<String, Denied> {
    let mut headers = http::HeaderMap::new();
    if let Some(value) = authorization {
        headers.insert("authorization", value.parse().unwrap());
    }
    let admitted = identification.admit(&headers)?;
    Ok(admitted.name().to_owned())
}

#[test]
fn a_caller_is_known_by_what_is_listed_and_by_nothing_else() {
    let dir = directory(&[("callers.toml", CALLERS), ("key", KEYS)]);
    let callers = open(&dir);
    let known = |peer: Peer, authorization: Option<&str>| {
        let identification = Identification::new(Arc::clone(&callers), peer);
        // What was found out at the first call is said at the second.
        let first = admitted(&identification, authorization);
        assert_eq!(first, admitted(&identification, authorization));
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
    let who = |name: &str| Ok(name.to_owned());
    assert_eq!(known(certificate(orders()), None), who("orders"));
    assert_eq!(
        known(certificate(named("orders.shop")), None),
        who("orders")
    );
    assert_eq!(
        known(certificate(subject("CN=desk,O=Shop")), None),
        who("desk")
    );
    assert_eq!(known(user(1000), None), who("desk"));
    for peer in [
        certificate(named("orders.shop.evil")),
        certificate(subject("O=Shop,CN=desk")),
        certificate(good()),
        // A connection that has outlived its certificate.
        certificate(CertificateNames {
            not_after_unix_seconds: unix_seconds() - 1,
            ..orders()
        }),
        user(0),
        Peer::default(),
    ] {
        assert_eq!(known(peer, None), Err(Denied::UnknownCaller));
    }
    for key in ["the-first-of-two-keys", "the-second-of-two-keys"] {
        for scheme in ["Bearer", "bearer"] {
            let header = format!("{scheme} {key}");
            assert_eq!(known(Peer::default(), Some(&header)), who("operator"));
            assert_eq!(known(user(1000), Some(&header)), who("operator"));
        }
    }
    // A wrong key is not passed over for what the connection shows.
    assert_eq!(
        known(user(1000), Some("Bearer the-first-of-two-key")),
        Err(Denied::UnknownKey)
    );
    assert_eq!(known(user(1000), Some("Basic eDp5")), who("desk"));
}

#[test]
fn rights_and_identities_are_those_listed() {
    let dir = directory(&[("callers.toml", CALLERS), ("key", KEYS)]);
    let list =
        registry::read(&dir.path().join("callers.toml"), &mut FileReader::default()).unwrap();
    let orders = list
        .by_peer(&certificate(CertificateNames {
            dns: vec!["orders.shop".to_owned()],
            ..CertificateNames::default()
        }))
        .unwrap();
    assert!(orders.may(Right::Authorize) && !orders.may(Right::Explain));
    assert!(!orders.may(Right::Store) && !orders.may(Right::Administer));
    assert!(orders.may_send(IdentityKind::Token));
    assert!(!orders.may_send(IdentityKind::Principal) && !orders.may_send(IdentityKind::Anonymous));
    let operator = list
        .by_key(&KeyDigest::of(b"the-first-of-two-keys"))
        .unwrap();
    assert!(!operator.may(Right::Authorize) && operator.may(Right::Administer));
    assert!(
        operator.may_send(IdentityKind::Anonymous),
        "what is not said is any"
    );
    let mut nobody = Admitted::default();
    let missing = Err(Denied::MissingRight(Right::Store));
    assert_eq!(nobody.check(Right::Store), missing);
    assert_eq!(nobody.is_still(Right::Store), missing);
    assert_eq!(nobody.renew(Right::Store), missing);
}

#[test]
fn a_new_list_holds_for_connections_and_streams_that_stand() {
    let dir = directory(&[("callers.toml", CALLERS), ("key", KEYS)]);
    let callers = open(&dir);
    let Callers::Listed(listed) = &*callers else {
        panic!("a list");
    };
    let take = |toml: &str| {
        fs::write(dir.path().join("callers.toml"), toml).unwrap();
        listed.take(registry::read(&listed.file, &mut FileReader::default()));
    };
    let user = Peer {
        certificate: None,
        uid: Some(1000),
    };
    let connection = Identification::new(Arc::clone(&callers), user);
    let mut headers = http::HeaderMap::new();
    let mut by_uid = connection.admit(&headers).unwrap();
    headers.insert(
        "authorization",
        "Bearer the-first-of-two-keys".parse().unwrap(),
    );
    let mut by_key = connection.admit(&headers).unwrap();

    // Unchanged for both of them.
    take(&format!(
        "{CALLERS}\n[[caller]]\nname = 'new'\nuid = [7]\nrights = []"
    ));
    by_uid.renew(Right::Authorize).unwrap();
    by_key.renew(Right::Store).unwrap();

    // A bad list changes nothing.
    take("nonsense");
    by_uid.renew(Right::Authorize).unwrap();
    assert_eq!(admitted(&connection, None).unwrap(), "desk");

    // One has lost a right, the other its key.
    fs::write(dir.path().join("key"), "the-third-of-two-keys").unwrap();
    take(&CALLERS.replace(r#"["authorize", "explain"]"#, r#"["explain"]"#));
    // A call that was let in before, and whose message came after.
    let was_let_in = by_uid.clone();
    assert_eq!(
        was_let_in.is_still(Right::Authorize),
        by_uid.clone().renew(Right::Authorize)
    );
    was_let_in.is_still(Right::Authorize).unwrap_err();
    assert_eq!(by_key.is_still(Right::Store), Err(Denied::UnknownKey));
    assert_eq!(
        by_uid.renew(Right::Authorize),
        Err(Denied::MissingRight(Right::Authorize))
    );
    assert_eq!(by_key.renew(Right::Store), Err(Denied::UnknownKey));
    assert_eq!(
        admitted(&connection, Some("Bearer the-first-of-two-keys")),
        Err(Denied::UnknownKey)
    );
    assert_eq!(
        admitted(&connection, Some("Bearer the-third-of-two-keys")).unwrap(),
        "operator"
    );

    // And gone altogether.
    take(&CALLERS.replace("uid = [1000]", "uid = [1001]"));
    assert_eq!(admitted(&connection, None), Err(Denied::UnknownCaller));
    assert_eq!(by_uid.renew(Right::Explain), Err(Denied::UnknownCaller));
    assert_eq!(
        callers.figures(),
        Some(CallersFigures {
            callers: 3,
            taken: 4,
            refused: 1,
        })
    );
}

#[test]
fn of_a_key_that_was_good_a_connection_keeps_the_digest() {
    let dir = directory(&[("callers.toml", CALLERS), ("key", KEYS)]);
    let connection = Identification::new(open(&dir), Peer::default());
    let kept = || {
        let seen = connection.seen.lock().unwrap();
        let Seen { key, .. } = &*seen;
        key.as_ref()
            .map(|(digest, caller)| (*digest, caller.name().to_owned()))
    };
    for (key, is_good) in [
        ("the-first-of-two-keys", true),
        ("the-first-of-two-keyz", false),
        ("the-second-of-two-keys", true),
        ("the-second-of-two-keys", true),
    ] {
        let before = kept();
        let called = admitted(&connection, Some(&format!("Bearer {key}")));
        match is_good {
            true => {
                assert_eq!(called.as_deref(), Ok("operator"));
                let digest = KeyDigest::of(key.as_bytes());
                assert_eq!(kept(), Some((digest, "operator".to_owned())));
            }
            false => {
                assert_eq!(called, Err(Denied::UnknownKey));
                assert_eq!(kept(), before);
            }
        }
    }
}

#[test]
fn without_a_list_anyone_may_do_everything() {
    let anyone = Identification::new(Arc::new(Callers::Anyone), Peer::default());
    assert_eq!(admitted(&anyone, None).unwrap(), "anyone");
    // It may be meant for someone else on the way.
    assert_eq!(
        admitted(&anyone, Some("Bearer of-what-ever")).unwrap(),
        "anyone"
    );
    let mut admitted = anyone.admit(&http::HeaderMap::new()).unwrap();
    for right in [
        Right::Authorize,
        Right::Explain,
        Right::Store,
        Right::Administer,
    ] {
        admitted.check(right).unwrap();
        admitted.renew(right).unwrap();
    }
}
