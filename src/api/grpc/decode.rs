//! Parses an `AuthorizeRequest`: in place if its shape is plain, otherwise by prost.

use tonic::Status;

use super::pb;
use super::wire::borrowed_request;
use super::wire::codec;
use super::wire::from_proto;
use super::wire::value_count::{self, MessageKind};
use crate::api::decision::decide::ParseFault;
use crate::api::decision::question::{Parsed, Question};
use crate::config::api::RequestRules;

/// A parsed `AuthorizeRequest`.
pub(crate) enum Request<'m> {
    /// A request whose texts stay in the message.
    Borrowed(Question<'m>),
    /// A request that prost decoded, and the rules of its conversion.
    Decoded(Box<pb::AuthorizeRequest>, &'m RequestRules),
}

impl Parsed for Request<'_> {
    fn with_question<R>(self, decide: impl FnOnce(Question<'_>) -> R) -> R {
        match self {
            Self::Borrowed(question) => decide(question),
            Self::Decoded(request, rules) => decide(from_proto::question(&request, rules)),
        }
    }
}

pub(crate) fn parse_request<'m>(
    message: &'m [u8],
    rules: &'m RequestRules,
) -> Result<Request<'m>, ParseFault<Status>> {
    match borrowed_request::request(message, rules) {
        Some(question) => Ok(Request::Borrowed(question)),
        None => decode_request(message, rules),
    }
}

/// Decodes the `AuthorizeRequest` in `message` by prost.
pub(crate) fn decode_request<'m>(
    message: &[u8],
    rules: &'m RequestRules,
) -> Result<Request<'m>, ParseFault<Status>> {
    value_count::check(message, MessageKind::Request, rules.max_values)
        .map_err(ParseFault::Request)?;
    let request = codec::decode(message).map_err(ParseFault::Call)?;
    Ok(Request::Decoded(Box::new(request), rules))
}

/// Parses the request of the `StreamAuthorizeRequest` in `message`.
pub(crate) fn parse_stream_item<'m>(
    message: &'m [u8],
    rules: &'m RequestRules,
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
    let request = Box::new(item.request.unwrap_or_default());
    Ok(Request::Decoded(request, rules))
}
