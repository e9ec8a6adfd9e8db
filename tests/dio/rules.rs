//! The rules of the direct-I/O pipeline, each by its number.
//!
//! A rule that a layer above completes is shown here with the part of it that the contract of the map
//! keeps: what is in flight is neither freed nor reused, appends take turns, and readers see a file before
//! or after one.

mod completion;

use std::sync::atomic::Ordering;

use udirect::block::{
    BlockDevice, BlockError, ErrorKind, Event, Identity, MapBlocks, Placement, QueueOptions, Run,
    ScriptedMap, ScriptedOptions, Twist,
};
use udirect::dio::{Done, Io, Memory, MemoryPolicy, Options, Pipeline};
use udirect::dma::Access;
use udirect::seed::Seed;
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::{BlockCount, FileBlock, FileId};

use crate::bed::{
    Device, Drive, FILE, World, bytes, cut, map, place, read, scatter, spans, stream, write,
};
use crate::ledger::{Guise, Ledger, Noted, Step};

/// Bytes of a block of the default device.
const BLOCK: u64 = 512;
/// Bytes of a unit of eight of them.
const UNIT: u64 = 8 * BLOCK;

fn world() -> World {
    World::new(&Device::default())
}

/// A queue in which one request may have everything in flight that these tests send.
fn wide() -> Options {
    Options { share: Some(100), ..Options::default() }
}

/// Polls for one command at a time, until a request is finished; returns it and how many polls it took.
fn step_by_step<M: MapBlocks>(pipeline: &mut Pipeline<M>) -> (Done, usize) {
    for polls in 1..1000 {
        let mut done = None;
        pipeline.poll(1, &mut |one| done = Some(one));
        if let Some(done) = done {
            return (done, polls);
        }
    }
    panic!("nothing came back in 999 polls");
}

fn error_of(done: Done) -> BlockError {
    done.result.expect_err("the request has failed")
}

// Request: rules 1 to 6.

#[test]
fn dio_rule_01_an_offset_or_length_off_the_block_is_refused_before_anything_is_done() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    let error = pipeline.refused(write(&world, 100, 512, 1));
    assert_eq!(error.to_string(), "offset 100 is not a multiple of 512");
    let error = pipeline.refused(write(&world, 512, 700, 1));
    assert_eq!(error.to_string(), "length 700 is not a multiple of 512");
    let error = pipeline.refused(read(&world, 513, 512));
    assert_eq!(error.to_string(), "offset 513 is not a multiple of 512");
    assert_eq!(error.kind(), ErrorKind::Misaligned);
    assert_eq!(map.take_events(), [], "the map was not asked");
    assert_eq!(world.watcher.take(), [], "the device was not told");
}

#[test]
fn dio_rule_01_memory_on_a_dword_is_used_where_it_lies_and_any_other_bounced_or_refused() {
    let mut world = world();
    let map = map(&world, 1, Placement::Rising, &[]);
    place(&map, 0, 40, 2);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    for (at, bounced) in [(4u32, 0), (2, 1024), (1, 1024), (508, 0)] {
        let before = pipeline.statistics();
        let memory = cut(world.pattern(2048, u64::from(at)), &[(at, 1024)]);
        let done = pipeline.run(Io::write(0, memory, 1).of(FILE));
        done.result.expect("a sound write");
        let counted = pipeline.statistics().since(&before);
        assert_eq!(counted.bytes_bounced, bounced, "from byte {at} of a page");
        assert_eq!(counted.bounces, u64::from(bounced > 0));
        let expected = &bytes(2048, u64::from(at))[at as usize..][..1024];
        assert_eq!(world.look(40, 2), expected, "from byte {at} of a page");
    }
    let strict = Options { memory: MemoryPolicy::Strict, ..Options::default() };
    let mut pipeline = world.pipeline(map, &strict);
    let buffer = world.buffer(2048, Access::Both);
    let address = buffer.iova().0 + 2;
    let error = pipeline.refused(Io::read(0, cut(buffer, &[(2, 1024)]), 1).of(FILE));
    assert_eq!(error.to_string(), format!("memory address {address} is not a multiple of 4"));
}

/// 512-byte blocks of which each is made of three segments, cut elsewhere for the read than for the write.
#[test]
fn dio_rule_02_segments_are_one_stream_of_bytes() {
    let world = World::new(&Device { sgl: true, ..Device::default() });
    let map = map(&world, 8, Placement::Rising, &[]);
    let mut pipeline = world.pipeline(map, &Options::default());
    let source = cut(world.pattern(9000, 1), &[(0, 260), (300, 200), (4000, 564)]);
    let expected = stream(&source);
    let done = pipeline.run(Io::write(0, source, 1).of(FILE));
    assert_eq!(done.into_bytes().expect("a sound write"), 1024);
    let target = cut(world.pattern(9000, 2), &[(8000, 700), (4, 4), (100, 320)]);
    let done = pipeline.run(Io::read(0, target, 2).of(FILE));
    done.result.expect("a sound read");
    assert_eq!(stream(&done.memory), expected);
    assert_eq!(pipeline.statistics().bounces, 0, "the device can take it as it is");
    assert_eq!(
        spans(&world.watcher.take()),
        [(0, 8), (0, 2)],
        "the write with zeroes to its unit's end"
    );
}

#[test]
fn dio_rule_03_a_request_of_no_bytes_does_nothing_and_succeeds() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    let nothing = || cut(world.buffer(512, Access::Both), &[(0, 0), (4, 0)]);
    for io in [Io::read(0, nothing(), 7), Io::write(1 << 40, nothing(), 7)] {
        let done = pipeline.run(io.of(FILE));
        assert_eq!((done.tag, done.bytes), (7, 0));
        done.result.expect("nothing can go wrong");
        assert_eq!(done.memory.into_vector().expect("the vector").slices.len(), 2);
    }
    assert_eq!((map.take_events(), map.len(FILE)), (vec![], 0));
    assert_eq!(world.watcher.take(), []);
}

#[test]
fn dio_rule_04_extents_are_made_in_units_of_any_power_of_two_up_to_2048_blocks() {
    for unit in (0..12).map(|shift| 1u64 << shift) {
        let mut world = world();
        world.stain(0x69);
        let map = map(&world, unit, Placement::Falling, &[]);
        let mut pipeline = world.pipeline(map.clone(), &Options::default());
        let block = unit + unit / 2;
        pipeline.run(write(&world, block * BLOCK, 512, 3)).result.expect("a sound write");
        let asked = Event::Asked { at: FileBlock(unit), blocks: BlockCount(unit) };
        assert_eq!(map.take_events()[0], asked, "whole units are asked for");
        let [(1, lba)] = map.units(FILE)[..] else { panic!("one unit: {:?}", map.units(FILE)) };
        let mut expected = vec![0; (unit * BLOCK) as usize];
        expected[(unit / 2 * BLOCK) as usize..][..512].copy_from_slice(&bytes(512, 3));
        assert_eq!(world.look(lba.0, unit), expected, "a unit of {unit}");
        assert_eq!(map.len(FILE), (block + 1) * BLOCK);
        let done = pipeline.run(read(&world, block * BLOCK, 1024));
        assert_eq!((done.bytes, &stream(&done.memory)[..512]), (512, &bytes(512, 3)[..]));
    }
}

#[test]
fn dio_rule_05_a_large_request_takes_no_more_at_once_than_a_small_one() {
    let world = World::new(&Device { bytes: 36 << 20, ..Device::default() });
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 4096, 8);
    let options = Options { share: Some(8), ..Options::default() };
    let mut pipeline = world.pipeline(map, &options);
    for len in [64 << 10, 16 << 20] {
        let io = write(&world, 0, len, 1);
        let used = world.device.dma().usage();
        pipeline.submit(io).expect("it is taken");
        pipeline.ring();
        let mut done = None;
        while done.is_none() {
            let counters = pipeline.counters();
            assert!(counters.submissions - counters.completions <= 8, "{counters:?}");
            assert_eq!(world.device.dma().usage(), used, "no memory is taken on the way");
            pipeline.poll(1, &mut |one| done = Some(one));
        }
        let done = done.expect("the loop ended");
        assert_eq!(done.into_bytes().expect("a sound write"), len as u64);
        assert_eq!(world.watcher.take().len(), len / 4096);
    }
}

/// The kernel overwrites blocks that it mapped and has no data for. Here they go back, and what had no data
/// before has none after.
#[test]
fn dio_rule_06_what_was_mapped_and_got_no_data_is_never_seen() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Falling, &[1]);
    map.preallocate(FILE, FileBlock(0), BlockCount(8));
    let free = map.free_units();
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    map.twist(2, Twist::NoSpace);
    let done = pipeline.run(write(&world, 0, 4 * UNIT as usize, 1));
    assert_eq!((done.bytes, error_of(done).kind()), (2 * UNIT, ErrorKind::NoSpace));
    assert_eq!((map.free_units(), map.units(FILE)), (free, vec![]), "nothing is kept");
    assert_eq!(map.len(FILE), 0, "nothing is published");
    map.set_len(FILE, 4 * UNIT);
    let done = pipeline.run(read(&world, 0, 4 * UNIT as usize));
    assert_eq!(done.bytes, 4 * UNIT);
    assert!(stream(&done.memory).iter().all(|byte| *byte == 0), "holes are all there is");
}

// Mapping: rules 7 to 12.

#[test]
fn dio_rule_07_the_map_is_asked_once_per_extent() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 400, 3, 16);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    let asked = |at, blocks| Event::Asked { at: FileBlock(at), blocks: BlockCount(blocks) };
    let done = pipeline.run(read(&world, 3 * BLOCK, 42 * 512));
    assert_eq!(done.bytes, 42 * BLOCK);
    // From the unit of its first block to the end of the unit of its last one, and on from each answer.
    let events = map.take_events();
    assert_eq!(events[..3], [asked(0, 48), asked(16, 32), asked(32, 16)]);
    assert_eq!((events.len(), pipeline.statistics().mappings), (4, 3));
}

/// An extent of 4 MiB goes out as many commands, all from one answer.
#[test]
fn dio_rule_07_one_answer_is_used_up_before_the_map_is_asked_again() {
    let world = World::new(&Device { mdts: Some(8192), ..Device::default() });
    let map = map(&world, 8, Placement::Rising, &[]);
    place(&map, 0, 80, 8192);
    map.set_len(FILE, 4 << 20);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    pipeline.run(read(&world, 0, 4 << 20)).result.expect("a sound read");
    assert_eq!((world.watcher.take().len(), pipeline.statistics().mappings), (512, 1));
}

#[test]
fn dio_rule_08_an_answer_has_a_place_a_length_and_whether_it_is_new_or_a_hole() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[]);
    // Data, a hole, blocks without data, in one file; the map makes the fourth unit at block 0.
    place(&map, 0, 800, 8);
    map.preallocate(FILE, FileBlock(16), BlockCount(8));
    map.set_len(FILE, 3 * UNIT);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    let done = pipeline.run(read(&world, 0, 3 * UNIT as usize));
    assert_eq!(spans(&world.watcher.take()), [(800, 8)], "a hole needs no command");
    let found = stream(&done.memory);
    assert!(found[..4096].iter().all(|byte| *byte == 0x69), "what lies at the place");
    assert!(found[4096..].iter().all(|byte| *byte == 0), "nothing lies in a hole");
    // The middle of each unit is written: around it, the new ones are zeroed and the old one is not.
    for unit in 0..3 {
        let before = pipeline.statistics();
        pipeline.run(write(&world, unit * UNIT + 1024, 1024, unit)).result.expect("sound");
        let zeroed = pipeline.statistics().since(&before).bytes_zeroed;
        assert_eq!(zeroed, if unit == 0 { 0 } else { UNIT - 1024 }, "unit {unit}");
        let (_, lba) = map.units(FILE)[unit as usize];
        let around = if unit == 0 { 0x69 } else { 0 };
        let mut expected = vec![around; 4096];
        expected[1024..2048].copy_from_slice(&bytes(1024, unit));
        assert_eq!(world.look(lba.0, 8), expected, "unit {unit}");
    }
}

#[test]
fn dio_rule_09_a_raw_volume_never_grows_and_an_object_grows_wherever_a_write_needs_it() {
    let mut world = world();
    let blocks = world.soft_blocks();
    let mut raw = world.pipeline(Identity::new(world.device.geometry()), &Options::default());
    let error = raw.refused(Io::write((blocks - 1) * BLOCK, world.pattern(1024, 1), 1));
    assert_eq!(
        error.to_string(),
        format!("blocks {:#x}+2 do not lie within the device's {blocks} blocks", blocks - 1)
    );
    let map = map(&world, 8, Placement::Rising, &[]);
    map.set_len(FILE, 10 * UNIT);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    for (salt, offset) in [(1, 4 * UNIT), (2, 10 * UNIT), (3, 30 * UNIT)] {
        map.take_events();
        pipeline.run(write(&world, offset, UNIT as usize, salt)).result.expect("it is made");
        let committed = Event::Committed { file: FILE, offset, bytes: UNIT, units: 1 };
        assert_eq!(map.take_events().last(), Some(&committed), "in a hole, at the end, beyond it");
        let (_, lba) = *map.units(FILE).last().expect("it has one");
        assert_eq!(world.look(lba.0, 8), bytes(UNIT as usize, salt));
    }
    assert_eq!((map.len(FILE), map.units(FILE).len()), (31 * UNIT, 3));
}

#[test]
fn dio_rule_10_a_hole_is_passed_at_once_and_without_a_command() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    place(&map, 2000, 0, 8);
    map.set_len(FILE, 2008 * BLOCK);
    for memory in ["the device's", "nobody's"] {
        let mut pipeline = world.pipeline(map.clone(), &Options::default());
        let len = 2000 * BLOCK as usize;
        let io = match memory {
            "nobody's" => Io::read(0, Memory::plain(vec![0xee; len]), 1).of(FILE),
            _ => read(&world, 0, len),
        };
        let done = pipeline.run(io);
        assert_eq!(done.bytes, 2000 * BLOCK);
        assert!(stream(&done.memory).iter().all(|byte| *byte == 0), "in {memory} memory");
        let counted = pipeline.statistics();
        assert_eq!((counted.mappings, counted.commands), (1, 0));
        assert_eq!(counted.bytes_of_holes, 2000 * BLOCK);
    }
    assert_eq!(world.watcher.take(), []);
}

#[test]
fn dio_rule_11_a_read_stops_at_the_end_of_the_file() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[]);
    place(&map, 0, 80, 32);
    map.set_len(FILE, 5 * BLOCK + 100);
    let mut pipeline = world.pipeline(map, &Options::default());
    let done = pipeline.run(read(&world, 2 * BLOCK, 16 * 512));
    assert_eq!(done.bytes, 3 * BLOCK + 100, "a short read");
    assert_eq!(spans(&world.watcher.take()), [(82, 4)], "the size, rounded up to a block");
    let found = stream(&done.memory);
    let end = done.bytes as usize;
    assert!(found[..end].iter().all(|byte| *byte == 0x69));
    assert!(found[end..4 * 512].iter().all(|byte| *byte == 0), "what follows is not the file's");
    assert!(found[4 * 512..].iter().all(|byte| *byte == 0xee), "and the rest is left alone");
}

/// A write is on its way to a unit that is freed meanwhile. Whoever needs its space has to wait for it, or
/// the late write would land on the new owner's data.
#[test]
fn dio_rule_12_a_freed_unit_has_no_new_owner_while_a_write_to_it_is_in_flight() {
    let mut world = world();
    let (space, placement) = (0..16, Placement::Rising);
    let (answers, block_shift) = (Vec::new(), 9);
    let options = ScriptedOptions { unit: 8, space, placement, answers, block_shift };
    let map = ScriptedMap::new(options);
    place(&map, 0, 0, 8);
    let mut old = world.pipeline(map.clone(), &Options::default());
    let mut new = world.pipeline(map.clone(), &Options::default());
    old.submit(write(&world, 0, UNIT as usize, 1)).expect("it is taken");
    old.ring();
    map.punch(FILE, FileBlock(0), BlockCount(8));
    let both = || Io::write(0, world.pattern(2 * UNIT as usize, 2), 1).of(FileId(2));
    let error = error_of(new.run(both()));
    assert_eq!(error.to_string(), "no space: 0 units are free, none for file unit 1");
    old.wait(1).pop().expect("one").result.expect("a sound write");
    assert_eq!(map.free_units(), 2, "now it is free");
    new.run(both()).result.expect("there is room");
    assert_eq!(world.look(0, 16), bytes(2 * UNIT as usize, 2));
}

// Zeroing: rules 13 to 15.

/// Three new units, each from an answer of its own: only the first has something before the write.
#[test]
fn dio_rule_13_the_start_of_a_new_unit_is_zeroed_once() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Falling, &[1]);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    let done = pipeline.run(write(&world, 3 * BLOCK, 21 * 512, 1));
    assert_eq!(done.into_bytes().expect("a sound write"), 21 * BLOCK);
    assert_eq!(pipeline.statistics().bytes_zeroed, 3 * BLOCK);
    let mut found = Vec::new();
    map.units(FILE).into_iter().for_each(|(_, lba)| found.extend(world.look(lba.0, 8)));
    assert!(found[..3 * 512].iter().all(|byte| *byte == 0), "before its start");
    assert_eq!(found[3 * 512..], bytes(21 * 512, 1));
}

#[test]
fn dio_rule_13_a_write_into_a_unit_with_data_leaves_the_rest_of_it_alone() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[]);
    place(&map, 0, 80, 8);
    let mut pipeline = world.pipeline(map, &Options::default());
    pipeline.run(write(&world, 3 * BLOCK, 2 * 512, 1)).result.expect("a sound write");
    assert_eq!(pipeline.statistics().bytes_zeroed, 0);
    assert_eq!(spans(&world.watcher.take()), [(83, 2)], "and the device is not told of more");
    let found = world.look(80, 8);
    assert!(found[..3 * 512].iter().chain(&found[5 * 512..]).all(|byte| *byte == 0x69));
    assert_eq!(found[3 * 512..5 * 512], bytes(1024, 1));
}

#[test]
fn dio_rule_14_the_rest_of_a_new_unit_is_zeroed_after_the_end() {
    for preallocated in [false, true] {
        let mut world = world();
        world.stain(0x69);
        let map = map(&world, 8, Placement::Falling, &[]);
        if preallocated {
            map.preallocate(FILE, FileBlock(0), BlockCount(24));
        }
        let mut pipeline = world.pipeline(map.clone(), &Options::default());
        pipeline.run(write(&world, 0, 19 * 512, 1)).result.expect("a sound write");
        assert_eq!(pipeline.statistics().bytes_zeroed, 5 * BLOCK);
        let (_, lba) = map.units(FILE)[2];
        let found = world.look(lba.0, 8);
        assert_eq!(found[..3 * 512], bytes(19 * 512, 1)[16 * 512..]);
        assert!(found[3 * 512..].iter().all(|byte| *byte == 0), "preallocated: {preallocated}");
    }
}

/// The kernel zeroes the end even when an error ended the loop, since its blocks stay with the file. Ours
/// do not, so that there is no end to zero: whoever grows the file over the place reads zeroes.
#[test]
fn dio_rule_14_the_end_of_a_write_that_failed_holds_nothing_stale() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[1]);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    // The second unit's command is the one that fails; the last one ends inside its unit.
    world.watcher.fail(NvmOpcode::WRITE, 8, Status::WRITE_FAULT);
    assert_eq!(error_of(pipeline.run(write(&world, 0, 19 * 512, 1))).kind(), ErrorKind::Media);
    world.watcher.relent();
    map.set_len(FILE, 3 * UNIT);
    let done = pipeline.run(read(&world, 0, 3 * UNIT as usize));
    assert_eq!(done.bytes, 3 * UNIT);
    assert!(stream(&done.memory).iter().all(|byte| *byte == 0));
}

#[test]
fn dio_rule_15_zeroes_join_the_data_in_one_command() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[]);
    let mut pipeline = world.pipeline(map, &Options::default());
    pipeline.run(write(&world, 4 * BLOCK, 8 * 512, 1)).result.expect("a sound write");
    let [one] = world.watcher.take()[..] else { panic!("more than one command") };
    assert_eq!((one.opcode, one.blocks), (NvmOpcode::WRITE.0, 16));
    let expected = [vec![0; 2048], bytes(4096, 1), vec![0; 2048]].concat();
    assert_eq!(world.look(one.lba, 16), expected);
}

#[test]
fn dio_rule_15_many_zeroes_are_written_without_a_transfer_where_the_device_can() {
    for can in [true, false] {
        let mut world = world();
        world.stain(0x69);
        let map = map(&world, 2048, Placement::Rising, &[]);
        let mut guise = Guise::of(&world);
        guise.geometry.operations.write_zeroes = can;
        let mut pipeline = Pipeline::open(&guise, map, &Options::default()).expect("a pipeline");
        pipeline.run(write(&world, 2040 * BLOCK, 8 * 512, 1)).result.expect("a sound write");
        let seen = world.watcher.take();
        let is_bare = seen.iter().any(|one| one.opcode == NvmOpcode::WRITE_ZEROES.0);
        assert_eq!(is_bare, can, "{seen:?}");
        if can {
            assert_eq!(spans(&seen), [(0, 2040), (2040, 8)]);
        }
        let found = world.look(0, 2048);
        assert!(found[..2040 * 512].iter().all(|byte| *byte == 0));
        assert_eq!(found[2040 * 512..], bytes(4096, 1));
    }
}

// Sections and commands: rules 16 to 21.

/// Two answers that lie side by side on the device, and memory that does or does not.
#[test]
fn dio_rule_16_a_section_grows_while_memory_and_device_go_on() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[1]);
    place(&map, 0, 104, 16);
    map.set_len(FILE, 2 * UNIT);
    let guise = Guise::of(&world);
    let mut pipeline = Pipeline::open(&guise, map, &Options::default()).expect("a pipeline");
    let mut sections = |slices: &[(u32, u32)]| {
        let buffer = world.buffer(16384, Access::Both);
        let start = buffer.iova().0;
        let done = pipeline.run(Io::read(0, cut(buffer, slices), 1).of(FILE));
        assert_eq!(done.bytes, 2 * UNIT);
        let [runs] = &guise.ledger.take_memory()[..] else { panic!("more than one command") };
        let relative = |run: &Run| (run.iova - start, run.len);
        runs.iter().map(relative).collect::<Vec<_>>()
    };
    assert_eq!(sections(&[(0, 8192)]), [(0, 8192)], "two answers");
    assert_eq!(sections(&[(0, 4096), (4096, 4096)]), [(0, 8192)], "two segments");
    assert_eq!(sections(&[(0, 4096), (8192, 4096)]), [(0, 4096), (8192, 4096)]);
    assert_eq!(sections(&[(0, 2048), (2048, 2048), (12288, 4096)]), [(0, 4096), (12288, 4096)]);
}

#[test]
fn dio_rule_17_a_command_ends_at_a_gap_on_the_device() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[1]);
    place(&map, 0, 800, 16);
    place(&map, 16, 824, 8);
    place(&map, 24, 816, 8);
    map.set_len(FILE, 4 * UNIT);
    let mut pipeline = world.pipeline(map, &Options::default());
    pipeline.run(read(&world, 0, 4 * UNIT as usize)).result.expect("a sound read");
    assert_eq!(spans(&world.watcher.take()), [(800, 16), (824, 8), (816, 8)]);
}

#[test]
fn dio_rule_17_a_command_ends_at_the_transfer_limit() {
    for (mdts, transfer, most) in [(Some(8192), None, 16), (None, Some(4096), 8)] {
        let world = World::new(&Device { mdts, transfer, ..Device::default() });
        let map = map(&world, 8, Placement::Rising, &[]);
        place(&map, 0, 80, 200);
        map.set_len(FILE, 200 * BLOCK);
        let mut pipeline = world.pipeline(map, &wide());
        pipeline.run(read(&world, BLOCK, 101 * 512)).result.expect("a sound read");
        let cut = |at: u64| (81 + at, most.min(101 - at));
        let expected: Vec<_> = (0..101).step_by(most as usize).map(cut).collect();
        assert_eq!(spans(&world.watcher.take()), expected);
        assert_eq!(pipeline.counters().splits, 0, "nothing is left to the queue");
    }
}

#[test]
fn dio_rule_17_a_command_does_not_cross_the_boundary_that_the_device_would_split_at() {
    for boundary in [1u32, 7, 8, 100, 129, 256] {
        let world = World::new(&Device { noiob: boundary, ..Device::default() });
        let map = map(&world, 1, Placement::Rising, &[]);
        place(&map, 0, 95, 600);
        map.set_len(FILE, 600 * BLOCK);
        let mut pipeline = world.pipeline(map, &Options::default());
        for (first, blocks) in [(0, 600), (3, 2), (4, 4), (5, 1)] {
            let io = read(&world, first * BLOCK, (blocks * BLOCK) as usize);
            pipeline.run(io).result.expect("a sound read");
            let (mut at, end) = (95 + first, 95 + first + blocks);
            let mut expected = Vec::new();
            while at < end {
                let next = end.min((at / u64::from(boundary) + 1) * u64::from(boundary));
                expected.push((at, next - at));
                at = next;
            }
            assert_eq!(spans(&world.watcher.take()), expected, "NOIOB {boundary}");
        }
        assert_eq!(pipeline.counters().splits, 0, "nothing is left to the queue");
    }
}

/// A page list has no gaps inside; an SGL may. The same memory is two commands here and one there.
#[test]
fn dio_rule_17_a_command_ends_where_a_list_cannot_describe_its_memory() {
    for (sgl, expected) in [(false, vec![(80, 1), (81, 9)]), (true, vec![(80, 10)])] {
        let world = World::new(&Device { sgl, ..Device::default() });
        let map = map(&world, 1, Placement::Rising, &[]);
        place(&map, 0, 80, 10);
        map.set_len(FILE, 10 * BLOCK);
        let mut pipeline = world.pipeline(map, &Options::default());
        // Half a page ends in the middle of it, and what follows begins a page.
        let memory = cut(world.buffer(16384, Access::Both), &[(0, 512), (4096, 4608)]);
        pipeline.run(Io::read(0, memory, 1).of(FILE)).result.expect("a sound read");
        assert_eq!(spans(&world.watcher.take()), expected, "SGL: {sgl}");
        assert_eq!(pipeline.statistics().bounces, 0);
        assert_eq!(pipeline.counters().splits, 0, "nothing is left to the queue");
    }
}

#[test]
fn dio_rule_17_a_command_ends_where_a_list_is_full() {
    let world = World::new(&Device { sgl: true, ..Device::default() });
    let most = u64::from(world.device.geometry().segments.max_segments);
    let map = map(&world, 1, Placement::Rising, &[]);
    place(&map, 0, 80, 1000);
    map.set_len(FILE, 1000 * BLOCK);
    let mut pipeline = world.pipeline(map, &Options::default());
    let slices: Vec<_> = (0..1000).map(|n| (n * 1024, 512)).collect();
    let memory = cut(world.buffer(1 << 20, Access::Both), &slices);
    pipeline.run(Io::read(0, memory, 1).of(FILE)).result.expect("a sound read");
    let cut = |at: u64| (80 + at, most.min(1000 - at));
    let expected: Vec<_> = (0..1000).step_by(most as usize).map(cut).collect();
    assert_eq!(spans(&world.watcher.take()), expected);
    assert_eq!(pipeline.counters().splits, 0, "nothing is left to the queue");
}

#[test]
fn dio_rule_18_a_boundary_sends_the_data_before_the_map_is_asked_again() {
    let world = world();
    let ledger = Ledger::default();
    let inner = map(&world, 8, Placement::Rising, &[1]);
    place(&inner, 0, 80, 16);
    inner.set_len(FILE, 2 * UNIT);
    let mut guise = Guise::of(&world);
    guise.ledger = ledger.clone();
    let noted = Noted { inner: inner.clone(), ledger: ledger.clone() };
    let mut pipeline = Pipeline::open(&guise, noted, &Options::default()).expect("a pipeline");
    let mut steps = || {
        pipeline.run(read(&world, 0, 2 * UNIT as usize)).result.expect("a sound read");
        let blank =
            |step| if let Step::Sent(name, _) = step { Step::Sent(name, vec![]) } else { step };
        ledger.take().into_iter().map(blank).collect::<Vec<_>>()
    };
    let (sent, rung, done) = (Step::Sent("read", vec![]), Step::Rung, Step::Committed(2 * UNIT));
    let (first, second) = (Step::Asked(0), Step::Asked(8));
    let together = [first.clone(), second.clone(), sent.clone(), rung.clone(), done.clone()];
    assert_eq!(steps(), together, "without one");
    inner.twist(0, Twist::Boundary);
    let apart = [first, sent.clone(), rung.clone(), second, sent, rung, done];
    assert_eq!(steps(), apart);
}

/// The queue had no room at the boundary, and the walk went on at the next poll by asking the map: the data
/// was sent only after the metadata that it was to go before.
#[test]
fn dio_rule_18_a_boundary_holds_where_the_queue_is_full() {
    let world = world();
    let inner = map(&world, 8, Placement::Rising, &[1]);
    place(&inner, 0, 80, 24);
    inner.set_len(FILE, 3 * UNIT);
    let guise = Guise::of(&world);
    let noted = Noted { inner: inner.clone(), ledger: guise.ledger.clone() };
    let queue = QueueOptions { depth: 1, ..QueueOptions::default() };
    let options = Options { queue, requests: Some(2), share: Some(4), ..Options::default() };
    let mut pipeline = Pipeline::open(&guise, noted, &options).expect("a pipeline");
    guise.is_held.store(true, Ordering::Relaxed);
    pipeline.submit(read(&world, 2 * UNIT, UNIT as usize)).expect("it takes the only slot");
    inner.twist(0, Twist::Boundary);
    pipeline.submit(read(&world, 0, 2 * UNIT as usize)).expect("it is taken");
    assert_eq!(pipeline.poll(9, &mut |_| {}), 0);
    let asked = |steps: &[Step], at| steps.iter().position(|step| *step == Step::Asked(at));
    let before = guise.ledger.take();
    assert!(asked(&before, 0).is_some() && asked(&before, 8).is_none(), "{before:?}");
    guise.is_held.store(false, Ordering::Relaxed);
    pipeline.wait(2).into_iter().for_each(|done| done.result.expect("a sound read"));
    let after = guise.ledger.take();
    let sent = after.iter().position(|step| matches!(step, Step::Sent(..)));
    assert!(sent.is_some() && sent < asked(&after, 8), "{after:?}");
}

/// A section is measured before it joins, so that a fresh command takes at least a block of it: whatever the
/// memory and the device, no walk ends for want of a way to say it, and no queue has to split.
#[test]
fn dio_rule_19_a_section_always_fits_in_a_fresh_command() {
    let mut seed = Seed::from_env("sections of every shape");
    for _ in 0..12 {
        let device = Device {
            transfer: seed.chance(1, 2).then_some(4096),
            mdts: seed.chance(1, 2).then_some(8192),
            noiob: seed.below(40) as u32,
            sgl: seed.chance(1, 2),
            ..Device::default()
        };
        let world = World::new(&device);
        let map = map(&world, 1, Placement::Scattered(seed.u64(..)), &[3, 1, 9, 2]);
        let mut pipeline = world.pipeline(map, &Options::default());
        for _ in 0..60 {
            let (mut slices, mut at, mut len) = (Vec::new(), 4 * seed.below(1024) as u32, 0);
            while slices.len() < 1 + seed.below(30) as usize || len % 512 != 0 {
                let some = 4 * (1 + seed.below(700) as u32);
                let last = slices.len() >= 30;
                let some = if last { 512 - len % 512 } else { some };
                slices.push((at, some));
                len += some;
                at += some + if seed.chance(1, 2) { 0 } else { 4 * seed.below(1024) as u32 };
            }
            let memory = cut(world.pattern(1 << 18, seed.u64(..)), &slices);
            let io = Io::write(BLOCK * seed.below(300), memory, 1).of(FILE);
            let done = pipeline.run(io);
            assert_eq!(done.into_bytes().expect("a sound write"), u64::from(len), "{device:?}");
        }
        let limit =
            (device.transfer.unwrap_or(u64::MAX)).min(device.mdts.map_or(u64::MAX, u64::from));
        for one in world.watcher.take() {
            assert!(one.blocks > 0 && one.blocks * BLOCK <= limit, "{one:?} of {device:?}");
        }
        assert_eq!(pipeline.counters().splits, 0, "{device:?}");
    }
}

#[test]
fn dio_rule_20_finished_commands_are_taken_in_while_more_are_sent() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 16, 8);
    for (reap_every, expected) in [(64, 0), (4, 16), (5, 15)] {
        let options = Options { reap_every, ..wide() };
        let mut pipeline = world.pipeline(map.clone(), &options);
        pipeline.submit(read(&world, 0, 16 * UNIT as usize)).expect("it is taken");
        assert_eq!(world.watcher.take().len(), expected, "executed before anybody polls");
        assert_eq!(pipeline.counters().completions, expected as u64);
        pipeline.ring();
        pipeline.wait(1).pop().expect("one").result.expect("a sound read");
        world.watcher.take();
    }
}

#[test]
fn dio_rule_20_a_full_queue_is_reaped_too() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 16, 8);
    let queue = QueueOptions { depth: 3, ..QueueOptions::default() };
    let options = Options { queue, reap_every: 1000, ..Options::default() };
    let mut pipeline = world.pipeline(map, &Options { share: Some(100), ..options });
    pipeline.submit(read(&world, 0, 16 * UNIT as usize)).expect("it is taken");
    assert_eq!(pipeline.statistics().pauses, 0, "there was always room after a look");
    assert_eq!(pipeline.statistics().commands, 16);
    pipeline.ring();
    assert_eq!(pipeline.wait(1).pop().expect("one").bytes, 16 * UNIT);
}

#[test]
fn dio_rule_20_an_error_found_while_reaping_stops_the_walk() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 16, 8);
    let options = Options { reap_every: 4, ..wide() };
    let mut pipeline = world.pipeline(map, &options);
    // A bad block would be looked for first, and the walk go on meanwhile.
    world.watcher.fail(NvmOpcode::READ, 16, Status::GUARD_CHECK_ERROR);
    let done = pipeline.run(read(&world, 0, 16 * UNIT as usize));
    assert_eq!((done.bytes, error_of(done).kind()), (UNIT, ErrorKind::Protection));
    // Four were out when it was found, and the fifth was under assembly.
    let seen = world.watcher.take().len();
    assert!((4..=5).contains(&seen), "{seen} commands of 16");
}

#[test]
fn dio_rule_21_one_doorbell_tells_of_the_whole_batch() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 16, 8);
    let mut pipeline = world.pipeline(map, &wide());
    let before = world.soft.counters().doorbells;
    for n in 0..4 {
        pipeline.submit(read(&world, n * 4 * UNIT, 4 * UNIT as usize)).expect("it is taken");
    }
    assert_eq!(pipeline.counters().sq_doorbells, 0, "submitting tells nobody");
    pipeline.ring();
    pipeline.wait(4).into_iter().for_each(|done| done.result.expect("a sound read"));
    assert_eq!(world.watcher.take().len(), 16);
    assert_eq!(pipeline.counters().sq_doorbells, 1);
    assert_eq!(world.soft.counters().doorbells - before, 1, "as the controller saw it");
}
