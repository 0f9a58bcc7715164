//! Connections, requests and answers of a typed client.

use std::io::{Read as _, Write as _};

use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};

use crate::TIME_LIMIT;

/// Connects to `address`, as the server printed it.
pub async fn channel(address: &str) -> Channel {
    let uri = if address.starts_with("unix:") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    Endpoint::from_shared(uri)
        .unwrap()
        .connect()
        .await
        .expect("the server accepts")
}

/// Fetches the page at `path` of the admin server at `admin`.
pub fn get(admin: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(TIME_LIMIT)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: pdp\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (_, body) = text.split_once("\r\n\r\n").expect("an answer");
    body.to_owned()
}

/// Returns the uid `type_name::"id"`.
pub fn uid(type_name: &str, id: &str) -> pb::EntityUid {
    pb::EntityUid {
        r#type: type_name.to_owned(),
        id: Some(id.to_owned()),
    }
}

/// Parses a uid in Cedar syntax.
pub fn parse_uid(text: &str) -> pb::EntityUid {
    let uid: cedar_pdp::pdp::query::Uid = text.parse().unwrap();
    self::uid(&uid.type_name, &uid.id)
}

/// Builds a request from three uids in Cedar syntax.
pub fn request(principal: &str, action: &str, resource: &str) -> pb::AuthorizeRequest {
    pb::AuthorizeRequest {
        identity: Some(pb::authorize_request::Identity::Principal(parse_uid(
            principal,
        ))),
        action: Some(parse_uid(action)),
        resource: Some(parse_uid(resource)),
        ..pb::AuthorizeRequest::default()
    }
}

/// Wraps a kind of value.
pub fn value(kind: pb::value::Kind) -> pb::Value {
    pb::Value { kind: Some(kind) }
}

/// Converts an item's error to the status of an equivalent call.
pub fn item_status(error: &tonic_types::Status) -> tonic::Status {
    tonic::Status::with_details(
        error.code.into(),
        error.message.clone(),
        error.encode_to_vec().into(),
    )
}

/// The parts of a response that tests compare.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub is_allow: bool,
    pub determining: Vec<String>,
    pub revision: String,
}

impl From<pb::AuthorizeResponse> for Answer {
    fn from(response: pb::AuthorizeResponse) -> Self {
        assert_ne!(response.decision(), pb::Decision::Unspecified);
        Self {
            is_allow: response.decision() == pb::Decision::Allow,
            determining: response.determining_policies,
            revision: response.revision,
        }
    }
}
