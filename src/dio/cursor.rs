//! The submission cursor: how far a request has come, and the last answer of the map.
//!
//! Its size is fixed: a request of 1 GiB has no more of it than one of 4 KiB. It dies when the last command
//! of its request is out.
#![forbid(unsafe_code)]

use crate::block::{Extent, Mapping};
use crate::units::{BlockCount, Lba};

/// Where a request is on its way through file, device and memory.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// Whose it is.
    pub(super) record: u16,
    /// The next block of the file, and the one after the last.
    pub(super) at: u64,
    pub(super) end: u64,
    /// Bytes of the request before `at`.
    pub(super) stream: u64,
    /// The next byte of memory: segment, and byte of it.
    pub(super) place: (usize, u64),
    /// What is left of the last answer, from `at` on.
    pub(super) answer: Answer,
    /// Zeroes that go out before anything else.
    pub(super) zeroes: Option<ZeroRun>,
    /// Whether what follows the end in its unit has been seen to.
    pub(super) tail_done: bool,
}

/// What is left of an answer of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing: ask.
    Spent,
    /// Blocks of the device.
    Mapped(Extent),
    /// So many blocks of nothing.
    Hole(u64),
}

/// Blocks to be zeroed at the edge of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZeroRun {
    /// First block of the device.
    pub(super) lba: u64,
    /// How many.
    pub(super) blocks: u64,
    /// Whether the request's own data follows: then the last zero lies at the end of a page, so that a page
    /// list can go on with the data.
    pub(super) before_data: bool,
}

impl Cursor {
    pub(super) fn new(record: u16, at: u64, end: u64) -> Self {
        let (stream, place, answer) = (0, (0, 0), Answer::Spent);
        Self { record, at, end, stream, place, answer, zeroes: None, tail_done: false }
    }

    /// Moves `blocks` blocks forward, which the last answer covers.
    pub(super) fn advance(&mut self, blocks: u64, shift: u8) {
        self.at += blocks;
        self.stream += blocks << shift;
        self.answer = match self.answer {
            Answer::Mapped(extent) => {
                let left = extent.blocks.0 - blocks;
                let lba = Lba(extent.lba.0 + blocks);
                Answer::Mapped(Extent { lba, blocks: BlockCount(left), ..extent }).or_spent(left)
            }
            Answer::Hole(all) => Answer::Hole(all - blocks).or_spent(all - blocks),
            Answer::Spent => unreachable!("nothing is passed without an answer"),
        };
    }

    /// Takes an answer whose first `skip` blocks lie before the cursor.
    pub(super) fn take(&mut self, mapping: Mapping, skip: u64) {
        self.answer = match mapping {
            Mapping::Mapped(extent) => {
                let (lba, left) = (Lba(extent.lba.0 + skip), extent.blocks.0 - skip);
                Answer::Mapped(Extent { lba, blocks: BlockCount(left), ..extent })
            }
            Mapping::Hole(blocks) => Answer::Hole(blocks.0 - skip),
        };
    }
}

impl Answer {
    fn or_spent(self, left: u64) -> Self {
        // What is left of a new extent past the end is zeroed, so an answer is kept until it is used up.
        if left == 0 { Self::Spent } else { self }
    }
}
