//! Parses an `AuthorizeRequest`: in place where its shape is plain, by prost otherwise.

use tonic::Status;

use super::pb;
use super::wire::borrowed_request;
use super::wire::codec;
use super::wire::from_proto;
use super::wire::value_count::{self, MessageKind};
use crate::api::decision::decide::ParseFault;
use crate::api::decision::question::{OwnedQuestion, Parsed, Question};
use crate::config::api::RequestRules;

/// A parsed `AuthorizeRequest`.
pub(crate) enum Request<'m> {
    Borrowed(Question<'m>),
    Decoded(Box<OwnedQuestion>),
}

impl Parsed for Request<'_> {
    fn with_question<R>(self, decide: impl FnOnce(Question<'_>) -> R) -> R {
        match self {
            Self::Borrowed(question) => decide(question),
            Self::Decoded(question) => question.with_question(decide),
        }
    }
}

/// Parses the `AuthorizeRequest` in `message`.
pub(crate) fn request<'m>(
    message: &'m [u8],
    rules: &'m RequestRules,
) -> Result<Request<'m>, ParseFault<Status>> {
    match borrowed_request::request(message, rules) {
        Some(question) => Ok(Request::Borrowed(question)),
        None => decoded(message, rules),
    }
}

/// Decodes the `AuthorizeRequest` in `message` by prost.
pub(crate) fn decoded<'m>(
    message: &[u8],
    rules: &RequestRules,
) -> Result<Request<'m>, ParseFault<Status>> {
    value_count::check(message, MessageKind::Request, rules.max_values)
        .map_err(ParseFault::Request)?;
    let request = codec::decode(message).map_err(ParseFault::Call)?;
    Ok(owned(request, rules))
}

/// Decodes the request of the `StreamAuthorizeRequest` in `message` by prost.
pub(crate) fn decoded_stream_item<'m>(
    message: &[u8],
    rules: &RequestRules,
) -> Result<Request<'m>, ParseFault<Status>> {
    value_count::check(message, MessageKind::StreamItem, rules.max_values)
        .map_err(ParseFault::Request)?;
    let item: pb::StreamAuthorizeRequest = codec::decode(message).map_err(ParseFault::Call)?;
    // An item without a request lacks the fields that every request needs.
    Ok(owned(item.request.unwrap_or_default(), rules))
}

fn owned<'m>(request: pb::AuthorizeRequest, rules: &RequestRules) -> Request<'m> {
    Request::Decoded(Box::new(from_proto::question(request, rules)))
}
