//! In-flight slots: who owns what the device may touch, and which completion is whose.
//!
//! A command identifier is a slot's index in the low bits and the slot's generation in the rest. The
//! generation moves on whenever the slot is freed, so that a late or doubled completion names a
//! generation that is gone. The slot holds the request, and with it the buffers, until then.
#![forbid(unsafe_code)]

use core::fmt;

use crate::block::Request;
use crate::block::deadline::{Stamp, Tick};
use crate::units::CommandId;

/// Who waits for a command. A slot that waits for nothing holds [`Default`].
pub(super) trait Occupant: Default {
    /// Says whether nobody waits.
    fn is_nobody(&self) -> bool;
}

/// Who waits for an I/O command.
#[derive(Debug, Default)]
pub(super) enum Owner {
    /// Nobody: the slot is free.
    #[default]
    Nobody,
    /// A request that is this one command.
    Request(Request),
    /// A request that was split; the index of its record.
    Split(u16),
}

impl Occupant for Owner {
    #[inline(always)]
    fn is_nobody(&self) -> bool {
        matches!(self, Self::Nobody)
    }
}

/// A list page that a command uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListPage(pub(super) u16);

/// One slot: one cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Slot<O> {
    owner: O,
    generation: u16,
    list: Option<ListPage>,
    stamp: Stamp,
}

const _: () = assert!(size_of::<Slot<Owner>>() == 64);

/// The slots of one queue, with an owner `O` each.
pub(super) struct Slots<O> {
    slots: Box<[Slot<O>]>,
    /// Free slots; the last one freed is the first one taken, since it is warm.
    free: Vec<u16>,
    index_bits: u32,
    index_mask: u16,
    /// Generations count from 0 to one below this.
    generations: u16,
}

/// A slot that was found in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotIndex(u16);

impl SlotIndex {
    /// Returns the number of the slot.
    pub(super) fn number(self) -> u16 {
        self.0
    }
}

/// A completion that no outstanding command explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stray {
    /// There is no such slot.
    NoSlot { cid: CommandId, slots: usize },
    /// The slot waits for nothing.
    Idle { cid: CommandId },
    /// The slot waits for another generation.
    Stale { cid: CommandId, expected: CommandId },
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot { cid, slots } => {
                write!(f, "completion for command {cid}, beyond the queue's {slots} slots")
            }
            Self::Idle { cid } => write!(f, "completion for command {cid}, which is not in flight"),
            Self::Stale { cid, expected } => {
                write!(f, "completion for command {cid}, where {expected} is in flight")
            }
        }
    }
}

impl<O: Occupant> Slots<O> {
    /// Makes `count` free slots, at most 65535.
    pub(super) fn new(count: u16) -> Self {
        let index_bits = u16::BITS - count.saturating_sub(1).leading_zeros();
        // All ones is never used as an identifier: error logs mean "no command" by it (Base Figure 206).
        let generations = match u16::BITS - index_bits {
            0 => 1,
            bits => u16::MAX >> (u16::BITS - bits),
        };
        let slot =
            || Slot { owner: O::default(), generation: 0, list: None, stamp: Stamp::default() };
        Self {
            slots: (0..count).map(|_| slot()).collect(),
            free: (0..count).rev().collect(),
            index_bits,
            index_mask: ((1u32 << index_bits) - 1) as u16,
            generations: generations.max(1),
        }
    }

    /// Returns the number of slots.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the number of slots in flight.
    #[inline]
    pub(super) fn busy(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Says whether every slot is in flight.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Returns the slot that is filled next.
    pub(super) fn next(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Fills a free slot and returns the identifier of its command.
    ///
    /// # Panics
    ///
    /// If there is none; the caller asks first.
    #[inline(always)]
    pub(super) fn fill(&mut self, owner: O, list: Option<ListPage>, stamp: Stamp) -> CommandId {
        let index = self.free.pop().expect("the caller found a free slot");
        let bits = self.index_bits & 15;
        let slot = &mut self.slots[usize::from(index)];
        let generation = slot.generation << bits;
        assert!(slot.owner.is_nobody(), "a free slot has an owner");
        slot.owner = owner;
        slot.list = list;
        slot.stamp = stamp;
        CommandId(index | generation)
    }

    /// Returns the slot of a command that is in flight; `None` if the identifier names no such command.
    #[inline(always)]
    pub(super) fn find(&self, cid: CommandId) -> Option<SlotIndex> {
        let index = cid.0 & self.index_mask;
        let slot = self.slots.get(usize::from(index))?;
        let expected = index | self.generation_bits(slot.generation);
        (expected == cid.0 && !slot.owner.is_nobody()).then_some(SlotIndex(index))
    }

    /// Says why [`find`](Self::find) found nothing.
    #[cold]
    pub(super) fn explain(&self, cid: CommandId) -> Stray {
        let index = cid.0 & self.index_mask;
        match self.slots.get(usize::from(index)) {
            None => Stray::NoSlot { cid, slots: self.slots.len() },
            Some(slot) if slot.owner.is_nobody() => Stray::Idle { cid },
            Some(slot) => {
                let expected = CommandId(index | self.generation_bits(slot.generation));
                Stray::Stale { cid, expected }
            }
        }
    }

    /// Returns when a command was submitted and which list page it used.
    #[inline(always)]
    pub(super) fn marks(&self, index: SlotIndex) -> (Stamp, Option<ListPage>) {
        let slot = &self.slots[usize::from(index.0)];
        (slot.stamp, slot.list)
    }

    /// Returns who waits for the command in a slot.
    pub(super) fn owner(&self, index: SlotIndex) -> &O {
        &self.slots[usize::from(index.0)].owner
    }

    /// Changes when a command was submitted and what was tried since.
    pub(super) fn set_stamp(&mut self, index: SlotIndex, stamp: Stamp) {
        self.slots[usize::from(index.0)].stamp = stamp;
    }

    /// Puts another command in the place of one that is over, for the same owner, and returns its identifier: a late
    /// completion of the old one is a stranger then.
    pub(super) fn renew(
        &mut self,
        index: SlotIndex,
        list: Option<ListPage>,
        stamp: Stamp,
    ) -> CommandId {
        let generations = self.generations;
        let slot = &mut self.slots[usize::from(index.0)];
        slot.generation = (slot.generation + 1) % generations;
        (slot.list, slot.stamp) = (list, stamp);
        self.cid(index)
    }

    /// Takes the list page of a command that is over.
    pub(super) fn take_list(&mut self, index: SlotIndex) -> Option<ListPage> {
        self.slots[usize::from(index.0)].list.take()
    }

    /// Returns the identifier of the command in a slot.
    pub(super) fn cid(&self, index: SlotIndex) -> CommandId {
        let generation = self.slots[usize::from(index.0)].generation;
        CommandId(index.0 | self.generation_bits(generation))
    }

    /// Returns the slots in flight.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = SlotIndex> {
        let numbered = (0..u16::MAX).zip(&self.slots);
        numbered.filter(|(_, slot)| !slot.owner.is_nobody()).map(|(index, _)| SlotIndex(index))
    }

    /// Returns the slots whose command was submitted in a tick.
    pub(super) fn submitted_in(&self, tick: Tick) -> Vec<SlotIndex> {
        self.in_flight().filter(|index| self.marks(*index).0.is_of(tick)).collect()
    }

    /// Frees the slot of a completed command and returns who waited for it.
    #[inline(always)]
    pub(super) fn empty(&mut self, index: SlotIndex) -> O {
        let slot = &mut self.slots[usize::from(index.0)];
        let next = slot.generation + 1;
        slot.generation = if next == self.generations { 0 } else { next };
        self.free.push(index.0);
        core::mem::take(&mut slot.owner)
    }

    /// Returns any slot in flight: for a queue whose device can no longer touch memory.
    pub(super) fn any(&self) -> Option<SlotIndex> {
        self.in_flight().next()
    }

    /// Returns a generation in its place above the index.
    #[inline(always)]
    fn generation_bits(&self, generation: u16) -> u16 {
        // A queue of more than half of 65536 has no bits left for generations, and its only one is 0.
        generation << (self.index_bits & 15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;
    use std::collections::HashMap;

    /// Stands for a request.
    #[derive(Debug, Default)]
    struct Tag(Option<u16>);

    impl Occupant for Tag {
        fn is_nobody(&self) -> bool {
            self.0.is_none()
        }
    }

    fn fill(slots: &mut Slots<Tag>, tag: u16) -> CommandId {
        slots.fill(Tag(Some(tag)), None, Stamp::default())
    }

    /// Takes a completion as a queue does.
    fn finish(slots: &mut Slots<Tag>, cid: CommandId) -> Result<u16, Stray> {
        match slots.find(cid) {
            Some(index) => Ok(slots.empty(index).0.expect("a slot in flight has a tag")),
            None => Err(slots.explain(cid)),
        }
    }

    #[test]
    fn the_slot_freed_last_is_taken_first() {
        let mut slots = Slots::new(8);
        let first = fill(&mut slots, 1);
        let _second = fill(&mut slots, 2);
        finish(&mut slots, first).unwrap();
        let again = fill(&mut slots, 3);
        assert_eq!(again.0 & 7, first.0 & 7);
        assert_ne!(again, first, "another generation");
    }

    /// SPDK indexes its trackers by whatever identifier a completion carries, and a drive was seen to
    /// send identifiers of another drive's commands (spdk#527). Here each is told apart.
    #[test]
    fn late_doubled_and_invented_completions_are_told_apart() {
        let mut slots = Slots::new(5);
        let first = fill(&mut slots, 1);
        assert_eq!(finish(&mut slots, first).unwrap(), 1);
        assert_eq!(finish(&mut slots, first).unwrap_err(), Stray::Idle { cid: first });
        let second = fill(&mut slots, 2);
        let stale = Stray::Stale { cid: first, expected: second };
        assert_eq!(finish(&mut slots, first).unwrap_err(), stale);
        let cid = CommandId(7);
        assert_eq!(finish(&mut slots, cid).unwrap_err(), Stray::NoSlot { cid, slots: 5 });
        assert_eq!(finish(&mut slots, second).unwrap(), 2);
    }

    #[test]
    fn identifiers_are_unique_in_flight_and_never_all_ones() {
        let mut seed = Seed::from_env("nvme slots");
        for count in [1, 2, 3, 128, 129, 1024, 40_000, 65_535] {
            let mut slots = Slots::new(count);
            let mut model: HashMap<u16, u16> = HashMap::new();
            for step in 0..u16::MAX {
                if slots.is_full() || (slots.busy() > 0 && seed.chance(1, 2)) {
                    let cid = *model.keys().next().unwrap();
                    let expected = model.remove(&cid).unwrap();
                    assert_eq!(finish(&mut slots, CommandId(cid)).unwrap(), expected);
                } else {
                    let cid = fill(&mut slots, step).0;
                    assert_ne!(cid, u16::MAX);
                    assert!(model.insert(cid, step).is_none(), "{cid:#x} twice of {count}");
                }
                assert_eq!(slots.busy(), model.len());
            }
        }
    }

    #[test]
    fn a_generation_comes_round_only_after_all_others() {
        for count in [2u16, 128, 1024] {
            let mut slots = Slots::new(count);
            let first = fill(&mut slots, 0);
            finish(&mut slots, first).unwrap();
            let others = (1u32..).take_while(|_| {
                let cid = fill(&mut slots, 0);
                finish(&mut slots, cid).unwrap();
                cid != first
            });
            let generations = 65_536 / u32::from(count) - 1;
            assert_eq!(others.count() as u32 + 1, generations, "depth {count}");
        }
    }
}
