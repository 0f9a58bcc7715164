//! Server reflection.

use super::{ALL_ARE_PERMITTED, next};
use crate::support::{Server, policy_directory};

/// Returns the answers of one version of server reflection to the requests.
macro_rules! reflect {
    ($version:ident, $server:expr, $requests:expr) => {{
        use reflection::server_reflection_client::ServerReflectionClient;
        use reflection::server_reflection_request::MessageRequest;
        use reflection::server_reflection_response::MessageResponse;
        use tonic_reflection::pb::$version as reflection;
        let mut client = ServerReflectionClient::new($server.channel().await);
        let requests: Vec<_> = $requests
            .iter()
            .map(|symbol: &&str| reflection::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(match *symbol {
                    "" => MessageRequest::ListServices(String::new()),
                    symbol => MessageRequest::FileContainingSymbol(symbol.to_owned()),
                }),
            })
            .collect();
        let request = client
            .server_reflection_info(tokio_stream::iter(requests))
            .await;
        let mut answers = request.unwrap().into_inner();
        let mut services = Vec::new();
        let mut files = Vec::new();
        while let Some(answer) = next(&mut answers).await.unwrap() {
            match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(listed) => {
                    services.extend(listed.service.into_iter().map(|service| service.name));
                }
                MessageResponse::FileDescriptorResponse(found) => {
                    files.extend(found.file_descriptor_proto);
                }
                other => panic!("{other:?}"),
            }
        }
        (services, files)
    }};
}

#[tokio::test]
async fn reflection_lists_services_and_error_details() {
    use prost::Message as _;
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let request = [
        "",
        "pdp.v1.AuthorizationService",
        "pdp.v1.PolicyStoreService.WatchStatus",
        "grpc.health.v1.Health",
        "google.rpc.BadRequest",
        "google.rpc.ErrorInfo",
        "google.rpc.Status",
        "google.protobuf.Timestamp",
        "google.protobuf.Any",
    ];
    for (services, files) in [
        reflect!(v1, server, request),
        reflect!(v1alpha, server, request),
    ] {
        for name in [
            "pdp.v1.AuthorizationService",
            "pdp.v1.PolicyStoreService",
            "grpc.health.v1.Health",
        ] {
            assert!(
                services.iter().any(|service| service == name),
                "{services:?}"
            );
        }
        assert!(
            services
                .iter()
                .any(|service| service.ends_with("ServerReflection")),
            "{services:?}"
        );
        let files: Vec<_> = files
            .iter()
            .map(|file| prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap())
            .collect();
        for message in [
            "BadRequest",
            "ErrorInfo",
            "Status",
            "Timestamp",
            "Any",
            "AuthorizeRequest",
        ] {
            let is_known = files.iter().any(|file| {
                file.message_type
                    .iter()
                    .any(|known| known.name() == message)
            });
            assert!(is_known, "{message}");
        }
    }
}
