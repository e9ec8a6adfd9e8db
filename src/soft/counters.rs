//! What a controller has counted.
//!
//! Each completion queue counts for itself, under its own lock; [`DeviceCounters`] is the sum, made when
//! somebody asks. Nothing here is shared between cores while commands run.
#![forbid(unsafe_code)]

/// The counts of a controller since it was made; resets do not clear them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Commands of I/O queues, by opcode.
    pub io_commands: OpcodeCounts,
    /// Commands of the admin queue, by opcode.
    pub admin_commands: OpcodeCounts,
    /// Commands that completed with an error.
    pub failed: u64,
    /// Submission queue tails that were not the same as before: one for each doorbell that was noticed.
    pub doorbells: u64,
    /// Bytes that hosts read.
    pub bytes_read: u64,
    /// Bytes that hosts wrote.
    pub bytes_written: u64,
    /// Accesses to memory that were outside every mapping or against its right.
    pub dma_faults: u64,
}

impl DeviceCounters {
    /// Returns the commands of all I/O queues.
    pub fn io_total(&self) -> u64 {
        self.io_commands.0.iter().sum()
    }

    /// Adds another queue's counts.
    pub(super) fn add(&mut self, other: &Self) {
        self.io_commands.add(&other.io_commands);
        self.admin_commands.add(&other.admin_commands);
        self.failed += other.failed;
        self.doorbells += other.doorbells;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.dma_faults += other.dma_faults;
    }
}

/// A count for each opcode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpcodeCounts([u64; 256]);

impl Default for OpcodeCounts {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl OpcodeCounts {
    /// Returns the count of one opcode.
    pub fn of(&self, opcode: u8) -> u64 {
        self.0[usize::from(opcode)]
    }

    /// Counts one command.
    #[inline]
    pub(super) fn count(&mut self, opcode: u8) {
        self.0[usize::from(opcode)] += 1;
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}
