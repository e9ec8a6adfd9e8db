//! What a request has to be for a device to take it, whoever drives the device; and the errors of those that are not.
#![forbid(unsafe_code)]

use super::{BlockError, Cause, Operation, Operations, Payload};
use crate::dma::Access;
use crate::units::{BlockCount, Lba, LbaSize};

/// The bounds of one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) lba_size: LbaSize,
    pub(crate) capacity: BlockCount,
    /// What every segment's address is a multiple of.
    pub(crate) alignment: u32,
    pub(crate) operations: Operations,
}

impl Bounds {
    /// Checks the blocks and the memory of a request that moves data, and returns how many blocks it has.
    pub(crate) fn check_data(
        &self,
        lba: Lba,
        payload: &Payload,
        needed: Access,
    ) -> Result<BlockCount, BlockError> {
        let len = payload.len();
        if len == 0 {
            let (least, most) = (u64::from(self.lba_size.bytes()), u64::MAX);
            return Err(Cause::Invalid { what: "length", value: 0, least, most }.into());
        }
        if !self.lba_size.divides(len) {
            return Err(misaligned("length", len, self.lba_size.bytes()));
        }
        let blocks = BlockCount(len >> self.lba_size.shift());
        self.check_range(lba, blocks)?;
        for index in 0..payload.count() {
            let iova = payload.run(index).iova;
            if iova & u64::from(self.alignment - 1) != 0 {
                return Err(misaligned("memory address", iova, self.alignment));
            }
            if payload.access(index) as u8 & needed as u8 == 0 {
                let verb = if needed.device_reads() { "read" } else { "write" };
                return Err(Cause::Rights { iova, verb }.into());
            }
        }
        Ok(blocks)
    }

    /// Checks a request that moves no data.
    pub(crate) fn check_without_data(
        &self,
        operation: &Operation,
    ) -> Result<(Lba, BlockCount), BlockError> {
        let offers = self.operations;
        let (lba, blocks) = match operation {
            Operation::Flush => return Ok((Lba(0), BlockCount(0))),
            Operation::Deallocate { lba, blocks } if offers.deallocate => (*lba, *blocks),
            Operation::WriteZeroes { lba, blocks, .. } if offers.write_zeroes => (*lba, *blocks),
            Operation::Verify { lba, blocks } if offers.verify => (*lba, *blocks),
            Operation::WriteUncorrectable { lba, blocks } if offers.write_uncorrectable => {
                (*lba, *blocks)
            }
            Operation::Copy { source, target, blocks } if offers.copy => {
                self.check_range(*source, *blocks)?;
                (*target, *blocks)
            }
            other => return Err(Cause::Unsupported { what: other.name().into() }.into()),
        };
        self.check_range(lba, blocks)?;
        Ok((lba, blocks))
    }

    fn check_range(&self, lba: Lba, blocks: BlockCount) -> Result<(), BlockError> {
        if blocks.0 == 0 {
            let most = self.capacity.0;
            return Err(Cause::Invalid { what: "blocks", value: 0, least: 1, most }.into());
        }
        match lba.checked_add(blocks) {
            Some(end) if end.0 <= self.capacity.0 => Ok(()),
            _ => Err(Cause::OutOfRange { lba, blocks, capacity: self.capacity }.into()),
        }
    }
}

#[cold]
pub(crate) fn misaligned(what: &'static str, value: u64, alignment: u32) -> BlockError {
    Cause::Misaligned { what, value, alignment: u64::from(alignment) }.into()
}
