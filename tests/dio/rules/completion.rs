//! Rules 22 to 35: completion, and who waits for whom.

use std::sync::{Arc, Mutex};

use super::{BLOCK, UNIT, error_of, step_by_step, wide, world};
use crate::bed::{Drive, FILE, bytes, cut, map, place, read, scatter, stream, write};
use crate::ledger::{Guise, Ledger, Noted, Step};
use udirect::block::{
    Begun, BlockDevice, BlockError, Cause, Committed, Durability, ErrorKind, Event, Extent,
    Identity, MapBlocks, Mapping, Mark, Placement, QueueOptions, Reach, Run, Twist,
};
use udirect::dio::{Action, Done, Io, Memory, Options, Pipeline, Refused};
use udirect::dma::Access;
use udirect::seed::Seed;
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::{BlockCount, FileBlock, FileId, Lba};

#[test]
fn dio_rule_22_the_last_command_completes_the_request() {
    for backwards in [false, true] {
        let world = world();
        let map = map(&world, 8, Placement::Rising, &[]);
        scatter(&world, &map, 0, 6, 8);
        let guise = Guise { backwards, ..Guise::of(&world) };
        let mut pipeline = Pipeline::open(&guise, map.clone(), &wide()).expect("a pipeline");
        pipeline.submit(read(&world, 0, 6 * UNIT as usize)).expect("it is taken");
        pipeline.ring();
        let (done, polls) = step_by_step(&mut pipeline);
        assert_eq!((done.bytes, polls), (6 * UNIT, 6), "backwards: {backwards}");
        assert_eq!((pipeline.inflight(), map.under_way()), (0, 0));
    }
}

/// Every command is finished before the next one is sent, and still the request waits for its submitter.
#[test]
fn dio_rule_22_a_command_may_finish_before_its_submitter() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 6, 8);
    let options = Options { reap_every: 1, ..wide() };
    let mut pipeline = world.pipeline(map.clone(), &options);
    pipeline.submit(write(&world, 0, 6 * UNIT as usize, 1)).expect("it is taken");
    assert_eq!(pipeline.counters().completions, 6);
    let mut finished = Vec::new();
    pipeline.poll(9, &mut |done| finished.push(done.into_bytes().expect("a sound write")));
    assert_eq!(finished, [6 * UNIT], "once, and whole");
    let committed = |event: &&Event| matches!(event, Event::Committed { .. });
    assert_eq!(map.take_events().iter().filter(committed).count(), 1);
}

#[test]
fn dio_rule_23_the_first_error_is_kept_and_all_commands_are_awaited() {
    // Of eight commands the third and the sixth fail; which of them is first is the device's affair.
    // Neither is one of those that the driver looks into first.
    let tag = "a block failed the device's check of its reference tag, within 8 blocks from 0x20";
    let guard = "a block failed the device's check of its guard, within 8 blocks from 0x50";
    for (backwards, place) in [(false, tag), (true, guard)] {
        let world = world();
        let map = map(&world, 8, Placement::Rising, &[]);
        scatter(&world, &map, 0, 8, 8);
        let guise = Guise { backwards, ..Guise::of(&world) };
        let mut pipeline = Pipeline::open(&guise, map, &wide()).expect("a pipeline");
        world.watcher.fail(NvmOpcode::READ, 2 * 16 + 3, Status::REFERENCE_TAG_CHECK_ERROR);
        world.watcher.fail_also(NvmOpcode::READ, 5 * 16, Status::GUARD_CHECK_ERROR);
        pipeline.submit(read(&world, 0, 8 * UNIT as usize)).expect("it is taken");
        pipeline.ring();
        let (done, polls) = step_by_step(&mut pipeline);
        assert_eq!(polls, 8, "the buffer is the device's until the last one is back");
        assert_eq!((world.watcher.failed(), pipeline.inflight()), (2, 0));
        assert_eq!(done.memory.len(), 8 * UNIT);
        assert_eq!(done.bytes, 2 * UNIT, "what lies before the first place that failed");
        let error = error_of(done);
        assert!(error.to_string().starts_with(place), "{error}");
        assert!(error.status().is_some(), "with the device's own words");
    }
}

#[test]
fn dio_rule_24_an_error_of_the_walk_goes_before_one_of_a_command() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 8, 8);
    let mut pipeline = world.pipeline(map.clone(), &wide());
    world.watcher.fail(NvmOpcode::WRITE, 0, Status::WRITE_FAULT);
    map.twist(4, Twist::NoSpace);
    let done = pipeline.run(write(&world, 0, 8 * UNIT as usize, 1));
    assert_eq!(world.watcher.failed(), 1, "both have happened");
    assert_eq!(done.bytes, 0, "nothing before the command that failed");
    assert_eq!(error_of(done).kind(), ErrorKind::NoSpace);
}

/// The walk stops at the command's error, so that it never comes to its own.
#[test]
fn dio_rule_24_an_error_of_a_command_goes_before_the_count() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 8, 8);
    let options = Options { reap_every: 1, ..wide() };
    let mut pipeline = world.pipeline(map.clone(), &options);
    world.watcher.fail(NvmOpcode::WRITE, 16, Status::WRITE_FAULT);
    map.twist(6, Twist::NoSpace);
    let done = pipeline.run(write(&world, 0, 8 * UNIT as usize, 1));
    assert_eq!(done.bytes, UNIT);
    let error = done.into_bytes().expect_err("an error hides the count");
    assert_eq!(error.kind(), ErrorKind::Media);
    map.forget_twists();
}

#[test]
fn dio_rule_25_the_count_ends_where_the_walk_did() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 8, 8);
    let mut pipeline = world.pipeline(map.clone(), &wide());
    map.twist(3, Twist::Empty);
    let done = pipeline.run(read(&world, 0, 8 * UNIT as usize));
    assert_eq!(done.bytes, 3 * UNIT);
    let found = stream(&done.memory);
    let (good, rest) = found.split_at(3 * UNIT as usize);
    assert!(good.iter().all(|byte| *byte == 0x69), "the blocks that were reached");
    assert!(rest.iter().all(|byte| *byte == 0xee), "and those that were not");
}

#[test]
fn dio_rule_26_a_read_is_clipped_to_the_size_at_submission() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    let mut other = world.pipeline(map.clone(), &Options::default());
    pipeline.run(write(&world, 0, UNIT as usize, 1)).result.expect("a sound write");
    // The file grows, and then shrinks, while a read is in flight.
    for now in [4 * UNIT, 0] {
        pipeline.submit(read(&world, 0, 3 * UNIT as usize)).expect("it is taken");
        pipeline.ring();
        match now {
            0 => map.set_len(FILE, 0),
            _ => other.run(write(&world, UNIT, 3 * UNIT as usize, 2)).result.expect("sound"),
        }
        assert_eq!(map.len(FILE), now);
        let done = pipeline.wait(1).pop().expect("one");
        assert_eq!(done.bytes, if now > 0 { UNIT } else { 3 * UNIT }, "as it was before {now}");
        assert_eq!(stream(&done.memory)[..UNIT as usize], bytes(UNIT as usize, 1));
    }
    for offset in [0, BLOCK, 3 * UNIT, 1 << 62] {
        let done = pipeline.run(read(&world, offset, 1024));
        assert_eq!(done.into_bytes().expect("not an error"), 0, "at or past the end");
    }
}

#[test]
fn dio_rule_27_a_request_is_committed_once_and_before_its_caller_is_told() {
    let world = world();
    let inner = map(&world, 8, Placement::Falling, &[1]);
    inner.preallocate(FILE, FileBlock(0), BlockCount(16));
    let ledger = Ledger::default();
    let noted = Noted { inner: inner.clone(), ledger: ledger.clone() };
    let mut pipeline = world.pipeline(noted, &wide());
    let mut committed_at_the_time = |offset, len| {
        pipeline.submit(write(&world, offset, len, 1)).expect("it is taken");
        pipeline.ring();
        assert_eq!(inner.units(FILE), [], "still unwritten");
        let mut when = None;
        while when.is_none() {
            pipeline.poll(1, &mut |done| when = Some((done.result, inner.len(FILE))));
        }
        let (result, size) = when.expect("the loop ended");
        let committed = |step: &Step| matches!(step, Step::Committed(_));
        (result.is_ok(), size, ledger.take().into_iter().filter(committed).collect::<Vec<_>>())
    };
    world.watcher.fail(NvmOpcode::WRITE, world.soft_blocks() - 1, Status::WRITE_FAULT);
    assert_eq!(committed_at_the_time(0, 8192), (false, 0, vec![]), "never after a failure");
    assert_eq!(committed_at_the_time(0, 4096), (false, 0, vec![]), "nor one of a plain request");
    world.watcher.relent();
    assert_eq!(committed_at_the_time(0, 8192), (true, 8192, vec![Step::Committed(8192)]));
    let written: Vec<u64> = inner.units(FILE).into_iter().map(|(index, _)| index).collect();
    assert_eq!(written, [0, 1], "what was preallocated has data now");
}

#[test]
fn dio_rule_28_the_size_never_precedes_the_data() {
    for durable in [false, true] {
        let world = world();
        let map = map(&world, 8, Placement::Falling, &[1]);
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let (looking, into) = (map.clone(), Arc::clone(&sizes));
        world.watcher.look_on(move |_| into.lock().expect("sound").push(looking.len(FILE)));
        let mut pipeline = world.pipeline(map.clone(), &Options::default());
        let io = write(&world, 0, 4 * UNIT as usize, 1);
        let io = if durable { io.durable() } else { io };
        pipeline.run(io).result.expect("a sound write");
        assert_eq!(*sizes.lock().expect("sound"), [0; 4], "as each command was executed");
        assert_eq!(map.len(FILE), 4 * UNIT);
        let seen = world.watcher.take();
        assert!(seen.iter().all(|one| one.fua == durable), "{seen:?}");
    }
}

#[test]
fn dio_rule_28_a_plain_durable_write_goes_through_the_cache() {
    let world = world();
    let mut raw = world.pipeline(Identity::new(world.device.geometry()), &Options::default());
    raw.run(Io::write(0, world.pattern(4096, 1), 1).durable()).result.expect("a sound write");
    raw.run(Io::write(0, world.pattern(4096, 1), 1)).result.expect("a sound write");
    assert_eq!(raw.statistics().direct, 2);
    let fua: Vec<bool> = world.watcher.take().into_iter().map(|one| one.fua).collect();
    assert_eq!(fua, [true, false]);
}

/// Where the device has a cache and cannot write through it, durable data is flushed, after all of it is
/// there, and only then published.
#[test]
fn dio_rule_28_without_a_way_through_the_cache_the_data_is_flushed_before_it_is_published() {
    for (units, fails) in [(1, false), (4, false), (4, true)] {
        let world = world();
        let map = map(&world, 8, Placement::Falling, &[1]);
        let mut guise = Guise::of(&world);
        guise.geometry.operations.fua = false;
        assert!(guise.geometry.volatile_write_cache, "there is a cache");
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let (looking, into) = (map.clone(), Arc::clone(&sizes));
        world.watcher.look_on(move |_| into.lock().expect("sound").push(looking.len(FILE)));
        if fails {
            world.watcher.fail(NvmOpcode::WRITE, world.soft_blocks() - 9, Status::WRITE_FAULT);
        }
        let mut pipeline =
            Pipeline::open(&guise, map.clone(), &Options::default()).expect("a pipeline");
        let done = pipeline.run(write(&world, 0, units * UNIT as usize, 1).durable());
        assert_eq!(done.result.is_err(), fails);
        let seen = world.watcher.take();
        let mut expected = vec![NvmOpcode::WRITE.0; units];
        expected.extend((!fails).then_some(NvmOpcode::FLUSH.0));
        assert_eq!(seen.iter().map(|one| one.opcode).collect::<Vec<_>>(), expected);
        assert!(seen.iter().all(|one| !one.fua), "it would not be understood: {seen:?}");
        assert!(sizes.lock().expect("sound").iter().all(|size| *size == 0), "{sizes:?}");
        assert_eq!(map.len(FILE), if fails { 0 } else { units as u64 * UNIT });
    }
}

/// There are no pages to be marked: the device writes into the caller's own memory, which comes back, and
/// nothing else is touched.
#[test]
fn dio_rule_29_a_read_fills_the_callers_own_memory_and_nothing_else() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 2, 8);
    let guise = Guise::of(&world);
    let mut pipeline = Pipeline::open(&guise, map, &Options::default()).expect("a pipeline");
    let mut buffer = world.buffer(16384, Access::Both);
    buffer.fill(0xee);
    let start = buffer.iova();
    let done = pipeline.run(Io::read(0, cut(buffer, &[(1024, 8192)]), 1).of(FILE));
    assert_eq!(done.bytes, 2 * UNIT);
    let run = |at, len| vec![Run { iova: start.0 + at, len }];
    assert_eq!(guise.ledger.take_memory(), [run(1024, 4096), run(1024 + 4096, 4096)]);
    let buffer = done.memory.into_vector().and_then(|mut vector| vector.dma.pop());
    let buffer = buffer.expect("the buffer is back");
    assert_eq!(buffer.iova(), start);
    assert!(buffer[1024..9216].iter().all(|byte| *byte == 0x69));
    assert!(buffer[..1024].iter().chain(&buffer[9216..]).all(|byte| *byte == 0xee));
    assert_eq!(pipeline.statistics().bytes_bounced, 0);
}

#[test]
fn dio_rule_30_what_was_done_is_counted() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    let options = Options { merge: true, ..Options::default() };
    let mut pipeline = world.pipeline(map, &options);
    for n in 0..2 {
        pipeline.submit(write(&world, n * UNIT, UNIT as usize, n)).expect("it is taken");
        pipeline.ring();
        pipeline.wait(1);
    }
    for n in 0..2 {
        pipeline.submit(read(&world, n * UNIT, UNIT as usize)).expect("it is taken");
    }
    pipeline.ring();
    pipeline.wait(2);
    pipeline.run(Io::read(0, Memory::plain(vec![0; 1024]), 1).of(FILE));
    let counted = pipeline.statistics();
    assert_eq!((counted.requests, counted.commands, counted.merges), (5, 4, 1));
    assert_eq!((counted.bytes_written, counted.bytes_read), (2 * UNIT, 2 * UNIT + 1024));
    assert_eq!((counted.bounces, counted.bytes_bounced), (1, 1024));
    assert_eq!((counted.mappings, counted.bytes_zeroed), (5, 0));
    let of_the_queue = pipeline.counters();
    assert_eq!((of_the_queue.submissions, of_the_queue.completions), (4, 4));
}

#[test]
fn dio_rule_31_exhaustion_is_a_value_and_takes_no_memory() {
    let shallow = QueueOptions { depth: 2, ..QueueOptions::default() };
    let few = Options { requests: Some(2), ..Options::default() };
    for options in [few, Options { queue: shallow, ..Options::default() }] {
        let world = world();
        let map = map(&world, 8, Placement::Rising, &[]);
        scatter(&world, &map, 0, 8, 8);
        let mut pipeline = world.pipeline(map.clone(), &options);
        assert_eq!(pipeline.capacity(), 2);
        // One that is plain and one that is not.
        for len in [UNIT, 2 * UNIT] {
            let third = read(&world, 0, len as usize);
            let used = world.device.dma().usage();
            let mine: Vec<_> = (0..2).map(|_| read(&world, 0, len as usize)).collect();
            let used_by_mine = world.device.dma().usage().1 - used.1;
            mine.into_iter().for_each(|io| pipeline.submit(io).expect("there is room"));
            map.take_events();
            let Err(Refused::Full(third)) = pipeline.submit(third) else { panic!("no room") };
            assert_eq!((third.tag, third.memory.len()), (7, len), "it comes back as it was");
            assert_eq!(map.take_events(), [], "nothing was begun for it");
            assert_eq!(map.under_way(), 2);
            assert_eq!(world.device.dma().usage().1 - used.1, used_by_mine);
            pipeline.ring();
            assert_eq!(pipeline.wait(2).len(), 2);
            assert_eq!(pipeline.run(third).bytes, len, "after a poll there is");
        }
        assert_eq!(pipeline.statistics().full, 2);
    }
}

/// A plain request used to be turned away when the commands of others had filled the queue, although fewer
/// requests were under way than the pipeline says it takes.
#[test]
fn dio_rule_31_as_many_requests_are_taken_as_the_pipeline_says() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 8, 8);
    let shallow = QueueOptions { depth: 3, ..QueueOptions::default() };
    let options =
        Options { queue: shallow, requests: Some(6), share: Some(3), ..Options::default() };
    let mut pipeline = world.pipeline(map, &options);
    pipeline.submit(read(&world, 0, 8 * UNIT as usize)).expect("there is room");
    for plain in 0..5 {
        pipeline.submit(read(&world, plain * UNIT, UNIT as usize)).expect("six are taken");
    }
    let Err(Refused::Full(_)) = pipeline.submit(read(&world, 0, UNIT as usize)) else {
        panic!("and no seventh")
    };
    assert_eq!(pipeline.statistics().full, 1);
    for done in pipeline.wait(6) {
        done.result.expect("the medium is sound");
    }
}

// Who waits for whom: rules 32 to 35.

#[test]
fn dio_rule_32_nobody_is_excluded_from_a_raw_volume() {
    let mut world = world();
    let mut raw = world.pipeline(Identity::new(world.device.geometry()), &Options::default());
    raw.submit(Io::write(0, world.pattern(8192, 1), 1)).expect("it is taken");
    raw.submit(Io::write(4096, world.pattern(8192, 2), 2)).expect("it is taken");
    raw.submit(Io::read(0, world.buffer(12288, Access::Both), 3)).expect("it is taken");
    assert_eq!(raw.counters().submissions, 3, "all are with the device");
    raw.ring();
    raw.wait(3).into_iter().for_each(|done| done.result.expect("sound"));
    assert_eq!(raw.statistics().waits, 0);
    assert_eq!(world.look(0, 8), bytes(8192, 1)[..4096]);
}

/// The unit of a read in flight is punched out of its file. Its blocks are still the reader's.
#[test]
fn dio_rule_33_blocks_in_use_are_neither_freed_nor_reused() {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[]);
    place(&map, 0, 0, 8);
    map.set_len(FILE, UNIT);
    let mut reader = world.pipeline(map.clone(), &Options::default());
    let mut writer = world.pipeline(map.clone(), &Options::default());
    let free = map.free_units();
    reader.submit(read(&world, 0, UNIT as usize)).expect("it is taken");
    reader.ring();
    map.punch(FILE, FileBlock(0), BlockCount(8));
    assert_eq!(map.free_units(), free, "not while it is being read");
    // The lowest free unit is taken first, and block 0 is the lowest of all.
    let io = Io::write(0, world.pattern(UNIT as usize, 2), 1).of(FileId(2));
    writer.run(io).result.expect("there is other space");
    assert_eq!(map.units(FileId(2)), [(0, Lba(8))]);
    let done = reader.wait(1).pop().expect("one");
    assert!(stream(&done.memory).iter().all(|byte| *byte == 0x69), "it reads what was there");
    assert_eq!(map.free_units(), free, "one is free, and one is taken");
    let io = Io::write(UNIT, world.pattern(UNIT as usize, 3), 1).of(FileId(2));
    writer.run(io).result.expect("there is space");
    assert_eq!(map.units(FileId(2)), [(0, Lba(8)), (1, Lba(0))]);
}

#[test]
fn dio_rule_33_lookups_wait_for_nobodys_data() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    place(&map, 0, 0, 8);
    map.set_len(FILE, UNIT);
    let mut pipeline = world.pipeline(map, &Options::default());
    pipeline.submit(write(&world, 0, UNIT as usize, 1)).expect("it is taken");
    pipeline.submit(read(&world, 0, UNIT as usize)).expect("it is taken");
    pipeline.submit(write(&world, 0, UNIT as usize, 2)).expect("it is taken");
    assert_eq!((pipeline.counters().submissions, pipeline.statistics().waits), (3, 0));
    pipeline.ring();
    pipeline.wait(3).into_iter().for_each(|done| done.result.expect("sound"));
}

#[test]
fn dio_rule_33_writes_that_extend_a_file_take_turns() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    pipeline.submit(write(&world, 0, UNIT as usize, 1)).expect("it is taken");
    pipeline.submit(write(&world, UNIT, UNIT as usize, 2)).expect("it is taken");
    // Nobody waits for an append to another file.
    let other = Io::write(0, world.pattern(UNIT as usize, 3), 3).of(FileId(2));
    pipeline.submit(other).expect("it is taken");
    assert_eq!((pipeline.counters().submissions, pipeline.statistics().waits), (2, 1));
    assert_eq!(map.under_way(), 2, "the second has not begun");
    pipeline.ring();
    pipeline.wait(3).into_iter().for_each(|done| done.result.expect("a sound write"));
    let ends = map.take_events().into_iter().filter_map(|event| match event {
        Event::Committed { file: FILE, offset, bytes, .. } => Some(offset + bytes),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [UNIT, 2 * UNIT]);
}

/// A map of an engine's own: every block lies somewhere else, and it locks nothing.
struct Mirrored {
    blocks: u64,
}

impl MapBlocks for Mirrored {
    type Guard = ();

    fn begin(&self, _: &Reach) -> Result<Option<Begun<()>>, BlockError> {
        Ok(Some(Begun { guard: (), size: self.blocks * BLOCK }))
    }

    fn map(&self, (): &mut (), at: FileBlock, _: BlockCount) -> Result<Mapping, BlockError> {
        let lba = Lba(self.blocks - 1 - at.0);
        Ok(Mapping::Mapped(Extent { lba, blocks: BlockCount(1), new: false, boundary: false }))
    }

    fn commit(&self, (): (), _: u64) -> Result<Committed, BlockError> {
        Ok(Committed::Now)
    }
}

#[test]
fn dio_rule_34_an_engine_brings_a_map_of_its_own_and_locks_as_it_likes() {
    let mut world = world();
    let blocks = world.soft_blocks();
    let mut pipeline = world.pipeline(Mirrored { blocks }, &Options::default());
    pipeline.submit(Io::write(0, world.pattern(2048, 1), 1)).expect("it is taken");
    pipeline.submit(Io::write(0, world.pattern(1024, 2), 2)).expect("it is taken");
    pipeline.submit(Io::read(0, world.buffer(2048, Access::Both), 3)).expect("it is taken");
    assert_eq!(pipeline.counters().submissions, 4 + 2 + 4, "readers and writers at once");
    pipeline.ring();
    pipeline.wait(3).into_iter().for_each(|done| done.result.expect("sound"));
    let done = pipeline.run(Io::read(0, world.buffer(2048, Access::Both), 4));
    let expected = [&bytes(1024, 2)[..], &bytes(2048, 1)[1024..]].concat();
    assert_eq!(stream(&done.memory), expected);
    let found: Vec<u8> = world.look(blocks - 4, 4).rchunks(512).flatten().copied().collect();
    assert_eq!(found, expected, "from the end of the device backwards");
}

/// Appends of several commands each, and a reader who looks at the file after every single one of them.
#[test]
fn dio_rule_35_a_reader_sees_a_file_before_or_after_an_append() {
    let mut seed = Seed::from_env("readers beside appends");
    let mut world = world();
    world.stain(0);
    let map = map(&world, 2, Placement::Scattered(seed.u64(..)), &[1]);
    let mut writer = world.pipeline(map.clone(), &wide());
    let mut reader = world.pipeline(map, &Options::default());
    let (mut size, mut looks_between) = (0, 0);
    for _ in 0..60 {
        let len = BLOCK * (1 + seed.below(12));
        let before = size;
        let mut buffer = world.buffer(len as usize, Access::Both);
        buffer.fill(0xab);
        writer.submit(Io::write(before, buffer, 1).of(FILE)).expect("it is taken");
        writer.ring();
        let mut appended = false;
        while !appended {
            writer.poll(1, &mut |done| appended = done.into_bytes().expect("sound") == len);
            let done = reader.run(read(&world, 0, (before + len) as usize));
            let found = stream(&done.memory);
            assert!(found[..done.bytes as usize].iter().all(|byte| *byte == 0xab), "no zeroes");
            assert_eq!(done.bytes, if appended { before + len } else { before });
            looks_between += u64::from(!appended);
        }
        size = before + len;
    }
    assert!(looks_between > 60, "{looks_between} looks while an append was under way");
}

/// A raw device with a journal of its own, which a test makes durable.
#[derive(Clone)]
struct Journaled {
    inner: Identity,
    journal: Arc<Mutex<Journal>>,
}

#[derive(Default)]
struct Journal {
    recorded: u64,
    durable: u64,
    failed: bool,
    turns: u64,
}

impl MapBlocks for Journaled {
    type Guard = Durability;

    fn begin(&self, reach: &Reach) -> Result<Option<Begun<Durability>>, BlockError> {
        let Some(Begun { size, .. }) = self.inner.begin(reach)? else { return Ok(None) };
        Ok(Some(Begun { guard: reach.durability, size }))
    }

    fn map(&self, _: &mut Durability, at: FileBlock, n: BlockCount) -> Result<Mapping, BlockError> {
        self.inner.map(&mut (), at, n)
    }

    fn commit(&self, durability: Durability, _: u64) -> Result<Committed, BlockError> {
        let mut journal = self.journal.lock().expect("no test panics under it");
        journal.recorded += 1;
        let mark = Mark(journal.recorded);
        Ok(if durability.is_durable() { Committed::Later(mark) } else { Committed::Now })
    }

    fn sync(&self, _: FileId) -> Result<Option<Mark>, BlockError> {
        Ok(Some(Mark(self.journal.lock().expect("no test panics under it").recorded)))
    }

    fn settled(&self, mark: Mark) -> Result<bool, BlockError> {
        let journal = self.journal.lock().expect("no test panics under it");
        if journal.failed {
            return Err(Cause::Poisoned { what: "the journal".into() }.into());
        }
        Ok(mark.0 <= journal.durable)
    }

    fn turn(&self) {
        self.journal.lock().expect("no test panics under it").turns += 1;
    }
}

#[test]
fn dio_rule_28_a_durable_request_is_answered_after_the_record_of_it() {
    let world = world();
    let inner = Identity::new(world.device.geometry());
    let journal = Arc::<Mutex<Journal>>::default();
    let map = Journaled { inner, journal: Arc::clone(&journal) };
    let mut pipeline = world.pipeline(map, &Options::default());
    let lock = || journal.lock().expect("no test panics under it");

    // A plain one, one of several commands, and one that asks for nothing.
    let memory = world.buffer(4 << 20, Access::Both);
    pipeline.submit(Io::write(0, world.pattern(4096, 1), 1).durable()).expect("it is taken");
    pipeline.submit(Io::write(0, memory, 2).with(Durability::Full)).expect("it is taken");
    pipeline.submit(Io::write(8192, world.pattern(4096, 1), 3)).expect("it is taken");
    pipeline.ring();
    let lazy = pipeline.wait(1).pop().expect("one");
    assert_eq!(lazy.tag, 3, "whoever asks for nothing waits for nothing");
    let mut none = |done: Done| panic!("{done:?} is not durable yet");
    (0..100).for_each(|_| assert_eq!(pipeline.poll(8, &mut none), 0));
    assert_eq!((pipeline.inflight(), lock().recorded), (2, 3));
    assert!(lock().turns >= 100, "every poll gives the map a turn");

    // The journal settles one after the other, and the flush behind them with the last.
    pipeline.submit(Io::bare(0, Action::Flush, 4)).expect("it is taken");
    lock().durable = 2;
    let two: Vec<u64> = pipeline.wait(2).into_iter().map(|done| done.tag).collect();
    assert_eq!(two.len(), 2);
    assert_eq!(pipeline.poll(8, &mut none), 0, "the flush covers the lazy one as well");
    lock().durable = 3;
    let flushed = pipeline.wait(1).pop().expect("one");
    flushed.result.expect("a sound flush");
    assert_eq!(pipeline.counters().submissions, 1 + 4 + 1, "and is the map's affair alone");

    // What will never be durable fails, with its memory.
    pipeline.submit(Io::write(0, world.pattern(4096, 1), 5).durable()).expect("it is taken");
    pipeline.ring();
    assert_eq!(pipeline.poll(8, &mut none), 0);
    lock().failed = true;
    let failed = pipeline.wait(1).pop().expect("one");
    assert_eq!(failed.result.expect_err("never").kind(), ErrorKind::Poisoned);
    assert!(matches!(failed.memory, Memory::One(_)));
    assert_eq!(pipeline.inflight(), 0);
}
