//! How many commands and doorbells a request is, as the controller sees it.

use udirect::block::BlockDevice;
use udirect::block::{Identity, MapBlocks, Placement, QueueOptions, ScriptedMap};
use udirect::dio::{Io, Options, Pipeline};
use udirect::dma::Access;
use udirect::spec::command::NvmOpcode;

use crate::bed::{Device, Drive, FILE, World, bytes, map, read, scatter, spans, stream, write};

const MIB: usize = 1 << 20;

/// What the controller and the queue have counted: I/O commands, doorbells noticed, doorbells rung.
fn counts<M: MapBlocks>(world: &World, pipeline: &Pipeline<M>) -> [u64; 3] {
    let of_the_controller = world.soft.counters();
    let rung = pipeline.counters().sq_doorbells;
    [of_the_controller.io_total(), of_the_controller.doorbells, rung]
}

fn since(now: [u64; 3], before: [u64; 3]) -> [u64; 3] {
    [0, 1, 2].map(|index| now[index] - before[index])
}

fn deep(depth: u32) -> QueueOptions {
    QueueOptions { depth, ..QueueOptions::default() }
}

#[test]
fn a_request_of_1_mib_on_one_extent_is_one_command_and_one_doorbell() {
    let world = World::new(&Device::default());
    let file = map(&world, 8, Placement::Rising, &[]);
    crate::bed::place(&file, 0, 4096, 2048);
    file.set_len(FILE, 1 << 20);
    let mut pipeline = world.pipeline(file, &Options::default());
    for n in 0..2 {
        let before = counts(&world, &pipeline);
        let io = if n == 0 { write(&world, 0, MIB, 1) } else { read(&world, 0, MIB) };
        let done = pipeline.run(io);
        assert_eq!(stream(&done.memory), bytes(MIB, 1));
        assert_eq!(since(counts(&world, &pipeline), before), [1, 1, 1]);
        assert_eq!(spans(&world.watcher.take()), [(4096, 2048)]);
    }
    let mut raw = world.pipeline(Identity::new(world.device.geometry()), &Options::default());
    let before = counts(&world, &raw);
    raw.run(Io::read(1 << 20, world.buffer(MIB, Access::Both), 1)).result.expect("sound");
    assert_eq!(since(counts(&world, &raw), before), [1, 1, 1]);
    assert_eq!(raw.statistics().direct, 1, "as it came");
}

/// 256 extents of 4 KiB with gaps between them.
fn scattered() -> (World, ScriptedMap) {
    let world = World::new(&Device::default());
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 0, 256, 8);
    (world, map)
}

#[test]
fn scattered_extents_are_a_command_each_and_one_doorbell_in_all_where_the_queue_is_deep() {
    let (world, map) = scattered();
    let options =
        Options { queue: deep(512), share: Some(256), reap_every: 1000, ..Options::default() };
    let mut pipeline = world.pipeline(map, &options);
    for n in 0..2 {
        let before = counts(&world, &pipeline);
        let io = if n == 0 { write(&world, 0, MIB, 1) } else { read(&world, 0, MIB) };
        assert_eq!(stream(&pipeline.run(io).memory), bytes(MIB, 1));
        assert_eq!(since(counts(&world, &pipeline), before), [256, 1, 1]);
        let expected: Vec<_> = (0..256).map(|n| (16 * n, 8)).collect();
        assert_eq!(spans(&world.watcher.take()), expected);
    }
}

/// A batch is what is sent before finished commands are looked for, or as much as a request may have out.
#[test]
fn scattered_extents_are_one_doorbell_for_each_batch() {
    for (share, reap_every, batch) in [(256, 64, 64), (256, 32, 32), (16, 64, 16)] {
        let (world, map) = scattered();
        let share = Some(share);
        let options = Options { queue: deep(512), share, reap_every, ..Options::default() };
        let mut pipeline = world.pipeline(map, &options);
        let before = counts(&world, &pipeline);
        pipeline.submit(read(&world, 0, MIB)).expect("it is taken");
        pipeline.ring();
        let mut done = None;
        while done.is_none() {
            // As many as there are: who takes one command at a time has it followed by one at a time.
            pipeline.poll(usize::MAX, &mut |one| done = Some(one));
        }
        assert_eq!(done.expect("the loop ended").bytes, 1 << 20);
        assert_eq!(since(counts(&world, &pipeline), before), [256, 256 / batch, 256 / batch]);
    }
}

#[test]
fn a_request_of_128_mib_keeps_no_more_than_its_share_in_flight() {
    for scattered in [false, true] {
        let world = World::new(&Device { bytes: 272 << 20, ..Device::default() });
        // In units of 1 MiB, which is also the most of one command.
        let map = map(&world, 2048, Placement::Rising, &[]);
        match scattered {
            true => scatter(&world, &map, 0, 128, 2048),
            false => {
                crate::bed::place(&map, 0, 0, 128 * 2048);
                map.set_len(FILE, 128 << 20);
            }
        }
        let options = Options { queue: deep(64), share: Some(5), ..Options::default() };
        let mut pipeline = world.pipeline(map, &options);
        let small = read(&world, 0, 4096);
        pipeline.submit(read(&world, 0, 128 * MIB)).expect("it is taken");
        pipeline.ring();
        let (mut done, mut most) = (None, 0);
        while done.is_none() {
            let counters = pipeline.counters();
            most = most.max(counters.submissions - counters.completions);
            pipeline.poll(1, &mut |one| done = Some(one));
        }
        assert_eq!(most, 5, "its share, and all of it");
        let done = done.expect("the loop ended");
        assert_eq!(done.into_bytes().expect("a sound read"), 128 << 20);
        assert_eq!(world.watcher.take().len(), 128);
        pipeline.run(small).result.expect("a sound read");
    }
}

#[test]
fn a_large_request_leaves_room_for_small_ones() {
    let (world, map) = scattered();
    let options = Options { queue: deep(8), share: Some(6), ..Options::default() };
    let mut pipeline = world.pipeline(map, &options);
    let mut large = read(&world, 0, MIB);
    large.tag = 1;
    pipeline.submit(large).expect("it is taken");
    pipeline.submit(read(&world, 0, 4096)).expect("there is room");
    assert_eq!(pipeline.counters().submissions, 6 + 1);
    pipeline.ring();
    let tags: Vec<u64> = pipeline.wait(2).into_iter().map(|done| done.tag).collect();
    assert_eq!(tags, [7, 1], "the small one does not wait for the large one's end");
}

#[test]
fn neighbours_of_one_batch_share_a_command_where_that_is_asked_for() {
    for (merge, commands) in [(false, 32), (true, 1)] {
        let mut world = World::new(&Device::default());
        let options = Options { merge, ..Options::default() };
        let mut pipeline = world.pipeline(Identity::new(world.device.geometry()), &options);
        let before = counts(&world, &pipeline);
        for n in 0..32 {
            let io = Io::write(n * 4096, world.pattern(4096, n), n);
            pipeline.submit(io).expect("it is taken");
        }
        pipeline.ring();
        let mut tags: Vec<u64> = Vec::new();
        for done in pipeline.wait(32) {
            assert_eq!(stream(&done.memory), bytes(4096, done.tag), "each has its own memory");
            tags.push(done.tag);
            assert_eq!(done.into_bytes().expect("a sound write"), 4096);
        }
        assert!(tags.is_sorted() && tags.len() == 32, "{tags:?}");
        assert_eq!(since(counts(&world, &pipeline), before), [commands, 1, 1]);
        assert_eq!(pipeline.statistics().merges, 32 - commands);
        assert_eq!(pipeline.statistics().commands, commands);
        let expected: Vec<u8> = (0..32).flat_map(|n| bytes(4096, n)).collect();
        assert_eq!(world.look(0, 256), expected);
    }
}

/// Requests that do not lie side by side, or do different things, or come in another batch, share nothing.
#[test]
fn only_neighbours_of_one_kind_and_one_batch_share_a_command() {
    let world = World::new(&Device::default());
    let options = Options { merge: true, ..Options::default() };
    let mut pipeline = world.pipeline(Identity::new(world.device.geometry()), &options);
    let buffer = || world.buffer(4096, Access::Both);
    let mut commands = |batches: Vec<Vec<Io>>| {
        let count = batches.iter().map(Vec::len).sum();
        for batch in batches {
            batch.into_iter().for_each(|io| pipeline.submit(io).expect("it is taken"));
            pipeline.ring();
        }
        pipeline.wait(count).into_iter().for_each(|done| done.result.expect("sound"));
        world.watcher.take().into_iter().map(|one| (one.opcode, one.lba, one.blocks)).collect()
    };
    let (read, write) = (NvmOpcode::READ.0, NvmOpcode::WRITE.0);
    let first = || Io::write(0, buffer(), 1);
    let found: Vec<_> = commands(vec![vec![first(), Io::write(8192, buffer(), 2)]]);
    assert_eq!(found, [(write, 0, 8), (write, 16, 8)], "a gap");
    let found: Vec<_> = commands(vec![vec![first(), Io::read(4096, buffer(), 2)]]);
    assert_eq!(found, [(write, 0, 8), (read, 8, 8)], "another kind");
    let found: Vec<_> = commands(vec![vec![first(), Io::write(4096, buffer(), 2).durable()]]);
    assert_eq!(found, [(write, 0, 8), (write, 8, 8)], "another promise");
    let found: Vec<_> = commands(vec![vec![first()], vec![Io::write(4096, buffer(), 2)]]);
    assert_eq!(found, [(write, 0, 8), (write, 8, 8)], "another batch");
    let found: Vec<_> = commands(vec![vec![Io::write(4096, buffer(), 2), first()]]);
    assert_eq!(found, [(write, 8, 8), (write, 0, 8)], "backwards");
}

/// One command for three requests fails: each hears of it, with its own memory back.
#[test]
fn a_shared_command_that_fails_is_told_to_each_owner() {
    let world = World::new(&Device::default());
    let options = Options { merge: true, ..Options::default() };
    let mut pipeline = world.pipeline(Identity::new(world.device.geometry()), &options);
    world.watcher.fail(NvmOpcode::READ, 9, udirect::spec::status::Status::UNRECOVERED_READ);
    for n in 0..3 {
        pipeline.submit(Io::read(n * 4096, world.buffer(4096, Access::Both), n)).expect("taken");
    }
    pipeline.ring();
    let done = pipeline.wait(3);
    let spans = spans(&world.watcher.take());
    assert_eq!(spans, [(0, 24), (0, 12), (0, 6), (6, 3), (9, 2), (9, 1)], "and by halves");
    for (n, done) in (0u64..).zip(done) {
        assert_eq!((done.tag, done.bytes, done.memory.len()), (n, 0, 4096));
        let error = done.result.expect_err("the medium has failed");
        let text = error.to_string();
        assert!(text.starts_with("the medium failed at block 0x9, within 1 blocks"), "{text}");
    }
    assert_eq!(pipeline.inflight(), 0);
}
