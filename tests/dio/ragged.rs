//! Requests off the grid, over files: a volume's handle over a scripted map.

use udirect::block::{Placement, ScriptedMap};
use udirect::seed::Seed;
use udirect::volume::{Done, Handle, Io, Memory, Options, Refused, Volume};

use crate::bed::{Device, FILE, PATIENCE, World, bytes, map, stream};

/// A world whose device is full of old bytes, a map, and a handle over both.
fn volume(unit: u64, lba: udirect::units::LbaSize) -> (World, ScriptedMap, Handle<ScriptedMap>) {
    let mut world = World::new(&Device { lba, ..Device::default() });
    world.stain(0x69);
    let map = map(&world, unit, Placement::Scattered(5), &[]);
    let volume = Volume::over(world.device.clone(), map.clone());
    let handle = volume.handle(&Options::default()).expect("a handle");
    (world, map, handle)
}

fn write(offset: u64, data: &[u8], tag: u64) -> Io {
    Io::write(offset, Memory::plain(data.to_vec()), tag).of(FILE)
}

fn read_all(handle: &mut Handle<ScriptedMap>, map: &ScriptedMap) -> Vec<u8> {
    let size = map.len(FILE) as usize;
    let done = handle.run(Io::read(0, Memory::plain(vec![0xee; size + 700]), 0).of(FILE));
    assert_eq!(done.bytes as usize, size);
    done.result.expect("the medium is sound");
    let mut bytes = stream(&done.memory);
    bytes.truncate(size);
    bytes
}

fn wait(handle: &mut Handle<ScriptedMap>, count: usize) -> Vec<Done> {
    handle.ring();
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut done = Vec::new();
    while done.len() < count {
        handle.poll(count - done.len(), &mut |one| done.push(one));
        assert!(std::time::Instant::now() < deadline, "{} of {count} are back", done.len());
    }
    done
}

#[test]
fn a_file_of_any_size_is_what_was_written_to_it() {
    for (unit, lba) in [(1, 512), (8, 512), (1, 4096), (4, 4096)] {
        let lba = udirect::units::LbaSize::from_bytes(lba).expect("a size of blocks");
        let (_world, map, mut handle) = volume(unit, lba);
        let mut seed = Seed::from_env("files off the grid");
        let mut model: Vec<u8> = Vec::new();
        for round in 0..300u64 {
            let most = if seed.chance(1, 10) { 60_000 } else { 900 };
            let len = 1 + seed.below(most) as usize;
            let reach = model.len() as u64 + if seed.chance(1, 4) { 5000 } else { 0 };
            let offset = seed.below(reach + 1) as usize;
            if seed.chance(2, 3) && offset + len < 1 << 20 {
                let data = bytes(len, round);
                let done = handle.run(write(offset as u64, &data, round));
                assert_eq!(done.bytes as usize, len);
                done.result.expect("there is space");
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&data);
                assert_eq!(map.len(FILE) as usize, model.len(), "round {round}");
            } else {
                let io = Io::read(offset as u64, Memory::plain(vec![0xee; len]), round).of(FILE);
                let done = handle.run(io);
                done.result.as_ref().expect("the medium is sound");
                let expected = &model[offset.min(model.len())..(offset + len).min(model.len())];
                assert_eq!(done.bytes as usize, expected.len(), "{len} bytes at {offset}");
                assert_eq!(stream(&done.memory)[..expected.len()], *expected);
            }
        }
        assert_eq!(read_all(&mut handle, &map), model);
        assert_eq!(map.under_way(), 0);
    }
}

/// The original lets four requests of a part of a block each race past the end of a file, where each has to
/// zero what the others do not cover; one that zeroed last wiped out its neighbour. Here all four are in
/// flight at once, in every order.
#[test]
fn xfs_generic_114_parts_of_a_block_past_the_end_do_not_zero_each_other() {
    let (_world, map, mut handle) = volume(8, udirect::units::LbaSize::B512);
    let mut seed = Seed::from_env("parts of a block");
    for round in 0..50u64 {
        let at = 8192 * round;
        let mut parts = [0u64, 1, 2, 3];
        seed.shuffle(&mut parts);
        for part in parts {
            handle.submit(write(at + 128 * part, &[1 + part as u8; 128], part)).expect("room");
        }
        for done in wait(&mut handle, 4) {
            done.result.expect("there is space");
        }
        let mut found = vec![0xee; 4096];
        let mut slices = [std::io::IoSliceMut::new(&mut found)];
        let count = handle.read_file_at(FILE, &mut slices, at).expect("the medium is sound");
        assert_eq!(count, 512, "the file ends with the last part");
        let expected: Vec<u8> = (0..4).flat_map(|part| [1 + part; 128]).collect();
        assert_eq!(found[..512], expected[..], "round {round}");
        // The next round begins past the end again, with a hole between.
    }
    assert!(handle.edge_counts().waits >= 150, "they met: {:?}", handle.edge_counts());
    drop(map);
}

/// The original truncates a file into a block and lets two writers go past the new end, in one block: each
/// has to see what the other wrote. The bytes between the end and the first writer read as zeroes.
#[test]
fn xfs_generic_538_two_writers_past_a_truncated_end_share_a_block() {
    let (_world, map, mut handle) = volume(8, udirect::units::LbaSize::B512);
    for round in 0..40u64 {
        map.set_len(FILE, 0);
        handle.run(write(0, &bytes(4096, round), 0)).result.expect("there is space");
        // Truncating zeroes the rest of the last block, as a filesystem does.
        handle.run(write(100, &[0; 412], 0)).result.expect("there is space");
        map.set_len(FILE, 100);
        handle.submit(write(200, &[7; 50], 1)).expect("room");
        handle.submit(write(300, &[9; 60], 2)).expect("room");
        for done in wait(&mut handle, 2) {
            done.result.expect("there is space");
        }
        let mut expected = bytes(4096, round)[..100].to_vec();
        expected.resize(200, 0);
        expected.extend([7; 50]);
        expected.resize(300, 0);
        expected.extend([9; 60]);
        assert_eq!(read_all(&mut handle, &map), expected, "round {round}");
    }
}

/// The memory of requests off the grid is checked before anything is done, as that of others is.
#[test]
fn what_is_wrong_off_the_grid_comes_back_at_once() {
    let (_world, map, mut handle) = volume(1, udirect::units::LbaSize::B512);
    let empty = Io { memory: Memory::Vector(Box::default()), ..write(3, &[0; 10], 0) };
    // No byte at all: it is not off the grid, and refused for its list.
    let Err(Refused::Invalid(_, error)) = handle.submit(empty) else { panic!("not refused") };
    assert!(error.to_string().contains("segments: 0 is outside 1..=1024"), "{error}");
    let parts =
        (0..1023).fold(udirect::volume::IoVector::new(), |vector, _| vector.with_plain(vec![1]));
    let Err(Refused::Invalid(_, error)) = handle.submit(Io::write(3, parts, 0).of(FILE)) else {
        panic!("not refused")
    };
    assert!(error.to_string().contains("1023 is outside 1..=1022"), "{error}");
    assert_eq!((handle.inflight(), map.under_way()), (0, 0));
}

/// An edge that cannot be read fails the write before anything of it is on the device.
#[test]
fn an_edge_that_cannot_be_read_fails_the_write_whole() {
    use udirect::spec::{command::NvmOpcode, status::Status};
    let (world, map, mut handle) = volume(1, udirect::units::LbaSize::B512);
    let before = bytes(4096, 3);
    handle.run(write(0, &before, 0)).result.expect("there is space");
    let lba = map.units(FILE)[7].1;
    world.watcher.fail(NvmOpcode::READ, lba.0, Status::UNRECOVERED_READ);
    let done = handle.run(write(1000, &[1; 3000], 0));
    let error = done.result.expect_err("the last block cannot be read");
    assert_eq!(error.kind(), udirect::block::ErrorKind::Media);
    assert!(error.to_string().contains(&lba.to_string()), "{error}");
    assert_eq!((done.bytes, done.memory.len()), (0, 3000));
    world.watcher.relent();
    assert_eq!(read_all(&mut handle, &map), before);
    assert_eq!(handle.inflight(), 0);
    handle.run(write(1000, &[1; 3000], 0)).result.expect("nobody holds the blocks");
}
