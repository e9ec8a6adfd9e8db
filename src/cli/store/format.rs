//! `udirect store format`: makes a store, and destroys nothing that it was not told to.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::anyhow;

use super::super::failure::Failure;
use super::super::fields::{bytes, lines, text};
use super::super::output::print;
use crate::block::BlockDevice;
use crate::open::{Opened, open};
use crate::volume::{FormatOptions, OpenOptions, Options, Store, StoreError, Uuid, Volume};

/// The sizes that were asked for.
pub(super) struct Sizes {
    pub(super) unit: Option<u64>,
    pub(super) journal: Option<u64>,
    pub(super) checkpoint: Option<u64>,
}

/// The largest unit.
const UNIT_MAX: u64 = 1 << 20;

/// How much of the start has to be zero for the device to be empty. Partition tables and most filesystems begin
/// here.
const START_BYTES: u64 = 64 << 10;

/// Makes a store of the device at `address`.
pub(super) fn run(address: &str, sizes: &Sizes, force: bool) -> Result<(), Failure> {
    let unit = sizes.unit.unwrap_or(FormatOptions::default().unit);
    check_unit(unit)?;
    let opened = open(address)?;
    match made(address, &opened, sizes, force) {
        Ok(store) => print(lines(&summary(&store), 12).as_bytes()),
        Err(failure) => {
            opened.discard();
            Err(failure)
        }
    }
}

fn check_unit(unit: u64) -> Result<(), Failure> {
    if unit.is_power_of_two() && (512..=UNIT_MAX).contains(&unit) {
        return Ok(());
    }
    Err(Failure::usage(anyhow!("--unit={unit} is not a power of two from 512 to {UNIT_MAX}")))
}

fn made(address: &str, opened: &Opened, sizes: &Sizes, force: bool) -> Result<Store, Failure> {
    let device = &opened.device;
    let blame = |error| Failure::of_store(address, error);
    let block = device.geometry().lba_size;
    if let Some(unit) = sizes.unit.filter(|unit| *unit < u64::from(block.bytes())) {
        let what = anyhow!("{address}: --unit={unit} is less than a block of the device, {block}");
        return Err(Failure::usage(what));
    }
    if !force && let Some(found) = occupant(device)? {
        let what = anyhow!("{address} holds {found}: --force destroys it");
        return Err(Failure::usage(what));
    }
    let defaults = FormatOptions::default();
    let options = FormatOptions {
        unit: sizes.unit.unwrap_or(defaults.unit),
        journal: sizes.journal,
        checkpoint: sizes.checkpoint,
        force,
        ..defaults
    };
    let uuid: Uuid = Store::format(device, &options).map_err(blame)?;
    // What was written is read once: a device that keeps nothing is found out here.
    let options = OpenOptions { read_only: true, uuid: Some(uuid), ..OpenOptions::default() };
    Store::open(device, &options).map_err(|error| match error {
        StoreError::NotAStore { .. } => {
            Failure::device(anyhow!("{address} does not keep what is written to it"))
        }
        error => blame(error),
    })
}

/// Returns what is on a device, if anything is.
fn occupant(device: &Arc<dyn BlockDevice>) -> Result<Option<String>, Failure> {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    match Store::open(device, &options) {
        Ok(store) => {
            let (uuid, objects) = (store.info().uuid, store.statistics().objects);
            return Ok(Some(format!("store {uuid} with {objects} objects")));
        }
        Err(error @ StoreError::Device { .. }) => return Err(Failure::device(error)),
        Err(StoreError::NotAStore { .. }) => {}
        Err(error) => return Ok(Some(format!("a store that cannot be opened ({error})"))),
    }
    let len = START_BYTES.min(device.geometry().capacity().0);
    let mut start = vec![0; len as usize];
    let mut handle =
        Volume::raw(Arc::clone(device)).handle(&Options::default()).map_err(Failure::device)?;
    handle.read_at(&mut start, 0).map_err(Failure::device)?;
    Ok(contents(&start))
}

/// Says what the first bytes of a device look like; nothing if all are zero.
fn contents(start: &[u8]) -> Option<String> {
    const KNOWN: [(usize, &[u8], &str); 8] = [
        (512, b"EFI PART", "a partition table (GPT)"),
        (4096, b"EFI PART", "a partition table (GPT)"),
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (0, b"XFSB", "a filesystem (XFS)"),
        (1080, b"\x53\xef", "a filesystem (ext2, ext3 or ext4)"),
        (512, b"LABELONE", "a physical volume (LVM)"),
        (4086, b"SWAPSPACE2", "swap space"),
        (510, b"\x55\xaa", "a boot sector or partition table (MBR)"),
    ];
    let at = start.iter().position(|byte| *byte != 0)?;
    let known = KNOWN.iter().find(|(at, magic, _)| {
        start.get(*at..at + magic.len()).is_some_and(|bytes| bytes == *magic)
    });
    Some(match known {
        Some((_, _, what)) => (*what).to_owned(),
        None => format!("data of no known kind (byte {at} is {:#04x})", start[at]),
    })
}

fn summary(store: &Store) -> Vec<super::super::fields::Field> {
    let (info, statistics) = (store.info(), store.statistics());
    vec![
        text("uuid", info.uuid.to_string()),
        bytes("capacity", info.capacity.0),
        bytes("data", info.data.0),
        bytes("unit", info.unit.0),
        bytes("journal", statistics.journal.0),
        bytes("checkpoint", statistics.map.1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_a_device_is_named() {
        let mut start = vec![0; 64 << 10];
        assert_eq!(contents(&start), None);
        start[40_000] = 7;
        assert_eq!(contents(&start).unwrap(), "data of no known kind (byte 40000 is 0x07)");
        start[510..512].copy_from_slice(b"\x55\xaa");
        assert!(contents(&start).unwrap().contains("MBR"));
        start[512..520].copy_from_slice(b"EFI PART");
        assert!(contents(&start).unwrap().contains("GPT"));
        assert!(contents(&[1]).is_some(), "a short device is looked at as far as it goes");
    }
}
