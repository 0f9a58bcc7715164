//! TLS as callers meet it, and certificates that change while they do.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use tonic::transport::Channel;

use crate::support::pki::{Authority, Pair, connect, shown};
use crate::support::{
    Busy, Server, command, eventually, eventually_blocking, policy_directory, request,
};

const OPEN: &[(&str, &str)] = &[("open.cedar", "permit(principal, action, resource);")];

fn ask() -> pb::AuthorizeRequest {
    request(r#"User::"a""#, r#"Action::"read""#, r#"Doc::"1""#)
}

fn arguments(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

async fn is_allowed(channel: Channel) -> Result<(), tonic::Status> {
    let answer = AuthorizationServiceClient::new(channel)
        .authorize(ask())
        .await?
        .into_inner();
    assert_eq!(answer.decision(), pb::Decision::Allow);
    Ok(())
}

/// What `openssl s_client` says of the service.
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

/// The certificate that a new connection is served with.
fn served(address: &str, authority: &Authority) -> String {
    let said = openssl(address, authority, &["-alpn", "h2"]);
    let begin = said.find("-----BEGIN CERTIFICATE-----").unwrap_or_default();
    let end = said.find("-----END CERTIFICATE-----").unwrap_or_default();
    said[begin..end].replace(['\n', '\r'], "")
}

fn body(pair: &Pair) -> String {
    let end = pair.certificate.find("-----END").unwrap();
    pair.certificate[..end].replace(['\n', '\r'], "")
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_gets_http2_with_modern_tls_only() {
    let (policies, authority) = (policy_directory(OPEN), Authority::generate());
    let options = authority.serve_with(&authority.server());
    let server = Server::start(policies.path(), &arguments(&options));
    for version in ["-tls1_2", "-tls1_3"] {
        let said = openssl(server.address(), &authority, &[version, "-alpn", "h2"]);
        assert!(said.contains("ALPN protocol: h2"), "{said}");
        assert!(said.contains("Verification: OK"), "{said}");
    }
    for refused in [
        &["-tls1_1", "-cipher", "ALL@SECLEVEL=0", "-alpn", "h2"][..],
        &["-alpn", "http/1.1"],
    ] {
        let said = openssl(server.address(), &authority, refused);
        assert!(!said.contains("BEGIN CERTIFICATE"), "{refused:?}: {said}");
        assert!(said.contains("alert"), "{refused:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusting_callers_end_the_handshake() {
    // Callers that trust the authority are answered.
    let (policies, authority, other) = (
        policy_directory(OPEN),
        Authority::generate(),
        Authority::generate(),
    );
    let options = authority.serve_with(&authority.server());
    let server = Server::start(policies.path(), &arguments(&options));
    let channel = connect(server.address(), authority.caller(None)).await;
    is_allowed(channel.unwrap()).await.unwrap();
    assert!(connect(server.address(), other.caller(None)).await.is_err());
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
    let file = shown(&authority.file());
    let told = cli(&["--tls-ca", &file, "--tls-server-name", "pdp.test"]);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    for options in [
        &["--tls-ca", &file, "--tls-server-name", "elsewhere.test"][..],
        &[
            "--tls-ca",
            &shown(&other.file()),
            "--tls-server-name",
            "pdp.test",
        ],
        &["--tls-server-name", "pdp.test"],
        &[],
    ] {
        let told = cli(options);
        assert_eq!(told.status.code(), Some(2), "{options:?}: {told:?}");
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
    // Signed by the right authority, for the wrong purpose.
    let servers = authority.server();
    for (auth, without_is_let_in) in [("optional", true), ("required", false)] {
        let mut options = authority.serve_with(&authority.server()).to_vec();
        options.extend(["--tls-client-ca".to_owned(), shown(&authority.file())]);
        options.extend(["--tls-client-auth".to_owned(), auth.to_owned()]);
        let server = Server::start(policies.path(), &arguments(&options));
        let is_let_in = async |own: Option<&Pair>| {
            // Of a certificate that is refused, TLS 1.3 tells after the handshake.
            match connect(server.address(), authority.caller(own)).await {
                Ok(channel) => is_allowed(channel).await.is_ok(),
                Err(_) => false,
            }
        };
        assert!(is_let_in(Some(&own)).await, "{auth}");
        assert_eq!(is_let_in(None).await, without_is_let_in, "{auth}");
        assert!(!is_let_in(Some(&foreign)).await, "{auth}");
        assert!(!is_let_in(Some(&servers)).await, "{auth}");

        own.write(&authority.path("own.crt"), &authority.path("own.key"));
        let (certificate, key) = (
            shown(&authority.path("own.crt")),
            shown(&authority.path("own.key")),
        );
        let shows = ["-alpn", "h2", "-cert", &certificate, "-key", &key];
        let said = openssl(server.address(), &authority, &shows);
        assert!(
            said.contains("Acceptable client certificate CA names"),
            "{said}"
        );
        assert!(said.contains("Verification: OK"), "{said}");

        let told = command()
            .args(["authorize", "--connect", server.address()])
            .args([r#"--principal=User::"a""#, r#"--action=Action::"read""#])
            .arg(r#"--resource=Doc::"1""#)
            .args(["--tls-ca", &shown(&authority.file())])
            .args(["--tls-server-name", "pdp.test"])
            .args(["--tls-cert", &certificate, "--tls-key", &key])
            .output()
            .unwrap();
        assert_eq!(told.status.code(), Some(0), "{told:?}");
    }
}

/// How a start ends that should fail, and what it says.
fn refused_start(arguments: &[&str]) -> (Option<i32>, String) {
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
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
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
        let options = authority.serve_with(&pair);
        let mut options = arguments(&options);
        options.extend(["--listen", "127.0.0.1:0"]);
        let (status, said) = refused_start(&options);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(reason), "{said}");
    }
    let (status, said) = refused_start(&["--tls-cert", "nowhere.crt", "--listen", "127.0.0.1:0"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("`tls_cert` needs `tls_key`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_on_public_addresses_needs_a_flag() {
    let (status, said) = refused_start(&["--listen", "127.0.0.1:0", "--listen", "0.0.0.0:0"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(
        said.contains("TLS is off") && said.contains("`insecure`"),
        "{said}"
    );

    let (policies, authority) = (policy_directory(OPEN), Authority::generate());
    let meant = Server::start_listening(policies.path(), &["0.0.0.0:0"], &["--insecure"]);
    meant.wait_for_log("unauthenticated callers are accepted on a non-loopback address");
    let address = meant.address().replace("0.0.0.0", "127.0.0.1");
    is_allowed(crate::support::channel(&address).await)
        .await
        .unwrap();

    let options = authority.serve_with(&authority.server());
    let options = arguments(&options);
    let encrypted = Server::start_listening(policies.path(), &["0.0.0.0:0"], &options);
    let address = encrypted.address().replace("0.0.0.0", "127.0.0.1");
    let channel = connect(&address, authority.caller(None)).await.unwrap();
    is_allowed(channel).await.unwrap();
}

/// Callers that ask all the time, on connections that stay and on ones that are new each time.
async fn load(address: &str, authority: &Authority) -> Busy {
    let mut load = Busy::new();
    for stays in [true, true, false, false] {
        let tls = authority.caller(None);
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
    // An invalid pair is rejected, a valid one is used for new connections.
    let (policies, authority) = (policy_directory(OPEN), Authority::generate());
    let (first, second) = (authority.server(), authority.server());
    let options = authority.serve_with(&first);
    let server = Server::start(policies.path(), &arguments(&options));
    let (certificate, key) = (authority.path("tls.crt"), authority.path("tls.key"));
    let load = load(server.address(), &authority).await;
    assert_eq!(served(server.address(), &authority), body(&first));

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
        assert_eq!(served(server.address(), &authority), body(&first));
    }
    second.write(&certificate, &key);
    server.wait_for_log("certificate replaced for new connections");
    assert_eq!(served(server.address(), &authority), body(&second));
    load.finish().await;
    // However often it is looked at, each is told of once.
    let told = server.log().matches("new certificate rejected").count();
    assert!(told <= bad.len() + 1, "{told} times:\n{}", server.log());
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
    let mut options = authority.serve_with(&own).to_vec();
    options.extend(["--tls-client-ca".to_owned(), shown(&clients)]);
    options.extend(["--tls-client-auth".to_owned(), "required".to_owned()]);
    let server = Server::start(policies.path(), &arguments(&options));
    let leaving = old.client(vec![], &[]);
    // One configuration for all of it: a client that keeps its session would resume it.
    let tls = authority.caller(Some(&leaving));
    let channel = connect(server.address(), tls.clone()).await.unwrap();
    is_allowed(channel.clone()).await.unwrap();
    // However bad the service's own pair is at that time.
    Pair {
        certificate: "half a cert".to_owned(),
        key: own.key.clone(),
    }
    .write(&authority.path("tls.crt"), &authority.path("tls.key"));
    server.wait_for_log("new certificate rejected");
    std::fs::write(&clients, authority.pem()).unwrap();
    server.wait_for_log("client CA certificates replaced");
    assert_eq!(
        served(server.address(), &authority),
        body(&own),
        "the last good pair goes on"
    );
    let staying = authority.client(vec![], &[]);
    let channel_of_staying = connect(server.address(), authority.caller(Some(&staying))).await;
    is_allowed(channel_of_staying.unwrap()).await.unwrap();
    let again = match connect(server.address(), tls).await {
        Ok(channel) => is_allowed(channel).await.is_ok(),
        Err(_) => false,
    };
    assert!(!again, "its authority is gone");
    is_allowed(channel).await.expect("its connection stands");

    // Nor is a good pair held back by bad authorities.
    std::fs::write(&clients, "nothing").unwrap();
    server.wait_for_log("new client CA certificates rejected");
    let next = authority.server();
    next.write(&authority.path("tls.crt"), &authority.path("tls.key"));
    server.wait_for_log("certificate replaced for new connections");
    assert_eq!(served(server.address(), &authority), body(&next));
    let channel = connect(server.address(), authority.caller(Some(&staying))).await;
    is_allowed(channel.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_are_closed() {
    // They cost little memory.
    let (policies, authority) = (policy_directory(OPEN), Authority::generate());
    let mut options = authority.serve_with(&authority.server()).to_vec();
    options.extend(["--handshake-timeout".to_owned(), "500ms".to_owned()]);
    let server = Server::start(policies.path(), &arguments(&options));
    let descriptors = || {
        let open = format!("/proc/{}/fd", server.pid());
        std::fs::read_dir(open).unwrap().count()
    };
    let channel = connect(server.address(), authority.caller(None))
        .await
        .unwrap();
    is_allowed(channel.clone()).await.unwrap();
    let (before, memory) = (descriptors(), server.resident_kib());
    // A record that announces a hello and never ends.
    let mut begun = vec![0x16, 0x03, 0x01, 0x40, 0x00, 0x01, 0x00, 0x3f, 0xfc];
    begun.extend([0; 4_000]);
    let open: Vec<TcpStream> = (0..500)
        .map(|n| {
            let mut socket = TcpStream::connect(server.address()).unwrap();
            if n % 2 == 0 {
                socket.write_all(&begun).unwrap();
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
