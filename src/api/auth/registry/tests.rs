//! Lists of callers that are accepted or rejected, and the rights that they give.

use super::*;
use crate::api::auth::caller::{IdentityKind, Right};
use crate::api::auth::peer::CertificateNames;
use crate::api::auth::tests::{CALLERS, KEYS, directory};
use crate::watch::files::FileReader;

fn read_list(files: &[(&str, &str)]) -> Result<Registry, String> {
    let dir = directory(files);
    let list = read(&dir.path().join("callers.toml"), &mut FileReader::default());
    list.map_err(|error| {
        let dir = format!("{}/", dir.path().display());
        error.to_string().replace(&dir, "")
    })
}

#[track_caller]
fn check_rejected(toml: &str, message: &str) {
    let error =
        read_list(&[("callers.toml", toml), ("short", "x"), ("empty", "\n \n")]).unwrap_err();
    assert_eq!(error, message, "for {toml}");
}

#[test]
fn invalid_list_is_rejected_with_its_reason() {
    check_rejected("", "`callers.toml` lists no callers");
    check_rejected(
        "[[caller]]\nname = 'a'\nrights = []\nuids = [1]",
        "`callers.toml`, line 4: unknown field `uids`, expected one of `name`, `spiffe`, `dns`, \
         `subject`, `uid`, `bearer`, `rights`, `identities`",
    );
    check_rejected(
        "[[caller]]\nname = 'a'\nuid = [1]",
        "`callers.toml`, line 1: missing field `rights`",
    );
    check_rejected(
        "[[caller]]\nname = 'a'\nuid = [1]\nrights = ['all']",
        "`callers.toml`, line 4: expected one of `authorize`, `explain`, \
         `store`, `administer`",
    );
    check_rejected(
        "[[caller]]\nname = 'a b'\nuid = [1]\nrights = []",
        "`callers.toml`: invalid caller name `a b`; allowed: 1 to 64 of a-z, A-Z, 0-9, `.`, `-` and `_`",
    );
    check_rejected(
        "[[caller]]\nname = 'a'\nrights = []",
        "`callers.toml`: `a` has none of `spiffe`, `dns`, `subject`, `uid` and `bearer`",
    );
}

#[test]
fn callers_with_equal_credentials_are_rejected() {
    let two = |one: &str, other: &str| {
        format!(
            "[[caller]]\nname = 'a'\n{one}\nrights = []\n[[caller]]\nname = 'b'\n{other}\nrights = []"
        )
    };
    for (one, other, credential) in [
        ("uid = [1, 2]", "uid = [3, 2]", "user id 2"),
        ("dns = ['A.test']", "dns = ['a.TEST']", "DNS name `a.test`"),
        (
            "spiffe = ['spiffe://x']",
            "spiffe = ['spiffe://x']",
            "SPIFFE id `spiffe://x`",
        ),
        ("subject = ['CN=x']", "subject = ['CN=x']", "subject `CN=x`"),
    ] {
        check_rejected(
            &two(one, other),
            &format!("`callers.toml`: `a` and `b` have the same {credential}"),
        );
    }
    check_rejected(
        &two("uid = [1]", "uid = [2]").replace("'b'", "'a'"),
        "`callers.toml`: `a` is listed twice",
    );
}

#[test]
fn invalid_keys_are_rejected_without_quoting_them() {
    let bearer = |file: &str| format!("[[caller]]\nname = 'a'\nbearer = ['{file}']\nrights = []");
    check_rejected(
        &bearer("short"),
        "`short`, line 1: invalid key: at least 16 visible ASCII characters are required",
    );
    check_rejected(&bearer("empty"), "`empty` contains no key");
    check_rejected(
        &bearer("nowhere"),
        "`callers.toml`: cannot read file 1 of the `bearer` of `a`: No such file or directory (os error 2)",
    );
    // A key in place of its file is not quoted.
    let inline = bearer("nowhere").replace("['nowhere']", "'a-key-that-is-secret'");
    check_rejected(&inline, "`callers.toml`, line 3: expected a sequence");
}

#[test]
fn invalid_credentials_are_rejected() {
    for credential in [
        "spiffe = ['']",
        "spiffe = ['spiffe://']",
        "spiffe = ['shop/a']",
        "dns = ['']",
        "subject = [' ']",
        // Printed as M\C3\BCller.
        "subject = ['CN=Müller']",
    ] {
        let kind = credential.split(' ').next().unwrap();
        check_rejected(
            &format!("[[caller]]\nname = 'a'\n{credential}\nrights = []"),
            &format!("`callers.toml`: `a` has an invalid `{kind}`"),
        );
    }
}

#[test]
fn rights_and_identities_are_as_listed() {
    let dir = directory(&[("callers.toml", CALLERS), ("key", KEYS)]);
    let list = read(&dir.path().join("callers.toml"), &mut FileReader::default()).unwrap();
    let orders = list
        .find_by_peer(&Peer {
            certificate: Some(CertificateNames {
                dns: vec!["orders.shop".to_owned()],
                ..CertificateNames::default()
            }),
            uid: None,
        })
        .unwrap();
    assert!(orders.may(Right::Authorize) && !orders.may(Right::Explain));
    assert!(!orders.may(Right::Store) && !orders.may(Right::Administer));
    assert!(orders.may_send(IdentityKind::Token));
    assert!(!orders.may_send(IdentityKind::Principal) && !orders.may_send(IdentityKind::Anonymous));
    let operator = list
        .find_by_key(&KeyDigest::of(b"the-first-of-two-keys"))
        .unwrap();
    assert!(!operator.may(Right::Authorize) && operator.may(Right::Administer));
    assert!(
        operator.may_send(IdentityKind::Anonymous),
        "the default is every kind"
    );
}
