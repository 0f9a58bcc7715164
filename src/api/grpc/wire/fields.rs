//! Fields of protobuf messages as bytes.

use prost::bytes::BufMut as _;
use prost::encoding::{WireType, decode_varint, encode_varint};

/// Writes the head of a length-delimited field whose content has `length` bytes.
pub(crate) fn put_head(out: &mut Vec<u8>, field: u8, length: usize) {
    out.put_u8(tag(field));
    encode_varint(length as u64, out);
}

/// Returns the tag of a length-delimited field.
pub(crate) const fn tag(field: u8) -> u8 {
    field << 3 | 2
}

/// Iterates over a message: each field's number, its wire type, and its content unless that is a
/// varint. Stops at the end or before the first byte that is no field, and keeps the rest.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, WireType, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut left = self.0;
        let tag = decode_varint(&mut left).ok()?;
        let (number, wire_type) = (tag >> 3, WireType::try_from(tag & 7).ok()?);
        if !(1..1 << 29).contains(&number) {
            return None;
        }
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut left).ok()?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut left).ok()?).ok()?,
            WireType::ThirtyTwoBit => 4,
            // Groups are no part of proto3.
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let (content, rest) = left.split_at_checked(length)?;
        self.0 = rest;
        Some((number, wire_type, content))
    }
}
