//! Handwritten protobuf, for messages that a typed client cannot send.

/// Encodes a varint.
pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// Encodes the key of a field.
pub fn key(field: u64, wire_type: u64) -> Vec<u8> {
    varint(field << 3 | wire_type)
}

/// Encodes a field with a message, a string or bytes.
pub fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = key(number, 2);
    bytes.extend(varint(content.len() as u64));
    bytes.extend_from_slice(content);
    bytes
}

/// Adds the gRPC prefix to an uncompressed message.
pub fn framed(message: &[u8]) -> Vec<u8> {
    framed_as(0, u32::try_from(message.len()).unwrap(), message)
}

/// Adds a gRPC prefix with arbitrary values.
pub fn framed_as(compressed: u8, length: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![compressed];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

/// Nests `leaf` in `levels` of `field(path[0], field(path[1], …))`.
pub fn nested(path: &[u64], levels: usize, leaf: &[u8]) -> Vec<u8> {
    // From the inside out, so that the length of the content is known.
    let mut backwards: Vec<u8> = leaf.iter().rev().copied().collect();
    for _ in 0..levels {
        for &number in path.iter().rev() {
            let mut head = key(number, 2);
            head.extend(varint(backwards.len() as u64));
            backwards.extend(head.iter().rev());
        }
    }
    backwards.reverse();
    backwards
}
