//! Reads the items of a `BatchAuthorizeRequest`, and writes those of a `BatchAuthorizeResponse`.

use prost::Message as _;
use prost::bytes::BufMut as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::Status;

use crate::api::decision::rejection::Rejection;
use crate::api::grpc::authorization::GrpcAnswer;
use crate::api::grpc::status::to_message;
use crate::api::grpc::wire::codec;
use crate::api::grpc::wire::fields::{FieldContent, Fields, append_field_head, tag};

/// The field of a `BatchAuthorizeRequest` that holds its requests.
const REQUESTS: u64 = 1;

/// Returns whether the `BatchAuthorizeRequest` in `message` holds more than `limit` requests.
///
/// The requests themselves are not parsed. Nothing after the first one too many is read.
///
/// # Errors
///
/// INVALID_ARGUMENT for a message that is malformed.
pub(super) fn holds_more_than(limit: usize, message: &[u8]) -> Result<bool, Status> {
    let mut fields = Fields(message);
    let mut count = 0;
    for field in fields.by_ref() {
        match field {
            (REQUESTS, FieldContent::Bytes(_)) if count == limit => return Ok(true),
            (REQUESTS, FieldContent::Bytes(_)) => count += 1,
            (REQUESTS, _) => return Err(Status::invalid_argument("`requests` must be messages")),
            _ => {}
        }
    }
    if fields.0.is_empty() {
        return Ok(false);
    }
    // prost's error names what is malformed. prost skips groups, which are rejected here.
    codec::decode::<()>(message)?;
    Err(Status::invalid_argument("groups are not part of proto3"))
}

/// Returns the first request at or after byte `offset` of the `BatchAuthorizeRequest` in `message`,
/// and moves `offset` past it; `None` at the end.
pub(super) fn next_item<'m>(message: &'m [u8], offset: &mut usize) -> Option<&'m [u8]> {
    let mut fields = Fields(message.get(*offset..)?);
    let found = fields.find_map(|field| match field {
        (REQUESTS, FieldContent::Bytes(item)) => Some(item),
        _ => None,
    });
    *offset = message.len() - fields.0.len();
    found
}

/// The fields of a `BatchAuthorizeResult`.
const RESPONSE: u8 = 1;
const ERROR: u8 = 2;

/// Usual bytes before a result: two tags, and two lengths of two bytes.
pub(super) const RESULT_HEAD_BYTES: usize = 6;

/// Appends the outcome of an item.
pub(super) fn append_result(out: &mut Vec<u8>, outcome: Result<GrpcAnswer, Rejection>) {
    match outcome {
        Ok(answer) => {
            append_result_head(out, RESPONSE, answer.message_len());
            answer.append_message(out);
        }
        Err(rejection) => {
            let error = to_message(&rejection.into()).encode_to_vec();
            append_result_head(out, ERROR, error.len());
            out.put_slice(&error);
        }
    }
}

/// Appends the heads of a `BatchAuthorizeResult` and of its one field, whose content has `length`
/// bytes.
fn append_result_head(out: &mut Vec<u8>, field: u8, length: usize) {
    const RESULTS: u8 = 1;
    let length_bytes = encoded_len_varint(length as u64);
    out.put_u8(tag(RESULTS));
    encode_varint((1 + length_bytes + length) as u64, out);
    append_field_head(out, field, length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::grpc::pb;

    #[test]
    fn requests_are_found_among_other_fields() {
        let message = [
            &[0x0a, 1, b'a'][..],
            // Unknown fields of each wire type.
            &[0x10, 0x80, 1, 0x1a, 2, 0x0a, 0],
            &[0x25, 1, 2, 3, 4, 0x29, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x0a, 0, 0x0a, 1, b'b', 0x10, 1],
        ]
        .concat();
        assert!(!holds_more_than(3, &message).unwrap());
        assert!(holds_more_than(2, &message).unwrap());
        let cut_off = [&message[..], &[0x0a]].concat();
        assert!(holds_more_than(2, &cut_off).unwrap());
        assert!(holds_more_than(3, &cut_off).is_err());
        let mut offset = 0;
        let found: Vec<_> = std::iter::from_fn(|| next_item(&message, &mut offset)).collect();
        assert_eq!(found, [&b"a"[..], b"", b"b"]);
        assert_eq!(offset, message.len());
        for malformed in [
            &[0x0a, 2, 0][..],
            &[0x08, 1],
            &[0x0b, 0x0c],
            &[0x13, 0x14],
            &[0xff],
            // Truncated in a field, after its tag, and after its length.
            &[0x0a, 0, 0x10, 0x80],
            &[0x0a, 0, 0x0a],
            &[0x0a, 0, 0x0a, 1],
            // The field numbers 0 and 2^29, which are invalid.
            &[0x00, 0],
            &[0x80, 0x80, 0x80, 0x80, 0x10, 0],
        ] {
            let status = holds_more_than(10, malformed).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{malformed:?}");
        }
    }

    #[test]
    fn results_are_encoded_as_prost_does() {
        let response = pb::AuthorizeResponse {
            decision: pb::Decision::Allow.into(),
            determining_policies: vec!["x".repeat(200)],
            ..pb::AuthorizeResponse::default()
        };
        let error = tonic_types::Status {
            code: 3,
            message: "no".to_owned(),
            details: Vec::new(),
        };
        let mut written = Vec::new();
        append_result_head(&mut written, RESPONSE, response.encoded_len());
        written.extend(response.encode_to_vec());
        append_result_head(&mut written, ERROR, error.encoded_len());
        written.extend(error.encode_to_vec());
        append_field_head(&mut written, 2, 8);
        written.extend(b"revision");
        use pb::batch_authorize_result::Result::{Error, Response};
        let results = [Response(response), Error(error)].map(|result| pb::BatchAuthorizeResult {
            result: Some(result),
        });
        let wanted = pb::BatchAuthorizeResponse {
            results: results.into(),
            revision: "revision".to_owned(),
        };
        assert_eq!(written, wanted.encode_to_vec());
    }
}
