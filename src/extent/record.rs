//! What the journal says: operations, each of which can be replayed on any state since the checkpoint.
//!
//! A record is a group of operations that became durable together:
//!
//! ```text
//!   0 chain  4 B   CRC-32C of the record before: none is missing between
//!   4 count  4 B   operations
//!   8 lsn    8 B   number of the first; the next record goes on where this one ends
//!  16 operations: length 2 B (of the body), kind 1 B, zero 1 B, body
//! ```
//!
//! Every operation says what *is* afterwards, not what changes. So replaying a journal over a checkpoint that was
//! taken while operations went on ends in the right state: whatever was touched since the checkpoint began is
//! said again, and the last one to touch a thing wins.
#![forbid(unsafe_code)]

use super::bytes::{Reader, Short};
use super::tree::Mapped;
use crate::units::FileId;

/// Bytes before the operations of a record.
pub(super) const PREAMBLE_BYTES: usize = 16;

/// Bytes before the body of an operation.
pub(super) const OP_HEADER_BYTES: usize = 4;

/// The longest name of an object, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The longest key of an attribute, in bytes.
pub const KEY_BYTES_MAX: usize = 64;

/// The longest value of an attribute, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024;

/// The longest operation: an attribute with the longest key and value.
pub(super) const OP_BYTES_MAX: usize =
    OP_HEADER_BYTES + size_of::<FileId>() + 1 + KEY_BYTES_MAX + VALUE_BYTES_MAX;

const _: () =
    assert!(OP_BYTES_MAX >= OP_HEADER_BYTES + 2 * size_of::<FileId>() + 1 + NAME_BYTES_MAX);

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// An object is there, without a byte.
    Create { id: FileId, time: u64, name: Option<String> },
    /// It is not, and its space is free.
    Remove { id: FileId },
    /// An object has this name; the one that had it is gone.
    Rename { id: FileId, replaced: Option<FileId>, name: Option<String> },
    /// Units of an object lie here; and this is its size and its time.
    Map { id: FileId, extent: Mapped, size: u64, time: u64 },
    /// Units of an object lie nowhere; and this is its size and its time.
    Unmap { id: FileId, file: u64, units: u64, size: u64, time: u64 },
    /// An object has this size, and this time.
    Size { id: FileId, size: u64, time: u64 },
    /// An object has this attribute, or has it no longer.
    Attribute { id: FileId, key: String, value: Option<Vec<u8>> },
}

impl Op {
    /// Appends the operation to the bytes of a group; returns how many bytes that were.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend([0; OP_HEADER_BYTES]);
        out.extend(self.id().0.to_le_bytes());
        let kind = self.body(out);
        let body = out.len() - start - OP_HEADER_BYTES;
        let body = u16::try_from(body).expect("names and values are short");
        out[start..start + 2].copy_from_slice(&body.to_le_bytes());
        out[start + 2] = kind;
        out.len() - start
    }

    fn body(&self, out: &mut Vec<u8>) -> u8 {
        let mut number = |value: &u64| out.extend(value.to_le_bytes());
        match self {
            Self::Create { time, name, .. } => {
                number(time);
                text(out, name.as_deref());
                1
            }
            Self::Remove { .. } => 2,
            Self::Rename { replaced, name, .. } => {
                number(&replaced.map_or(0, |id| id.0));
                text(out, name.as_deref());
                3
            }
            Self::Map { extent: Mapped { file, device, units, written }, size, time, .. } => {
                [file, device, units, &u64::from(*written), size, time]
                    .into_iter()
                    .for_each(number);
                4
            }
            Self::Unmap { file, units, size, time, .. } => {
                [file, units, size, time].into_iter().for_each(number);
                5
            }
            Self::Size { size, time, .. } => {
                [size, time].into_iter().for_each(number);
                6
            }
            Self::Attribute { key, value, .. } => {
                text(out, Some(key));
                out.extend(value.iter().flatten());
                if value.is_some() { 7 } else { 8 }
            }
        }
    }

    /// Returns the object that it is about.
    pub(super) fn id(&self) -> FileId {
        match self {
            Self::Create { id, .. }
            | Self::Remove { id }
            | Self::Rename { id, .. }
            | Self::Map { id, .. }
            | Self::Unmap { id, .. }
            | Self::Size { id, .. }
            | Self::Attribute { id, .. } => *id,
        }
    }

    /// Reads one operation from the front of a group.
    fn decode(from: &mut Reader<'_>) -> Result<Self, Short> {
        let (len, kind) = (from.u16()?, from.u8()?);
        from.u8()?;
        let mut body = Reader::new(from.take(len.into())?);
        let id = FileId(body.u64()?);
        let op = match kind {
            1 => Self::Create { id, time: body.u64()?, name: name(&mut body)? },
            2 => Self::Remove { id },
            3 => {
                let replaced = Some(FileId(body.u64()?)).filter(|id| id.0 != 0);
                Self::Rename { id, replaced, name: name(&mut body)? }
            }
            4 => {
                let (file, device, units) = (body.u64()?, body.u64()?, body.u64()?);
                let written = body.u64()? != 0;
                let extent = Mapped { file, device, units, written };
                Self::Map { id, extent, size: body.u64()?, time: body.u64()? }
            }
            5 => {
                let (file, units) = (body.u64()?, body.u64()?);
                Self::Unmap { id, file, units, size: body.u64()?, time: body.u64()? }
            }
            6 => Self::Size { id, size: body.u64()?, time: body.u64()? },
            7 | 8 => {
                let key = name(&mut body)?.ok_or(Short)?;
                let value = body.rest().to_vec();
                Self::Attribute { id, key, value: (kind == 7).then_some(value) }
            }
            _ => return Err(Short),
        };
        if body.is_empty() { Ok(op) } else { Err(Short) }
    }
}

/// Writes a text: its length in one byte, then its bytes; none is an empty one.
fn text(out: &mut Vec<u8>, text: Option<&str>) {
    let text = text.unwrap_or("");
    out.push(u8::try_from(text.len()).expect("names and keys are short"));
    out.extend(text.as_bytes());
}

fn name(from: &mut Reader<'_>) -> Result<Option<String>, Short> {
    let len = from.u8()?;
    let text = core::str::from_utf8(from.take(len.into())?).map_err(|_| Short)?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// What a record begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preamble {
    pub(super) chain: u32,
    pub(super) count: u32,
    pub(super) lsn: u64,
}

impl Preamble {
    pub(super) fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..4].copy_from_slice(&self.chain.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..].copy_from_slice(&self.lsn.to_le_bytes());
        bytes
    }
}

/// Takes the payload of a record apart: its preamble, and what calls `each` for every operation.
pub(super) fn decode(payload: &[u8], mut each: impl FnMut(Op)) -> Result<Preamble, Short> {
    let mut from = Reader::new(payload);
    let preamble = Preamble { chain: from.u32()?, count: from.u32()?, lsn: from.u64()? };
    for _ in 0..preamble.count {
        each(Op::decode(&mut from)?);
    }
    if from.is_empty() { Ok(preamble) } else { Err(Short) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_as_they_are_written() {
        let id = FileId(9);
        let extent = Mapped { file: 1 << 40, device: 7, units: 300, written: true };
        let ops = [
            Op::Create { id, time: 5, name: Some("a/b".into()) },
            Op::Create { id, time: 5, name: None },
            Op::Remove { id },
            Op::Rename { id, replaced: Some(FileId(3)), name: Some("ö".into()) },
            Op::Rename { id, replaced: None, name: Some("x".repeat(NAME_BYTES_MAX)) },
            Op::Map { id, extent, size: 1, time: 2 },
            Op::Map { id, extent: Mapped { written: false, ..extent }, size: 1, time: 2 },
            Op::Unmap { id, file: 1, units: 2, size: 3, time: 4 },
            Op::Size { id, size: 1 << 62, time: 2 },
            Op::Attribute { id, key: "k".into(), value: Some(vec![0; VALUE_BYTES_MAX]) },
            Op::Attribute { id, key: "k".into(), value: Some(Vec::new()) },
            Op::Attribute { id, key: "k".into(), value: None },
        ];
        let preamble = Preamble { chain: 1, count: ops.len() as u32, lsn: 77 };
        let mut bytes = preamble.encode().to_vec();
        for op in &ops {
            let before = bytes.len();
            assert_eq!(op.encode(&mut bytes), bytes.len() - before);
        }
        let mut found = Vec::new();
        assert_eq!(decode(&bytes, |op| found.push(op)), Ok(preamble));
        assert_eq!(found, ops);
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len], |_| ()), Err(Short), "cut at {len}");
        }
        bytes.push(0);
        assert_eq!(decode(&bytes, |_| ()), Err(Short));
    }
}
