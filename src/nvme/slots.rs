//! In-flight slots: who owns what the device may touch, and which completion is whose.
//!
//! A command identifier is a slot's index in the low bits and the slot's generation in the rest. The
//! generation moves on whenever the slot is freed, so that a late or doubled completion names a
//! generation that is gone. The slot holds the request, and with it the buffers, until then.
#![forbid(unsafe_code)]

use core::fmt;

use super::deadline::Tick;
use crate::block::Request;
use crate::units::CommandId;

/// Who waits for an I/O command.
#[derive(Debug)]
pub(super) enum Owner {
    /// A request that is this one command.
    Request(Request),
    /// A request that was split; the index of its record.
    Split(u16),
}

/// A list page that a command uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListPage(pub(super) u16);

/// One slot: one cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Slot<O> {
    /// Nobody while the slot is free.
    owner: Option<O>,
    generation: u16,
    list: Option<ListPage>,
    tick: Tick,
}

const _: () = assert!(size_of::<Slot<Owner>>() == 64);

/// The slots of one queue, with an owner `O` each.
pub(super) struct Slots<O> {
    slots: Box<[Slot<O>]>,
    /// Free slots; the last one freed is the first one taken, since it is warm.
    free: Vec<u16>,
    index_bits: u32,
    /// Generations count from 0 to one below this.
    generations: u16,
}

/// A command that came back.
#[derive(Debug)]
pub(super) struct Finished<O> {
    pub(super) owner: O,
    pub(super) tick: Tick,
    pub(super) list: Option<ListPage>,
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

impl<O> Slots<O> {
    /// Makes `count` free slots, at most 65535.
    pub(super) fn new(count: u16) -> Self {
        let index_bits = u16::BITS - count.saturating_sub(1).leading_zeros();
        // All ones is never used as an identifier: error logs mean "no command" by it (Base Figure 206).
        let generations = match u16::BITS - index_bits {
            0 => 1,
            bits => u16::MAX >> (u16::BITS - bits),
        };
        let slot = || Slot { owner: None, generation: 0, list: None, tick: Tick::default() };
        Self {
            slots: (0..count).map(|_| slot()).collect(),
            free: (0..count).rev().collect(),
            index_bits,
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

    /// Fills a free slot and returns the identifier of its command.
    ///
    /// # Panics
    ///
    /// If there is none; the caller asks first.
    #[inline]
    pub(super) fn fill(&mut self, owner: O, list: Option<ListPage>, tick: Tick) -> CommandId {
        let index = self.free.pop().expect("the caller found a free slot");
        let slot = &mut self.slots[usize::from(index)];
        slot.owner = Some(owner);
        slot.list = list;
        slot.tick = tick;
        CommandId(index | shift(slot.generation, self.index_bits))
    }

    /// Empties the slot of a completed command, if the identifier names one that is in flight.
    #[inline]
    pub(super) fn finish(&mut self, cid: CommandId) -> Result<Finished<O>, Stray> {
        let index = cid.0 & index_mask(self.index_bits);
        let slots = self.slots.len();
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(Stray::NoSlot { cid, slots });
        };
        let expected = CommandId(index | shift(slot.generation, self.index_bits));
        if expected != cid && slot.owner.is_some() {
            return Err(Stray::Stale { cid, expected });
        }
        match slot.owner.take() {
            Some(owner) => Ok(self.empty(index, owner)),
            None => Err(Stray::Idle { cid }),
        }
    }

    /// Empties any slot in flight: for a queue whose device can no longer touch memory.
    pub(super) fn take_any(&mut self) -> Option<Finished<O>> {
        let taken = |(index, slot): (usize, &mut Slot<O>)| Some((index, slot.owner.take()?));
        let (index, owner) = self.slots.iter_mut().enumerate().find_map(taken)?;
        Some(self.empty(u16::try_from(index).expect("there are at most 65535 slots"), owner))
    }

    /// Moves the generation on and frees the slot whose owner was taken.
    #[inline]
    fn empty(&mut self, index: u16, owner: O) -> Finished<O> {
        let slot = &mut self.slots[usize::from(index)];
        let next = slot.generation + 1;
        slot.generation = if next == self.generations { 0 } else { next };
        self.free.push(index);
        Finished { owner, tick: slot.tick, list: slot.list.take() }
    }
}

#[inline]
fn shift(generation: u16, bits: u32) -> u16 {
    // A queue of more than half of 65536 has no bits left for generations.
    generation.checked_shl(bits).unwrap_or(0)
}

#[inline]
fn index_mask(bits: u32) -> u16 {
    ((1u32 << bits) - 1) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;
    use std::collections::HashMap;

    fn fill(slots: &mut Slots<u16>, tag: u16) -> CommandId {
        slots.fill(tag, None, Tick::default())
    }

    fn tag(finished: &Finished<u16>) -> u16 {
        finished.owner
    }

    #[test]
    fn the_slot_freed_last_is_taken_first() {
        let mut slots = Slots::new(8);
        let first = fill(&mut slots, 1);
        let _second = fill(&mut slots, 2);
        slots.finish(first).unwrap();
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
        assert_eq!(tag(&slots.finish(first).unwrap()), 1);
        assert_eq!(slots.finish(first).unwrap_err(), Stray::Idle { cid: first });
        let second = fill(&mut slots, 2);
        let stale = Stray::Stale { cid: first, expected: second };
        assert_eq!(slots.finish(first).unwrap_err(), stale);
        let cid = CommandId(7);
        assert_eq!(slots.finish(cid).unwrap_err(), Stray::NoSlot { cid, slots: 5 });
        assert_eq!(tag(&slots.finish(second).unwrap()), 2);
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
                    assert_eq!(tag(&slots.finish(CommandId(cid)).unwrap()), expected);
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
            slots.finish(first).unwrap();
            let others = (1u32..).take_while(|_| {
                let cid = fill(&mut slots, 0);
                slots.finish(cid).unwrap();
                cid != first
            });
            let generations = 65_536 / u32::from(count) - 1;
            assert_eq!(others.count() as u32 + 1, generations, "depth {count}");
        }
    }
}
