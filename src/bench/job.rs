//! One benchmark job: what a section of a fio job file says, parsed and checked.
//!
//! [`Job`] carries fio's names, meanings and defaults. `option.rs` fills it from text, `parse.rs`
//! reads the file around it, and `workload.rs` turns it into I/O. A job that passed
//! [`Job::validate`] can be run on any device that its sizes fit; what depends on the device is
//! answered by [`Job::region`].
#![forbid(unsafe_code)]

use core::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::option::OptionError;
use crate::units::LbaSize;

/// The percentiles that fio reports unless `percentile_list` says otherwise.
pub const DEFAULT_PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

/// I/Os that are submitted or reaped at once unless a job says otherwise.
pub const DEFAULT_BATCH: u32 = 32;

/// The block size of a job that names none.
pub const DEFAULT_BLOCK_BYTES: u32 = 4096;

/// The seed of a job that names none: fixed, so that two runs of one job touch the same blocks.
pub const DEFAULT_SEED: u64 = 0x7564_6972_6563_7431;

/// The direction of one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the device to memory.
    Read,
    /// From memory to the device.
    Write,
    /// Deallocation of a range.
    Trim,
}

impl Direction {
    /// Every direction, in fio's order.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Trim];

    /// Returns fio's name of the direction.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Trim => "trim",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerDirection<T> {
    /// The value for reads.
    pub read: T,
    /// The value for writes.
    pub write: T,
    /// The value for trims.
    pub trim: T,
}

impl<T> PerDirection<T> {
    /// Builds each value from its direction.
    pub fn from_fn(mut make: impl FnMut(Direction) -> T) -> Self {
        Self {
            read: make(Direction::Read),
            write: make(Direction::Write),
            trim: make(Direction::Trim),
        }
    }

    /// Returns the value for `direction`.
    #[inline]
    pub const fn get(&self, direction: Direction) -> &T {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
            Direction::Trim => &self.trim,
        }
    }

    /// Returns the value for `direction`, to change it.
    #[inline]
    pub const fn get_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
            Direction::Trim => &mut self.trim,
        }
    }

    /// Iterates over the directions and their values, in fio's order.
    pub fn iter(&self) -> impl Iterator<Item = (Direction, &T)> {
        Direction::ALL.into_iter().map(|direction| (direction, self.get(direction)))
    }
}

/// What a job does and in which order: fio's `rw`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Workload {
    /// Sequential reads.
    #[default]
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Sequential reads and writes, mixed by `rwmixread`.
    ReadWrite,
    /// Random reads and writes, mixed by `rwmixread`.
    RandRw,
    /// Sequential trims.
    Trim,
    /// Random trims.
    RandTrim,
}

impl Workload {
    /// Every workload with the name that reports use.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("read", Self::Read),
        ("write", Self::Write),
        ("randread", Self::RandRead),
        ("randwrite", Self::RandWrite),
        ("rw", Self::ReadWrite),
        ("randrw", Self::RandRw),
        ("trim", Self::Trim),
        ("randtrim", Self::RandTrim),
    ];

    /// Returns fio's name of the workload.
    pub fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(_, workload)| *workload == self);
        named.expect("the table holds every workload").0
    }

    /// Says whether offsets are random.
    pub const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw | Self::RandTrim)
    }

    /// Says whether the workload issues I/O in `direction`.
    pub const fn uses(self, direction: Direction) -> bool {
        match direction {
            Direction::Read => {
                matches!(self, Self::Read | Self::RandRead | Self::ReadWrite | Self::RandRw)
            }
            Direction::Write => {
                matches!(self, Self::Write | Self::RandWrite | Self::ReadWrite | Self::RandRw)
            }
            Direction::Trim => matches!(self, Self::Trim | Self::RandTrim),
        }
    }

    /// Says whether the workload mixes reads and writes.
    pub const fn is_mixed(self) -> bool {
        matches!(self, Self::ReadWrite | Self::RandRw)
    }

    /// Says whether the workload destroys what the device holds.
    pub const fn is_destructive(self) -> bool {
        self.uses(Direction::Write) || self.uses(Direction::Trim)
    }
}

/// One block size and how often it is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockShare {
    /// The size in bytes.
    pub bytes: u32,
    /// The share of I/Os in percent.
    pub percent: f64,
}

/// The block sizes of one direction: one of `bs`, or several of `bssplit`. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSizes(Vec<BlockShare>);

impl BlockSizes {
    /// Returns the one size `bytes`.
    pub fn fixed(bytes: u32) -> Self {
        Self(vec![BlockShare { bytes, percent: 100.0 }])
    }

    /// Returns a mix of sizes, or `None` if there is none to choose from.
    pub fn split(shares: Vec<BlockShare>) -> Option<Self> {
        (!shares.is_empty()).then_some(Self(shares))
    }

    /// Returns the sizes with their shares.
    pub fn shares(&self) -> &[BlockShare] {
        &self.0
    }

    /// Returns the size if there is only one.
    pub fn only(&self) -> Option<u32> {
        let (min, max) = (self.min(), self.max());
        (min == max).then_some(min)
    }

    /// Returns the smallest size.
    pub fn min(&self) -> u32 {
        self.0.iter().map(|share| share.bytes).min().unwrap_or(0)
    }

    /// Returns the largest size, which is what a buffer must hold.
    pub fn max(&self) -> u32 {
        self.0.iter().map(|share| share.bytes).max().unwrap_or(0)
    }

    fn percent_sum(&self) -> f64 {
        self.0.iter().map(|share| share.percent).sum()
    }
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self::fixed(DEFAULT_BLOCK_BYTES)
    }
}

/// An amount of data: bytes, or a percentage of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the device, 1 to 100.
    Percent(u8),
}

impl Size {
    /// Says whether the amount is nothing, which fio takes as not given.
    pub const fn is_zero(self) -> bool {
        matches!(self, Self::Bytes(0) | Self::Percent(0))
    }

    /// Returns the amount in bytes on a device of `capacity` bytes, a percentage rounded down to
    /// `unit`.
    pub fn resolve(self, capacity: u64, unit: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => round_down(percent_of(capacity, percent), unit),
        }
    }
}

/// A place on the device: bytes from its start, or a percentage of it.
pub type Offset = Size;

fn percent_of(capacity: u64, percent: u8) -> u64 {
    let scaled = u128::from(capacity) * u128::from(percent) / 100;
    u64::try_from(scaled).expect("100 % or less of a u64 fits a u64")
}

fn round_down(bytes: u64, unit: u64) -> u64 {
    bytes - bytes % unit.max(1)
}

/// How random offsets are distributed: fio's `random_distribution`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Distribution {
    /// Every block is as likely as any other.
    #[default]
    Random,
    /// The k-th most popular block is drawn with a probability proportional to `1 / k^theta`.
    Zipf {
        /// The exponent, above 0 and other than 1.
        theta: f64,
    },
    /// A share `h` of the blocks receives `1 - h` of the I/Os.
    Pareto {
        /// The share of hot blocks, between 0 and 1.
        h: f64,
    },
}

/// How written data is checked: fio's `verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// It is not.
    #[default]
    None,
    /// Every block carries its offset and a CRC32C.
    Crc32c,
}

/// The part of the device that one worker of a job touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first byte.
    pub start: u64,
    /// The length in bytes.
    pub bytes: u64,
}

/// One job: `numjobs` workers that do the same thing. Fields are fio's keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The name of the section.
    pub name: String,
    /// The address of the device; empty if the file leaves it to the command line.
    pub filename: String,
    /// What is done.
    pub rw: Workload,
    /// The block sizes in bytes (`bs`, `bssplit`).
    pub bs: PerDirection<BlockSizes>,
    /// I/Os that each worker keeps in flight.
    pub iodepth: u32,
    /// I/Os submitted at once; 0 stands for `iodepth`, up to [`DEFAULT_BATCH`].
    pub iodepth_batch: u32,
    /// Completions taken from the queue at once; 0 stands for `iodepth`, up to [`DEFAULT_BATCH`].
    pub iodepth_batch_complete_max: u32,
    /// Workers.
    pub numjobs: u32,
    /// The region, and the amount of data unless `io_size` is given; `None` is the rest of the
    /// device.
    pub size: Option<Size>,
    /// Where the region begins.
    pub offset: Offset,
    /// How much further the region of each next worker begins.
    pub offset_increment: Offset,
    /// The amount of data, where it differs from `size`.
    pub io_size: Option<Size>,
    /// The number of I/Os after which a worker stops.
    pub number_ios: Option<u64>,
    /// The time after which the job stops.
    pub runtime: Option<Duration>,
    /// Starts over until `runtime` has passed, although all data has been transferred.
    pub time_based: bool,
    /// The time before anything is measured.
    pub ramp_time: Duration,
    /// The time before the job starts.
    pub startdelay: Duration,
    /// The percentage of reads in a mix.
    pub rwmixread: u8,
    /// How random offsets are distributed.
    pub random_distribution: Distribution,
    /// Draws random offsets with repetition, where a pass would cover each block once.
    pub norandommap: bool,
    /// The seed of everything random.
    pub randseed: u64,
    /// Whether the runner keeps `randseed` (true) or draws one per run.
    pub randrepeat: bool,
    /// The limit in bytes per second.
    pub rate: PerDirection<Option<u64>>,
    /// The limit in I/Os per second.
    pub rate_iops: PerDirection<Option<u64>>,
    /// The pause after every `thinktime_blocks` I/Os.
    pub thinktime: Duration,
    /// The I/Os between two pauses.
    pub thinktime_blocks: u32,
    /// How written data is checked.
    pub verify: Verify,
    /// Whether a write workload is read back.
    pub do_verify: bool,
    /// Whether the first bad block ends the job.
    pub verify_fatal: bool,
    /// Flushes after every so many writes; 0 is never.
    pub fsync: u32,
    /// Flushes once at the end.
    pub end_fsync: bool,
    /// The percentiles to report, each above 0 and up to 100.
    pub percentile_list: Vec<f64>,
    /// Waits for all earlier jobs, and begins a reporting group.
    pub stonewall: bool,
    /// Reports the workers of a group as one.
    pub group_reporting: bool,
    /// Begins a reporting group.
    pub new_group: bool,
    /// The CPUs that workers are bound to.
    pub cpus_allowed: Option<Vec<usize>>,
    /// How often the whole job is done.
    pub loops: u32,
    /// The options as written in the section, for "job options" in JSON.
    pub written: Vec<(String, String)>,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            name: String::new(),
            filename: String::new(),
            rw: Workload::default(),
            bs: PerDirection::default(),
            iodepth: 1,
            iodepth_batch: 0,
            iodepth_batch_complete_max: 0,
            numjobs: 1,
            size: None,
            offset: Size::Bytes(0),
            offset_increment: Size::Bytes(0),
            io_size: None,
            number_ios: None,
            runtime: None,
            time_based: false,
            ramp_time: Duration::ZERO,
            startdelay: Duration::ZERO,
            rwmixread: 50,
            random_distribution: Distribution::default(),
            norandommap: false,
            randseed: DEFAULT_SEED,
            randrepeat: true,
            rate: PerDirection::default(),
            rate_iops: PerDirection::default(),
            thinktime: Duration::ZERO,
            thinktime_blocks: 1,
            verify: Verify::default(),
            do_verify: true,
            verify_fatal: false,
            fsync: 0,
            end_fsync: false,
            percentile_list: DEFAULT_PERCENTILES.to_vec(),
            stonewall: false,
            group_reporting: false,
            new_group: false,
            cpus_allowed: None,
            loops: 1,
            written: Vec::new(),
        }
    }
}

impl Job {
    /// Returns how many I/Os are submitted before the doorbell is rung, 1 to `iodepth`.
    pub fn submit_batch(&self) -> u32 {
        self.batch(self.iodepth_batch)
    }

    /// Returns how many completions one poll takes, 1 to `iodepth`.
    pub fn complete_batch(&self) -> u32 {
        self.batch(self.iodepth_batch_complete_max)
    }

    /// fio's default is one at a time, which a polled queue would pay for with a doorbell per I/O.
    fn batch(&self, given: u32) -> u32 {
        let wanted = if given == 0 { DEFAULT_BATCH } else { given };
        wanted.clamp(1, self.iodepth.max(1))
    }

    /// Says whether a pass over the region covers each block once, as fio's random map provides.
    ///
    /// That needs uniform random offsets and one block size. fio keeps its map with several sizes
    /// and shortens I/Os that would overlap; here such a job draws with repetition and every I/O
    /// has the size that was asked for.
    pub fn covers_each_block_once(&self) -> bool {
        self.distribution_is_uniform() && !self.norandommap && self.common_block_size().is_some()
    }

    /// Says whether what was written is read back and checked.
    pub fn reads_back(&self) -> bool {
        self.verify != Verify::None && self.do_verify && self.rw.uses(Direction::Write)
    }

    /// Returns the block size if all directions in use share one.
    pub fn common_block_size(&self) -> Option<u32> {
        let used = self.bs.iter().filter(|(direction, _)| self.rw.uses(*direction));
        let mut sizes = used.map(|(_, sizes)| sizes.only());
        let first = sizes.next()??;
        sizes.all(|size| size == Some(first)).then_some(first)
    }

    /// Returns the largest block of the directions in use, which is what a buffer must hold.
    pub fn max_block_size(&self) -> u32 {
        let used = self.bs.iter().filter(|(direction, _)| self.rw.uses(*direction));
        used.map(|(_, sizes)| sizes.max()).max().unwrap_or(0)
    }

    /// Checks everything that can be checked without a device.
    pub fn validate(&self) -> Result<(), OptionError> {
        self.validate_counts()?;
        self.validate_blocks()?;
        self.validate_time()?;
        self.validate_rates()?;
        self.validate_verify()
    }

    /// Returns the part of a device of `capacity` bytes that worker number `worker` touches.
    pub fn region(&self, worker: u32, capacity: u64, lba: LbaSize) -> Result<Region, OptionError> {
        let start = self.region_start(worker, capacity, lba);
        let left = start.and_then(|start| capacity.checked_sub(start)).filter(|left| *left > 0);
        let (Some(start), Some(left)) = (start, left) else {
            let offset = start.unwrap_or(u64::MAX);
            return conflict(format!(
                "offset {offset} is beyond the {capacity} bytes of the device"
            ));
        };
        let bytes = self.size.map_or(left, |size| size.resolve(capacity, self.percent_unit(lba)));
        if bytes > left {
            return conflict(format!(
                "size {bytes} exceeds the {left} bytes between offset {start} and the end of the device"
            ));
        }
        if self.size.is_some() && !lba.divides(bytes) {
            return conflict(format!("size {bytes} is no multiple of the LBA size, {lba}"));
        }
        if bytes < u64::from(self.max_block_size()) {
            let block = self.max_block_size();
            return conflict(format!(
                "a region of {bytes} bytes has no room for a block of {block}"
            ));
        }
        Ok(Region { start, bytes })
    }

    fn region_start(&self, worker: u32, capacity: u64, lba: LbaSize) -> Option<u64> {
        let unit = self.percent_unit(lba);
        let step = self.offset_increment.resolve(capacity, unit).checked_mul(u64::from(worker))?;
        self.offset.resolve(capacity, unit).checked_add(step)
    }

    /// fio aligns percentages to the smallest block; the LBA keeps that legal for odd block sizes.
    fn percent_unit(&self, lba: LbaSize) -> u64 {
        let used = self.bs.iter().filter(|(direction, _)| self.rw.uses(*direction));
        let block = used.map(|(_, sizes)| sizes.min()).min().unwrap_or(0);
        u64::from(block).max(u64::from(lba.bytes()))
    }

    fn distribution_is_uniform(&self) -> bool {
        self.random_distribution == Distribution::Random
    }

    fn validate_counts(&self) -> Result<(), OptionError> {
        let counts = [
            ("iodepth", self.iodepth),
            ("numjobs", self.numjobs),
            ("loops", self.loops),
            ("thinktime_blocks", self.thinktime_blocks),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return conflict(format!("{key} must be at least 1"));
        }
        if self.rwmixread > 100 {
            return conflict(format!("rwmixread={} exceeds 100 percent", self.rwmixread));
        }
        Ok(())
    }

    fn validate_blocks(&self) -> Result<(), OptionError> {
        for (direction, sizes) in self.bs.iter() {
            if sizes.min() == 0 {
                return conflict(format!("the block size of {direction} must be at least 1 byte"));
            }
            let sum = sizes.percent_sum();
            if (sum - 100.0).abs() > 1e-6 {
                return conflict(format!(
                    "bssplit percentages of {direction} add up to {sum}, not to 100"
                ));
            }
        }
        Ok(())
    }

    fn validate_time(&self) -> Result<(), OptionError> {
        if self.time_based && self.runtime.is_none_or(|time| time.is_zero()) {
            return conflict("time_based needs a runtime above 0");
        }
        Ok(())
    }

    fn validate_rates(&self) -> Result<(), OptionError> {
        for (direction, rate) in self.rate.iter() {
            if rate.is_some() && self.rate_iops.get(direction).is_some() {
                return conflict(format!("rate and rate_iops both limit {direction}: give one"));
            }
        }
        Ok(())
    }

    fn validate_verify(&self) -> Result<(), OptionError> {
        if self.verify == Verify::None {
            return Ok(());
        }
        if self.rw.uses(Direction::Trim) {
            return conflict(format!(
                "verify cannot check {}: trimmed blocks hold no data",
                self.rw.name()
            ));
        }
        let rated = |direction| {
            self.rate.get(direction).is_some() || self.rate_iops.get(direction).is_some()
        };
        if self.rw.is_mixed() && Direction::ALL.into_iter().any(rated) {
            return conflict("verify cannot follow a mix whose order is decided by rates");
        }
        if self.common_block_size().is_none() {
            return conflict("verify needs one block size: blocks of several sizes would overlap");
        }
        Ok(())
    }
}

/// Returns the reporting group of each job: `stonewall` and `new_group` begin one, as in fio.
pub fn group_ids(jobs: &[Job]) -> Vec<u32> {
    let mut group = 0;
    let number = |(index, job): (usize, &Job)| {
        group += u32::from(index > 0 && (job.stonewall || job.new_group));
        group
    };
    jobs.iter().enumerate().map(number).collect()
}

fn conflict<T>(text: impl Into<String>) -> Result<T, OptionError> {
    Err(OptionError::Conflict(text.into()))
}

#[cfg(test)]
mod tests;
