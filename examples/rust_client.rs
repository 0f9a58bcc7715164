//! Asks a running cedar-pdp for decisions. Takes its address; by default `127.0.0.1:50051`.

use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use cedar_pdp::api::grpc::pb::authorize_request::Identity;
use cedar_pdp::api::grpc::pb::value::Kind;
use cedar_pdp::api::grpc::pb::{AuthorizeRequest, EntityUid, Value};
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;

type Client = AuthorizationServiceClient<Channel>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        // Without a deadline a call waits forever.
        .timeout(std::time::Duration::from_secs(5))
        .connect()
        .await?;
    // A client is cheap to clone, and clones share the connection.
    let mut client = Client::new(channel);

    let mut approve = AuthorizeRequest {
        identity: Some(Identity::Principal(uid("Platform::User", "marta.okafor"))),
        action: Some(uid("Invoicing::Action", "approveInvoice")),
        resource: Some(uid("Invoicing::Invoice", "INV-2043")),
        ..AuthorizeRequest::default()
    };
    print_answer(
        &mut client,
        "Marta approves a large invoice",
        approve.clone(),
    )
    .await;

    // A context value names its Cedar type.
    let mfa = Value {
        kind: Some(Kind::Bool(true)),
    };
    approve.context.insert("mfa".to_owned(), mfa);
    print_answer(&mut client, "Marta does so with a second factor", approve).await;

    let read_price_list = AuthorizeRequest {
        // The service must have been started with --anonymous-principal.
        identity: None,
        action: Some(uid("Invoicing::Action", "readPriceList")),
        resource: Some(uid("Invoicing::PriceList", "2026-standard")),
        ..AuthorizeRequest::default()
    };
    print_answer(&mut client, "Anyone reads the price list", read_price_list).await;

    let forgotten_id = AuthorizeRequest {
        identity: Some(Identity::Principal(uid("Platform::User", "felix.brandt"))),
        action: Some(uid("Invoicing::Action", "readInvoice")),
        // `None` is an error; `Some(String::new())` is a valid id.
        resource: Some(EntityUid {
            r#type: "Invoicing::Invoice".to_owned(),
            id: None,
        }),
        ..AuthorizeRequest::default()
    };
    print_answer(
        &mut client,
        "Felix reads an invoice without an id",
        forgotten_id,
    )
    .await;
    Ok(())
}

fn uid(type_name: &str, id: &str) -> EntityUid {
    EntityUid {
        r#type: type_name.to_owned(),
        id: Some(id.to_owned()),
    }
}

/// Sends a request, and prints the answer, or the invalid field.
async fn print_answer(client: &mut Client, title: &str, request: AuthorizeRequest) {
    println!("{title}:");
    match client.authorize(request).await {
        Ok(response) => {
            let answer = response.into_inner();
            // In your own code: proceed only if this is `Decision::Allow`.
            println!("  {}", answer.decision().as_str_name());
            let policies = answer.determining_policies.join(", ");
            println!(
                "  determined by: {}",
                if policies.is_empty() {
                    "no policy"
                } else {
                    &policies
                }
            );
            println!("  revision: {}", answer.revision);
        }
        Err(status) => {
            println!("  {:?}: {}", status.code(), status.message());
            for violation in status
                .get_details_bad_request()
                .into_iter()
                .flat_map(|it| it.field_violations)
            {
                println!("  the field at fault: {}", violation.field);
            }
        }
    }
}
