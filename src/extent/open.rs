//! Making and opening stores.
//!
//! ```text
//!   superblocks -> the newest whole one -> checkpoint -> journal -> free space -> a new epoch, durably -> open
//! ```
//!
//! Nothing depends on how the store was left. The free space is what no object has; opening reads the checkpoint and
//! the journal, however large the device is.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::checkpoint;
use super::claim::Claim;
use super::engine::Engine;
use super::error::{Area, Damage, StoreError};
use super::io::MetadataIo;
use super::layout::{COPIES, Layout, Wishes};
use super::replay::{Blocks, End, World};
use super::seal::{self, HEADER_BYTES, Header, Kind};
use super::shared::{Clock, Parts, Shared};
use super::space::Space;
use super::store::Store;
use super::superblock::{self, CheckpointAt, Features, Found, Head, Superblock};
use super::uuid::Uuid;
use crate::block::BlockDevice;
use crate::units::{ByteLen, Lba};

/// How a store is made.
#[derive(Clone)]
pub struct FormatOptions {
    /// Bytes of an allocation unit, a power of two from the block to 1 MiB.
    pub unit: u64,
    /// Bytes of the journal; `None` for a 128th of the device, from 64 KiB to 32 MiB.
    pub journal: Option<u64>,
    /// Bytes of each of the two checkpoints; `None` for a 128th of the device, from 64 KiB to 1 GiB. An extent takes
    /// 24 bytes of it.
    pub checkpoint: Option<u64>,
    /// Its number; `None` for a new one.
    pub uuid: Option<Uuid>,
    /// Whether a store that is there already is destroyed.
    pub force: bool,
    /// How long each request may take.
    pub timeout: Duration,
    /// Tells the time.
    pub clock: Clock,
}

impl Default for FormatOptions {
    /// Units of 4 KiB, areas by the size of the device.
    fn default() -> Self {
        Self {
            unit: 4096,
            journal: None,
            checkpoint: None,
            uuid: None,
            force: false,
            timeout: Duration::from_secs(30),
            clock: wall_clock(),
        }
    }
}

/// How a store is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// Whether it is only read: then nothing at all is written.
    pub read_only: bool,
    /// The number that it has to have.
    pub uuid: Option<Uuid>,
    /// How long each request of the store's own may take.
    pub timeout: Duration,
    /// After which time what was done is brought to the journal though nobody asks.
    pub commit_interval: Duration,
    /// Tells the time.
    pub clock: Clock,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            uuid: None,
            timeout: Duration::from_secs(30),
            commit_interval: Duration::from_secs(5),
            clock: wall_clock(),
        }
    }
}

fn wall_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

impl Store {
    /// Makes an empty store of a device; returns its number.
    ///
    /// # Errors
    ///
    /// `Exists` where there is one already, what opening says where there is one that this program cannot open,
    /// `Option` where the areas do not fit, and those of the device.
    pub fn format(
        device: &Arc<dyn BlockDevice>,
        options: &FormatOptions,
    ) -> Result<Uuid, StoreError> {
        let FormatOptions { unit, journal, checkpoint, .. } = *options;
        let geometry = device.geometry();
        let unit = unit.max(u64::from(geometry.lba_size.bytes()));
        let layout = Layout::plan(geometry, Wishes { unit, journal, checkpoint })?;
        let mut io = MetadataIo::open(&**device, options.timeout)?;
        match read_superblock(&mut io, &**device) {
            Ok(found) if !options.force => return Err(StoreError::Exists(found.newest.store)),
            Ok(found) => drop(Claim::of(found.newest.store, &**device)?),
            Err(StoreError::NotAStore { .. }) => {}
            Err(error @ StoreError::Device { .. }) => return Err(error),
            // A newer program may open it, or somebody may want to save what is left of it.
            Err(error) if !options.force => return Err(error),
            Err(_) => {}
        }
        let store = options.uuid.unwrap_or_else(Uuid::random);
        let offered = geometry.operations.write_zeroes;
        // Old superblocks go first: half a store must not look like the old one.
        for copy in 0..COPIES {
            io.zero(Layout::copy(layout.block_shift, copy), 1, offered)?;
        }
        io.flush()?;
        let metadata = layout.metadata();
        io.zero(Lba(metadata.start), metadata.end - metadata.start, offered)?;
        let at = write_empty_checkpoint(&mut io, &layout, store)?;
        io.flush()?;
        let created = (options.clock)();
        let head = Head { position: 0, record: 1, lsn: 1, chain: 0 };
        let mut superblock = Superblock {
            store,
            version: 1,
            epoch: 1,
            layout,
            checkpoint: at,
            head,
            epoch_record: 1,
            created,
            features: Features::default(),
        };
        write_superblock(&mut io, &superblock)?;
        superblock.version = 2;
        write_superblock(&mut io, &superblock)?;
        Ok(store)
    }

    /// Opens the store of a device.
    ///
    /// # Errors
    ///
    /// See [`StoreError`]: each way in which it is not a whole store of this program has a variant of its own. Nothing
    /// is written unless all of it was found to be right.
    pub fn open(device: &Arc<dyn BlockDevice>, options: &OpenOptions) -> Result<Self, StoreError> {
        let mut io = MetadataIo::open(&**device, options.timeout)?;
        let found = read_superblock(&mut io, &**device)?;
        let mut superblock = found.newest;
        let store = superblock.store;
        if let Some(wanted) = options.uuid.filter(|wanted| *wanted != store) {
            return Err(StoreError::Foreign { found: store, wanted });
        }
        fits(&superblock, &**device)?;
        if !options.read_only {
            superblock.features.may_write()?;
        }
        let claim = Claim::of(store, &**device)?;
        let damage = |(lba, damage)| StoreError::damaged(Area::Superblock, lba)(damage);
        let mut warnings: Vec<StoreError> = found.damaged.into_iter().map(damage).collect();
        let loaded = load(&mut io, &superblock)?;
        let space = space_of(&loaded.world, &superblock.layout)?;
        warnings.extend(loaded.stale);
        for warning in &warnings {
            tracing::warn!(store = %store, "{warning}");
        }
        if !options.read_only {
            superblock.version += 1;
            superblock.epoch = loaded.end.epoch + 1;
            superblock.epoch_record = loaded.end.head.record;
            write_superblock(&mut io, &superblock)?;
        }
        drop(io);
        let (layout, created) = (superblock.layout.clone(), superblock.created);
        let head = loaded.end.head;
        let engine = Engine::open(&**device, superblock, head, options.timeout)?;
        Ok(Self::of(Arc::new(Shared::new(Parts {
            engine,
            device: Arc::clone(device),
            layout,
            uuid: store,
            created,
            objects: loaded.world.objects,
            next_id: loaded.world.next_id,
            space,
            lsn: head.lsn,
            clock: Arc::clone(&options.clock),
            commit_interval: options.commit_interval,
            read_only: options.read_only,
            warnings,
            claim,
        }))))
    }
}

/// Reads the four places of the superblock, and chooses.
pub(super) fn read_superblock(
    io: &mut MetadataIo,
    device: &dyn BlockDevice,
) -> Result<Found, StoreError> {
    let geometry = device.geometry();
    let shift = geometry.lba_size.shift();
    let last = Layout::copy(shift, COPIES - 1);
    if last.0 >= geometry.blocks.0 {
        let what = format!("{} is too small for one", geometry.capacity());
        return Err(StoreError::NotAStore { what });
    }
    let mut blocks: [Vec<u8>; COPIES] = Default::default();
    let mut unreadable = None;
    for (copy, block) in blocks.iter_mut().enumerate() {
        match io.read_block(Layout::copy(shift, copy)) {
            Ok(found) => *block = found,
            // A copy that cannot be read is no better than one that is damaged.
            Err(error) => {
                *block = vec![0xff; 1 << shift];
                unreadable = Some(error);
            }
        }
    }
    superblock::choose(&blocks, shift).map_err(|error| match (error, unreadable) {
        (StoreError::NotAStore { .. }, Some(error)) => error,
        (error, _) => made_on_other_blocks(io, shift).unwrap_or(error),
    })
}

/// Says whether the store was made on blocks of another size: then no block is what its checksum covers.
fn made_on_other_blocks(io: &mut MetadataIo, shift: u8) -> Option<StoreError> {
    let mut start = Vec::new();
    let blocks = (64 << 10 >> shift).max(1);
    let read = io.read(Lba(0), blocks, &mut |_, bytes| {
        start.extend_from_slice(bytes);
        Ok(())
    });
    read.ok()?;
    let is_whole = |other: &u8| {
        let block = start.get(..1 << other);
        block.is_some_and(|block| {
            seal::open_any(block, Lba(0)).is_ok_and(|header| header.kind == Kind::Superblock)
        })
    };
    let found = (9..=16).filter(|other| *other != shift).find(is_whole)?;
    Some(StoreError::BlockSize { device: 1 << shift, store: 1 << found })
}

/// Checks that the device has all of the store.
pub(super) fn fits(superblock: &Superblock, device: &dyn BlockDevice) -> Result<(), StoreError> {
    let (geometry, layout) = (device.geometry(), &superblock.layout);
    if layout.blocks > geometry.blocks.0 {
        let store = ByteLen(layout.blocks.saturating_mul(1 << layout.block_shift));
        return Err(StoreError::DeviceTooSmall { device: geometry.capacity(), store });
    }
    Ok(())
}

/// What a store holds, as it was read.
pub(super) struct Loaded {
    pub(super) world: World,
    pub(super) end: End,
    /// Damaged blocks of the journal that nothing needs any more.
    pub(super) stale: Vec<StoreError>,
}

/// Reads checkpoint and journal.
pub(super) fn load(io: &mut MetadataIo, superblock: &Superblock) -> Result<Loaded, StoreError> {
    let layout = &superblock.layout;
    let stream = read_checkpoint(io, superblock)?;
    let wrong = |area, what| StoreError::Inconsistent { area, what };
    let decoded = checkpoint::decode(&stream, layout.units);
    let (objects, end) = decoded.map_err(|what| wrong(Area::Checkpoint, what))?;
    drop(stream);
    let mut world = World::new(objects, end.next, layout.units);
    let mut bytes = Vec::with_capacity(layout.journal_blocks() as usize * layout.block());
    io.read(Lba(layout.journal.start), layout.journal_blocks(), &mut |_, piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    let blocks = Blocks { layout, store: superblock.store, bytes: &bytes };
    let (end, stale) = blocks.replay(superblock, &mut |op| world.apply(op))?;
    if let Some(what) = world.problem() {
        return Err(wrong(Area::Journal, what));
    }
    Ok(Loaded { world, end, stale })
}

fn read_checkpoint(io: &mut MetadataIo, superblock: &Superblock) -> Result<Vec<u8>, StoreError> {
    let (layout, at) = (&superblock.layout, superblock.checkpoint);
    let mut stream = Vec::with_capacity(at.bytes as usize);
    let first = layout.checkpoints[at.region];
    let (mut crc, mut index) = (0, 0_u32);
    io.read(Lba(first), at.blocks, &mut |start, bytes| {
        for (offset, block) in bytes.chunks_exact(layout.block()).enumerate() {
            let lba = Lba(start.0 + offset as u64);
            let piece = checkpoint_block(block, superblock, lba, index, &mut crc)
                .map_err(StoreError::damaged(Area::Checkpoint, lba))?;
            stream.extend_from_slice(piece);
            index += 1;
        }
        Ok(())
    })?;
    if (stream.len() as u64, crc) != (at.bytes, at.crc) {
        let what = format!(
            "{} bytes with checksum {crc:#010x}, its superblock says {} and {:#010x}",
            stream.len(),
            at.bytes,
            at.crc
        );
        return Err(StoreError::Inconsistent { area: Area::Checkpoint, what });
    }
    Ok(stream)
}

/// Opens one block of the newest checkpoint.
fn checkpoint_block<'a>(
    block: &'a [u8],
    superblock: &Superblock,
    lba: Lba,
    index: u32,
    crc: &mut u32,
) -> Result<&'a [u8], Damage> {
    let header = seal::open(block, Kind::Checkpoint, superblock.store, lba)?;
    let number = |what, found, wanted| Err(Damage::Number { what, found, wanted });
    if header.sequence != superblock.checkpoint.sequence {
        return number("the checkpoint", header.sequence, superblock.checkpoint.sequence);
    }
    if header.index != index {
        return number("the index", header.index.into(), index.into());
    }
    let piece = seal::payload(block, &header);
    *crc = crc32c::crc32c_append(*crc, piece);
    if header.whole != *crc {
        return number("the checksum so far", header.whole.into(), (*crc).into());
    }
    Ok(piece)
}

/// Works out what is free: what no object has.
pub(super) fn space_of(world: &World, layout: &Layout) -> Result<Space, StoreError> {
    let extents = world.objects.values().map(|state| state.tree.len()).sum();
    let mut used: Vec<(u64, u64)> = Vec::with_capacity(extents);
    for state in world.objects.values() {
        used.extend(state.tree.iter().map(|extent| (extent.device, extent.units)));
    }
    used.sort_unstable();
    Space::from_used(0..layout.units, used).map_err(|overlap| {
        let what = format!("space is used twice: {overlap}");
        StoreError::Inconsistent { area: Area::Checkpoint, what }
    })
}

fn write_superblock(io: &mut MetadataIo, superblock: &Superblock) -> Result<(), StoreError> {
    let mut block = vec![0; superblock.layout.block()];
    for copy in superblock.copies() {
        superblock.encode(copy, &mut block);
        io.write_durably(Layout::copy(superblock.layout.block_shift, copy), &block)?;
    }
    Ok(())
}

/// Writes the checkpoint of nothing.
fn write_empty_checkpoint(
    io: &mut MetadataIo,
    layout: &Layout,
    store: Uuid,
) -> Result<CheckpointAt, StoreError> {
    let mut stream = Vec::new();
    checkpoint::encode_end(&mut stream, checkpoint::End { next: 1, ..checkpoint::End::default() });
    let crc = crc32c::crc32c(&stream);
    let mut block = vec![0; layout.block()];
    block[HEADER_BYTES..HEADER_BYTES + stream.len()].copy_from_slice(&stream);
    let header = Header {
        kind: Kind::Checkpoint,
        store,
        place: Lba(layout.checkpoints[0]),
        epoch: 1,
        sequence: 1,
        index: 0,
        count: layout.checkpoint_blocks as u32,
        length: stream.len() as u32,
        whole: crc,
    };
    seal::seal(&mut block, &header);
    io.write_durably(Lba(layout.checkpoints[0]), &block)?;
    Ok(CheckpointAt { region: 0, sequence: 1, blocks: 1, bytes: stream.len() as u64, crc })
}
