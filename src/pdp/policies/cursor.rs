//! Decodes numbers and length-prefixed pieces from bytes that this process has encoded.
//!
//! INVARIANT: readers and writers agree on the encoding, so every read finds what it expects. The
//! defaults for missing bytes are never used, and are harmless: zero, or no bytes.

/// The rest of an encoded snapshot part, from which numbers and pieces are read.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pdp) struct ByteCursor<'a>(pub(in crate::pdp) &'a [u8]);

impl<'a> ByteCursor<'a> {
    pub(in crate::pdp) fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub(in crate::pdp) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(in crate::pdp) fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.array())
    }

    /// Reads a length-prefixed piece.
    pub(in crate::pdp) fn piece(&mut self) -> Self {
        let length = self.u32() as usize;
        let (piece, rest) = self.0.split_at_checked(length).unwrap_or_default();
        self.0 = rest;
        Self(piece)
    }

    /// Returns the rest as text.
    pub(in crate::pdp) fn text(self) -> &'a str {
        std::str::from_utf8(self.0).unwrap_or_default()
    }

    pub(in crate::pdp) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((array, rest)) => {
                self.0 = rest;
                *array
            }
            None => [0; N],
        }
    }
}

/// Appends a length-prefixed piece, whose content `write` appends.
pub(in crate::pdp) fn write_piece(to: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let begin = begin_piece(to);
    write(to);
    end_piece(to, begin);
}

/// Begins a length-prefixed piece, which [`end_piece`] ends, and returns its offset.
pub(in crate::pdp) fn begin_piece(to: &mut Vec<u8>) -> usize {
    to.extend([0; size_of::<u32>()]);
    to.len()
}

/// Writes the length of the piece that begins at the offset `begin`, and ends with the bytes.
pub(in crate::pdp) fn end_piece(to: &mut [u8], begin: usize) {
    // INVARIANT: pieces are parts of a policy, and far shorter than 4 GiB.
    let length = u32::try_from(to.len() - begin).unwrap_or(u32::MAX);
    let prefix = to.get_mut(..begin).and_then(|to| to.last_chunk_mut());
    if let Some(prefix) = prefix {
        *prefix = length.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_as_written() {
        let mut written = vec![7];
        write_piece(&mut written, |to| to.extend("größe".as_bytes()));
        written.extend((-3_i64).to_le_bytes());
        let mut bytes = ByteCursor(&written);
        assert_eq!(bytes.u8(), 7);
        assert_eq!(bytes.piece().text(), "größe");
        assert_eq!(bytes.i64(), -3);
        assert!(bytes.is_empty());
        // Reads beyond the end return defaults.
        assert_eq!((bytes.u32(), bytes.piece().text()), (0, ""));
    }
}
