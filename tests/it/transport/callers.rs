//! Callers: identified by certificate, user or key, each with its rights.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use cedar_pdp::api::grpc::pb::policy_store_service_client::PolicyStoreServiceClient;
use rcgen::{DnType, SanType};
use tempfile::TempDir;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use super::{OPEN, sample_request};
use crate::support::pki::{Authority, connect, path_string};
use crate::support::{Server, channel, command, eventually, policy_directory};

const KEY: &str = "a-key-of-a-test-and-no-secret";

/// Creates policies and a list of callers.
fn write_files(callers: &str) -> (TempDir, TempDir, String) {
    let policies = policy_directory(OPEN);
    let lists = tempfile::tempdir().unwrap();
    let list = lists.path().join("callers.toml");
    std::fs::write(&list, callers).unwrap();
    std::fs::write(lists.path().join("key"), format!("{KEY}\n")).unwrap();
    let list = path_string(&list);
    (policies, lists, list)
}

fn with_key<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    let header = format!("Bearer {key}").parse().unwrap();
    request.metadata_mut().insert("authorization", header);
    request
}

/// Returns the code of a rejection, and the reason in ErrorInfo.
fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    let info = details.error_info().expect("a reason");
    assert_eq!(info.domain, cedar_pdp::api::ERROR_DOMAIN);
    (status.code(), info.reason.clone())
}

async fn authorize(channel: &Channel, key: Option<&str>) -> Result<(), Status> {
    let mut client = AuthorizationServiceClient::new(channel.clone());
    let request = match key {
        Some(key) => with_key(sample_request(), key),
        None => Request::new(sample_request()),
    };
    let answer = client.authorize(request).await?.into_inner();
    assert_eq!(answer.decision(), pb::Decision::Allow);
    Ok(())
}

async fn is_serving(channel: &Channel) -> bool {
    let response = HealthClient::new(channel.clone())
        .check(HealthCheckRequest::default())
        .await;
    response.unwrap().into_inner().status == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_identifies_the_caller() {
    let (policies, _lists, list) = write_files(
        r#"
[[caller]]
name = "orders"
spiffe = ["spiffe://shop/orders"]
rights = ["authorize"]
[[caller]]
name = "desk"
dns = ["desk.shop"]
rights = ["store"]
[[caller]]
name = "pipeline"
subject = ["CN=pipeline,O=Shop"]
rights = ["administer"]
"#,
    );
    let authority = Authority::generate();
    let mut options = authority.tls_options(&authority.server()).to_vec();
    for (name, value) in [
        ("--tls-client-ca", path_string(&authority.file())),
        ("--tls-client-auth", "optional".to_owned()),
        ("--callers", list),
    ] {
        options.extend([name.to_owned(), value]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = Server::start(policies.path(), &options);
    let connect_as = async |names: Vec<SanType>, subject: &[(DnType, &str)]| {
        let own = authority.client(names, subject);
        let tls = authority.client_tls(Some(&own));
        connect(server.address(), tls).await.unwrap()
    };
    let spiffe = SanType::URI("spiffe://shop/orders".try_into().unwrap());
    let dns = SanType::DnsName("Desk.Shop".try_into().unwrap());
    let subject = [
        (DnType::OrganizationName, "Shop"),
        (DnType::CommonName, "pipeline"),
    ];
    let orders = connect_as(vec![spiffe], &[]).await;
    let console = connect_as(vec![dns], &[]).await;
    let pipeline = connect_as(vec![], &subject).await;
    let unlisted = connect_as(vec![], &[(DnType::CommonName, "stranger")]).await;
    let unnamed = connect(server.address(), authority.client_tls(None))
        .await
        .unwrap();

    let missing = (Code::PermissionDenied, "RIGHT_MISSING".to_owned());
    let unknown = (Code::Unauthenticated, "CALLER_UNKNOWN".to_owned());
    let reload = async |channel: &Channel| {
        let mut store = PolicyStoreServiceClient::new(channel.clone());
        store.reload(pb::ReloadRequest {}).await.map(|_| ())
    };
    let status = async |channel: &Channel| {
        let mut store = PolicyStoreServiceClient::new(channel.clone());
        store.get_status(pb::GetStatusRequest {}).await.map(|_| ())
    };
    authorize(&orders, None).await.unwrap();
    status(&console).await.unwrap();
    reload(&pipeline).await.unwrap();
    for channel in [&console, &pipeline] {
        assert_eq!(
            reason(&authorize(channel, None).await.unwrap_err()),
            missing
        );
    }
    for channel in [&orders, &pipeline] {
        assert_eq!(reason(&status(channel).await.unwrap_err()), missing);
    }
    for channel in [&orders, &console] {
        assert_eq!(reason(&reload(channel).await.unwrap_err()), missing);
    }
    for channel in [&unlisted, &unnamed] {
        assert_eq!(
            reason(&authorize(channel, None).await.unwrap_err()),
            unknown
        );
        assert_eq!(reason(&status(channel).await.unwrap_err()), unknown);
        assert_eq!(reason(&reload(channel).await.unwrap_err()), unknown);
        assert!(is_serving(channel).await, "health is open");
    }
}

/// Returns the user that the tests run as.
fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid()
}

/// Returns the subject that openssl prints for this file.
fn subject_by_openssl(certificate: &Path) -> String {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in"])
        .arg(certificate)
        .output()
        .expect("openssl runs");
    let printed = String::from_utf8(output.stdout).unwrap();
    let subject = printed.trim_end_matches('\n').strip_prefix("subject=");
    subject.expect("it prints a subject").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn subjects_match_the_output_of_openssl() {
    let of = |numbers: &[u64]| DnType::CustomDnType(numbers.to_vec());
    let authority = Authority::generate();
    let own = authority.client(
        vec![],
        &[
            (DnType::CountryName, "NL"),
            (DnType::OrganizationName, "Müller, \"the\" + \u{1f}\\ones"),
            (of(&[2, 5, 4, 97]), "NTRNL-30280353"),
            (of(&[2, 5, 4, 4]), "#Desk "),
            (of(&[2, 5, 4, 9]), "Dam 1; back=door"),
            (of(&[1, 3, 6, 1, 4, 1, 311, 60, 2, 1, 3]), "NL"),
            (of(&[1, 2, 3, 4]), "nobody knows"),
            (of(&[2, 5, 4, 5]), "7"),
            (DnType::CommonName, " 机"),
            (of(&[1, 2, 840, 113_549, 1, 9, 1]), "a@b.c"),
        ],
    );
    let file = authority.path("own.crt");
    own.write(&file, &authority.path("own.key"));
    let subject = subject_by_openssl(&file);
    assert!(subject.contains("SN=\\#Desk\\ "), "{subject}");
    let (policies, _lists, list) = write_files(&format!(
        "[[caller]]\nname = \"desk\"\nsubject = ['{subject}']\nrights = [\"authorize\"]\n"
    ));
    let mut options = authority.tls_options(&authority.server()).to_vec();
    for (name, value) in [
        ("--tls-client-ca", path_string(&authority.file())),
        ("--tls-client-auth", "required".to_owned()),
        ("--callers", list),
    ] {
        options.extend([name.to_owned(), value]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = Server::start(policies.path(), &options);
    let tls = authority.client_tls(Some(&own));
    let channel = connect(server.address(), tls).await.unwrap();
    authorize(&channel, None).await.expect("it is known");
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_socket_user_identifies_the_caller() {
    let callers = |uid: u32| {
        format!("[[caller]]\nname = 'me'\nuid = [{uid}]\nrights = ['authorize', 'store']\n")
    };
    let (policies, lists, list) = write_files(&callers(own_uid()));
    let socket = lists.path().join("pdp.sock");
    let listen = format!("unix:{}", socket.display());
    let server = Server::start_listening(
        policies.path(),
        &[&listen, "127.0.0.1:0"],
        &["--callers", &list, "--unix-socket-mode", "0600"],
    );
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let by_socket = channel(&listen).await;
    authorize(&by_socket, None).await.unwrap();
    let by_tcp = channel(&server.addresses[1]).await;
    let unknown = (Code::Unauthenticated, "CALLER_UNKNOWN".to_owned());
    assert_eq!(
        reason(&authorize(&by_tcp, None).await.unwrap_err()),
        unknown
    );

    // A changed list applies to open connections.
    std::fs::write(Path::new(&list), callers(own_uid() + 1)).unwrap();
    server.wait_for_log("new list of callers");
    assert_eq!(
        reason(&authorize(&by_socket, None).await.unwrap_err()),
        unknown
    );
    std::fs::write(Path::new(&list), "nonsense").unwrap();
    server.wait_for_log("new list of callers rejected");
    assert_eq!(
        reason(&authorize(&by_socket, None).await.unwrap_err()),
        unknown
    );
    std::fs::write(Path::new(&list), callers(own_uid())).unwrap();
    server
        .eventually("the new list is in force", async || {
            authorize(&by_socket, None).await.is_ok()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_identifies_the_caller_per_call() {
    let (policies, lists, list) =
        write_files("[[caller]]\nname = 'cli'\nbearer = ['key']\nrights = ['authorize']\n");
    let decisions = lists.path().join("decisions.jsonl");
    let log = format!("file:{}", decisions.display());
    let server = Server::start(
        policies.path(),
        &[
            "--callers",
            &list,
            "--decision-log",
            &log,
            "--decision-log-allow-sample=1",
        ],
    );
    let channel = server.channel().await;
    let key_unknown = (Code::Unauthenticated, "KEY_UNKNOWN".to_owned());
    let unknown = (Code::Unauthenticated, "CALLER_UNKNOWN".to_owned());
    authorize(&channel, Some(KEY)).await.unwrap();
    for wrong in ["a-key-of-a-test-and-no-secre", "another-key-altogether", ""] {
        let rejected = authorize(&channel, Some(wrong)).await.unwrap_err();
        assert_eq!(reason(&rejected), key_unknown, "{wrong}");
        assert!(!server.log().contains(KEY) && !rejected.to_string().contains("key-of"));
    }
    assert_eq!(
        reason(&authorize(&channel, None).await.unwrap_err()),
        unknown
    );
    authorize(&channel, Some(KEY)).await.unwrap();

    let cli = |options: &[&str]| {
        let mut command = command();
        command.args(["authorize", "--connect", server.address()]);
        command.args([r#"--principal=User::"a""#, r#"--action=Action::"read""#]);
        command.arg(r#"--resource=Doc::"1""#).args(options);
        command.output().unwrap().status.code()
    };
    let file = path_string(&lists.path().join("key"));
    assert_eq!(cli(&["--bearer", &file]), Some(0));
    assert_eq!(cli(&[]), Some(2));
    assert_eq!(cli(&["--bearer", &list]), Some(2));

    eventually("the name of the caller in the log", async || {
        std::fs::read_to_string(&decisions)
            .unwrap_or_default()
            .contains(r#""caller":"cli""#)
    })
    .await;

    // Both keys are valid during a rotation, then the new one alone.
    let second = "the-key-after-the-rotation";
    std::fs::write(&file, format!("{KEY}\n{second}\n")).unwrap();
    server.wait_for_log("new list of callers");
    authorize(&channel, Some(KEY)).await.unwrap();
    authorize(&channel, Some(second)).await.unwrap();
    std::fs::write(&file, second).unwrap();
    server
        .eventually("the old key is rejected", async || {
            authorize(&channel, Some(KEY)).await.is_err()
        })
        .await;
    authorize(&channel, Some(second)).await.unwrap();
}

/// Returns a request for each kind of identity.
fn requests_by_identity() -> [(&'static str, pb::AuthorizeRequest); 3] {
    use pb::authorize_request::Identity;
    let with = |identity: Option<Identity>| pb::AuthorizeRequest {
        identity,
        ..sample_request()
    };
    [
        ("principal", sample_request()),
        (
            "token",
            with(Some(Identity::PrincipalToken("e30.e30.".to_owned()))),
        ),
        ("anonymous", with(None)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn restricted_caller_cannot_define_the_anonymous_principal() {
    // A caller that may not name a principal may not send an entity for the anonymous one.
    let policies = policy_directory(&[
        (
            "admins.cedar",
            r#"permit(principal in Group::"admins", action, resource);"#,
        ),
        (
            "guests.entities.json",
            r#"[{"uid": {"type": "User", "id": "nobody"}, "attrs": {},
                 "parents": [{"type": "Group", "id": "guests"}]}]"#,
        ),
    ]);
    let lists = tempfile::tempdir().unwrap();
    let list = lists.path().join("callers.toml");
    std::fs::write(
        &list,
        "[[caller]]\nname = 'bound'\nbearer = ['bound']\nrights = ['authorize']\nidentities = ['anonymous']\n\
         [[caller]]\nname = 'free'\nbearer = ['free']\nrights = ['authorize']\n",
    )
    .unwrap();
    let keys = ["a-key-of-one-who-is-bound", "a-key-of-one-who-is-free"];
    for (file, key) in ["bound", "free"].into_iter().zip(keys) {
        std::fs::write(lists.path().join(file), key).unwrap();
    }
    let list = path_string(&list);
    let anonymous = [
        "--callers",
        &list,
        "--anonymous-principal",
        r#"User::"nobody""#,
    ];
    let server = Server::start(policies.path(), &anonymous);
    let mut client = AuthorizationServiceClient::new(server.channel().await);
    let uid = |ty: &str, id: &str| pb::EntityUid {
        r#type: ty.to_owned(),
        id: Some(id.to_owned()),
    };
    for (sent_uid, is_related) in [
        (uid("User", "nobody"), true),
        (uid("Group", "guests"), true),
        (uid("Group", "others"), false),
    ] {
        let entity = pb::Entity {
            uid: Some(sent_uid.clone()),
            parents: vec![uid("Group", "admins")],
            ..pb::Entity::default()
        };
        // By borrowed decoding and by prost.
        for copies in [1, 100] {
            let mut request = pb::AuthorizeRequest {
                identity: None,
                entities: vec![entity.clone()],
                ..sample_request()
            };
            for n in 1..copies {
                request.entities.push(pb::Entity {
                    uid: Some(uid("Other", &n.to_string())),
                    ..pb::Entity::default()
                });
            }
            let free = client.authorize(with_key(request.clone(), keys[1])).await;
            let decision = free.unwrap().into_inner().decision();
            assert_eq!(decision == pb::Decision::Allow, is_related, "{sent_uid:?}");
            match client.authorize(with_key(request, keys[0])).await {
                Ok(answer) => {
                    assert!(!is_related, "{sent_uid:?}");
                    assert_eq!(answer.into_inner().decision(), pb::Decision::Deny);
                }
                Err(status) => {
                    assert!(is_related, "{sent_uid:?}: {status:?}");
                    assert_eq!(status.code(), Code::InvalidArgument);
                    let bad = status.get_details_bad_request().unwrap();
                    assert_eq!(bad.field_violations[0].field, "entities[0].uid");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_keys_are_all_rejected() {
    let (policies, _lists, list) =
        write_files("[[caller]]\nname = 'c'\nbearer = ['key']\nrights = ['authorize']\n");
    let server = Server::start(policies.path(), &["--callers", &list]);
    let mut client = AuthorizationServiceClient::new(server.channel().await);
    for other in ["Bearer another", "Basic x", &format!("Bearer {KEY}")] {
        let mut request = with_key(sample_request(), KEY);
        request
            .metadata_mut()
            .append("authorization", other.parse().unwrap());
        let rejected = client.authorize(request).await.unwrap_err();
        let unknown = (Code::Unauthenticated, "KEY_UNKNOWN".to_owned());
        assert_eq!(reason(&rejected), unknown, "{other}");
    }
    assert!(
        client
            .authorize(with_key(sample_request(), KEY))
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_kinds_are_restricted_per_caller() {
    for kind in ["principal", "token", "anonymous"] {
        let (policies, _lists, list) = write_files(&format!(
            "[[caller]]\nname = 'c'\nbearer = ['key']\nrights = ['authorize']\nidentities = ['{kind}']\n"
        ));
        let server = Server::start(
            policies.path(),
            &[
                "--callers",
                &list,
                "--anonymous-principal",
                r#"User::"nobody""#,
            ],
        );
        let mut client = AuthorizationServiceClient::new(server.channel().await);
        let not_allowed = (Code::PermissionDenied, "IDENTITY_NOT_ALLOWED".to_owned());
        for (sent, mut request) in requests_by_identity() {
            // A larger context than borrowed decoding accepts: prost decodes it, and the same rule
            // applies.
            for attributes in [0, 100] {
                for n in 0..attributes {
                    let value = crate::support::value(pb::value::Kind::Bool(true));
                    request.context.insert(n.to_string(), value);
                }
                let one = client.authorize(with_key(request.clone(), KEY)).await;
                let batch = pb::BatchAuthorizeRequest {
                    requests: vec![request.clone()],
                };
                let batch = client.batch_authorize(with_key(batch, KEY)).await.unwrap();
                let item = batch.into_inner().results.remove(0).result.unwrap();
                use pb::batch_authorize_result::Result::{Error, Response};
                match (sent == kind, one, item) {
                    (true, Ok(_), Response(_)) if sent != "token" => {}
                    // The caller may send tokens, although no issuer verifies them.
                    (true, Err(status), Error(_)) if sent == "token" => {
                        assert_ne!(reason(&status), not_allowed);
                    }
                    (false, Err(status), Error(item)) => {
                        assert_eq!(reason(&status), not_allowed, "{sent} for {kind}");
                        assert_eq!(item.code, Code::PermissionDenied as i32);
                    }
                    (_, one, item) => panic!("{sent} for {kind}: {one:?}, {item:?}"),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_requires_its_right() {
    let (policies, _lists, list) =
        write_files("[[caller]]\nname = 'c'\nbearer = ['key']\nrights = ['authorize']\n");
    let asks_why = pb::AuthorizeRequest {
        explain: true,
        ..sample_request()
    };
    for (options, expected) in [
        (&["--callers", &list][..], Some("RIGHT_MISSING")),
        (&["--explanations", "off"], Some("EXPLAIN_OFF")),
        (&[], None),
    ] {
        let server = Server::start(policies.path(), options);
        let mut client = AuthorizationServiceClient::new(server.channel().await);
        let sent_uid = client.authorize(with_key(asks_why.clone(), KEY)).await;
        // Other items of the batch are answered.
        let batch = pb::BatchAuthorizeRequest {
            requests: vec![sample_request(), asks_why.clone(), sample_request()],
        };
        let batch = client.batch_authorize(with_key(batch, KEY)).await.unwrap();
        let items: Vec<_> = batch.into_inner().results;
        let is_answer = |item: &pb::BatchAuthorizeResult| {
            matches!(
                item.result,
                Some(pb::batch_authorize_result::Result::Response(_))
            )
        };
        match expected {
            Some(expected) => {
                let rejected = reason(&sent_uid.unwrap_err());
                assert_eq!(rejected, (Code::PermissionDenied, expected.to_owned()));
                let answered: Vec<bool> = items.iter().map(is_answer).collect();
                assert_eq!(answered, [true, false, true]);
            }
            None => {
                assert!(sent_uid.unwrap().into_inner().explanation.is_some());
                assert!(items.iter().all(is_answer));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_call_of_unlisted_caller_fails() {
    let list_of =
        |right: &str| format!("[[caller]]\nname = 'c'\nbearer = ['key']\nrights = ['{right}']\n");
    for method in ["Authorize", "BatchAuthorize"] {
        let (policies, _lists, list) = write_files(&list_of("authorize"));
        let server = Server::start(policies.path(), &["--callers", &list]);
        let channel = server.channel().await;
        let (rest, waited_for) = tokio::sync::oneshot::channel::<()>();
        let (started, has_started) = tokio::sync::oneshot::channel();
        let message = futures_util::stream::once(async {
            started.send(()).unwrap();
            waited_for.await.unwrap();
        });
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        let path = format!("/pdp.v1.AuthorizationService/{method}");
        let path = http::uri::PathAndQuery::try_from(path).unwrap();
        let half_sent = tokio::spawn(async move {
            grpc.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            let request = with_key(message, KEY);
            grpc.client_streaming::<_, (), (), _>(request, path, codec)
                .await
                .map(drop)
        });
        has_started.await.unwrap();
        // The list is checked again when the body arrives after the headers.
        authorize(&channel, Some(KEY)).await.unwrap();
        std::fs::write(Path::new(&list), list_of("store")).unwrap();
        server.wait_for_log("new list of callers");
        rest.send(()).unwrap();
        let rejected = half_sent.await.unwrap().unwrap_err();
        assert_eq!(
            reason(&rejected),
            (Code::PermissionDenied, "RIGHT_MISSING".to_owned())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_ends_when_caller_is_unlisted() {
    let list_of =
        |right: &str| format!("[[caller]]\nname = 'c'\nbearer = ['key']\nrights = ['{right}']\n");
    let (policies, _lists, list) = write_files(&list_of("authorize"));
    let server = Server::start(policies.path(), &["--callers", &list]);
    let mut client = AuthorizationServiceClient::new(server.channel().await);
    let (items, sent) = tokio::sync::mpsc::channel(1);
    let stream = client.stream_authorize(with_key(ReceiverStream::new(sent), KEY));
    let mut answers = stream.await.unwrap().into_inner();
    let item = pb::StreamAuthorizeRequest {
        correlation_id: 1,
        request: Some(sample_request()),
    };
    items.send(item.clone()).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    std::fs::write(Path::new(&list), list_of("store")).unwrap();
    server.wait_for_log("new list of callers");
    items.send(item).await.unwrap();
    let ended = answers.message().await.unwrap_err();
    assert_eq!(
        reason(&ended),
        (Code::PermissionDenied, "RIGHT_MISSING".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_services_are_unimplemented() {
    let policies = policy_directory(OPEN);
    let options = ["--reflection", "off", "--policy-store-service", "off"];
    let server = Server::start(policies.path(), &options);
    let channel = server.channel().await;
    authorize(&channel, None).await.unwrap();
    assert!(is_serving(&channel).await);
    let mut store = PolicyStoreServiceClient::new(channel.clone());
    let rejected = store.get_status(pb::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(rejected.code(), Code::Unimplemented);
    let service = "pdp.v1.PolicyStoreService".to_owned();
    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest { service })
        .await;
    assert_eq!(health.unwrap_err().code(), Code::NotFound);
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let response = tokio_stream::iter([ServerReflectionRequest::default()]);
    let rejected = ServerReflectionClient::new(channel)
        .server_reflection_info(response)
        .await;
    assert_eq!(rejected.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_accepted_during_the_shutdown_delay() {
    // Health reports NOT_SERVING first.
    let policies = policy_directory(OPEN);
    let mut server = Server::start(policies.path(), &["--shutdown-delay", "1500ms"]);
    let channel = server.channel().await;
    assert!(is_serving(&channel).await);
    server.signal("TERM");
    server.wait_for_log("calls are still accepted");
    assert!(!is_serving(&channel).await);
    // On open connections and new ones.
    authorize(&channel, None).await.unwrap();
    authorize(&server.channel().await, None).await.unwrap();
    assert!(server.is_alive());
    drop(channel);
    assert_eq!(server.wait().code(), Some(0));
}
