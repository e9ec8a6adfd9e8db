//! The buffers of one worker.
#![forbid(unsafe_code)]

use super::job::{Direction, Job};
use super::workload::Io;
use crate::block::BlockDevice;
use crate::dma::{Access, DmaBuf, DmaError, Pool, SizeClass};

/// The buffers of one worker: those that the device writes into, and those that it reads from.
pub(super) struct Buffers {
    reads: Vec<DmaBuf>,
    writes: Vec<DmaBuf>,
    /// After the buffers, which go home to them.
    _pools: Vec<Pool>,
}

impl Buffers {
    pub(super) fn new(
        job: &Job,
        reads_back: bool,
        device: &dyn BlockDevice,
    ) -> Result<Self, DmaError> {
        let mut pools = Vec::new();
        let mut take = |wanted: bool, access| {
            let bytes = job.max_block_size() as usize;
            let class = SizeClass { bytes, count: job.iodepth as usize };
            if !wanted {
                return Ok(Vec::new());
            }
            let mut pool = Pool::new(device.dma(), &[class], access)?;
            let buffers = core::iter::from_fn(|| pool.take(bytes)).collect();
            pools.push(pool);
            Ok(buffers)
        };
        let reads = take(job.rw.uses(Direction::Read) || reads_back, Access::DeviceWrites)?;
        let mut writes: Vec<DmaBuf> = take(job.rw.uses(Direction::Write), Access::DeviceReads)?;
        // Zeroes are what a drive stores for nothing.
        let mut random = fastrand::Rng::with_seed(job.randseed);
        writes.iter_mut().for_each(|buffer| random.fill(buffer));
        Ok(Self { reads, writes, _pools: pools })
    }

    #[inline]
    pub(super) fn take(&mut self, io: Io) -> Option<DmaBuf> {
        let mut buffer = self.stack(io.direction).pop()?;
        if buffer.len() != io.len as usize {
            buffer.set_len(io.len as usize);
        }
        Some(buffer)
    }

    #[inline]
    pub(super) fn give_back(&mut self, direction: Direction, buffer: DmaBuf) {
        self.stack(direction).push(buffer);
    }

    #[inline]
    fn stack(&mut self, direction: Direction) -> &mut Vec<DmaBuf> {
        if direction == Direction::Write { &mut self.writes } else { &mut self.reads }
    }
}
