//! Who may rewrite a block of which a write covers only a part.
//!
//! A write that covers part of a block reads it, changes it and writes it back. Two such writes of one block
//! take turns, in the order in which they came, whichever handles they came through: otherwise the second
//! would write back what it read before the first.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::units::{FileBlock, FileId};

/// The blocks of a volume that are being rewritten, and those who wait for them.
#[derive(Debug, Default)]
pub(super) struct Edges {
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    next: u64,
    /// By turn: what is wanted or held. The lowest turn that wants a block has it.
    wanted: BTreeMap<u64, Wanted>,
}

/// The first and the last block of a write, where it covers only a part of them; or the end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) file: FileId,
    pub(super) head: Option<FileBlock>,
    pub(super) tail: Option<FileBlock>,
    /// Whether the end of the file is wanted, wherever that is.
    pub(super) end: bool,
}

impl Wanted {
    /// The end of a file, and no block of it.
    pub(super) fn end_of(file: FileId) -> Self {
        Self { file, head: None, tail: None, end: true }
    }

    fn meets(&self, other: &Self) -> bool {
        let blocks = |wanted: &Self| [wanted.head, wanted.tail].into_iter().flatten();
        let same_block = || blocks(self).any(|block| blocks(other).any(|o| o == block));
        self.file == other.file && (self.end && other.end || same_block())
    }
}

impl Edges {
    /// Takes a turn at some blocks; it is given back when it drops.
    pub(super) fn queue_up(self: &Arc<Self>, wanted: Wanted) -> Turn {
        let mut turns = self.lock();
        let number = turns.next;
        turns.next += 1;
        turns.wanted.insert(number, wanted);
        Turn { edges: Arc::clone(self), number }
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        // Every change under the lock is one insertion or removal.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn at some blocks.
#[derive(Debug)]
#[must_use = "a turn is given back when it drops"]
pub(super) struct Turn {
    edges: Arc<Edges>,
    number: u64,
}

impl Turn {
    /// Says whether everybody who came earlier for one of the blocks is done.
    ///
    /// A turn waits for lower numbers only, so that no two wait for each other.
    pub(super) fn has_come(&self) -> bool {
        let turns = self.edges.lock();
        let mine = &turns.wanted[&self.number];
        !turns.wanted.range(..self.number).any(|(_, earlier)| earlier.meets(mine))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.edges.lock().wanted.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(head: u64, tail: u64) -> Wanted {
        let (head, tail) = (Some(FileBlock(head)), Some(FileBlock(tail)));
        Wanted { file: FileId(1), head, tail, end: false }
    }

    #[test]
    fn turns_come_in_order_and_only_where_they_meet() {
        let edges = Arc::new(Edges::default());
        let first = edges.queue_up(wanted(1, 5));
        let second = edges.queue_up(wanted(5, 9));
        let third = edges.queue_up(wanted(9, 12));
        let other = edges.queue_up(Wanted { file: FileId(2), ..wanted(1, 5) });
        let come = |turn: &Turn| turn.has_come();
        assert!(come(&first) && come(&other));
        assert!(!come(&second) && !come(&third), "the third waits behind the second");
        drop(first);
        assert!(come(&second) && !come(&third));
        drop(second);
        assert!(come(&third));
    }

    #[test]
    fn who_gives_up_is_not_waited_for() {
        let edges = Arc::new(Edges::default());
        let (_first, second) = (edges.queue_up(wanted(1, 2)), edges.queue_up(wanted(2, 3)));
        let third = edges.queue_up(wanted(3, 4));
        assert!(!third.has_come());
        drop(second);
        assert!(third.has_come());
    }
}
