//! Reads and writes the fields of protobuf messages as bytes.

use prost::bytes::BufMut as _;
use prost::encoding::{decode_varint, encode_varint};

/// Appends the head of a length-delimited field whose content has `length` bytes.
pub(crate) fn append_field_head(out: &mut Vec<u8>, field: u8, length: usize) {
    out.put_u8(tag(field));
    encode_varint(length as u64, out);
}

/// Returns the tag of a length-delimited field.
pub(crate) const fn tag(field: u8) -> u8 {
    field << 3 | 2
}

/// The content of a field, by its wire type.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FieldContent<'a> {
    Varint(u64),
    /// A text, bytes, or a message.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which no field of our messages has.
    Fixed,
}

/// An iterator over the fields of a message: each field's number and content.
///
/// Stops at the end, or before the first byte that begins no field. The unread rest stays.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, FieldContent<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        // Nearly all fields are texts and messages whose tag and length have one byte each.
        if let [tag @ 0x08..=0x7f, length @ 0..=0x7f, rest @ ..] = self.0
            && tag & 7 == 2
            && let Some((content, rest)) = rest.split_at_checked(usize::from(*length))
        {
            self.0 = rest;
            return Some((u64::from(tag >> 3), FieldContent::Bytes(content)));
        }
        self.next_of_any_kind()
    }
}

impl<'a> Fields<'a> {
    #[inline(never)]
    fn next_of_any_kind(&mut self) -> Option<(u64, FieldContent<'a>)> {
        let mut rest = self.0;
        let tag = varint(&mut rest)?;
        let number = tag >> 3;
        if !(1..1 << 29).contains(&number) {
            return None;
        }
        let content = match tag & 7 {
            0 => FieldContent::Varint(varint(&mut rest)?),
            1 => {
                rest = rest.get(8..)?;
                FieldContent::Fixed
            }
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (content, after) = rest.split_at_checked(length)?;
                rest = after;
                FieldContent::Bytes(content)
            }
            5 => {
                rest = rest.get(4..)?;
                FieldContent::Fixed
            }
            // Groups are no part of proto3, and there are no other wire types.
            _ => return None,
        };
        self.0 = rest;
        Some((number, content))
    }
}

#[inline]
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    match bytes.split_first() {
        // Nearly all varints here have one byte.
        Some((&byte, rest)) if byte < 0x80 => {
            *bytes = rest;
            Some(byte.into())
        }
        Some(_) => decode_varint(bytes).ok(),
        None => None,
    }
}
