//! What one command of a namespace may be: validation of requests, and where they are cut.
//!
//! The order is the field's: optimal boundary (any value, not only a power of two), then the transfer
//! limit, then what PRPs or SGLs can express.
#![forbid(unsafe_code)]

use super::memory::{PAGE, PRP_BYTES_MAX, Rules};
use super::tagging::Tagging;
use crate::block::bounds::{Bounds, misaligned};
use crate::block::{BlockError, Operation, Operations, Payload, runs};
use crate::dma::Access;
use crate::spec::command::{Command, IoDword12, NvmOpcode};
use crate::units::{BlockCount, Lba, LbaSize, NamespaceId};

/// The most blocks that a command's 16-bit, zero-based count can name.
const NLB_MAX: u64 = 65_536;

/// The limits of one namespace on one controller, as checked numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) nsid: NamespaceId,
    pub(super) lba_size: LbaSize,
    pub(super) capacity: BlockCount,
    /// Blocks of one command that moves data: MDTS and the list page, a multiple of nothing.
    pub(super) transfer_max: u64,
    /// The same, and no more than there are blocks; 0 where blocks have metadata, since no command is plain then.
    pub(super) plain_max: u64,
    /// Blocks that commands do not cross a multiple of; 0 is none.
    pub(super) boundary: u64,
    /// Blocks of one Write Zeroes, Verify, Write Uncorrectable, Copy, and of one range of Dataset Management.
    pub(super) zeroes_max: u64,
    pub(super) verify_max: u64,
    pub(super) uncorrectable_max: u64,
    pub(super) copy_max: u64,
    pub(super) deallocate_max: u64,
    pub(super) operations: Operations,
    pub(super) rules: Rules,
    /// CRDT1 to CRDT3.
    pub(super) retry_delays: [u16; 3],
    /// What commands say of metadata, where blocks have any.
    pub(super) tagging: Option<Tagging>,
}

/// A part of a request that one command carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// First block.
    pub(super) lba: Lba,
    /// Blocks; 0 for a flush.
    pub(super) blocks: u64,
    /// Blocks of the request before this piece.
    pub(super) skipped: u64,
}

impl Limits {
    /// Returns the command of a plain request: a read or write that is one command of one buffer on at
    /// most two pages, with nothing wrong about it. Nearly every request is plain.
    ///
    /// `None` says only that it is not plain; [`check`](Self::check) then says whether something is wrong.
    #[inline(always)]
    pub(super) fn plain(&self, operation: &Operation) -> Option<Command> {
        let (opcode, lba, payload, fua, needed) = match operation {
            Operation::Read { lba, payload } => {
                (NvmOpcode::READ, *lba, payload, false, Access::DeviceWrites)
            }
            Operation::Write { lba, payload, fua } => {
                (NvmOpcode::WRITE, *lba, payload, *fua, Access::DeviceReads)
            }
            _ => return None,
        };
        let Payload::One(buffer) = payload else { return None };
        let (iova, len) = (buffer.iova().0, buffer.len() as u64);
        let blocks = len >> self.lba_size.shift();
        let end = (iova & (PAGE - 1)) + len;
        let plain = self.lba_size.divides(len)
            && blocks.wrapping_sub(1) < self.plain_max
            // No wrap: `plain_max` is at most the capacity.
            && lba.0 <= self.capacity.0 - blocks
            && iova & 3 == 0
            && buffer.access() as u8 & needed as u8 != 0
            && end <= 2 * PAGE
            && self.before_boundary(Piece { lba, blocks, skipped: 0 }) == blocks;
        if !plain {
            return None;
        }
        let second = (iova & !(PAGE - 1)) + PAGE;
        let nlb = blocks.wrapping_sub(1) as u16;
        let command = Command {
            opcode: opcode.0,
            nsid: self.nsid.0,
            dptr: [iova, if end > PAGE { second } else { 0 }],
            cdw12: IoDword12::new().with_nlb(nlb).with_fua(fua).into_bits(),
            ..Command::default()
        };
        Some(command.with_slba(lba.0))
    }

    /// Returns the whole request as one piece, after checking everything that needs no device.
    #[inline]
    pub(super) fn check(&self, operation: &Operation) -> Result<Piece, BlockError> {
        match operation {
            Operation::Read { lba, payload } => {
                self.check_data(*lba, payload, Access::DeviceWrites)
            }
            Operation::Write { lba, payload, .. } => {
                self.check_data(*lba, payload, Access::DeviceReads)
            }
            _ => self.check_other(operation),
        }
    }

    /// Returns how many blocks of the request the next command takes, from `piece` on; all that is left
    /// where one command is enough.
    ///
    /// 0 means that the memory cannot be described to this controller at all.
    #[inline]
    pub(super) fn cut(&self, operation: &Operation, piece: Piece) -> u64 {
        let (payload, most) = match operation {
            Operation::Read { payload, .. } | Operation::Write { payload, .. } => {
                (Some(payload), self.transfer_max)
            }
            Operation::Compare { payload, .. } => (Some(payload), self.transfer_max),
            Operation::WriteZeroes { .. } => (None, self.zeroes_max),
            Operation::Verify { .. } => (None, self.verify_max),
            Operation::WriteUncorrectable { .. } => (None, self.uncorrectable_max),
            Operation::Copy { .. } => (None, self.copy_max),
            // One range, whatever boundaries it crosses: nothing is transferred.
            Operation::Deallocate { .. } => return piece.blocks.min(self.deallocate_max),
            Operation::Flush => return 0,
        };
        let blocks = self.before_boundary(piece).min(most);
        match payload {
            Some(Payload::List(_) | Payload::Parts(_)) => self.expressible(payload, piece, blocks),
            _ => blocks,
        }
    }

    /// Returns the blocks of `piece` up to the next boundary.
    #[inline(always)]
    fn before_boundary(&self, piece: Piece) -> u64 {
        if self.boundary == 0 {
            return piece.blocks;
        }
        piece.blocks.min(self.boundary - piece.lba.0 % self.boundary)
    }

    /// Returns how many of `blocks` the memory's shape lets one command take.
    #[inline(never)]
    fn expressible(&self, payload: Option<&Payload>, piece: Piece, blocks: u64) -> u64 {
        let Some(payload) = payload else { return blocks };
        let shift = self.lba_size.shift();
        let (offset, len) = (piece.skipped << shift, blocks << shift);
        self.rules.segments().prefix(runs(payload, offset, len), len) >> shift
    }

    #[inline]
    fn check_data(&self, lba: Lba, payload: &Payload, needed: Access) -> Result<Piece, BlockError> {
        let len = payload.len();
        let blocks = len >> self.lba_size.shift();
        let aligned = self.lba_size.divides(len) && blocks > 0;
        let fits = self.capacity.0.checked_sub(blocks).is_some_and(|last| lba.0 <= last);
        if !(aligned && fits && self.reachable(payload, needed)) {
            return Err(self.refuse(lba, payload, needed));
        }
        Ok(Piece { lba, blocks, skipped: 0 })
    }

    /// Says whether the device may do with every segment what it has to, and can address it.
    #[inline]
    fn reachable(&self, payload: &Payload, needed: Access) -> bool {
        let one = |iova: u64, access: Access| iova & 3 == 0 && access as u8 & needed as u8 != 0;
        match payload {
            Payload::One(buffer) => one(buffer.iova().0, buffer.access()),
            Payload::Part(piece) => one(piece.iova().0, piece.access()),
            _ => self.list_is_reachable(payload, needed),
        }
    }

    #[inline(never)]
    fn list_is_reachable(&self, payload: &Payload, needed: Access) -> bool {
        let one =
            |at| payload.run(at).iova & 3 == 0 && payload.access(at) as u8 & needed as u8 != 0;
        (0..payload.count()).all(one) && self.list_can_be_sent(payload)
    }

    /// Says whether every piece of a list can be described to the controller.
    fn list_can_be_sent(&self, payload: &Payload) -> bool {
        let blocks = payload.len() >> self.lba_size.shift();
        let mut piece = Piece { lba: Lba(0), blocks, skipped: 0 };
        while piece.blocks > 0 {
            // Whether a block can be described does not depend on where the cuts before it are, so
            // one walk without boundaries answers for every other.
            let most = piece.blocks.min(self.transfer_max);
            let step = self.expressible(Some(payload), piece, most);
            if step == 0 {
                return false;
            }
            piece.skipped += step;
            piece.blocks -= step;
        }
        true
    }

    #[cold]
    fn refuse(&self, lba: Lba, payload: &Payload, needed: Access) -> BlockError {
        if let Err(error) = self.bounds().check_data(lba, payload, needed) {
            return error;
        }
        let odd = (0..payload.count()).map(|index| payload.run(index).len);
        let worst = odd.min().unwrap_or(0);
        let rules = self.rules.segments();
        let needed = rules.page.unwrap_or(rules.alignment);
        misaligned("length of a memory segment between others", worst, needed)
    }

    fn check_other(&self, operation: &Operation) -> Result<Piece, BlockError> {
        if let (Operation::Compare { lba, payload }, true) = (operation, self.operations.compare) {
            return self.check_data(*lba, payload, Access::DeviceReads);
        }
        let (lba, blocks) = self.bounds().check_without_data(operation)?;
        Ok(Piece { lba, blocks: blocks.0, skipped: 0 })
    }

    fn bounds(&self) -> Bounds {
        let Self { lba_size, capacity, operations, .. } = *self;
        // Of PRPs and SGLs alike.
        Bounds { lba_size, capacity, operations, alignment: 4 }
    }
}

/// Returns the blocks of one command that moves data, from the controller's limit in bytes.
pub(super) fn transfer_blocks(mdts_bytes: Option<u64>, lba_size: LbaSize) -> u64 {
    let bytes = mdts_bytes.unwrap_or(u64::MAX).min(PRP_BYTES_MAX);
    (bytes >> lba_size.shift()).min(NLB_MAX)
}

/// Returns the blocks of one command that moves none, from a limit that may be absent.
pub(super) fn command_blocks(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX).min(NLB_MAX)
}
