//! Codecs of messages: prost's, with the statuses of the contract, and one for encoded messages.
//!
//! `build.rs` names `Codec` for the generated servers and clients.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::{Buf as _, BufMut as _, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, EncodeBuf};
use tonic_prost::{ProstDecoder, ProstEncoder};

use super::fields::Fields;

/// A codec that sends `T` and receives `U`, as `application/grpc+proto`.
///
/// A malformed message is INVALID_ARGUMENT, where tonic's codec says INTERNAL: it is the caller's
/// fault, and INTERNAL would alert an operator. Generated clients use the same codec, so they also
/// report a malformed response as INVALID_ARGUMENT.
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

/// A decoder of `U`.
#[derive(Clone, Debug)]
pub(crate) struct Decoder<U>(ProstDecoder<U>);

impl<U: Message + Default> tonic::codec::Decoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // Rejected before two bytes of the message become an item of two hundred.
        if has_more_fields(buf.chunk(), MAX_FIELDS) {
            let problem = format!("the message has more than {MAX_FIELDS} fields");
            return Err(Status::resource_exhausted(problem));
        }
        // Mapped here, because every error of prost is a malformed message. Further up, INTERNAL
        // may also be a fault of the service.
        self.0
            .decode(buf)
            .map_err(|status| Status::invalid_argument(status.message()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Decodes the message in `bytes`, with the errors of [`Decoder`].
///
/// The caller has counted the values of the message before.
pub(crate) fn decode<T: Message + Default>(bytes: &[u8]) -> Result<T, Status> {
    T::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// A codec that sends and receives encoded messages.
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

/// Most top-level fields of a message of the generated services.
const MAX_FIELDS: usize = 100_000;

/// Returns whether the message in `bytes` has more than `limit` top-level fields.
///
/// In a malformed message, the fields before the fault are counted.
fn has_more_fields(bytes: &[u8], limit: usize) -> bool {
    // The shortest field has two bytes.
    bytes.len() > 2 * limit && Fields(bytes).nth(limit).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_top_level_fields_are_counted() {
        let request = [0x0a, 0x02, 0x0a, 0x00];
        assert!(has_more_fields(&request.repeat(101), 100));
        assert!(!has_more_fields(&request.repeat(100), 100));
        assert!(!has_more_fields(
            &[&[0x0a, 0x80, 0x02][..], &[0x0a, 0x00].repeat(128)].concat(),
            100
        ));
    }

    #[test]
    fn malformed_message_is_left_to_prost() {
        for bytes in [&[0xff; 1_000][..], &[0x0a; 1_000], &[0x0f; 1_000]] {
            assert!(!has_more_fields(bytes, 400), "{bytes:?}");
        }
    }
}
