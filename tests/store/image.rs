//! A store that an earlier version has made: every later one has to open it, and find in it what it held.
//!
//! `images/v1.hex` is a dump of its blocks, all-zero lines left out; `xxd -r images/v1.hex image` makes a sparse file of
//! it again. `images/v1.list` says what is in it. Both stay as they are as long as format 1 is read;
//! [`make_an_image`] makes such a pair for a new format.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use udirect::block::Durability;
use udirect::extent::{FormatOptions, OpenOptions, Store, check};
use udirect::soft::Disk;
use udirect::units::{FileId, Lba, LbaSize};

use crate::bed::{Bed, PATIENCE, alone, attach, bytes_of, counting_clock, open_to_read, sync};
use crate::by_hand;

const BYTES: u64 = 1 << 20;
const UNIT: usize = 1024;
const LINE: usize = 16;

const V1: (&str, &str) = (include_str!("images/v1.hex"), include_str!("images/v1.list"));

/// Writes a disk as lines of sixteen bytes, but for those that are all zero.
fn dump(disk: &Disk) -> String {
    let mut text = String::new();
    for (index, line) in bytes_of(disk).chunks(LINE).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{:08x}: {hex}", index * LINE).expect("a string has room");
        }
    }
    text
}

fn restore(text: &str) -> Arc<Disk> {
    let mut bytes = vec![0; BYTES as usize];
    for line in text.lines() {
        let (at, hex) = line.split_once(": ").expect("a place and bytes");
        let at = usize::from_str_radix(at, 16).expect("a place");
        let line = u128::from_str_radix(hex, 16).expect("sixteen bytes");
        bytes[at..at + LINE].copy_from_slice(&line.to_be_bytes());
    }
    let disk = Disk::new(BYTES, LbaSize::B512);
    disk.overwrite(Lba(0), &bytes);
    disk.fork()
}

/// Lists a store: who it is, and all of every object.
fn list(bed: &mut Bed) -> String {
    let mut text = String::new();
    let (info, statistics) = (bed.store.info(), bed.store.statistics());
    writeln!(text, "store {} of {} bytes", info.uuid, info.capacity.0).expect("a string has room");
    writeln!(text, "epoch {} created {}", info.epoch, info.created).expect("a string has room");
    let free = statistics.free.free_units;
    writeln!(text, "units of {}: {free} of {} free", info.unit.0, statistics.units)
        .expect("a string has room");
    for object in bed.store.list() {
        text += &list_object(bed, object.id);
    }
    text
}

fn list_object(bed: &mut Bed, id: FileId) -> String {
    let mut text = String::new();
    let info = bed.store.stat(id).expect("it was listed");
    let (name, size) = (info.name.as_deref().unwrap_or("-"), info.size);
    let crc = crc32c::crc32c(&bed.read(id, 0, 64 << 10));
    let (created, modified) = (info.created, info.modified);
    writeln!(
        text,
        "object {id} {name} size {size} created {created} modified {modified} crc {crc:08x}"
    )
    .expect("a string has room");
    for (key, value) in bed.store.attributes(id).expect("it was listed") {
        let (len, crc) = (value.len(), crc32c::crc32c(&value));
        writeln!(text, "  attribute {key} {len} bytes crc {crc:08x}").expect("a string has room");
    }
    for segment in bed.store.segments(id).expect("it was listed") {
        let state = if segment.written { "written" } else { "unwritten" };
        let (offset, len, device) = (segment.offset, segment.len, segment.device);
        writeln!(text, "  extent {offset}+{len} at {device} {state}").expect("a string has room");
    }
    text
}

#[test]
fn the_image_of_format_1_opens_and_holds_what_it_held() {
    let (hex, wanted) = V1;
    let disk = restore(hex);
    assert_eq!(dump(&disk), hex, "the dump is whole");
    let before = bytes_of(&disk);
    let mut bed = Bed::over(open_to_read(&attach(&disk)).expect("it opens"));
    assert!(bed.store.warnings().is_empty());
    assert_eq!(list(&mut bed), wanted);
    // By the page of the format alone.
    assert_eq!(by_hand::objects_in(&bed.store), by_hand::read(&disk).objects);
    drop(bed);
    let report = check(&attach(&disk), PATIENCE).expect("a check");
    assert!(report.is_sound(), "{report:?}");
    assert!(report.replayed.0 >= 6, "records behind the checkpoint: {report:?}");
    assert!(bytes_of(&disk) == before && disk.pending().is_empty(), "reading writes nothing");
}

#[test]
fn the_image_of_format_1_can_be_written() {
    let disk = restore(V1.0);
    let mut bed = Bed::open(&attach(&disk));
    let epoch = bed.store.info().epoch;
    let found = list(&mut bed);
    assert!(found.lines().skip(2).eq(V1.1.lines().skip(2)), "{found}");
    let new = bed.store.create(Some("new")).expect("free");
    bed.write(new, 0, &[5; 4096], Durability::Full);
    bed.store.checkpoint(PATIENCE).expect("a checkpoint");
    drop(bed);
    let mut bed = Bed::open(&attach(&disk));
    assert_eq!(bed.store.info().epoch, epoch + 1);
    assert_eq!(bed.read(new, 0, 4096), [5; 4096]);
    let mut kept = list(&mut bed);
    kept.truncate(kept.find(&format!("object {new}")).expect("it is listed"));
    assert!(found.ends_with(&kept[kept.find("object").expect("objects")..]));
    drop(bed);
    assert!(check(&attach(&disk), PATIENCE).expect("a check").is_sound());
}

/// Bytes of units that say whose they are, at both ends.
fn labelled(what: &str, first: usize, units: usize) -> Vec<u8> {
    let unit = |n: usize| {
        let mut unit = vec![0; UNIT];
        let label = format!("{what:>9} {:05}\n", first + n);
        unit[..LINE].copy_from_slice(label.as_bytes());
        unit[UNIT - LINE..].copy_from_slice(label.as_bytes());
        unit
    };
    (0..units).flat_map(unit).collect()
}

fn make() -> Arc<Disk> {
    let (disk, clock) = (Disk::new(BYTES, LbaSize::B512), counting_clock());
    let options = FormatOptions {
        unit: UNIT as u64,
        journal: Some(16 << 10),
        checkpoint: Some(8 << 10),
        uuid: Some("75646972-6563-4174-8000-000000000001".parse().expect("a UUID")),
        clock: Arc::clone(&clock),
        ..FormatOptions::default()
    };
    Store::format(&attach(&disk), &options).expect("a store");
    let options = OpenOptions { clock, ..OpenOptions::default() };
    let open = || Bed::over(Store::open(&attach(&disk), &options).expect("a store"));
    before_the_checkpoint(&mut open());
    behind_the_checkpoint(&mut open());
    let Bed { store, .. } = open();
    store.create(Some("of a later epoch")).expect("free");
    sync(&store);
    disk
}

fn write(bed: &mut Bed, id: FileId, what: &str, unit: usize, units: usize) {
    bed.write(id, (unit * UNIT) as u64, &labelled(what, unit, units), Durability::Lazy);
}

fn before_the_checkpoint(bed: &mut Bed) {
    let create = |bed: &Bed, name| bed.store.create(name).expect("free");
    let plain = create(bed, Some("plain"));
    write(bed, plain, "plain", 0, 3);
    let sparse = create(bed, Some("sparse/ö"));
    write(bed, sparse, "sparse", 2, 1);
    write(bed, sparse, "sparse", 9, 2);
    alone(&bed.store, sparse).set_len(20_000).expect("a size");
    let unnamed = create(bed, None);
    bed.store.set_attribute(unnamed, "key", b"value").expect("an attribute");
    bed.store.set_attribute(unnamed, "empty", b"").expect("an attribute");
    let planned = create(bed, Some("planned"));
    alone(&bed.store, planned).preallocate(0..8 * UNIT as u64).expect("space");
    write(bed, planned, "planned", 2, 1);
    let (scattered, removed) = (create(bed, Some("scattered")), create(bed, Some("removed")));
    for unit in 0..4 {
        write(bed, scattered, "scattered", unit, 1);
        write(bed, removed, "removed", unit, 1);
    }
    sync(&bed.store);
    bed.store.checkpoint(PATIENCE).expect("a checkpoint");
    create(bed, Some("empty"));
    sync(&bed.store);
}

fn behind_the_checkpoint(bed: &mut Bed) {
    let store = bed.store.clone();
    let id = |name: &str| store.lookup(name).expect("it was made");
    store.remove(id("removed")).expect("it is there");
    sync(&store);
    store.rename(id("plain"), "renamed", false).expect("free");
    store.rename(id("empty"), "planned", true).expect("it takes the place");
    sync(&store);
    write(bed, id("sparse/ö"), "sparse", 4, 1);
    alone(&store, id("scattered")).punch(UNIT as u64..2 * UNIT as u64).expect("a hole");
    alone(&store, id("renamed")).set_len(2048).expect("less");
    sync(&store);
    // A record of several blocks.
    store.set_attribute(id("renamed"), "long", &[7; 700]).expect("an attribute");
    let unnamed = FileId(3);
    store.remove_attribute(unnamed, "empty").expect("it is there");
    sync(&store);
    let ahead = store.create(Some("ahead")).expect("free");
    alone(&store, ahead).preallocate(0..2 * UNIT as u64).expect("space");
    bed.write(ahead, UNIT as u64, &labelled("ahead", 1, 1), Durability::Full);
    sync(&store);
}

/// Makes an image and its list in the directory of the build. To keep them for a new format, move them to `images/`.
#[test]
#[ignore = "it makes the image of the format that is written now: once for each format"]
fn make_an_image() {
    let disk = make();
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let store = Store::open(&attach(&disk), &read_only).expect("a store");
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::write(place.join("image.hex"), dump(&disk)).expect("a file");
    fs::write(place.join("image.list"), list(&mut Bed::over(store))).expect("a file");
    eprintln!("image.hex and image.list are in {}", place.display());
}
