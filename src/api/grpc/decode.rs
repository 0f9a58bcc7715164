//! Parses an `AuthorizeRequest`: in place if its shape is plain, otherwise by prost.

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
    /// A request whose texts stay in the message.
    Borrowed(Question<'m>),
    /// A request that prost decoded.
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
pub(crate) fn parse_request<'m>(
    message: &'m [u8],
    rules: &RequestRules,
) -> Result<Request<'m>, ParseFault<Status>> {
    match borrowed_request::request(message, rules) {
        Some(question) => Ok(Request::Borrowed(question)),
        None => decode_request(message, rules),
    }
}

/// Decodes the `AuthorizeRequest` in `message` by prost.
pub(crate) fn decode_request<'m>(
    message: &[u8],
    rules: &RequestRules,
) -> Result<Request<'m>, ParseFault<Status>> {
    value_count::check(message, MessageKind::Request, rules.max_values)
        .map_err(ParseFault::Request)?;
    let request = codec::decode(message).map_err(ParseFault::Call)?;
    Ok(to_question(request, rules))
}

/// Parses the request of the `StreamAuthorizeRequest` in `message`.
pub(crate) fn parse_stream_item<'m>(
    message: &'m [u8],
    rules: &RequestRules,
) -> Result<Request<'m>, ParseFault<Status>> {
    if let Some((_, request)) = borrowed_request::stream_item(message)
        && let Some(question) = borrowed_request::request(request, rules)
    {
        return Ok(Request::Borrowed(question));
    }
    // The whole item is decoded, because its errors and its nesting limit differ from those of a
    // request alone.
    value_count::check(message, MessageKind::StreamItem, rules.max_values)
        .map_err(ParseFault::Request)?;
    let item: pb::StreamAuthorizeRequest = codec::decode(message).map_err(ParseFault::Call)?;
    // An item without a request lacks the fields that every request needs.
    Ok(to_question(item.request.unwrap_or_default(), rules))
}

fn to_question<'m>(request: pb::AuthorizeRequest, rules: &RequestRules) -> Request<'m> {
    Request::Decoded(Box::new(from_proto::question(request, rules)))
}
