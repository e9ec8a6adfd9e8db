//! The check of a store that nobody has open: every block of metadata, every invariant; nothing is changed.
//!
//! Opening finds whatever keeps a store from being used. The check goes on after a finding where it can, and also
//! reads what an opening does not need: the older checkpoint, old records, damaged copies.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::claim::Claim;
use super::error::{Area, Damage, StoreError};
use super::io::MetadataIo;
use super::layout::{COPIES, Layout};
use super::open::{Loaded, fits, load, read_superblock, space_of};
use super::record::NAME_BYTES_MAX;
use super::seal::{self, Kind};
use super::superblock::Superblock;
use super::tree::FILE_UNITS_MAX;
use super::uuid::Uuid;
use crate::block::BlockDevice;
use crate::units::Lba;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing it is, in words that do not change: `superblock-damaged`, `space-used-twice`.
    pub name: &'static str,
    /// Where, and with which numbers.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.text)
    }
}

/// What a check has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The store, if there is one.
    pub store: Option<Uuid>,
    /// What is wrong, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// Blocks of metadata that were read.
    pub blocks: u64,
    /// Objects.
    pub objects: u64,
    /// Their extents.
    pub extents: u64,
    /// Units that they have.
    pub used: u64,
    /// Units that nobody has.
    pub free: u64,
    /// Records of the journal behind the checkpoint, and operations in them.
    pub replayed: (u64, u64),
}

impl Report {
    /// Says whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, name: &'static str, text: impl fmt::Display) {
        self.findings.push(Finding { name, text: text.to_string() });
    }

    fn add_error(&mut self, error: &StoreError) {
        self.add(name_of(error), error);
    }
}

/// Returns the name of what keeps a store from being read.
fn name_of(error: &StoreError) -> &'static str {
    match error {
        StoreError::NotAStore { .. } => "not-a-store",
        StoreError::Version { .. } => "format-version",
        StoreError::Features { .. } => "unknown-features",
        StoreError::Superblocks { .. } => "superblocks-lost",
        StoreError::Damaged { area, .. } => damaged(*area),
        StoreError::JournalGap { .. } => "journal-gap",
        StoreError::Inconsistent { area: Area::Superblock, .. } => "superblocks-of-two-stores",
        StoreError::Inconsistent { area: Area::Journal, .. } => "journal-inconsistent",
        StoreError::Inconsistent { area: Area::Checkpoint, .. } => "checkpoint-inconsistent",
        StoreError::DeviceTooSmall { .. } => "device-too-small",
        StoreError::BlockSize { .. } => "block-size",
        _ => "unreadable",
    }
}

fn damaged(area: Area) -> &'static str {
    match area {
        Area::Superblock => "superblock-damaged",
        Area::Journal => "journal-damaged",
        Area::Checkpoint => "checkpoint-damaged",
    }
}

/// Checks the store of a device.
///
/// # Errors
///
/// Only where the check itself cannot be made: `Open` while somebody has the store open, `Device` where there is no
/// queue or no memory for it. Whatever is wrong with the store is a finding.
pub fn check(device: &Arc<dyn BlockDevice>, timeout: Duration) -> Result<Report, StoreError> {
    let mut io = MetadataIo::open(&**device, timeout)?;
    let mut report = Report::default();
    let found = match read_superblock(&mut io, &**device) {
        Ok(found) => found,
        Err(error) => {
            report.add_error(&error);
            return Ok(report);
        }
    };
    let superblock = found.newest;
    report.store = Some(superblock.store);
    report.blocks = COPIES as u64;
    for (lba, damage) in found.damaged {
        report.add_error(&StoreError::damaged(Area::Superblock, lba)(damage));
    }
    if let Err(error) = fits(&superblock, &**device) {
        report.add_error(&error);
        return Ok(report);
    }
    let _claim = Claim::of(superblock.store, &**device)?;
    scan(&mut io, &superblock, &mut report);
    match load(&mut io, &superblock) {
        Ok(loaded) => check_world(&superblock.layout, &loaded, &mut report),
        // The scan has named the block already, where it is one.
        Err(error) => {
            let known = Finding { name: name_of(&error), text: error.to_string() };
            if !report.findings.contains(&known) {
                report.findings.push(known);
            }
        }
    }
    Ok(report)
}

/// Reads every block of metadata, also where nothing needs it.
fn scan(io: &mut MetadataIo, superblock: &Superblock, report: &mut Report) {
    let layout = &superblock.layout;
    scan_gaps(io, superblock, report);
    let region = |index: usize| {
        layout.checkpoints[index]..layout.checkpoints[index] + layout.checkpoint_blocks
    };
    scan_area(io, superblock, layout.journal.clone(), Kind::Journal, report);
    for index in 0..2 {
        scan_area(io, superblock, region(index), Kind::Checkpoint, report);
    }
}

/// Looks between the copies of the superblock, where nothing of the store belongs and anything else may lie, for
/// metadata that went astray: its own place does not have it.
fn scan_gaps(io: &mut MetadataIo, superblock: &Superblock, report: &mut Report) {
    let layout = &superblock.layout;
    for copy in 0..COPIES {
        // The copies themselves were read already.
        let start = Layout::copy(layout.block_shift, copy).0 + 1;
        let end = match copy + 1 {
            COPIES => layout.journal.start,
            next => Layout::copy(layout.block_shift, next).0,
        };
        scan_gap(io, superblock, start..end, report);
    }
}

fn scan_gap(io: &mut MetadataIo, superblock: &Superblock, gap: Range<u64>, report: &mut Report) {
    let size = superblock.layout.block();
    let result = io.read(Lba(gap.start), gap.end - gap.start, &mut |start, bytes| {
        for (offset, block) in bytes.chunks_exact(size).enumerate() {
            let lba = Lba(start.0 + offset as u64);
            report.blocks += 1;
            if let Err(Damage::Place { found }) = seal::open_any(block, lba) {
                let ours = seal::open_any(block, found);
                if ours.is_ok_and(|header| header.store == superblock.store) {
                    let text = format_args!("block {lba} was written for block {found}");
                    report.add("metadata-astray", text);
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        report.add("unreadable", format_args!("between the superblocks: {error}"));
    }
}

fn scan_area(
    io: &mut MetadataIo,
    superblock: &Superblock,
    area: Range<u64>,
    kind: Kind,
    report: &mut Report,
) {
    let name = if kind == Kind::Journal { Area::Journal } else { Area::Checkpoint };
    let size = superblock.layout.block();
    let result = io.read(Lba(area.start), area.end - area.start, &mut |start, bytes| {
        for (offset, block) in bytes.chunks_exact(size).enumerate() {
            let lba = Lba(start.0 + offset as u64);
            report.blocks += 1;
            match seal::open(block, kind, superblock.store, lba) {
                Ok(_) | Err(Damage::Blank) => {}
                Err(damage) => report.add_error(&StoreError::damaged(name, lba)(damage)),
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        report.add("unreadable", format_args!("{name}: {error}"));
    }
}

/// Checks what the metadata says, when it can be read.
fn check_world(layout: &Layout, loaded: &Loaded, report: &mut Report) {
    let size_max = (u128::from(FILE_UNITS_MAX) << layout.unit_shift).min(i64::MAX as u128);
    for (id, state) in &loaded.world.objects {
        report.objects += 1;
        report.extents += state.tree.iter().count() as u64;
        report.used += state.tree.units();
        if u128::from(state.size) > size_max {
            report.add("object-too-large", format_args!("object {id} has {} bytes", state.size));
        }
        let name = state.name.as_deref();
        if name.is_some_and(|name| name.is_empty() || name.len() > NAME_BYTES_MAX) {
            report.add("name-impossible", format_args!("object {id} is named {name:?}"));
        }
        if id.0 == 0 || id.0 >= loaded.world.next_id {
            let next = loaded.world.next_id;
            report.add("object-number", format_args!("object {id}, and the next is {next}"));
        }
    }
    match space_of(&loaded.world, layout) {
        Ok(space) => report.free = space.free_units(),
        Err(error) => report.add("space-used-twice", error),
    }
    if report.free + report.used != layout.units && report.is_sound() {
        let (free, used, all) = (report.free, report.used, layout.units);
        report.add("space-lost", format_args!("{used} units used and {free} free are not {all}"));
    }
    report.replayed = (loaded.end.records, loaded.end.operations);
}
