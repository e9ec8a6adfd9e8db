//! Limits: names, attributes, sizes, space, and what may not be changed. Each has its error, and nothing is half done.

use std::sync::Arc;

use udirect::block::{Durability, ErrorKind, MapBlocks};
use udirect::dio::{Action, Io};
use udirect::dma::Access;
use udirect::extent::{
    KEY_BYTES_MAX, NAME_BYTES_MAX, ObjectInfo, Segment, Store, StoreError, VALUE_BYTES_MAX, check,
    name_of,
};
use udirect::soft::Disk;
use udirect::units::FileId;

use crate::bed::{
    Bed, PATIENCE, alone, attach, bytes_of, open, open_to_read, patiently, refusals, small_disk,
    sync,
};

fn bed() -> (Arc<Disk>, Bed) {
    let disk = small_disk(64 << 10, 64 << 10);
    let bed = Bed::open(&attach(&disk));
    (disk, bed)
}

fn is_sound(disk: &Arc<Disk>) -> bool {
    let report = check(&attach(disk), PATIENCE).expect("a check");
    assert!(report.is_sound(), "{report:?}");
    report.is_sound()
}

#[test]
fn names_that_no_object_can_have() {
    let (_, Bed { store, .. }) = bed();
    let object = store.create(None).expect("a number");
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for (name, problem) in [("", "at least one"), (&long[..], "at most 255"), ("a\0b", "zero byte")]
    {
        let errors = [
            store.create(Some(name)).expect_err("no name"),
            store.rename(object, name, true).expect_err("no name"),
            name_of(name.as_bytes()).expect_err("no name"),
        ];
        for error in errors {
            assert!(
                matches!(&error, StoreError::Name { len, problem: p }
                    if *len == name.len() && p.contains(problem)),
                "{error}"
            );
        }
    }
    let error = name_of(b"a\xff").expect_err("not UTF-8");
    assert!(matches!(error, StoreError::Name { len: 2, problem: "a name is UTF-8" }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let longest = "é".repeat(127) + "x";
    assert_eq!(name_of(longest.as_bytes()).expect("255 bytes"), longest);
    let named = store.create(Some(&longest)).expect("255 bytes");
    assert_eq!(store.lookup(&longest).expect("its name"), named);
    assert_eq!(store.list().len(), 2, "nothing was made of what was refused");
}

#[test]
fn names_that_are_taken_and_names_that_are_not_there() {
    let (_, Bed { store, .. }) = bed();
    let (a, b) = (store.create(Some("a")).expect("free"), store.create(Some("b")).expect("free"));
    let error = store.create(Some("a")).expect_err("taken");
    assert!(matches!(&error, StoreError::NameTaken(name) if name == "a"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Exists);
    let error = store.rename(b, "a", false).expect_err("taken");
    assert!(matches!(error, StoreError::NameTaken(_)), "{error}");
    assert_eq!((store.lookup("a").ok(), store.lookup("b").ok()), (Some(a), Some(b)));
    store.rename(a, "a", false).expect("its own name is no other's");
    store.rename(b, "a", true).expect("it takes the place");
    assert!(matches!(store.stat(a), Err(StoreError::NoObject(id)) if id == a));
    let error = store.lookup("b").expect_err("it has another name now");
    assert!(matches!(&error, StoreError::NoName(name) if name == "b"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn numbers_that_no_object_has() {
    let (_, mut bed) = bed();
    let gone = bed.store.create(Some("gone")).expect("free");
    bed.store.remove(gone).expect("it is there");
    for id in [gone, FileId(0), FileId(99), FileId(u64::MAX)] {
        let store = &bed.store;
        let errors = [
            store.stat(id).err(),
            store.segments(id).err(),
            store.rename(id, "x", false).err(),
            store.remove(id).err(),
            store.set_attribute(id, "key", b"").err(),
            store.remove_attribute(id, "key").err(),
            store.attribute(id, "key").err(),
            store.attributes(id).err(),
            store.exclude(id).err(),
        ];
        for error in errors {
            assert!(matches!(error, Some(StoreError::NoObject(found)) if found == id), "{error:?}");
        }
        for action in [Action::Flush, Action::Deallocate { len: 512 }] {
            let result = bed.run(Io::bare(0, action, 1).of(id)).result;
            assert_eq!(result.expect_err("no object").kind(), ErrorKind::NotFound, "{action:?}");
        }
        let error = bed.try_write(id, 0, &[0; 512], Durability::Lazy).expect_err("no object");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    assert!(bed.store.list().is_empty());
}

#[test]
fn attributes_that_no_object_can_have() {
    let (_, Bed { store, .. }) = bed();
    let id = store.create(None).expect("a number");
    let (key, value) = ("k".repeat(KEY_BYTES_MAX), vec![7; VALUE_BYTES_MAX]);
    store.set_attribute(id, &key, &value).expect("the largest");
    let long_key = format!("{key}k");
    let long_value = [&value[..], &[7]].concat();
    let refused: [(&str, &[u8], &str); 3] = [
        ("", b"", "at least one"),
        (&long_key, b"", "at most 64"),
        ("k", &long_value, "at most 1024"),
    ];
    for (key, value, problem) in refused {
        let error = store.set_attribute(id, key, value).expect_err(problem);
        assert!(
            matches!(&error, StoreError::Attribute { problem: p, .. } if p.contains(problem)),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let error = store.remove_attribute(id, "absent").expect_err("it has none");
    assert!(matches!(error, StoreError::Attribute { .. }), "{error}");
    (1..64).for_each(|n| store.set_attribute(id, &n.to_string(), b"").expect("64 attributes"));
    let error = store.set_attribute(id, "64", b"").expect_err("as many as it can have");
    assert!(matches!(error, StoreError::Attribute { .. }), "{error}");
    store.set_attribute(id, "1", b"other").expect("in place of one");
    assert_eq!(store.attributes(id).expect("an object").len(), 64);
    assert_eq!(store.attribute(id, &key).expect("an object"), Some(value));
}

#[test]
fn sizes_end_before_2_to_the_63() {
    let (disk, mut bed) = bed();
    let id = bed.store.create(Some("large")).expect("free");
    let most = bed.store.size_max();
    assert_eq!(most, i64::MAX as u64);
    for offset in [(1 << 63) - 512, 1 << 63, u64::MAX - 511] {
        let error = bed.try_write(id, offset, &[1; 512], Durability::Lazy).expect_err("too large");
        assert!(
            matches!(error.kind(), ErrorKind::Invalid | ErrorKind::OutOfRange),
            "{offset}: {error}"
        );
    }
    let exclusion = alone(&bed.store, id);
    for size in [1 << 63, u64::MAX] {
        let too_large = |error: StoreError| matches!(error, StoreError::TooLarge { size: s, most: m } if (s, m) == (size, most));
        assert!(too_large(exclusion.set_len(size).expect_err("too large")));
        assert!(too_large(exclusion.preallocate(0..size).expect_err("too large")));
    }
    let before = bed.store.stat(id).expect("an object");
    assert_eq!((before.size, before.extents), (0, 0), "nothing was half done");
    exclusion.set_len(most).expect("the largest");
    exclusion.punch(0..u64::MAX).expect("nothing is there");
    exclusion.punch(u64::MAX - 1..u64::MAX).expect("nothing is there");
    drop(exclusion);
    let end = (1 << 63) - 4096 - 512;
    bed.write(id, end, &[5; 512], Durability::Full);
    assert_eq!(bed.store.stat(id).expect("an object").size, most);
    assert_eq!(bed.read(id, end, 4096 + 512)[..1024], [[5; 512], [0; 512]].concat());
    drop(bed);
    let mut bed = Bed::open(&attach(&disk));
    assert_eq!(bed.read(id, end, 512), [5; 512]);
    assert_eq!(bed.store.stat(id).expect("an object").size, most);
    drop(bed);
    assert!(is_sound(&disk));
}

#[test]
fn ranges_of_nothing_change_nothing() {
    // Preallocating what has space already changed the time of the object and wrote no operation that says so: after a
    // crash the time was the old one. Found by the model.
    let (_, mut bed) = bed();
    let id = bed.store.create(None).expect("a number");
    bed.write(id, 0, &[1; 8192], Durability::Lazy);
    let before = bed.store.stat(id).expect("an object");
    let exclusion = alone(&bed.store, id);
    // The second is what a caller makes of an end that lies before the start.
    #[expect(clippy::reversed_empty_ranges, reason = "it is what is tested")]
    for range in [4096..4096, 8192..4096, 4097..8191, 1 << 40..1 << 41] {
        exclusion.punch(range.clone()).expect("nothing");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "it is what is tested")]
    for range in [4096..4096, 1 << 40..4096, 0..8192] {
        exclusion.preallocate(range).expect("nothing");
    }
    drop(exclusion);
    assert_eq!(bed.store.stat(id).expect("an object"), before);
    assert_eq!(bed.read(id, 0, 8192), [1; 8192]);
}

// No space on the device.

/// What is known of an object and of the space, to see that nothing was half done.
fn shape(store: &Store, id: FileId) -> (ObjectInfo, Vec<Segment>, u64, u64) {
    let statistics = store.statistics();
    (
        store.stat(id).expect("an object"),
        store.segments(id).expect("an object"),
        statistics.free.free_units,
        statistics.leaving,
    )
}

/// Fills the device but for some units; returns the object that has the rest.
fn fill(bed: &mut Bed, leave: u64) -> FileId {
    let filler = bed.store.create(Some("filler")).expect("free");
    let free = bed.store.statistics().free.free_units;
    let bytes = vec![9; 64 * 4096];
    for first in (0..free - leave).step_by(64) {
        let units = 64.min(free - leave - first) as usize;
        bed.write(filler, first * 4096, &bytes[..units * 4096], Durability::Lazy);
    }
    assert_eq!(bed.store.statistics().free.free_units, leave);
    filler
}

#[test]
fn a_full_device_refuses_what_needs_space_and_nothing_is_half_done() {
    let (disk, mut bed) = bed();
    let id = bed.store.create(Some("object")).expect("free");
    bed.write(id, 0, &[1; 4096], Durability::Lazy);
    bed.write(id, 3 * 4096, &[1; 4096], Durability::Lazy);
    fill(&mut bed, 2);
    let before = shape(&bed.store, id);
    // Into a hole and beyond the end, by one command and by several, and over what is there.
    for (offset, units) in [(4 * 4096, 3), (4 * 4096, 600), (0, 6), (1 << 40, 3)] {
        let bytes = vec![1; units * 4096];
        let error = bed.try_write(id, offset, &bytes, Durability::Lazy).expect_err("no space");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert_eq!(shape(&bed.store, id), before, "{units} units at {offset}");
    }
    let exclusion = alone(&bed.store, id);
    for range in [0..5 * 4096, 1 << 40..(1 << 40) + 3 * 4096, 0..1 << 62] {
        let error = exclusion.preallocate(range.clone()).expect_err("no space");
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
        assert_eq!(shape(&bed.store, id), before, "{range:?}");
    }
    exclusion.preallocate(4096..3 * 4096).expect("two units");
    drop(exclusion);
    assert_eq!(bed.store.statistics().free.free_units, 0);
    // What has space can be written, and what needs none is done.
    bed.write(id, 0, &[2; 4 * 4096], Durability::Full);
    bed.store.create(Some("empty")).expect("no space is needed");
    bed.store.set_attribute(id, "key", b"value").expect("no space is needed");
    sync(&bed.store);
    drop(bed);
    let mut bed = Bed::open(&attach(&disk));
    assert_eq!(bed.read(id, 0, 4 * 4096), [2; 4 * 4096]);
    drop(bed);
    assert!(is_sound(&disk));
}

#[test]
fn space_comes_back_to_a_full_device() {
    let (disk, mut bed) = bed();
    let id = bed.store.create(Some("object")).expect("free");
    let filler = fill(&mut bed, 0);
    let all = bed.store.statistics().units;
    let free = |store: &Store| {
        sync(store);
        while store.statistics().leaving > 0 {
            store.turn();
        }
        store.statistics().free.free_units
    };
    assert_eq!(free(&bed.store), 0);
    let exclusion = alone(&bed.store, filler);
    exclusion.punch(4096..3 * 4096).expect("holes need no space");
    assert_eq!(free(&bed.store), 2);
    exclusion.set_len((all - 3) * 4096).expect("less needs no space");
    assert_eq!(free(&bed.store), 5);
    drop(exclusion);
    // A write waits for what is being freed.
    bed.write(id, 0, &[3; 5 * 4096], Durability::Lazy);
    bed.store.remove(filler).expect("removal needs no space");
    bed.write(id, 5 * 4096, &vec![4; 400 * 4096], Durability::Full);
    bed.store.remove(id).expect("removal needs no space");
    assert_eq!(free(&bed.store), all);
    drop(bed);
    assert!(is_sound(&disk));
}

// No space in a checkpoint.

/// A store whose checkpoints have room for little: 8 blocks.
fn tiny() -> (Arc<Disk>, Bed) {
    let disk = small_disk(64 << 10, 4 << 10);
    let bed = Bed::open(&attach(&disk));
    (disk, bed)
}

/// Sees that a store whose map is full can be checkpointed, and opened again.
fn survives(disk: &Arc<Disk>, bed: Bed) -> Bed {
    bed.store.checkpoint(PATIENCE).expect("the map fits");
    let (used, most) = bed.store.statistics().map;
    assert!(used <= most, "{used} of {most}");
    let list = bed.store.list();
    sync(&bed.store);
    drop(bed);
    assert!(is_sound(disk));
    let bed = Bed::open(&attach(disk));
    assert_eq!(bed.store.list(), list);
    bed
}

#[test]
fn a_full_map_refuses_objects_and_gets_room_by_removal() {
    let (disk, bed) = tiny();
    let mut made = Vec::new();
    let error = loop {
        match patiently(&bed.store, || bed.store.create(Some(&format!("object {}", made.len())))) {
            Ok(id) => made.push(id),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    let bed = survives(&disk, bed);
    let store = &bed.store;
    let error = store.set_attribute(made[0], "key", &[0; 1024]).expect_err("full");
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert_eq!(store.attributes(made[0]).expect("an object"), []);
    assert!(made.len() > 40, "{} objects of 8 blocks", made.len());
    for id in made.drain(..8) {
        patiently(store, || store.remove(id)).expect("removal needs no room");
    }
    for n in 0..7 {
        patiently(store, || store.create(Some(&format!("another {n}")))).expect("there is room");
    }
    survives(&disk, bed);
}

#[test]
fn a_full_map_refuses_extents_and_gets_room_by_removal() {
    let (disk, mut bed) = tiny();
    let id = bed.store.create(None).expect("a number");
    let mut units = 0;
    let error = loop {
        match bed.try_write(id, units * 8192, &[1; 4096], Durability::Lazy) {
            Ok(_) => units += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.to_string().contains("checkpoint"), "{error}");
    let before = shape(&bed.store, id);
    assert_eq!(before.0.extents, units);
    let exclusion = alone(&bed.store, id);
    let error = exclusion.preallocate(1 << 30..(1 << 30) + 4096).expect_err("full");
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    drop(exclusion);
    assert_eq!(shape(&bed.store, id), before);
    let bed = survives(&disk, bed);
    bed.store.remove(id).expect("removal needs no room");
    let mut bed = survives(&disk, bed);
    let id = bed.store.create(None).expect("there is room");
    bed.write(id, 0, &[1; 4096], Durability::Full);
    survives(&disk, bed);
}

#[test]
fn holes_that_are_punched_into_a_full_map_end_before_it_overflows() {
    let (disk, mut bed) = tiny();
    let id = bed.store.create(None).expect("a number");
    bed.write(id, 0, &vec![1; 600 * 4096], Durability::Lazy);
    let mut holes = 0;
    let error = loop {
        let exclusion = alone(&bed.store, id);
        let at = holes * 8192 + 4096;
        match patiently(&bed.store, || exclusion.punch(at..at + 4096)) {
            Ok(()) => holes += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert_eq!(bed.store.stat(id).expect("an object").extents, holes + 1);
    let bed = survives(&disk, bed);
    let exclusion = alone(&bed.store, id);
    patiently(&bed.store, || exclusion.set_len(0)).expect("less needs no room");
    drop(exclusion);
    survives(&disk, bed);
}

#[test]
fn writes_into_preallocated_space_end_before_the_map_overflows() {
    // Writing here and there into preallocated space makes an extent into three, and nobody asked whether the map
    // had room for them: the next checkpoint did not fit its region, and the store was poisoned for it. Now such
    // a write is refused when even the reserve is used up.
    let (disk, mut bed) = tiny();
    let id = bed.store.create(None).expect("a number");
    let exclusion = alone(&bed.store, id);
    exclusion.preallocate(0..600 * 4096).expect("there is space");
    drop(exclusion);
    let mut written = 0;
    let error = loop {
        match bed.try_write(id, written * 8192, &[1; 4096], Durability::Lazy) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 300, "the map has no room for so many");
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let mut bed = survives(&disk, bed);
    for n in 0..written {
        let found = bed.read(id, n * 8192, 8192);
        assert!(
            found.chunks(4096).eq([&[1; 4096], &[0; 4096]].into_iter().take(found.len() / 4096))
        );
    }
    // What joins what is there makes no extent.
    bed.write(id, 4096, &[2; 4096], Durability::Full);
    survives(&disk, bed);
}

#[test]
fn writes_under_way_together_do_not_overflow_the_map() {
    let (disk, mut bed) = tiny();
    let id = bed.store.create(None).expect("a number");
    let exclusion = alone(&bed.store, id);
    exclusion.preallocate(0..600 * 4096).expect("there is space");
    drop(exclusion);
    for _ in 0..3 {
        for n in 0..100 {
            let buffer = bed.store.device().dma().buffer(4096, Access::Both).expect("memory");
            bed.pipeline.submit(Io::write(n * 8192, buffer, n).of(id)).expect("there are 128");
        }
        bed.pipeline.ring();
        let (mut done, mut refused) = (0, 0);
        while done < 100 {
            done += bed.pipeline.poll(100, &mut |done| {
                let kind = done.result.map_err(|error| error.kind());
                assert!(matches!(kind, Ok(()) | Err(ErrorKind::NoSpace)), "{kind:?}");
                refused += u64::from(kind.is_err());
            });
        }
        assert!(refused > 0, "they were too many");
        bed = survives(&disk, bed);
    }
}

// Stores that may not be written.

#[test]
fn a_store_that_is_open_for_reading_refuses_every_change() {
    let (disk, mut bed) = bed();
    let id = bed.store.create(Some("object")).expect("free");
    bed.store.set_attribute(id, "key", b"value").expect("an object");
    bed.write(id, 0, &[1; 8192], Durability::Full);
    sync(&bed.store);
    drop(bed);
    let before = bytes_of(&disk);
    let mut bed = Bed::over(open_to_read(&attach(&disk)).expect("a store"));
    for (what, kind, text) in refusals(&mut bed, id) {
        assert_eq!(kind, ErrorKind::Poisoned, "{what}: {text}");
        assert!(text.contains("reading only"), "{what}: {text}");
    }
    assert_eq!(bed.read(id, 0, 8192), [1; 8192]);
    assert_eq!(bed.store.attribute(id, "key").expect("an object"), Some(b"value".to_vec()));
    drop(bed);
    assert!(bytes_of(&disk) == before, "nothing was written");
    assert_eq!(disk.pending(), []);
    drop(open(&attach(&disk)).expect("a store"));
}
