//! Listening addresses and start errors.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;

use cedar_pdp::api::grpc::pb;

use super::{ALL_ARE_PERMITTED, authorize, sample_request};
use crate::support::{Server, command, policy_directory};

/// Runs a `serve` that must exit by itself.
pub(super) fn serve(policies: &Path, listen: &[&str], arguments: &[&str]) -> Output {
    let mut command = command();
    command.arg("serve").arg("--policies").arg(policies);
    for address in listen {
        command.args(["--listen", address]);
    }
    command.args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_socket_replaces_a_stale_one() {
    // The socket is removed at shutdown.
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("pdp.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "a stale socket is left");
    let listen = format!("unix:{}", socket.display());
    let mut server = Server::start_listening(directory.path(), &[&listen], &[]);
    assert_eq!(server.addresses, [listen.as_str()]);
    assert_eq!(
        authorize(&server, sample_request())
            .await
            .unwrap()
            .decision(),
        pb::Decision::Allow
    );

    // A socket in use is kept; the other process continues.
    let second = serve(directory.path(), &[&listen], &[]);
    assert_eq!(second.status.code(), Some(2));
    let stderr = String::from_utf8(second.stderr).unwrap();
    assert!(stderr.contains(&listen), "{stderr}");
    assert_eq!(
        authorize(&server, sample_request())
            .await
            .unwrap()
            .decision(),
        pb::Decision::Allow
    );

    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn other_files_are_never_replaced() {
    // A path to something other than a socket fails the start.
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let precious = directory.path().join("precious");
    fs::write(&precious, "text").unwrap();
    let ended = serve(
        directory.path(),
        &[&format!("unix:{}", precious.display())],
        &[],
    );
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(fs::read_to_string(precious).unwrap(), "text");
}

#[tokio::test]
async fn several_addresses_are_served_and_printed() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let socket = format!("unix://{}", directory.path().join("pdp.sock").display());
    let listen = ["127.0.0.1:0", "localhost:0", &socket];
    let server = Server::start_listening(directory.path(), &listen, &[]);
    assert_eq!(server.addresses.len(), 3);
    assert!(
        server
            .addresses
            .iter()
            .all(|address| !address.ends_with(":0")),
        "{:?}",
        server.addresses
    );
    for address in &server.addresses {
        let channel = crate::support::channel(address).await;
        let mut client = pb::authorization_service_client::AuthorizationServiceClient::new(channel);
        let answer = client
            .authorize(sample_request())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.decision(), pb::Decision::Allow);
    }
}

#[tokio::test]
async fn occupied_address_leaves_no_socket_behind() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let socket = directory.path().join("pdp.sock");
    let listen = format!("unix:{}", socket.display());
    let ended = serve(directory.path(), &[&listen, server.address()], &[]);
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(
        ended.stdout, b"",
        "an address that is not served is not printed"
    );
    assert!(!socket.exists());
}

#[tokio::test]
async fn invalid_policies_at_start_show_all_findings() {
    let directory = policy_directory(&[("a.cedar", "permit ("), ("b.cedar", "forbid")]);
    let ended = serve(directory.path(), &["127.0.0.1:0"], &[]);
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(ended.stdout, b"");
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert!(
        stderr.contains("a.cedar:1:") && stderr.contains("b.cedar:1:"),
        "{stderr}"
    );
    let ended = serve(&directory.path().join("nowhere"), &["127.0.0.1:0"], &[]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(String::from_utf8(ended.stderr).unwrap().contains("nowhere"));
}
