//! TLS for clients, and certificates that change at run time.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use tonic::transport::Channel;

use super::{OPEN, sample_request};
use crate::support::pki::{Authority, Pair, connect, path_string};
use crate::support::{
    BackgroundCalls, Server, command, eventually, eventually_blocking, policy_directory,
};

fn arguments(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

async fn is_allowed(channel: Channel) -> Result<(), tonic::Status> {
    let answer = AuthorizationServiceClient::new(channel)
        .authorize(sample_request())
        .await?
        .into_inner();
    assert_eq!(answer.decision(), pb::Decision::Allow);
    Ok(())
}

/// Returns the output of `openssl s_client`.
fn openssl(address: &str, authority: &Authority, options: &[&str]) -> String {
    let Output { stdout, stderr, .. } = Command::new("openssl")
        .args(["s_client", "-connect", address, "-servername", "pdp.test"])
        .args(["-verify_return_error", "-verify_hostname", "pdp.test"])
        .arg("-CAfile")
        .arg(authority.file())
        .args(options)
        .stdin(Stdio::null())
        .output()
        .expect("openssl runs");
    String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
}

/// Returns the certificate of a new connection.
fn served_certificate(address: &str, authority: &Authority) -> String {
    let text = openssl(address, authority, &["-alpn", "h2"]);
    let begin = text.find("-----BEGIN CERTIFICATE-----").unwrap_or_default();
    let end = text.find("-----END CERTIFICATE-----").unwrap_or_default();
    text[begin..end].replace(['\n', '\r'], "")
}

fn body(pair: &Pair) -> String {
    let end = pair.certificate.find("-----END").unwrap();
    pair.certificate[..end].replace(['\n', '\r'], "")
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_gets_http2_with_modern_tls_only() {
    let (policies, authority) = (policy_directory(OPEN), Authority::generate());
    let options = authority.tls_options(&authority.server());
    let server = Server::start(policies.path(), &arguments(&options));
    for version in ["-tls1_2", "-tls1_3"] {
        let text = openssl(server.address(), &authority, &[version, "-alpn", "h2"]);
        assert!(text.contains("ALPN protocol: h2"), "{text}");
        assert!(text.contains("Verification: OK"), "{text}");
    }
    for rejected in [
        &["-tls1_1", "-cipher", "ALL@SECLEVEL=0", "-alpn", "h2"][..],
        &["-alpn", "http/1.1"],
    ] {
        let text = openssl(server.address(), &authority, rejected);
        assert!(!text.contains("BEGIN CERTIFICATE"), "{rejected:?}: {text}");
        assert!(text.contains("alert"), "{rejected:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusting_callers_end_the_handshake() {
    // Clients that trust the authority are answered.
    let (policies, authority, other) = (
        policy_directory(OPEN),
        Authority::generate(),
        Authority::generate(),
    );
    let options = authority.tls_options(&authority.server());
    let server = Server::start(policies.path(), &arguments(&options));
    let channel = connect(server.address(), authority.client_tls(None)).await;
    is_allowed(channel.unwrap()).await.unwrap();
    assert!(
        connect(server.address(), other.client_tls(None))
            .await
            .is_err()
    );
    let clear = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address()));
    let clear = clear.unwrap().connect().await;
    assert!(match clear {
        Ok(channel) => is_allowed(channel).await.is_err(),
        Err(_) => true,
    });

    let cli = |options: &[&str]| {
        let mut command = command();
        command.args(["authorize", "--connect", server.address()]);
        command.args([r#"--principal=User::"a""#, r#"--action=Action::"read""#]);
        command.arg(r#"--resource=Doc::"1""#).args(options);
        command.output().unwrap()
    };
    let file = path_string(&authority.file());
    let output = cli(&["--tls-ca", &file, "--tls-server-name", "pdp.test"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for options in [
        &["--tls-ca", &file, "--tls-server-name", "elsewhere.test"][..],
        &[
            "--tls-ca",
            &path_string(&other.file()),
            "--tls-server-name",
            "pdp.test",
        ],
        &["--tls-server-name", "pdp.test"],
        &[],
    ] {
        let output = cli(options);
        assert_eq!(output.status.code(), Some(2), "{options:?}: {output:?}");
    }
    let health = command()
        .args(["healthcheck", "--connect", server.address()])
        .args(["--tls-ca", &file, "--tls-server-name", "pdp.test"])
        .output()
        .unwrap();
    assert_eq!(health.status.code(), Some(0), "{health:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificate_request_follows_the_setting() {
    let (policies, authority, other) = (
        policy_directory(OPEN),
        Authority::generate(),
        Authority::generate(),
    );
    let own = authority.client(vec![], &[]);
    let foreign = other.client(vec![], &[]);
    // The right authority, but the wrong key usage.
    let servers = authority.server();
    for (auth, without_is_accepted) in [("optional", true), ("required", false)] {
        let mut options = authority.tls_options(&authority.server()).to_vec();
        options.extend(["--tls-client-ca".to_owned(), path_string(&authority.file())]);
        options.extend(["--tls-client-auth".to_owned(), auth.to_owned()]);
        let server = Server::start(policies.path(), &arguments(&options));
        let is_accepted = async |own: Option<&Pair>| {
            // TLS 1.3 reports a rejected certificate after the handshake.
            match connect(server.address(), authority.client_tls(own)).await {
                Ok(channel) => is_allowed(channel).await.is_ok(),
                Err(_) => false,
            }
        };
        assert!(is_accepted(Some(&own)).await, "{auth}");
        assert_eq!(is_accepted(None).await, without_is_accepted, "{auth}");
        assert!(!is_accepted(Some(&foreign)).await, "{auth}");
        assert!(!is_accepted(Some(&servers)).await, "{auth}");

        own.write(&authority.path("own.crt"), &authority.path("own.key"));
        let (certificate, key) = (
            path_string(&authority.path("own.crt")),
            path_string(&authority.path("own.key")),
        );
        let shows = ["-alpn", "h2", "-cert", &certificate, "-key", &key];
        let text = openssl(server.address(), &authority, &shows);
        assert!(
            text.contains("Acceptable client certificate CA names"),
            "{text}"
        );
        assert!(text.contains("Verification: OK"), "{text}");

        let output = command()
            .args(["authorize", "--connect", server.address()])
            .args([r#"--principal=User::"a""#, r#"--action=Action::"read""#])
            .arg(r#"--resource=Doc::"1""#)
            .args(["--tls-ca", &path_string(&authority.file())])
            .args(["--tls-server-name", "pdp.test"])
            .args(["--tls-cert", &certificate, "--tls-key", &key])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

/// Returns the exit code and error of a start that must fail.
fn failed_start(arguments: &[&str]) -> (Option<i32>, String) {
    let policies = policy_directory(OPEN);
    let mut child = command()
        .args(["serve", "--policies"])
        .arg(policies.path())
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let what = format!("the start with {arguments:?} fails");
    eventually_blocking(&what, || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

#[test]
fn invalid_key_pair_fails_the_start() {
    let authority = Authority::generate();
    let (one, other) = (authority.server(), authority.server());
    let crossed = Pair {
        certificate: one.certificate.clone(),
        key: other.key,
    };
    let cut = Pair {
        certificate: one.certificate[..200].to_owned(),
        key: one.key,
    };
    for (pair, reason) in [
        (crossed, "are not a usable certificate and key"),
        (cut, "does not contain a certificate"),
    ] {
        let options = authority.tls_options(&pair);
        let mut options = arguments(&options);
        options.extend(["--listen", "127.0.0.1:0"]);
        let (status, text) = failed_start(&options);
        assert_eq!(status, Some(2), "{text}");
        assert!(text.contains(reason), "{text}");
    }
    let (status, text) = failed_start(&["--tls-cert", "nowhere.crt", "--listen", "127.0.0.1:0"]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("`tls_cert` needs `tls_key`"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_on_public_addresses_needs_a_flag() {
    let (status, text) = failed_start(&["--listen", "127.0.0.1:0", "--listen", "0.0.0.0:0"]);
    assert_eq!(status, Some(2), "{text}");
    assert!(
        text.contains("TLS is off") && text.contains("`insecure`"),
        "{text}"
    );

    let (policies, authority) = (policy_directory(OPEN), Authority::generate());
    let meant = Server::start_listening(policies.path(), &["0.0.0.0:0"], &["--insecure"]);
    meant.wait_for_log("unauthenticated callers are accepted on a non-loopback address");
    let address = meant.address().replace("0.0.0.0", "127.0.0.1");
    is_allowed(crate::support::channel(&address).await)
        .await
        .unwrap();

    let options = authority.tls_options(&authority.server());
    let options = arguments(&options);
    let encrypted = Server::start_listening(policies.path(), &["0.0.0.0:0"], &options);
    let address = encrypted.address().replace("0.0.0.0", "127.0.0.1");
    let channel = connect(&address, authority.client_tls(None)).await.unwrap();
    is_allowed(channel).await.unwrap();
}

/// Starts clients that call continuously, on permanent and on new connections.
async fn load(address: &str, authority: &Authority) -> BackgroundCalls {
    let mut load = BackgroundCalls::new();
    for stays in [true, true, false, false] {
        let tls = authority.client_tls(None);
        let channel = connect(address, tls.clone()).await.unwrap();
        let address = address.to_owned();
        load = load.with(move || {
            let (channel, address, tls) = (channel.clone(), address.clone(), tls.clone());
            async move {
                let channel = match stays {
                    true => channel,
                    false => connect(&address, tls).await.expect("a connection"),
                };
                is_allowed(channel).await.expect("an answer");
            }
        });
    }
    load
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_changes_fail_no_call() {
    // An invalid pair is rejected; a valid one is used for new connections.
    let (policies, authority) = (policy_directory(OPEN), Authority::generate());
    let (first, second) = (authority.server(), authority.server());
    let options = authority.tls_options(&first);
    let server = Server::start(policies.path(), &arguments(&options));
    let (certificate, key) = (authority.path("tls.crt"), authority.path("tls.key"));
    let load = load(server.address(), &authority).await;
    assert_eq!(
        served_certificate(server.address(), &authority),
        body(&first)
    );

    let bad: BTreeMap<&str, Pair> = [
        (
            "are not a usable certificate and key",
            (second.certificate.as_str(), first.key.as_str()),
        ),
        (
            "does not contain a certificate",
            (&second.certificate[..300], &second.key),
        ),
        (
            "does not contain a private key",
            (&second.certificate, "garbage"),
        ),
    ]
    .into_iter()
    .map(|(reason, (certificate, key))| {
        let pair = Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        (reason, pair)
    })
    .collect();
    for (reason, pair) in &bad {
        pair.write(&certificate, &key);
        server.wait_for_log(reason);
        assert_eq!(
            served_certificate(server.address(), &authority),
            body(&first)
        );
    }
    second.write(&certificate, &key);
    server.wait_for_log("certificate replaced for new connections");
    assert_eq!(
        served_certificate(server.address(), &authority),
        body(&second)
    );
    load.finish().await;
    // Each rejection is logged once, however often the files are read.
    let output = server.log().matches("new certificate rejected").count();
    assert!(output <= bad.len() + 1, "{output} times:\n{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_authority_rejects_new_connections() {
    let (policies, authority, old) = (
        policy_directory(OPEN),
        Authority::generate(),
        Authority::generate(),
    );
    let clients = authority.path("clients.crt");
    std::fs::write(&clients, format!("{}{}", authority.pem(), old.pem())).unwrap();
    let own = authority.server();
    let mut options = authority.tls_options(&own).to_vec();
    options.extend(["--tls-client-ca".to_owned(), path_string(&clients)]);
    options.extend(["--tls-client-auth".to_owned(), "required".to_owned()]);
    let server = Server::start(policies.path(), &arguments(&options));
    let leaving = old.client(vec![], &[]);
    // One client configuration throughout: it keeps its TLS session, which could be resumed.
    let tls = authority.client_tls(Some(&leaving));
    let channel = connect(server.address(), tls.clone()).await.unwrap();
    is_allowed(channel.clone()).await.unwrap();
    // The server's own pair may be invalid at that time.
    Pair {
        certificate: "half a cert".to_owned(),
        key: own.key.clone(),
    }
    .write(&authority.path("tls.crt"), &authority.path("tls.key"));
    server.wait_for_log("new certificate rejected");
    std::fs::write(&clients, authority.pem()).unwrap();
    server.wait_for_log("client CA certificates replaced");
    assert_eq!(
        served_certificate(server.address(), &authority),
        body(&own),
        "the last valid pair stays in use"
    );
    let staying = authority.client(vec![], &[]);
    let channel_of_staying = connect(server.address(), authority.client_tls(Some(&staying))).await;
    is_allowed(channel_of_staying.unwrap()).await.unwrap();
    let again = match connect(server.address(), tls).await {
        Ok(channel) => is_allowed(channel).await.is_ok(),
        Err(_) => false,
    };
    assert!(!again, "its authority was removed");
    is_allowed(channel)
        .await
        .expect("its connection stays open");

    // Invalid authorities do not delay a valid pair.
    std::fs::write(&clients, "nothing").unwrap();
    server.wait_for_log("new client CA certificates rejected");
    let next = authority.server();
    next.write(&authority.path("tls.crt"), &authority.path("tls.key"));
    server.wait_for_log("certificate replaced for new connections");
    assert_eq!(
        served_certificate(server.address(), &authority),
        body(&next)
    );
    let channel = connect(server.address(), authority.client_tls(Some(&staying))).await;
    is_allowed(channel.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_are_closed() {
    // They cost little memory.
    let (policies, authority) = (policy_directory(OPEN), Authority::generate());
    let mut options = authority.tls_options(&authority.server()).to_vec();
    options.extend(["--handshake-timeout".to_owned(), "500ms".to_owned()]);
    let server = Server::start(policies.path(), &arguments(&options));
    let descriptors = || {
        let open = format!("/proc/{}/fd", server.pid());
        std::fs::read_dir(open).unwrap().count()
    };
    let channel = connect(server.address(), authority.client_tls(None))
        .await
        .unwrap();
    is_allowed(channel.clone()).await.unwrap();
    let (before, memory) = (descriptors(), server.resident_kib());
    // A record with a ClientHello that never ends.
    let mut started = vec![0x16, 0x03, 0x01, 0x40, 0x00, 0x01, 0x00, 0x3f, 0xfc];
    started.extend([0; 4_000]);
    let open: Vec<TcpStream> = (0..500)
        .map(|n| {
            let mut socket = TcpStream::connect(server.address()).unwrap();
            if n % 2 == 0 {
                socket.write_all(&started).unwrap();
            }
            socket
        })
        .collect();
    is_allowed(channel.clone()).await.unwrap();
    let grown = server.resident_kib().saturating_sub(memory);
    println!("500 half-open handshakes: {grown} KiB");
    assert!(grown < 500 * 64, "{grown} KiB");
    eventually("half-open handshakes are closed", async || {
        descriptors() <= before + 10
    })
    .await;
    is_allowed(channel).await.unwrap();
    drop(open);
}
