//! The journal at opening: which records follow the checkpoint, and what they make of it.
//!
//! A record in flight at a power cut may be there in part, and it is the last: nothing was sent behind it. So the end
//! of the journal is where an older block lies, or one that was never written, or part of the record due. A block that
//! fails its own checks is not the end but damage, and so is a later record behind the end, or in a place that is not
//! its own. Where the journal ends at once, the record before its start has to be there: else it is not the journal
//! that was read.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::error::{Area, Damage, StoreError};
use super::layout::Layout;
use super::object::State;
use super::record::{self, Op};
use super::seal::{self, Header, Kind};
use super::superblock::{Head, Superblock};
use super::uuid::Uuid;
use crate::units::{FileId, Lba};

/// The blocks of a journal, read whole.
pub(super) struct Blocks<'a> {
    pub(super) layout: &'a Layout,
    pub(super) store: Uuid,
    pub(super) bytes: &'a [u8],
}

/// What was found in a journal.
#[derive(Debug)]
pub(super) struct End {
    /// Where the next record goes.
    pub(super) head: Head,
    /// The highest epoch that a record has.
    pub(super) epoch: u64,
    pub(super) records: u64,
    pub(super) operations: u64,
}

impl Blocks<'_> {
    fn block(&self, position: u64) -> (&[u8], Lba) {
        let (size, lba) = (self.layout.block(), self.layout.journal_lba(position));
        let index = (lba.0 - self.layout.journal.start) as usize;
        (&self.bytes[index * size..(index + 1) * size], lba)
    }

    fn open(&self, position: u64) -> Result<(Header, &[u8]), Damage> {
        let (block, lba) = self.block(position);
        let header = seal::open(block, Kind::Journal, self.store, lba)?;
        Ok((header, seal::payload(block, &header)))
    }

    fn damaged(&self, position: u64) -> impl FnOnce(Damage) -> StoreError {
        StoreError::damaged(Area::Journal, self.layout.journal_lba(position))
    }

    /// Reads the record that is due at a head; `None` where the journal ends.
    fn record(&self, head: &Head, epoch: u64) -> Result<Option<(Vec<u8>, Header)>, StoreError> {
        let Some(first) = self.due(head, 0)? else { return Ok(None) };
        let (header, mut payload) = (first.0, first.1.to_vec());
        let damaged = |what, found: u64, wanted: u64| {
            self.damaged(head.position)(Damage::Number { what, found, wanted })
        };
        let most = self.layout.record_blocks_max();
        if header.index != 0 || u64::from(header.count) > most {
            // Its first block is not there: it is torn, if the rest of the block makes sense.
            return if header.index != 0 {
                Ok(None)
            } else {
                Err(damaged("the blocks of a record", header.count.into(), most))
            };
        }
        for index in 1..header.count {
            let Some((other, piece)) = self.due(head, index.into())? else { return Ok(None) };
            let same = (other.epoch, other.count, other.whole)
                == (header.epoch, header.count, header.whole);
            if !same || other.index != index {
                // Left by an attempt of an earlier epoch, whose record was torn as well.
                return Ok(None);
            }
            payload.extend_from_slice(piece);
        }
        let whole = crc32c::crc32c(&payload);
        if whole != header.whole {
            return Err(damaged("the checksum of a record", header.whole.into(), whole.into()));
        }
        if header.epoch < epoch {
            return Err(damaged("the epoch of a record", header.epoch, epoch));
        }
        Ok(Some((payload, header)))
    }

    /// Opens block `index` of the record due; `None` if something older is there.
    fn due(&self, head: &Head, index: u64) -> Result<Option<(Header, &[u8])>, StoreError> {
        let position = head.position + index;
        match self.open(position) {
            // Once the journal has gone round, every block of it was written.
            Err(Damage::Blank) if position < self.layout.journal_blocks() => Ok(None),
            Err(damage) => Err(self.damaged(position)(damage)),
            Ok((header, _)) if header.sequence < head.record => Ok(None),
            Ok((header, _)) if header.sequence > head.record => {
                Err(StoreError::JournalGap { missing: head.record, found: header.sequence })
            }
            Ok(found) => Ok(Some(found)),
        }
    }

    /// Looks through the whole journal for what must not be there: a record behind its end. Returns the blocks that
    /// are damaged, which nothing needs any more.
    fn look_behind(&self, head: &Head) -> Result<Vec<StoreError>, StoreError> {
        let mut stale = Vec::new();
        for position in 0..self.layout.journal_blocks() {
            match self.open(position) {
                Ok((header, _)) if header.sequence > head.record => {
                    let (missing, found) = (head.record, header.sequence);
                    return Err(StoreError::JournalGap { missing, found });
                }
                Ok(_) | Err(Damage::Blank) => {}
                Err(damage @ Damage::Place { found })
                    if self.is_due_from(head, position, found) =>
                {
                    return Err(self.damaged(position)(damage));
                }
                Err(damage) => stale.push(self.damaged(position)(damage)),
            }
        }
        Ok(stale)
    }

    /// Says whether a block that was written for another place belongs to a record that the journal should have: then
    /// it was written, or is being read, somewhere else.
    fn is_due_from(&self, head: &Head, position: u64, place: Lba) -> bool {
        let (block, _) = self.block(position);
        let header = seal::open(block, Kind::Journal, self.store, place);
        header.is_ok_and(|header| header.sequence >= head.record)
    }

    /// Checks that the journal does not end before records that were there when the superblock was written.
    fn check_end(&self, superblock: &Superblock, end: &End) -> Result<(), StoreError> {
        let (missing, known) = (end.head.record, superblock.epoch_record);
        if missing < known {
            return Err(StoreError::JournalGap { missing, found: known });
        }
        if end.records > 0 || end.head.position == 0 {
            return Ok(());
        }
        let before = end.head.position - 1;
        let wanted = end.head.record - 1;
        match self.open(before) {
            Ok((header, _)) if header.sequence == wanted => Ok(()),
            // Nothing needs it, and it is where it was: the rest can be believed.
            Err(Damage::Magic { .. } | Damage::Checksum { .. }) => Ok(()),
            Ok((header, _)) => {
                let (what, found) = ("the record", header.sequence);
                Err(self.damaged(before)(Damage::Number { what, found, wanted }))
            }
            Err(damage) => Err(self.damaged(before)(damage)),
        }
    }

    /// Hands every operation behind the checkpoint to `each`, in order.
    pub(super) fn replay(
        &self,
        superblock: &Superblock,
        each: &mut dyn FnMut(Op) -> Result<(), String>,
    ) -> Result<(End, Vec<StoreError>), StoreError> {
        let mut end =
            End { head: superblock.head, epoch: superblock.epoch, records: 0, operations: 0 };
        let wrong = |what: String| StoreError::Inconsistent { area: Area::Journal, what };
        // Records before this epoch's first are older than it.
        let epoch_of = |head: &Head| {
            if head.record >= superblock.epoch_record { superblock.epoch } else { 0 }
        };
        let mut least = 0;
        while end.head.position - superblock.head.position < self.layout.journal_blocks() {
            let Some((payload, header)) = self.record(&end.head, least.max(epoch_of(&end.head)))?
            else {
                break;
            };
            let mut failed = None;
            let found = record::decode(&payload, |op| {
                if failed.is_none() {
                    failed = each(op).err();
                }
            });
            let number = header.sequence;
            if let Some(what) = failed {
                return Err(wrong(format!("record {number}: {what}")));
            }
            let Ok(preamble) = found else {
                return Err(wrong(format!("record {number} is not made of operations")));
            };
            if (preamble.chain, preamble.lsn) != (end.head.chain, end.head.lsn) {
                let (chain, lsn) = (end.head.chain, end.head.lsn);
                return Err(wrong(format!(
                    "record {number} goes on from operation {} of a record {:#010x}, not from {lsn} of {chain:#010x}",
                    preamble.lsn, preamble.chain
                )));
            }
            end.head = Head {
                position: end.head.position + u64::from(header.count),
                record: number + 1,
                lsn: preamble.lsn + u64::from(preamble.count),
                chain: header.whole,
            };
            end.records += 1;
            end.operations += u64::from(preamble.count);
            least = header.epoch;
            end.epoch = end.epoch.max(header.epoch);
        }
        let stale = self.look_behind(&end.head)?;
        self.check_end(superblock, &end)?;
        Ok((end, stale))
    }
}

/// Objects, as operations make them of a checkpoint.
pub(super) struct World {
    pub(super) objects: BTreeMap<FileId, State>,
    pub(super) next_id: u64,
    device_units: u64,
    /// Objects that operations speak of and that are not there: they have to be removed further on.
    missing: BTreeSet<FileId>,
}

impl World {
    pub(super) fn new(objects: BTreeMap<FileId, State>, next_id: u64, device_units: u64) -> Self {
        Self { objects, next_id, device_units, missing: BTreeSet::new() }
    }

    /// Applies one operation.
    pub(super) fn apply(&mut self, op: Op) -> Result<(), String> {
        let id = op.id();
        match op {
            Op::Create { time, name, .. } => {
                self.next_id = self.next_id.max(id.0 + 1);
                self.missing.remove(&id);
                let state = self.objects.entry(id).or_default();
                (state.name, state.created, state.modified) = (name, time, time);
            }
            Op::Remove { .. } => self.remove(id),
            Op::Rename { replaced, name, .. } => {
                if let Some(other) = replaced {
                    self.remove(other);
                }
                self.with(id, |state| state.name = name);
            }
            Op::Map { extent, size, time, .. } => {
                if !extent.fits() || extent.device_end() > self.device_units {
                    return Err(format!("object {id} cannot have {extent:?}"));
                }
                self.with(id, |state| {
                    state.tree.remove(extent.file..extent.end(), &mut |_| {});
                    state.tree.insert(extent);
                    (state.size, state.modified) = (size, time);
                });
            }
            Op::Unmap { file, units, size, time, .. } => {
                let end = file.checked_add(units).ok_or("units beyond 2^64")?;
                self.with(id, |state| {
                    state.tree.remove(file..end, &mut |_| {});
                    (state.size, state.modified) = (size, time);
                });
            }
            Op::Size { size, time, .. } => {
                self.with(id, |state| (state.size, state.modified) = (size, time));
            }
            Op::Attribute { key, value, .. } => self.with(id, |state| {
                match value {
                    Some(value) => state.attributes.insert(key, value),
                    None => state.attributes.remove(&key),
                };
            }),
        }
        Ok(())
    }

    fn remove(&mut self, id: FileId) {
        self.missing.remove(&id);
        self.objects.remove(&id);
    }

    fn with(&mut self, id: FileId, change: impl FnOnce(&mut State)) {
        match self.objects.get_mut(&id) {
            Some(state) => change(state),
            None => {
                self.missing.insert(id);
            }
        }
    }

    /// Says what is wrong with the end of it all: objects that are missing, names that two objects have.
    pub(super) fn problem(&self) -> Option<String> {
        if let Some(id) = self.missing.first() {
            return Some(format!("operations on object {id}, which is neither there nor removed"));
        }
        let mut names = BTreeMap::new();
        self.objects.iter().find_map(|(id, state)| {
            let name = state.name.as_ref()?;
            let other = names.insert(name, id)?;
            Some(format!("objects {other} and {id} are both named {name:?}"))
        })
    }
}
