//! What is no store of this program is refused, each for its own reason, and nothing of it is changed.

use std::sync::Arc;

use udirect::extent::{Area, Damage, FormatOptions, OpenOptions, Store, StoreError, Uuid, check};
use udirect::seed::Seed;
use udirect::soft::{Disk, FaultAction, FaultRule, Faults};
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::{ByteLen, Lba, LbaSize};

use crate::bed::{
    Bed, PATIENCE, attach, attach_faulty, bytes_of, open, open_to_read, small_disk, sync,
};
use crate::by_hand::{
    COMPATIBLE, FORMAT, INCOMPATIBLE, READ_ONLY, SEQUENCE, get, place_of_copy, reseal,
    reseal_superblock, set, spoil, superblock,
};

/// A store with an object in its checkpoint and one in its journal.
fn store_disk() -> Arc<Disk> {
    let disk = small_disk(16 << 10, 16 << 10);
    let store = open(&attach(&disk)).expect("a store");
    store.create(Some("first")).expect("a name");
    store.checkpoint(PATIENCE).expect("a checkpoint");
    store.create(Some("second")).expect("a name");
    sync(&store);
    disk
}

/// Opens a disk that must not open, both ways, and sees that nothing has changed.
fn refusal(disk: &Arc<Disk>) -> StoreError {
    let before = bytes_of(disk);
    let error = open(&attach(disk)).expect_err("it cannot be written");
    let again = open_to_read(&attach(disk)).expect_err("it cannot be read");
    assert_eq!(error.to_string(), again.to_string());
    assert_eq!(disk.pending(), [], "a refusal writes nothing");
    assert!(bytes_of(disk) == before);
    error
}

fn findings(disk: &Arc<Disk>) -> Vec<&'static str> {
    let report = check(&attach(disk), PATIENCE).expect("a check");
    report.findings.iter().map(|finding| finding.name).collect()
}

#[test]
fn a_blank_device_is_no_store() {
    let disk = Disk::new(4 << 20, LbaSize::B4096);
    let error = refusal(&disk);
    assert!(matches!(&error, StoreError::NotAStore { what } if what.contains("blank")), "{error}");
    assert_eq!(findings(&disk), ["not-a-store"]);
}

#[test]
fn random_bytes_are_no_store() {
    let mut seed = Seed::from_env("random bytes are no store");
    for lba_size in [LbaSize::B512, LbaSize::B4096] {
        let disk = Disk::new(1 << 20, lba_size);
        let mut bytes = bytes_of(&disk);
        seed.fill(&mut bytes);
        disk.overwrite(Lba(0), &bytes);
        let error = refusal(&disk);
        assert!(matches!(&error, StoreError::NotAStore { what } if what.contains("else")));
        assert_eq!(findings(&disk), ["not-a-store"]);
    }
}

#[test]
fn other_filesystems_are_no_stores() {
    // What is found at which byte: XFS, ext4, btrfs, a boot sector with a protective partition table and GPT.
    let others: [&[(usize, &[u8])]; 4] = [
        &[(0, b"XFSB\0\0\x10\0")],
        &[(0x438, &[0x53, 0xef])],
        &[(0x1_0040, b"_BHRfS_M")],
        &[(0x1be, &[0, 0, 2, 0, 0xee]), (0x1fe, &[0x55, 0xaa]), (512, b"EFI PART")],
    ];
    for other in others {
        let disk = Disk::new(1 << 20, LbaSize::B512);
        let mut bytes = bytes_of(&disk);
        other.iter().for_each(|(at, found)| bytes[*at..at + found.len()].copy_from_slice(found));
        disk.overwrite(Lba(0), &bytes);
        let error = refusal(&disk);
        assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
    }
}

#[test]
fn a_device_too_small_for_four_copies_is_no_store() {
    let disk = Disk::new(128 << 10, LbaSize::B512);
    let error = refusal(&disk);
    assert!(matches!(&error, StoreError::NotAStore { what } if what.contains("small")), "{error}");
}

#[test]
fn a_newer_format_is_refused_by_its_number() {
    // One pair is enough: it is what a newer program leaves that was interrupted.
    for copies in [0..4, 0..2, 2..4, 0..1] {
        let disk = store_disk();
        copies.for_each(|copy| reseal_superblock(&disk, copy, |block| set(block, FORMAT, 2)));
        let error = refusal(&disk);
        assert!(matches!(error, StoreError::Version { found: 2, known: 1 }), "{error}");
        assert_eq!(findings(&disk), ["format-version"]);
    }
}

#[test]
fn unknown_incompatible_features_are_refused() {
    let disk = store_disk();
    (0..4).for_each(|copy| reseal_superblock(&disk, copy, |block| set(block, INCOMPATIBLE, 4)));
    let error = refusal(&disk);
    assert!(matches!(error, StoreError::Features { kind: "incompatible", bits: 4 }), "{error}");
    assert_eq!(findings(&disk), ["unknown-features"]);
}

#[test]
fn unknown_read_only_compatible_features_are_read_and_not_written() {
    let disk = store_disk();
    (0..4).for_each(|copy| reseal_superblock(&disk, copy, |block| set(block, READ_ONLY, 1 << 63)));
    let before = bytes_of(&disk);
    let error = open(&attach(&disk)).expect_err("it cannot be written");
    let bits = 1 << 63;
    assert!(
        matches!(error, StoreError::Features { kind: "read-only compatible", bits: b } if b == bits)
    );
    let store = open_to_read(&attach(&disk)).expect("it can be read");
    assert!(store.lookup("second").is_ok());
    assert!(matches!(store.create(None), Err(StoreError::ReadOnly)));
    assert!(bytes_of(&disk) == before);
    assert_eq!(findings(&disk), [""; 0], "it is nothing wrong with the store");
}

#[test]
fn unknown_compatible_features_are_kept() {
    let disk = store_disk();
    (0..4).for_each(|copy| reseal_superblock(&disk, copy, |block| set(block, COMPATIBLE, 6)));
    let version = superblock(&disk).version;
    let store = open(&attach(&disk)).expect("it can be written");
    store.create(Some("third")).expect("a name");
    store.checkpoint(PATIENCE).expect("a checkpoint");
    let found = superblock(&disk);
    assert_eq!((found.version, found.features), (version + 2, [6, 0, 0]));
}

#[test]
fn another_store_than_the_one_asked_for_is_refused() {
    let disk = store_disk();
    let found = open(&attach(&disk)).expect("a store").info().uuid;
    let wanted = Uuid::from_random(7);
    let before = bytes_of(&disk);
    let device = attach(&disk);
    let ask = |uuid| Store::open(&device, &OpenOptions { uuid, ..OpenOptions::default() });
    let error = ask(Some(wanted)).expect_err("another one was asked for");
    assert!(
        matches!(error, StoreError::Foreign { found: f, wanted: w } if (f, w) == (found, wanted))
    );
    assert!(bytes_of(&disk) == before);
    assert!(ask(Some(found)).is_ok());
}

#[test]
fn one_damaged_copy_is_told_and_made_good_by_two_openings() {
    for copy in 0..4 {
        let disk = store_disk();
        let place = place_of_copy(&disk, copy);
        spoil(&disk, place, |block| block[200] ^= 1);
        assert_eq!(findings(&disk), ["superblock-damaged"]);
        let store = open(&attach(&disk)).expect("three copies are whole");
        let told = store.warnings();
        assert!(
            matches!(
                told,
                [StoreError::Damaged {
                    area: Area::Superblock,
                    lba: Lba(at),
                    damage: Damage::Checksum { .. }
                }] if *at == place
            ),
            "{told:?}"
        );
        assert_eq!(store.list().len(), 2);
        drop(store);
        // Each opening writes one pair.
        drop(open(&attach(&disk)).expect("a store"));
        assert_eq!(findings(&disk), [""; 0]);
        assert!(open(&attach(&disk)).expect("a store").warnings().is_empty());
    }
}

#[test]
fn one_damaged_copy_of_each_pair_is_told() {
    let disk = store_disk();
    [1, 2].iter().for_each(|&copy| spoil(&disk, place_of_copy(&disk, copy), |b| b.fill(0)));
    assert_eq!(open_to_read(&attach(&disk)).expect("both versions are there").warnings().len(), 2);
    assert_eq!(findings(&disk), ["superblock-damaged"; 2]);
}

#[test]
fn a_lost_pair_is_refused_whichever_it_is() {
    // The pair that is left may be the older: what was durable since would be gone without a word.
    for pair in [[0, 1], [2, 3]] {
        let disk = store_disk();
        for copy in pair {
            spoil(&disk, place_of_copy(&disk, copy), |block| block[511] ^= 0x80);
        }
        let error = refusal(&disk);
        assert!(matches!(error, StoreError::Superblocks { copies: 2, .. }), "{error}");
        assert_eq!(findings(&disk), ["superblocks-lost"]);
    }
}

#[test]
fn four_damaged_copies_are_no_blank_device() {
    let disk = store_disk();
    (0..4).for_each(|copy| spoil(&disk, place_of_copy(&disk, copy), |block| block[9] ^= 4));
    let error = refusal(&disk);
    assert!(
        matches!(error, StoreError::Superblocks { copies: 4, first: Damage::Checksum { .. } }),
        "{error}"
    );
    assert_eq!(findings(&disk), ["superblocks-lost"]);
}

#[test]
fn copies_of_two_stores_are_refused() {
    let (disk, other) = (store_disk(), store_disk());
    let place = place_of_copy(&disk, 3);
    spoil(&disk, place, |block| block.copy_from_slice(&crate::by_hand::block(&other, place)));
    let error = refusal(&disk);
    let area = Area::Superblock;
    assert!(matches!(&error, StoreError::Inconsistent { area: a, .. } if *a == area), "{error}");
    assert_eq!(findings(&disk), ["superblocks-of-two-stores"]);
}

#[test]
fn a_copy_from_another_place_is_damage() {
    let disk = store_disk();
    let (from, to) = (place_of_copy(&disk, 0), place_of_copy(&disk, 1));
    spoil(&disk, to, |block| block.copy_from_slice(&crate::by_hand::block(&disk, from)));
    let store = open_to_read(&attach(&disk)).expect("one copy is left");
    let damage = Damage::Place { found: Lba(from) };
    let told = store.warnings();
    assert!(matches!(told, [StoreError::Damaged { damage: d, .. }] if *d == damage), "{told:?}");
}

#[test]
fn a_superblock_that_contradicts_itself_is_damage() {
    // A field of the payload, and a value that cannot be.
    let impossible = [
        ((64, 4), 0),
        ((68, 1), 13),
        ((69, 1), 8),
        ((69, 1), 63),
        ((70, 1), 2),
        ((96, 8), 1),
        ((104, 8), 0),
        ((112, 8), u64::MAX),
        ((120, 8), 1),
        ((128, 8), 0),
        ((136, 8), u64::MAX),
        ((144, 8), u64::MAX),
        ((152, 8), 0),
        ((168, 8), u64::MAX),
        ((176, 8), u64::MAX),
        ((184, 8), 1 << 32),
        ((216, 8), 1 << 32),
    ];
    for (field, value) in impossible {
        let disk = store_disk();
        (0..4).for_each(|copy| reseal_superblock(&disk, copy, |block| set(block, field, value)));
        let error = refusal(&disk);
        assert!(matches!(error, StoreError::Superblocks { copies: 4, .. }), "{field:?}: {error}");
    }
}

#[test]
fn a_store_that_has_lost_its_end_is_refused() {
    let disk = store_disk();
    let smaller = Disk::new(3 << 20, LbaSize::B512);
    smaller.overwrite(Lba(0), &bytes_of(&disk)[..3 << 20]);
    let error = refusal(&smaller);
    let (device, store) = (ByteLen(3 << 20), ByteLen(4 << 20));
    assert!(
        matches!(error, StoreError::DeviceTooSmall { device: d, store: s } if (d, s) == (device, store)),
        "{error}"
    );
    assert_eq!(findings(&smaller), ["device-too-small"]);
    let larger = Disk::new(5 << 20, LbaSize::B512);
    larger.overwrite(Lba(0), &bytes_of(&disk));
    assert!(open(&attach(&larger)).is_ok(), "a larger device has all of it");
}

#[test]
fn blocks_of_another_size_are_named() {
    for (made, found) in [(LbaSize::B512, LbaSize::B4096), (LbaSize::B4096, LbaSize::B512)] {
        let disk = Disk::new(4 << 20, made);
        Store::format(&attach(&disk), &FormatOptions::default()).expect("a store");
        let other = Disk::new(4 << 20, found);
        other.overwrite(Lba(0), &bytes_of(&disk));
        let error = refusal(&other);
        let sizes = (found.bytes(), made.bytes());
        assert!(
            matches!(error, StoreError::BlockSize { device, store } if (device, store) == sizes),
            "{error}"
        );
        assert_eq!(findings(&other), ["block-size"]);
    }
}

#[test]
fn a_store_is_open_once_until_its_last_handle_is_gone() {
    let disk = store_disk();
    let device = attach(&disk);
    let mut bed = Bed::open(&device);
    let clone = bed.store.clone();
    let uuid = clone.info().uuid;
    let is_open = || {
        let errors =
            [open(&device).err(), open_to_read(&device).err(), check(&device, PATIENCE).err()];
        errors.into_iter().all(|error| matches!(error, Some(StoreError::Open(u)) if u == uuid))
    };
    assert!(is_open());
    let file = clone.lookup("first").expect("a name");
    bed.read(file, 0, 512);
    let Bed { store, pipeline } = bed;
    drop(store);
    assert!(is_open(), "a pipeline and a clone have it");
    drop(pipeline);
    assert!(is_open(), "a clone has it");
    let force = FormatOptions { force: true, ..FormatOptions::default() };
    let error = Store::format(&device, &force).expect_err("a clone has it");
    assert!(matches!(error, StoreError::Open(u) if u == uuid));
    drop(clone);
    drop(open_to_read(&device).expect("nobody has it"));
    assert!(check(&device, PATIENCE).expect("a check").is_sound());
    drop(open(&device).expect("nobody has it"));
}

#[test]
fn a_store_is_not_formatted_without_force() {
    let disk = store_disk();
    let before = bytes_of(&disk);
    let error = Store::format(&attach(&disk), &FormatOptions::default()).expect_err("one is there");
    assert!(matches!(error, StoreError::Exists(_)), "{error}");
    assert!(bytes_of(&disk) == before);
}

/// What was done to a store, and how.
type Spoilt = (&'static str, fn(&Disk));

#[test]
fn a_store_that_cannot_be_opened_is_not_formatted_without_force() {
    // `format` took whatever did not open for nothing worth keeping: a newer program's store was overwritten
    // without a question, and so was one with damaged superblocks. Now only what is no store at all is.
    let spoilt: [Spoilt; 4] = [
        ("newer", |disk| {
            (0..4).for_each(|copy| reseal_superblock(disk, copy, |block| set(block, FORMAT, 2)));
        }),
        ("features", |disk| {
            (0..4).for_each(|copy| reseal_superblock(disk, copy, |b| set(b, INCOMPATIBLE, 1)));
        }),
        ("damaged", |disk| {
            (0..4).for_each(|copy| spoil(disk, place_of_copy(disk, copy), |block| block[9] ^= 4));
        }),
        ("two stores", |disk| {
            reseal(disk, place_of_copy(disk, 3), |block| block[8] ^= 1);
        }),
    ];
    for (what, spoil) in spoilt {
        let disk = store_disk();
        spoil(&disk);
        let (before, wanted) = (bytes_of(&disk), refusal(&disk).to_string());
        let options = FormatOptions::default();
        let error = Store::format(&attach(&disk), &options).expect_err(what);
        assert_eq!(error.to_string(), wanted, "{what}");
        assert!(bytes_of(&disk) == before, "{what}");
        let force = FormatOptions { force: true, ..options };
        Store::format(&attach(&disk), &force).expect(what);
        assert!(open(&attach(&disk)).expect(what).list().is_empty());
    }
}

/// Makes reads of these blocks fail.
fn unreadable(disk: &Arc<Disk>, first: u64, blocks: u64) -> Arc<dyn udirect::block::BlockDevice> {
    let faults = Faults::new(1);
    let rule = FaultRule::new(FaultAction::Fail(Status::UNRECOVERED_READ));
    let range = Lba(first)..Lba(first + blocks);
    faults.add(rule.opcode(NvmOpcode::READ).blocks(range));
    attach_faulty(disk, &faults)
}

#[test]
fn an_unreadable_copy_of_the_superblock_is_a_damaged_one() {
    let disk = store_disk();
    for copy in 0..4 {
        let place = place_of_copy(&disk, copy);
        let device = unreadable(&disk, place, 1);
        let store = open_to_read(&device).expect("three copies are left");
        let told = store.warnings();
        assert!(
            matches!(told, [StoreError::Damaged { lba: Lba(at), .. }] if *at == place),
            "{told:?}"
        );
        drop(store);
        let report = check(&device, PATIENCE).expect("a check");
        assert_eq!(report.findings.len(), 1, "{report:?}");
        assert_eq!(report.findings[0].name, "superblock-damaged");
    }
    let error = open(&unreadable(&disk, 0, 512)).expect_err("no copy is left");
    assert!(matches!(error, StoreError::Device { .. }), "{error}");
}

#[test]
fn unreadable_metadata_is_the_devices_error() {
    let disk = store_disk();
    let superblock = superblock(&disk);
    let journal = superblock.journal_block(superblock.head.position);
    for place in [superblock.checkpoint_block(), journal] {
        let device = unreadable(&disk, place, 1);
        for error in [open(&device).err(), open_to_read(&device).err()] {
            let error = error.expect("it is needed");
            assert_eq!(error.kind(), udirect::block::ErrorKind::Media, "{error}");
        }
        let report = check(&device, PATIENCE).expect("a check");
        assert!(report.findings.iter().any(|finding| finding.name == "unreadable"), "{report:?}");
    }
    // The older checkpoint is nobody's any more.
    let older = superblock.checkpoints[1 - superblock.region as usize];
    let device = unreadable(&disk, older, 1);
    drop(open_to_read(&device).expect("nothing needs it"));
    assert!(!check(&device, PATIENCE).expect("a check").is_sound());
}

#[test]
fn the_newest_of_whole_copies_is_taken() {
    let disk = store_disk();
    let newest = superblock(&disk).version;
    let copies =
        (0..4).map(|copy| get(&crate::by_hand::block(&disk, place_of_copy(&disk, copy)), SEQUENCE));
    let mut versions: Vec<u64> = copies.collect();
    versions.sort_unstable();
    assert_eq!(versions, [newest - 1, newest - 1, newest, newest]);
}
