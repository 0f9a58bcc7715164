//! `grpc.health.v1`: its service names and status changes.

use std::fs;

use cedar_pdp::api::grpc::pb;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::{ALL_ARE_PERMITTED, authorize, next, sample_request};
use crate::support::{Server, policy_directory, wait_for_status};

const HEALTH_NAMES: [&str; 3] = [
    "",
    "pdp.v1.AuthorizationService",
    "pdp.v1.PolicyStoreService",
];

pub(super) async fn watch_health(server: &Server, service: &str) -> Streaming<HealthCheckResponse> {
    let mut health = HealthClient::new(server.channel().await);
    let service = service.to_owned();
    health
        .watch(HealthCheckRequest { service })
        .await
        .unwrap()
        .into_inner()
}

/// Waits until the health of `service` is `wanted`.
pub(super) async fn wait_for_health(
    watch: &mut Streaming<HealthCheckResponse>,
    wanted: ServingStatus,
) {
    while next(watch)
        .await
        .unwrap()
        .expect("the watch stays open")
        .status()
        != wanted
    {}
}

#[tokio::test]
async fn health_knows_exactly_three_names() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let mut health = HealthClient::new(server.channel().await);
    for service in HEALTH_NAMES {
        wait_for_health(
            &mut watch_health(&server, service).await,
            ServingStatus::Serving,
        )
        .await;
        let service = service.to_owned();
        let response = health
            .check(HealthCheckRequest { service })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(response.status(), ServingStatus::Serving);
    }
    let unknown = HealthCheckRequest {
        service: "pdp.v1.Nothing".to_owned(),
    };
    assert_eq!(
        health.check(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
    let mut watch = watch_health(&server, "pdp.v1.Nothing").await;
    let response = next(&mut watch).await.unwrap().unwrap();
    assert_eq!(response.status(), ServingStatus::ServiceUnknown);
}

#[tokio::test]
async fn health_follows_the_first_valid_load() {
    // A rejected reload does not change it.
    let directory = policy_directory(&[("a.cedar", "permit (")]);
    let server = Server::start(directory.path(), &["--start-unready"]);
    let mut watches = Vec::new();
    for service in HEALTH_NAMES {
        let mut watch = watch_health(&server, service).await;
        assert_eq!(
            next(&mut watch).await.unwrap().unwrap().status(),
            ServingStatus::NotServing
        );
        watches.push(watch);
    }
    assert_eq!(
        authorize(&server, sample_request())
            .await
            .unwrap_err()
            .code(),
        Code::Unavailable
    );
    let mut client = server.authorization().await;
    let batch = client
        .batch_authorize(pb::BatchAuthorizeRequest::default())
        .await;
    assert_eq!(batch.unwrap_err().code(), Code::Unavailable);
    let mut store = server.policy_store().await;
    let response = store
        .get_status(pb::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(response.status.unwrap().refused.is_some());
    let listed = store
        .list_policies(pb::ListPoliciesRequest::default())
        .await
        .unwrap();
    assert_eq!(listed.into_inner(), pb::ListPoliciesResponse::default());

    fs::write(directory.path().join("a.cedar"), ALL_ARE_PERMITTED).unwrap();
    for watch in &mut watches {
        wait_for_health(watch, ServingStatus::Serving).await;
    }
    assert_eq!(
        authorize(&server, sample_request())
            .await
            .unwrap()
            .decision(),
        pb::Decision::Allow
    );

    fs::write(directory.path().join("a.cedar"), "permit (").unwrap();
    wait_for_status(&server, "the rejection", |status| status.refused.is_some()).await;
    let mut health = HealthClient::new(server.channel().await);
    let response = health
        .check(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(response.status(), ServingStatus::Serving);
    server.signal("TERM");
    for watch in &mut watches {
        let response = next(watch).await.unwrap().unwrap();
        assert_eq!(
            response.status(),
            ServingStatus::NotServing,
            "no status between the two"
        );
    }
}
