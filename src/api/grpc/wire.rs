//! Protobuf messages as bytes: parsed in place if their shape is plain, otherwise decoded by prost.

pub(crate) mod body;
pub(crate) mod borrowed_request;
pub(crate) mod codec;
pub(crate) mod encoded_answer;
pub(crate) mod fields;
pub(crate) mod from_proto;
pub(crate) mod from_response;
pub(crate) mod metered_body;
pub(crate) mod to_proto;
pub(crate) mod unary_body;
pub(crate) mod value_count;
