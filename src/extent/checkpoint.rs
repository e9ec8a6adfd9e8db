//! A checkpoint: the whole map as a stream of entries, written while operations go on.
//!
//! ```text
//!   object   kind 1 B = 1 | name 1 B | attributes 2 B | 0 4 B | id 8 B | size 8 B | created 8 B | modified 8 B
//!            name | attributes: key 1 B, value 2 B, key, value
//!   extents  kind 1 B = 2 | 0 1 B | count 2 B | 0 4 B | id 8 B
//!            count x (file unit 8 B | device unit 8 B | units << 1 | written 8 B)
//!   end      kind 1 B = 3 | 0 7 B | objects 8 B | extents 8 B | next id 8 B
//! ```
//!
//! The stream is cut into sealed blocks; the sequence of each is the checkpoint's, `count` the blocks of the region,
//! and `whole` the CRC of the stream so far. An object's extents may have been written at different times: the
//! journal from where the checkpoint began says again what changed meanwhile (`record`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::bytes::{Reader, Short};
use super::object::State;
use super::tree::{ExtentTree, Mapped};
use crate::units::FileId;

/// Bytes of an object beside its name, attributes and extents: its entry and that of one run of extents.
pub(super) const OBJECT_BYTES: usize = 40 + EXTENTS_BYTES;

/// Bytes before a run of extents.
const EXTENTS_BYTES: usize = 16;

/// Bytes of one extent.
pub(super) const EXTENT_BYTES: usize = 24;

/// Bytes of the last entry.
pub(super) const END_BYTES: usize = 32;

/// Extents that are written at once, under the object's lock.
pub(super) const EXTENTS_AT_ONCE: usize = 2048;

const OBJECT: u8 = 1;
const EXTENTS: u8 = 2;
const END: u8 = 3;

/// Appends an object without its extents.
pub(super) fn encode_object(out: &mut Vec<u8>, id: FileId, state: &State) {
    let name = state.name.as_deref().unwrap_or("");
    out.push(OBJECT);
    out.push(name.len() as u8);
    out.extend((state.attributes.len() as u16).to_le_bytes());
    out.extend([0; 4]);
    for number in [id.0, state.size, state.created, state.modified] {
        out.extend(number.to_le_bytes());
    }
    out.extend(name.as_bytes());
    for (key, value) in &state.attributes {
        out.push(key.len() as u8);
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(key.as_bytes());
        out.extend(value);
    }
}

/// Appends extents of an object from unit `from` on, as many as are written at once; returns how many, and the unit
/// to go on from if there may be more.
pub(super) fn encode_extents(
    out: &mut Vec<u8>,
    id: FileId,
    tree: &ExtentTree,
    from: u64,
) -> (u64, Option<u64>) {
    let start = out.len();
    out.extend([0; EXTENTS_BYTES]);
    let (mut count, mut end) = (0_usize, from);
    for Mapped { file, device, units, written } in tree.range(from..u64::MAX).take(EXTENTS_AT_ONCE)
    {
        for number in [file, device, units << 1 | u64::from(written)] {
            out.extend(number.to_le_bytes());
        }
        (count, end) = (count + 1, file + units);
    }
    if count == 0 {
        out.truncate(start);
        return (0, None);
    }
    out[start] = EXTENTS;
    out[start + 2..start + 4].copy_from_slice(&(count as u16).to_le_bytes());
    out[start + 8..start + 16].copy_from_slice(&id.0.to_le_bytes());
    (count as u64, (count == EXTENTS_AT_ONCE).then_some(end))
}

/// What the last entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    pub(super) objects: u64,
    pub(super) extents: u64,
    /// The number that the next object gets.
    pub(super) next: u64,
}

/// Appends the last entry.
pub(super) fn encode_end(out: &mut Vec<u8>, end: End) {
    out.push(END);
    out.extend([0; 7]);
    for number in [end.objects, end.extents, end.next] {
        out.extend(number.to_le_bytes());
    }
}

/// Takes a whole stream apart: every object by number.
pub(super) fn decode(
    stream: &[u8],
    device_units: u64,
) -> Result<(BTreeMap<FileId, State>, End), String> {
    let mut loader = Loader { device_units, ..Loader::default() };
    let mut from = Reader::new(stream);
    let end = loop {
        match loader.entry(&mut from) {
            Ok(None) => {}
            Ok(Some(end)) => break end,
            Err(Problem::Short) => return Err("an entry is cut off or unknown".into()),
            Err(Problem::Text(text)) => return Err(text),
        }
    };
    loader.finish_object();
    let (objects, extents) = (loader.objects.len() as u64, loader.extents);
    if !from.is_empty() {
        return Err("bytes follow the last entry".into());
    }
    if (objects, extents) != (end.objects, end.extents) {
        return Err(format!(
            "{objects} objects and {extents} extents, its end says {} and {}",
            end.objects, end.extents
        ));
    }
    Ok((loader.objects, end))
}

enum Problem {
    Short,
    Text(String),
}

impl From<Short> for Problem {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

#[derive(Default)]
struct Loader {
    device_units: u64,
    objects: BTreeMap<FileId, State>,
    current: Option<(FileId, State)>,
    extents: u64,
}

impl Loader {
    fn entry(&mut self, from: &mut Reader<'_>) -> Result<Option<End>, Problem> {
        let (kind, short, wide) = (from.u8()?, from.u8()?, from.u16()?);
        from.u32()?;
        match kind {
            OBJECT => self.object(from, short, wide)?,
            EXTENTS => self.extents(from, wide)?,
            END => {
                let (objects, extents, next) = (from.u64()?, from.u64()?, from.u64()?);
                return Ok(Some(End { objects, extents, next }));
            }
            _ => return Err(Problem::Short),
        }
        Ok(None)
    }

    fn object(&mut self, from: &mut Reader<'_>, name: u8, attributes: u16) -> Result<(), Problem> {
        self.finish_object();
        let id = FileId(from.u64()?);
        let (size, created, modified) = (from.u64()?, from.u64()?, from.u64()?);
        let name = text(from.take(name.into())?)?;
        let mut state = State { size, created, modified, ..State::default() };
        state.name = (!name.is_empty()).then_some(name);
        for _ in 0..attributes {
            let (key, value) = (from.u8()?, from.u16()?);
            let key = text(from.take(key.into())?)?;
            state.attributes.insert(key, from.take(value.into())?.to_vec());
        }
        if self.objects.contains_key(&id) {
            return Err(Problem::Text(format!("object {id} is there twice")));
        }
        self.current = Some((id, state));
        Ok(())
    }

    fn extents(&mut self, from: &mut Reader<'_>, count: u16) -> Result<(), Problem> {
        let id = FileId(from.u64()?);
        let Some((current, state)) = self.current.as_mut().filter(|(current, _)| *current == id)
        else {
            return Err(Problem::Text(format!("extents of object {id} without it")));
        };
        let entries = from.take(usize::from(count) * EXTENT_BYTES)?;
        let (chunks, _) = entries.as_chunks::<EXTENT_BYTES>();
        for chunk in chunks {
            let number =
                |at: usize| u64::from_le_bytes(chunk[at..at + 8].try_into().expect("eight bytes"));
            let (file, device, packed) = (number(0), number(8), number(16));
            let extent = Mapped { file, device, units: packed >> 1, written: packed & 1 != 0 };
            let inside = extent.fits() && extent.device_end() <= self.device_units;
            if !inside || file < state.tree.end() {
                return Err(Problem::Text(format!("object {current} cannot have {extent:?}")));
            }
            state.tree.push(extent);
        }
        self.extents += u64::from(count);
        Ok(())
    }

    fn finish_object(&mut self) {
        self.objects.extend(self.current.take());
    }
}

fn text(bytes: &[u8]) -> Result<String, Short> {
    core::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut state = State { size: 7, created: 1, modified: 2, ..State::default() };
        state.name = Some("some/name".into());
        state.attributes.insert("key".into(), b"value".to_vec());
        for n in 0..5000 {
            state.tree.push(Mapped { file: 2 * n, device: 3 * n, units: 1, written: n % 3 != 0 });
        }
        state
    }

    fn stream() -> Vec<u8> {
        let (state, id) = (state(), FileId(4));
        let mut out = Vec::new();
        encode_object(&mut out, id, &state);
        let (mut from, mut extents) = (Some(0), 0);
        while let Some(unit) = from {
            let (count, next) = encode_extents(&mut out, id, &state.tree, unit);
            (from, extents) = (next, extents + count);
        }
        encode_object(&mut out, FileId(5), &State::default());
        encode_end(&mut out, End { objects: 2, extents, next: 6 });
        out
    }

    #[test]
    fn a_stream_reads_as_it_is_written() {
        let (objects, end) = decode(&stream(), 15_000).unwrap();
        assert_eq!(end, End { objects: 2, extents: 5000, next: 6 });
        let (found, wanted) = (&objects[&FileId(4)], state());
        assert!(found.tree.iter().eq(wanted.tree.iter()));
        assert_eq!((found.size, found.created, found.modified), (7, 1, 2));
        assert_eq!((&found.name, &found.attributes), (&wanted.name, &wanted.attributes));
        assert_eq!(objects[&FileId(5)].name, None);
    }

    #[test]
    fn a_stream_that_cannot_be_is_refused() {
        let stream = stream();
        for len in (0..stream.len()).step_by(17) {
            assert!(decode(&stream[..len], 15_000).is_err(), "cut at {len}");
        }
        assert!(decode(&stream, 14_990).is_err(), "an extent beyond the device");
        assert!(decode(&[&stream[..], &[0]].concat(), 15_000).is_err());
        let twice = [&stream[..stream.len() - END_BYTES], &stream[..]].concat();
        assert!(decode(&twice, 15_000).is_err(), "an object twice");
    }
}
