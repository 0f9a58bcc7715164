//! How messages are encoded: as prost does it, with the status that our contract gives.
//!
//! The generated servers and clients use this codec; `build.rs` names it.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::{Buf as _, BufMut as _, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, EncodeBuf};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::api::grpc::wire::fields::Fields;

/// Sends `T` and receives `U`, as `application/grpc+proto`.
///
/// A message that does not decode is INVALID_ARGUMENT, where tonic's codec says INTERNAL: it is
/// the caller's fault, and INTERNAL would wake an operator. Servers and clients are made with one
/// codec, so a client says INVALID_ARGUMENT of an answer that it cannot decode, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codec<T, U>(PhantomData<fn(T) -> U>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder(ProstDecoder::default())
    }
}

/// Decodes `U`.
#[derive(Clone, Debug)]
pub(crate) struct Decoder<U>(ProstDecoder<U>);

impl<U: Message + Default> tonic::codec::Decoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        check_fields(buf.chunk())?;
        // prost fails for one reason only, and this is the only place that sees nothing else:
        // further up, INTERNAL may be a fault of ours.
        self.0
            .decode(buf)
            .map_err(|status| Status::invalid_argument(status.message()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// The message in `bytes`, with [`Decoder`]'s errors. What it is made of is counted before.
pub(crate) fn decode<T: Message + Default>(bytes: &[u8]) -> Result<T, Status> {
    T::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// A byte or two can become an item of two hundred, so they are counted before they do.
fn check_fields(bytes: &[u8]) -> Result<(), Status> {
    if has_more_fields(bytes, MAX_FIELDS) {
        return Err(Status::resource_exhausted(format!(
            "a message of more than {MAX_FIELDS} items"
        )));
    }
    Ok(())
}

/// Sends and receives messages as they are, encoded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Encoded;

impl tonic::codec::Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl tonic::codec::Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(message);
        Ok(())
    }
}

impl tonic::codec::Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

/// The most fields that a message of the generated services may have at its top level.
const MAX_FIELDS: usize = 100_000;

/// Whether the message in `bytes` has more than `most` fields at its top level. Bytes that are no
/// message have as many as can be read of them.
fn has_more_fields(bytes: &[u8], most: usize) -> bool {
    // The shortest field has two bytes.
    bytes.len() > 2 * most && Fields(bytes).nth(most).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_at_the_top_level_only() {
        let request = [0x0a, 0x02, 0x0a, 0x00];
        assert!(has_more_fields(&request.repeat(101), 100));
        assert!(!has_more_fields(&request.repeat(100), 100));
        assert!(!has_more_fields(
            &[&[0x0a, 0x80, 0x02][..], &[0x0a, 0x00].repeat(128)].concat(),
            100
        ));
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        for bytes in [&[0xff; 1_000][..], &[0x0a; 1_000], &[0x0f; 1_000]] {
            assert!(!has_more_fields(bytes, 400), "{bytes:?}");
        }
    }
}
