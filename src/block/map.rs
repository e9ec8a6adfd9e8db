//! From blocks of a file to blocks of the device: the contract, and the map of a raw device.
//!
//! ```text
//!   begin(reach)  -> guard, size        one for each request; or "not yet", and the caller asks again
//!   map(guard, at, blocks) -> extent | hole      once for each extent, in rising order
//!   commit(guard, bytes)                the data is on the device: publish, then the caller is told
//!   settled(mark)                       for durable requests: until this says so, the caller is not told
//!   drop(guard)                         the request failed: the space goes back, nothing was ever visible
//! ```
//!
//! The invariant: what `map` made new is nobody's business but the guard's until `commit`. So a request that
//! fails half-way, a process that dies, or a guard that is forgotten leaves no block of stale data in a file.
#![forbid(unsafe_code)]

use super::{BlockError, Cause, Geometry};
use crate::units::{BlockCount, FileBlock, FileId, Lba};

/// The most blocks of an allocation unit: 1 MiB of 512-byte blocks.
pub const UNIT_BLOCKS_MAX: u64 = 2048;

/// What a request is going to do with the blocks it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// It reads them: holes are an answer, and nothing is made.
    Read,
    /// It writes them: blocks that are missing are made.
    Write,
    /// It zeroes or deallocates what there is: holes are an answer, and nothing is made.
    Clear,
}

/// What has to be durable before the caller of a write is told that it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Durability {
    /// Nothing: a later flush or sync makes it durable, or the caches do in their own time.
    #[default]
    Lazy,
    /// The data, and whatever is needed to find it again, as with `O_DSYNC`.
    Data,
    /// The times of the file as well, as with `O_SYNC`.
    Full,
}

impl Durability {
    /// Says whether anything has to be durable.
    #[inline]
    pub const fn is_durable(self) -> bool {
        self as u8 != 0
    }
}

/// The bytes of a file that a request reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Which file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// Length in bytes; not 0, and the end does not pass 2^64.
    pub len: u64,
    /// What for.
    pub intent: Intent,
    /// How durable a write is to be. If it is to be at all, its data is on the medium by the time of `commit`.
    pub durability: Durability,
}

/// A point in the history of a map; its numbers rise, and mean something to the map alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub u64);

/// When what a request has published is as durable as it was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is.
    Now,
    /// When the map has [`settled`](MapBlocks::settled) this mark.
    Later(Mark),
}

/// What a request holds while it is under way, and the size of its file when it began.
#[derive(Debug)]
pub struct Begun<G> {
    /// To be spent by `commit` or by dropping it.
    pub guard: G,
    /// The size of the file in bytes: reads end there.
    pub size: u64,
}

/// A run of blocks on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub lba: Lba,
    /// How many.
    pub blocks: BlockCount,
    /// Whether they hold nothing of the file yet: what a write does not cover has to be zeroed.
    pub new: bool,
    /// Whether the next mapping will have to read metadata: what has been mapped is better sent first.
    pub boundary: bool,
}

/// What lies at a block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Blocks of the device.
    Mapped(Extent),
    /// So many blocks of nothing, which read as zeroes.
    Hole(BlockCount),
}

/// The end of a file that can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The size of the file.
    pub size: u64,
    /// Up to here, what the device has behind the end is part of the file's last unit, and may be anything: whoever
    /// moves the end past it writes zeroes there first. `size` where there is nothing of the kind.
    pub loose: u64,
}

/// Whoever knows which blocks of the device a file is made of.
///
/// Nothing here waits for I/O. What an implementation has to keep:
///
/// - Blocks that a guard has been told of are not freed or used for anything else until it is spent.
/// - Blocks that are handed out as new have no write of an earlier owner on its way to them.
/// - Two requests that would both make or zero parts of one unit do not run at once, nor do two that move
///   the end of one file: the second is told "not yet".
pub trait MapBlocks {
    /// What a request holds while it is under way. Dropped unspent, it returns the space that was made.
    type Guard: Send;

    /// Returns the blocks of an allocation unit, a power of two from 1 to [`UNIT_BLOCKS_MAX`].
    #[inline]
    fn unit(&self) -> BlockCount {
        BlockCount(1)
    }

    /// Returns a guard that holds nothing, where every guard of this map holds nothing: then callers need not
    /// keep one for each request.
    #[inline]
    fn blank_guard(&self) -> Option<Self::Guard> {
        None
    }

    /// Begins a request; `None` means not yet: something in its way is in flight, ask again after a poll.
    ///
    /// # Errors
    ///
    /// `OutOfRange` where nothing can be made, and whatever speaks against the request as a whole.
    fn begin(&self, reach: &Reach) -> Result<Option<Begun<Self::Guard>>, BlockError>;

    /// Says what lies at `at`, for at most `blocks`; both are multiples of the unit.
    ///
    /// The answer may cover less, in whole units, and never nothing.
    ///
    /// # Errors
    ///
    /// `NoSpace` for a write that cannot be given blocks, and whatever the map's own data suffers from.
    fn map(
        &self,
        guard: &mut Self::Guard,
        at: FileBlock,
        blocks: BlockCount,
    ) -> Result<Mapping, BlockError>;

    /// Publishes what a request has done to its first `bytes` bytes: new blocks, and the size.
    ///
    /// It is called once, after the last command and before the caller is told.
    ///
    /// # Errors
    ///
    /// When it cannot be published; the caller is told of that instead.
    fn commit(&self, guard: Self::Guard, bytes: u64) -> Result<Committed, BlockError>;

    /// Makes what was done to a file durable; `None` where a flush of the device is all there is to it.
    ///
    /// # Errors
    ///
    /// When it can never be made durable.
    #[inline]
    fn sync(&self, file: FileId) -> Result<Option<Mark>, BlockError> {
        let _ = file;
        Ok(None)
    }

    /// Says whether everything up to a mark is durable.
    ///
    /// # Errors
    ///
    /// When it will never be.
    #[inline]
    fn settled(&self, mark: Mark) -> Result<bool, BlockError> {
        let _ = mark;
        Ok(true)
    }

    /// Returns the end of a file; `None` where no write moves it, or the file is not there.
    #[inline]
    fn end(&self, file: FileId) -> Option<End> {
        let _ = file;
        None
    }

    /// Gives the map a turn to move what it does on its own, like a journal: called with every poll.
    #[inline]
    fn turn(&self) {}
}

/// The map of a raw device: file block n is block n, and nothing is ever made.
#[derive(Clone, Debug)]
pub struct Identity {
    capacity: BlockCount,
    shift: u8,
}

impl Identity {
    /// Makes the map of a device.
    pub fn new(geometry: &Geometry) -> Self {
        Self { capacity: geometry.blocks, shift: geometry.lba_size.shift() }
    }

    #[cold]
    fn beyond(&self, reach: &Reach) -> BlockError {
        let blocks = (reach.len >> self.shift).max(1);
        let (lba, blocks) = (Lba(reach.offset >> self.shift), BlockCount(blocks));
        Cause::OutOfRange { lba, blocks, capacity: self.capacity }.into()
    }
}

impl MapBlocks for Identity {
    type Guard = ();

    #[inline]
    fn blank_guard(&self) -> Option<()> {
        Some(())
    }

    #[inline]
    fn begin(&self, reach: &Reach) -> Result<Option<Begun<()>>, BlockError> {
        let size = self.capacity.0 << self.shift;
        let fits = reach.intent == Intent::Read || reach.len <= size.saturating_sub(reach.offset);
        if fits { Ok(Some(Begun { guard: (), size })) } else { Err(self.beyond(reach)) }
    }

    #[inline]
    fn map(&self, _: &mut (), at: FileBlock, blocks: BlockCount) -> Result<Mapping, BlockError> {
        Ok(Mapping::Mapped(Extent { lba: Lba(at.0), blocks, new: false, boundary: false }))
    }

    #[inline]
    fn commit(&self, (): (), _: u64) -> Result<Committed, BlockError> {
        Ok(Committed::Now)
    }
}
