//! A disk in memory that has a volatile write cache, and whose power can be cut.
//!
//! A [`Disk`] outlives the controllers that serve it: a test cuts the power, takes the image that is left, and
//! opens it with the next controller. The rules are those of dm-log-writes:
//!
//! ```text
//!   write ──> live      seen by reads at once
//!        └──> pending   a log of writes ── FLUSH of a later turn, or FUA ──> durable
//!                                                                             │
//!   power cut: durable, and of the pending any subset of blocks, in order <───┘
//! ```
//!
//! Neighbours: `media` calls it with bytes, `detour` counts commands for it; `image` shares blocks, `pending`
//! keeps the log.
//! Invariant: `live` is `durable` with every pending write applied in order.
#![forbid(unsafe_code)]

mod image;
mod pending;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use self::image::{Block, Image};
use self::pending::{Content, Survival, Write};
pub use self::pending::{Pending, PendingWrite};
use super::engine::lock;
use crate::seed::Seed;
use crate::spec::command::NvmOpcode;
use crate::units::{Lba, LbaSize};

/// What fills a block that was never written.
pub type FillPattern = fn(Lba, &mut [u8]);

/// A disk in memory with a volatile write cache.
///
/// Blocks that were never written take no memory. Give it to a controller with
/// [`MediaOptions::Disk`](super::MediaOptions::Disk), to one after the other or to several at once.
pub struct Disk {
    blocks: u64,
    lba_size: LbaSize,
    fill: Option<FillPattern>,
    /// What a zeroed block holds; shared by all of them. `None` where an absent block reads as zeroes.
    zeroed: Option<Block>,
    state: Mutex<State>,
}

/// What changes.
#[derive(Default)]
struct State {
    live: Image,
    durable: Image,
    /// In the order of their serials.
    pending: Vec<Write>,
    /// The serial of the next write.
    next: u64,
    power: Power,
    counters: DiskCounters,
}

/// Whether there is power.
#[derive(Default)]
enum Power {
    #[default]
    On,
    /// It goes once so many commands have passed; the seed says what is left then.
    Armed { commands: u64, seed: u64 },
    /// It is gone, and this was left.
    Cut(Arc<Disk>),
}

/// What a disk has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskCounters {
    /// Read commands that came.
    pub reads: u64,
    /// Changes of adjacent blocks: writes, zeroed, deallocated and copied ranges.
    pub writes: u64,
    /// Flushes that were executed.
    pub flushes: u64,
    /// Changes that were durable when they completed: by FUA, or for lack of a cache.
    pub fua_writes: u64,
}

/// Which writes a flush covers: those that had been executed when its batch was fetched.
///
/// A flush of the same batch was sent before the host could know that the write had completed. Hardware may
/// cover such a write or not; here it never does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Horizon(u64);

impl Horizon {
    /// Everything.
    pub(super) const ALL: Self = Self(u64::MAX);
}

impl Disk {
    /// Makes a disk of zeroes.
    ///
    /// # Panics
    ///
    /// If the capacity is not a whole number of blocks.
    pub fn new(bytes: u64, lba_size: LbaSize) -> Arc<Self> {
        Arc::new(Self::with(bytes, lba_size, None))
    }

    /// Makes a disk whose blocks hold what `pattern` says until they are written, zeroed or deallocated.
    ///
    /// The pattern is given zeroes to write over. Here every block that is zeroed takes a little memory and
    /// time, so that deallocating a large disk of this kind does too.
    ///
    /// # Panics
    ///
    /// If the capacity is not a whole number of blocks.
    pub fn filled(bytes: u64, lba_size: LbaSize, pattern: FillPattern) -> Arc<Self> {
        Arc::new(Self::with(bytes, lba_size, Some(pattern)))
    }

    fn with(bytes: u64, lba_size: LbaSize, fill: Option<FillPattern>) -> Self {
        assert!(lba_size.divides(bytes), "{bytes} bytes in blocks of {lba_size}");
        let zeroed = fill.map(|_| vec![0; lba_size.bytes() as usize].into());
        let blocks = bytes >> lba_size.shift();
        Self { blocks, lba_size, fill, zeroed, state: Mutex::default() }
    }

    /// Returns the capacity.
    pub fn bytes(&self) -> u64 {
        self.blocks << self.lba_size.shift()
    }

    /// Returns the size of a block.
    pub fn lba_size(&self) -> LbaSize {
        self.lba_size
    }

    /// Returns what was counted since the disk was made.
    pub fn counters(&self) -> DiskCounters {
        self.state().counters
    }

    /// Returns a count that moves whenever something became durable: at each flush and each durable write.
    pub fn durable_events(&self) -> u64 {
        let counters = self.counters();
        counters.flushes + counters.fua_writes
    }

    // Images.

    /// Returns a disk with what is seen now, all of it durable.
    pub fn fork(&self) -> Arc<Self> {
        let live = self.state().live.clone();
        self.of_image(live)
    }

    /// Returns a disk with what a power cut could leave now, chosen by `seed`: sometimes nothing of the
    /// cache, sometimes all of it, sometimes single blocks more or less, sometimes the oldest writes.
    pub fn crash(&self, seed: &mut Seed) -> Arc<Self> {
        self.crash_of(&self.state(), seed)
    }

    /// Returns a disk with what a power cut leaves now if it keeps the blocks that `keeps` wants.
    ///
    /// It is asked for each block of each pending write, oldest write first, but for blocks that a later
    /// durable write has overtaken. It must not call the disk, which is locked meanwhile.
    pub fn crash_by(&self, keeps: &mut dyn FnMut(Pending) -> bool) -> Arc<Self> {
        self.left_by(&self.state(), keeps)
    }

    /// Returns the writes that are not durable, oldest first.
    pub fn pending(&self) -> Vec<PendingWrite> {
        self.state().pending.iter().map(Write::summary).collect()
    }

    fn crash_of(&self, state: &State, seed: &mut Seed) -> Arc<Self> {
        let first = state.pending.first().map_or(state.next, |write| write.serial);
        let mut survival = Survival::choose(seed, first, state.next);
        self.left_by(state, &mut |block| survival.keeps(seed, block))
    }

    fn left_by(&self, state: &State, keeps: &mut dyn FnMut(Pending) -> bool) -> Arc<Self> {
        let mut image = state.durable.clone();
        state.pending.iter().for_each(|write| write.apply(&mut image, &mut *keeps));
        self.of_image(image)
    }

    /// Returns a disk of this shape that holds an image.
    fn of_image(&self, image: Image) -> Arc<Self> {
        let state = State { live: image.clone(), durable: image, ..State::default() };
        let (zeroed, state) = (self.zeroed.clone(), Mutex::new(state));
        let Self { blocks, lba_size, fill, .. } = *self;
        Arc::new(Self { blocks, lba_size, fill, zeroed, state })
    }

    // Power.

    /// Cuts the power: every command from now on fails, and nothing changes any more.
    pub fn cut_power(&self, seed: &mut Seed) {
        let mut state = self.state();
        self.cut(&mut state, seed);
    }

    /// Cuts the power once `commands` more commands have passed, reads included: with 0, before the next.
    ///
    /// The seed chooses what is left, as in [`crash`](Self::crash).
    pub fn cut_power_after(&self, commands: u64, seed: u64) {
        let mut state = self.state();
        if !state.is_cut() {
            state.power = Power::Armed { commands, seed };
        }
    }

    /// Says whether the power was cut.
    pub fn power_is_cut(&self) -> bool {
        self.state().is_cut()
    }

    /// Returns a disk with what the power cut has left; the same each time.
    pub fn after_cut(&self) -> Option<Arc<Self>> {
        match &self.state().power {
            Power::Cut(left) => Some(left.fork()),
            Power::On | Power::Armed { .. } => None,
        }
    }

    fn cut(&self, state: &mut State, seed: &mut Seed) {
        if !state.is_cut() {
            state.power = Power::Cut(self.crash_of(state, seed));
        }
    }

    /// Lets a command in, or refuses it for want of power.
    pub(super) fn admit(&self, opcode: NvmOpcode) -> Result<(), PowerIsCut> {
        let mut state = self.state();
        match state.power {
            Power::Armed { commands: 0, seed } => self.cut(&mut state, &mut Seed::from_u64(seed)),
            Power::Armed { ref mut commands, .. } => *commands -= 1,
            Power::On | Power::Cut(_) => {}
        }
        state.check_power()?;
        state.counters.reads += u64::from(opcode == NvmOpcode::READ);
        Ok(())
    }

    // What tests see and damage.

    /// Reads whole blocks as a host would see them now.
    ///
    /// # Panics
    ///
    /// If the blocks do not lie on the disk, or the length is not a whole number of them.
    pub fn read_now(&self, lba: Lba, to: &mut [u8]) {
        let range = self.whole_blocks(lba, to.len());
        let offset = range.start << self.lba_size.shift();
        let copied = self.visit(offset, to.len() as u64, |at, bytes| {
            to[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        });
        copied.expect("a copy of blocks that are there does not fail");
    }

    /// Overwrites whole blocks behind everybody's back, durable at once and at any time.
    ///
    /// # Panics
    ///
    /// If the blocks do not lie on the disk, or the length is not a whole number of them.
    pub fn overwrite(&self, lba: Lba, from: &[u8]) {
        let range = self.whole_blocks(lba, from.len());
        let mut state = self.state();
        for (lba, bytes) in range.clone().zip(from.chunks_exact(self.block_bytes())) {
            state.live.set(lba, Some(bytes.into()));
        }
        state.settle(range);
    }

    fn whole_blocks(&self, lba: Lba, len: usize) -> Range<u64> {
        let end = lba.0.checked_add(len as u64 >> self.lba_size.shift());
        let whole = self.lba_size.divides(len as u64);
        match end {
            Some(end) if whole && end <= self.blocks => lba.0..end,
            _ => panic!("{len} bytes at block {lba} of {} blocks", self.blocks),
        }
    }

    // What `media` calls, with ranges that lie on the disk.

    /// Calls `each` with the bytes of a range, piece by piece, and where in the range they are.
    pub(super) fn visit(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(usize, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (block, state) = (self.block_bytes(), self.state());
        let mut absent = vec![0; block];
        let mut at = 0;
        while at < len {
            let (lba, within) = self.place(offset + at);
            let part = within..block.min(within + (len - at) as usize);
            let bytes = state.live.get(lba).map_or_else(|| self.fill(lba, &mut absent), |b| &**b);
            each(at as usize, &bytes[part.clone()])?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Takes the bytes of whole blocks into the cache. One call is one write.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.aligned(offset, bytes.len() as u64)?;
        let blocks = bytes.chunks_exact(self.block_bytes()).map(|bytes| Some(bytes.into()));
        self.change(range, |_| Content::Blocks(blocks.collect()))
    }

    /// Zeroes whole blocks in the cache.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let range = self.aligned(offset, len)?;
        self.change(range, |_| Content::Same(self.zeroed.clone()))
    }

    /// Copies whole blocks in the cache to other blocks, which may overlap them.
    pub(super) fn copy(&self, from: u64, to: u64, len: u64) -> io::Result<()> {
        let (from, to) = (self.aligned(from, len)?, self.aligned(to, len)?);
        self.change(to, |state| Content::Blocks(from.map(|lba| self.held(state, lba)).collect()))
    }

    /// Makes what is seen in a range durable. It overtakes what is pending there.
    pub(super) fn persist(&self, offset: u64, len: u64) -> io::Result<()> {
        let range = self.aligned(offset, len)?;
        let mut state = self.state();
        state.check_power()?;
        state.settle(range);
        state.counters.fua_writes += 1;
        Ok(())
    }

    /// Makes the writes before a horizon durable.
    pub(super) fn flush(&self, horizon: Horizon) -> io::Result<()> {
        let mut guard = self.state();
        guard.check_power()?;
        let state = &mut *guard;
        let covered = state.pending.partition_point(|write| write.serial < horizon.0);
        state.pending.drain(..covered).for_each(|write| write.apply_all(&mut state.durable));
        state.counters.flushes += 1;
        Ok(())
    }

    /// Returns what a flush that is fetched now covers.
    pub(super) fn horizon(&self) -> Horizon {
        Horizon(self.state().next)
    }

    /// Returns what a block holds, for another block to hold it too.
    fn held(&self, state: &State, lba: u64) -> Option<Block> {
        let here = state.live.get(lba).cloned();
        // An absent block of a pattern reads differently elsewhere.
        here.or_else(|| self.fill.map(|_| self.fill(lba, &mut vec![0; self.block_bytes()]).into()))
    }

    /// Fills a buffer with what a block holds that was never written.
    fn fill<'a>(&self, lba: u64, buffer: &'a mut [u8]) -> &'a [u8] {
        if let Some(pattern) = self.fill {
            buffer.fill(0);
            pattern(Lba(lba), buffer);
        }
        buffer
    }

    /// Takes one write into the cache.
    fn change(&self, range: Range<u64>, content: impl FnOnce(&State) -> Content) -> io::Result<()> {
        let mut guard = self.state();
        guard.check_power()?;
        if range.is_empty() {
            return Ok(());
        }
        let state = &mut *guard;
        let content = content(state);
        let write = Write::new(state.next, range.start, range.end - range.start, content);
        write.apply_all(&mut state.live);
        state.pending.push(write);
        state.next += 1;
        state.counters.writes += 1;
        Ok(())
    }

    fn aligned(&self, offset: u64, len: u64) -> io::Result<Range<u64>> {
        let shift = self.lba_size.shift();
        match self.lba_size.divides(offset | len) {
            true => Ok(offset >> shift..(offset + len) >> shift),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn place(&self, offset: u64) -> (u64, usize) {
        let within = offset & (u64::from(self.lba_size.bytes()) - 1);
        (offset >> self.lba_size.shift(), within as usize)
    }

    fn block_bytes(&self) -> usize {
        self.lba_size.bytes() as usize
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn is_cut(&self) -> bool {
        matches!(self.power, Power::Cut(_))
    }

    fn check_power(&self) -> Result<(), PowerIsCut> {
        if self.is_cut() { Err(PowerIsCut) } else { Ok(()) }
    }

    /// Makes what is seen in a range durable.
    fn settle(&mut self, range: Range<u64>) {
        self.pending.retain_mut(|write| write.overtake(range.start, range.end));
        self.durable.take(&self.live, range);
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Disk")
            .field("blocks", &self.blocks)
            .field("lba_size", &self.lba_size)
            .field("pending", &state.pending.len())
            .field("power_is_cut", &state.is_cut())
            .finish_non_exhaustive()
    }
}

/// There is no power.
#[derive(Debug, thiserror::Error)]
#[error("the power of the disk is cut")]
pub(super) struct PowerIsCut;

impl From<PowerIsCut> for io::Error {
    fn from(error: PowerIsCut) -> Self {
        Self::other(error)
    }
}
