//! Damaged checkpoints and journals: each kind is told from every other, and from what a power cut leaves.

use std::sync::Arc;

use udirect::block::Durability;
use udirect::extent::{Area, Damage, StoreError, check};
use udirect::soft::Disk;
use udirect::units::Lba;

use crate::bed::{Bed, PATIENCE, attach, open, open_to_read, small_disk, sync};
use crate::by_hand::{
    self, COUNT, EPOCH, HEADER, INDEX, LENGTH, Object, PLACE, SEQUENCE, STORE, WHOLE, append, get,
    operation, reseal, restream, set, spoil, superblock, words,
};

/// A store of two objects in a checkpoint of several blocks, and five records behind it; the third has three blocks,
/// the last two.
fn store_disk() -> Arc<Disk> {
    let disk = small_disk(16 << 10, 16 << 10);
    let mut bed = Bed::open(&attach(&disk));
    let file = bed.store.create(Some("file")).expect("a name");
    for unit in [0, 2, 4, 9] {
        bed.write(file, unit * 4096, &[7; 4096], Durability::Lazy);
    }
    let other = bed.store.create(Some("other")).expect("a name");
    bed.store.set_attribute(other, "long", &[1; 1000]).expect("an attribute");
    // The journal goes on from where a checkpoint began: nothing of before shall be in it again.
    sync(&bed.store);
    bed.store.checkpoint(PATIENCE).expect("a checkpoint");
    bed.store.create(Some("one")).expect("a name");
    sync(&bed.store);
    bed.write(file, 4096, &[8; 4096], Durability::Data);
    bed.store.set_attribute(file, "long", &[2; 1000]).expect("an attribute");
    sync(&bed.store);
    bed.store.create(Some("four")).expect("a name");
    sync(&bed.store);
    bed.store.set_attribute(file, "last", &[3; 600]).expect("an attribute");
    sync(&bed.store);
    drop(bed);
    let found = by_hand::read(&disk);
    let mut starts = found.records.clone();
    starts.push(found.end.position);
    let lengths: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(lengths, [1, 1, 3, 1, 2]);
    assert!(superblock(&disk).checkpoint[1] >= 3, "a checkpoint of several blocks");
    disk
}

fn error(disk: &Arc<Disk>) -> StoreError {
    let read = open_to_read(&attach(disk)).expect_err("it is damaged");
    let error = open(&attach(disk)).expect_err("it is damaged");
    assert_eq!(read.to_string(), error.to_string());
    error
}

fn findings(disk: &Arc<Disk>) -> Vec<&'static str> {
    let report = check(&attach(disk), PATIENCE).expect("a check");
    report.findings.iter().map(|finding| finding.name).collect()
}

/// Opens a damaged disk; returns what is wrong with the block, which has to be in this area.
fn damage(disk: &Arc<Disk>, wanted: Area, place: u64) -> Damage {
    let error = error(disk);
    let StoreError::Damaged { area, lba, damage } = error else { panic!("{error}") };
    assert_eq!((area, lba), (wanted, Lba(place)));
    let name = if wanted == Area::Journal { "journal-damaged" } else { "checkpoint-damaged" };
    assert_eq!(findings(disk), [name]);
    damage
}

/// What can be wrong with a block of metadata that its own header tells: how it is made, and what is said of it.
type Kind = (&'static str, fn(&Disk, u64), fn(Damage) -> bool);

const KINDS: &[Kind] = &[
    (
        "a bit",
        |disk, lba| spoil(disk, lba, |block| block[300] ^= 2),
        |damage| matches!(damage, Damage::Checksum { .. }),
    ),
    (
        "the checksum",
        |disk, lba| spoil(disk, lba, |block| block[5] ^= 1),
        |damage| matches!(damage, Damage::Checksum { .. }),
    ),
    (
        "the magic",
        |disk, lba| spoil(disk, lba, |block| block[0] ^= 1),
        |damage| matches!(damage, Damage::Magic { .. }),
    ),
    (
        "foreign",
        |disk, lba| reseal(disk, lba, |block| block[STORE.0] ^= 1),
        |damage| matches!(damage, Damage::Store { .. }),
    ),
    (
        "astray",
        |disk, lba| reseal(disk, lba, |block| set(block, PLACE, 1)),
        |damage| damage == Damage::Place { found: Lba(1) },
    ),
    (
        "kind",
        |disk, lba| reseal(disk, lba, |block| block[..4].copy_from_slice(b"UDSB")),
        |damage| damage == Damage::Kind { found: "superblock" },
    ),
    (
        "length",
        |disk, lba| reseal(disk, lba, |block| set(block, LENGTH, 449)),
        |damage| damage == Damage::Number { what: "the length", found: 449, wanted: 448 },
    ),
    (
        "index",
        |disk, lba| reseal(disk, lba, |block| set(block, INDEX, 99)),
        |damage| matches!(damage, Damage::Number { what: "the index", found: 99, .. }),
    ),
];

#[test]
fn each_kind_of_damage_to_a_checkpoint_is_told() {
    for (what, make, is_told) in KINDS {
        for index in [0, 1] {
            let disk = store_disk();
            let place = superblock(&disk).checkpoint_block() + index;
            make(&disk, place);
            let damage = damage(&disk, Area::Checkpoint, place);
            assert!(is_told(damage), "{what} of block {index}: {damage}");
        }
    }
}

#[test]
fn each_kind_of_damage_to_a_journal_is_told_wherever_it_is() {
    for (what, make, is_told) in KINDS {
        for (record, index) in [(0, 0), (2, 1), (4, 0), (4, 1)] {
            let disk = store_disk();
            let position = by_hand::read(&disk).records[record] + index;
            let place = superblock(&disk).journal_block(position);
            make(&disk, place);
            let damage = damage(&disk, Area::Journal, place);
            assert!(is_told(damage), "{what} of record {record}: {damage}");
        }
    }
}

#[test]
fn a_block_of_an_older_checkpoint_is_told() {
    let numbers =
        [(SEQUENCE, "the checkpoint"), (INDEX, "the index"), (WHOLE, "the checksum so far")];
    for (field, name) in numbers {
        let disk = store_disk();
        let place = superblock(&disk).checkpoint_block() + 1;
        reseal(&disk, place, |block| set(block, field, get(block, field) - 1));
        // The scan has nothing against such a block by itself.
        let error = error(&disk);
        let StoreError::Damaged { damage: Damage::Number { what, .. }, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((what, &findings(&disk)[..]), (name, &["checkpoint-damaged"][..]));
    }
}

#[test]
fn a_checkpoint_that_was_never_written_is_told() {
    let disk = store_disk();
    let place = superblock(&disk).checkpoint_block();
    spoil(&disk, place, |block| block.fill(0));
    let error = error(&disk);
    assert!(matches!(error, StoreError::Damaged { damage: Damage::Blank, .. }), "{error}");
    assert_eq!(findings(&disk), ["checkpoint-damaged"]);
}

#[test]
fn damage_to_what_nobody_needs_is_for_the_check_to_find() {
    let disk = store_disk();
    let superblock = superblock(&disk);
    let older = superblock.checkpoints[1 - superblock.region as usize];
    spoil(&disk, older, |block| block[100] ^= 1);
    spoil(&disk, superblock.checkpoint_block() + superblock.checkpoint[1], |block| block[9] = 1);
    let store = open_to_read(&attach(&disk)).expect("nothing needs it");
    assert_eq!(store.list().len(), 4);
    drop(store);
    assert_eq!(findings(&disk), ["checkpoint-damaged"; 2]);
}

#[test]
fn a_stream_that_its_superblock_does_not_know_is_told() {
    let disk = store_disk();
    (0..4).for_each(|copy| {
        by_hand::reseal_superblock(&disk, copy, |block| set(block, by_hand::CHECKPOINT_CRC, 1));
    });
    let error = error(&disk);
    assert!(matches!(&error, StoreError::Inconsistent { area: Area::Checkpoint, .. }), "{error}");
    assert_eq!(findings(&disk), ["checkpoint-inconsistent"]);
}

/// What a stream can say that cannot be, with every checksum right: entries of `store_disk` are the object `file`
/// (44 bytes), its extents (16 and 24 each), the object `other`, the end.
#[test]
fn a_checkpoint_that_contradicts_itself_is_told() {
    let extent = |index: usize| 44 + 16 + 24 * index;
    let wrongs: [(&str, usize, u64); 9] = [
        ("unknown or cut off", 0, 9),
        ("without it", 44 + 8, 77),
        ("objects and", 44 + 2, 3),
        ("cannot have", extent(1), 0),
        ("cannot have", extent(0) + 8, u64::MAX),
        ("cannot have", extent(3) + 8, 1 << 40),
        ("cannot have", extent(2) + 16, 1),
        ("used twice", extent(1) + 8, 0),
        ("an entry", 1, 255),
    ];
    for (what, at, value) in wrongs {
        let disk = store_disk();
        restream(&disk, |stream| {
            let len = if at < 48 { 1 } else { 8 };
            set(stream, (at, len), value);
        });
        let error = error(&disk);
        assert!(
            matches!(&error, StoreError::Inconsistent { area: Area::Checkpoint, .. }),
            "{what}: {error}"
        );
        assert!(!findings(&disk).is_empty(), "{what}");
    }
}

#[test]
fn bytes_behind_the_last_entry_of_a_checkpoint_are_told() {
    let disk = store_disk();
    restream(&disk, |stream| {
        // The end, 32 bytes, where `other` begins; what follows is bytes too many.
        let at = 44 + 16 + 24 * 4;
        stream[at..at + 32].copy_from_slice(&words(&[3, 1, 4, 9]));
    });
    let error = error(&disk);
    assert!(error.to_string().contains("follow"), "{error}");
}

// Journals.

fn names(disk: &Arc<Disk>) -> Vec<String> {
    let store = open_to_read(&attach(disk)).expect("a store");
    store.list().into_iter().filter_map(|info| info.name).collect()
}

#[test]
fn a_torn_tail_is_the_end_of_the_journal() {
    // The last record, without its first block, its second, or both: as never written, or as an older lap left it.
    for (lost, older) in [(1, false), (2, false), (3, false), (1, true), (2, true), (3, true)] {
        let disk = store_disk();
        let (before, superblock) = (by_hand::read(&disk), superblock(&disk));
        let last = before.records[4];
        for index in [0, 1].into_iter().filter(|index| lost >> index & 1 == 1) {
            let place = superblock.journal_block(last + index);
            if older {
                reseal(&disk, place, |block| set(block, SEQUENCE, 1));
            } else {
                spoil(&disk, place, |block| block.fill(0));
            }
        }
        let store = open(&attach(&disk)).expect("the end of a journal");
        assert!(store.warnings().is_empty());
        let file = store.lookup("file").expect("a name");
        assert_eq!(store.attribute(file, "last").expect("an object"), None);
        assert_eq!(store.attribute(file, "long").expect("an object"), Some(vec![2; 1000]));
        // The next record goes where the torn one lies, is shorter, and is not taken for part of it.
        store.create(Some("five")).expect("a name");
        sync(&store);
        drop(store);
        assert_eq!(names(&disk), ["file", "other", "one", "four", "five"]);
        assert_eq!(findings(&disk), [""; 0], "lost {lost}, older {older}");
        assert_eq!(by_hand::read(&disk).records.len(), 5);
    }
}

#[test]
fn a_missing_record_in_the_middle_is_a_gap() {
    for (record, whole) in [(0, true), (1, true), (2, true), (2, false), (3, true)] {
        let disk = store_disk();
        let (found, superblock) = (by_hand::read(&disk), superblock(&disk));
        let (from, to) = (found.records[record], found.records[record + 1]);
        for position in from..if whole { to } else { from + 1 } {
            spoil(&disk, superblock.journal_block(position), |block| block.fill(0));
        }
        let error = error(&disk);
        let StoreError::JournalGap { missing, found } = error else { panic!("{error}") };
        assert_eq!(missing, superblock.head.record + record as u64);
        assert!(found > missing || !whole, "{missing} {found}");
        assert_eq!(findings(&disk), ["journal-gap"]);
    }
}

#[test]
fn a_record_that_was_replaced_by_an_earlier_one_is_a_gap() {
    let disk = store_disk();
    let (found, superblock) = (by_hand::read(&disk), superblock(&disk));
    let place = superblock.journal_block(found.records[1]);
    reseal(&disk, place, |block| set(block, SEQUENCE, 1));
    assert!(matches!(error(&disk), StoreError::JournalGap { .. }));
}

#[test]
fn a_record_that_does_not_go_on_from_the_one_before_is_told() {
    // The chain, and the number of its first operation.
    for field in [(HEADER, 4), (HEADER + 8, 8)] {
        let disk = store_disk();
        let (found, superblock) = (by_hand::read(&disk), superblock(&disk));
        let place = superblock.journal_block(found.records[3]);
        reseal(&disk, place, |block| {
            set(block, field, 5);
            let whole = crc32c::crc32c(&block[HEADER..HEADER + get(block, LENGTH) as usize]);
            set(block, WHOLE, whole.into());
        });
        let error = error(&disk);
        assert!(matches!(&error, StoreError::Inconsistent { area: Area::Journal, .. }), "{error}");
        assert_eq!(findings(&disk), ["journal-inconsistent"]);
    }
}

#[test]
fn numbers_of_a_record_that_cannot_be_are_told() {
    let wrongs: [((usize, usize), u64, &str); 3] = [
        (WHOLE, 1, "the checksum of a record"),
        (COUNT, 100, "the blocks of a record"),
        (EPOCH, 1, "the epoch of a record"),
    ];
    for (field, value, name) in wrongs {
        let disk = store_disk();
        let (found, superblock) = (by_hand::read(&disk), superblock(&disk));
        reseal(&disk, superblock.journal_block(found.records[1]), |block| set(block, field, value));
        let error = error(&disk);
        let StoreError::Damaged { damage: Damage::Number { what, .. }, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((what, &findings(&disk)[..]), (name, &["journal-damaged"][..]));
    }
}

#[test]
fn an_operation_that_cannot_be_is_told() {
    let map = |device, units| operation(4, &words(&[1, 0, device, units, 1, 4096, 1]));
    let wrongs: [(&str, Vec<u8>); 9] = [
        ("an unknown kind", operation(99, &words(&[1]))),
        ("a body too short", operation(6, &words(&[1, 4096]))),
        ("a body too long", operation(2, &words(&[1, 1]))),
        ("a name that is not UTF-8", operation(1, &[&words(&[9, 1])[..], &[1, 0xff]].concat())),
        ("an object that is not there", operation(6, &words(&[55, 4096, 1]))),
        ("units that the device does not have", map(1 << 40, 1)),
        ("no units", map(0, 0)),
        ("units beyond 2^64", operation(5, &words(&[1, 2, u64::MAX, 0, 1]))),
        ("a name twice", operation(1, &[&words(&[9, 1])[..], b"\x03one"].concat())),
    ];
    for (what, operation) in wrongs {
        let disk = store_disk();
        append(&disk, &[operation]);
        let error = error(&disk);
        assert!(
            matches!(&error, StoreError::Inconsistent { area: Area::Journal, .. }),
            "{what}: {error}"
        );
        assert_eq!(findings(&disk), ["journal-inconsistent"], "{what}");
    }
}

#[test]
fn space_that_the_journal_gives_away_twice_is_told() {
    let disk = store_disk();
    let used = by_hand::read(&disk).objects[&1].units[&0].0;
    let superblock = superblock(&disk);
    let unit = (used - superblock.data[0] * superblock.block_bytes) / superblock.unit_bytes;
    append(&disk, &[operation(4, &words(&[2, 0, unit, 1, 1, 4096, 1]))]);
    let error = error(&disk);
    assert!(error.to_string().contains("used twice"), "{error}");
    assert_eq!(findings(&disk), ["space-used-twice"]);
}

#[test]
fn records_by_hand_are_read_like_others() {
    // Every kind of operation, from the page that describes them.
    let disk = store_disk();
    let named = |kind, numbers: &[u64], name: &[u8]| {
        operation(kind, &[&words(numbers)[..], &[name.len() as u8], name].concat())
    };
    let attribute = |kind, key: &[u8], value: &[u8]| {
        operation(kind, &[&words(&[9])[..], &[key.len() as u8], key, value].concat())
    };
    append(
        &disk,
        &[
            named(1, &[9, 50], b"made"),
            operation(4, &words(&[9, 3, 100, 5, 0, 4096, 51])),
            operation(4, &words(&[9, 4, 200, 2, 1, 40_960, 52])),
            operation(5, &words(&[9, 7, 1, 40_960, 53])),
            attribute(7, b"kept", b"value"),
            attribute(7, b"gone", b"value"),
            attribute(8, b"gone", b""),
        ],
    );
    append(
        &disk,
        &[
            named(3, &[9, 2], b"other"),
            named(1, &[10, 60], b""),
            operation(2, &words(&[10])),
            operation(6, &words(&[9, 8192, 54])),
        ],
    );
    let store = open_to_read(&attach(&disk)).expect("records by hand");
    let found = by_hand::objects_in(&store);
    let place = |unit: u64| {
        let superblock = superblock(&disk);
        superblock.data[0] * superblock.block_bytes + unit * superblock.unit_bytes
    };
    let units = [
        (3, place(100), false),
        (4, place(200), true),
        (5, place(201), true),
        (6, place(103), false),
    ];
    let wanted = Object {
        name: "other".into(),
        size: 8192,
        created: 50,
        modified: 54,
        attributes: [("kept".to_owned(), b"value".to_vec())].into(),
        units: units.into_iter().map(|(unit, place, written)| (unit, (place, written))).collect(),
    };
    assert_eq!(found[&9], wanted);
    assert!(!found.contains_key(&2) && !found.contains_key(&10));
    assert_eq!(found, by_hand::read(&disk).objects);
    drop(store);
    assert_eq!(findings(&disk), [""; 0]);
    assert_eq!(open(&attach(&disk)).expect("a store").create(None).expect("a number").0, 11);
}

#[test]
fn a_damaged_block_that_the_journal_has_done_with_is_told() {
    let disk = store_disk();
    let superblock = superblock(&disk);
    // What the checkpoint has made needless lies before the head.
    let place = superblock.journal_block(superblock.head.position - 1);
    spoil(&disk, place, |block| block[77] ^= 1);
    let store = open_to_read(&attach(&disk)).expect("nothing needs it");
    let told = store.warnings();
    assert!(
        matches!(told, [StoreError::Damaged { area: Area::Journal, lba: Lba(at), .. }] if *at == place),
        "{told:?}"
    );
    assert_eq!(store.list().len(), 4);
    drop(store);
    assert_eq!(findings(&disk), ["journal-damaged"]);
}
