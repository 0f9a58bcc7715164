//! How messages are encoded: as prost does it, with the status that our contract gives.
//!
//! The generated servers and clients use this codec; `build.rs` names it.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf};
use tonic_prost::{ProstDecoder, ProstEncoder};

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
