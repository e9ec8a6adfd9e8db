//! Blocks that hold nothing of the file yet: holes, preallocated ones, and those of writes that fail.

use std::collections::{BTreeMap, BTreeSet};

use udirect::block::{ErrorKind, Placement, QueueOptions};
use udirect::dio::{Io, Options};
use udirect::dma::PagePolicy;
use udirect::seed::Seed;
use udirect::soft::Execution;
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::{BlockCount, FileBlock};

use crate::bed::{
    Device, Drive, FILE, Setup, World, assert_same, bytes, fill, read, stream, write,
};

use super::{KIB, MIB, OLD, device, push};

/// Writes into a hole of a file from many requests, and reads around each as soon as it has come back.
fn fill_holes(seed: &mut Seed, unit: u64, execution: Execution) {
    const SLOT: u64 = 16 * KIB;
    const SLOTS: u64 = 128;
    let mut world = World::with(&device(8 * MIB), PagePolicy::Ordinary, execution);
    world.stain(OLD);
    let placement = Placement::Scattered(seed.u64(..));
    let mut setup = Setup::over(world, unit, placement, &Options::default());
    setup.map.set_len(FILE, SLOT * SLOTS);
    let mut slots: Vec<u64> = (0..SLOTS).collect();
    seed.shuffle(&mut slots);
    // Where in its slot, and the bytes. Some slots stay holes.
    let mut wanted = BTreeMap::new();
    let (mut next, mut checked) = (slots.iter().take(100), 0);
    let (mut reading, mut back) = (BTreeSet::new(), Vec::new());
    loop {
        while setup.pipeline.inflight() < 32 {
            let Some(&slot) = next.next() else { break };
            let start = 512 * seed.below(SLOT / 512);
            let len = 512 * (1 + seed.below((SLOT - start) / 512));
            let mut good = vec![0; SLOT as usize];
            fill(&mut good[start as usize..][..len as usize], slot);
            wanted.insert(slot, good);
            let memory = setup.world.pattern(len as usize, slot);
            let io = Io::write(slot * SLOT + start, memory, slot).of(FILE);
            push(&mut setup.pipeline, io, &mut back);
        }
        setup.pipeline.ring();
        if back.is_empty() && setup.pipeline.inflight() == 0 {
            break;
        }
        let done = back.pop().unwrap_or_else(|| setup.pipeline.wait(1).pop().expect("one"));
        done.result.as_ref().expect("a request");
        if reading.remove(&done.tag) {
            checked += 1;
            let (found, slot) = (stream(&done.memory), done.tag);
            assert_same(&found, &wanted[&slot], format_args!("slot {slot} after its write"));
        } else {
            reading.insert(done.tag);
            let around = read(&setup.world, done.tag * SLOT, SLOT as usize);
            push(&mut setup.pipeline, Io { tag: done.tag, ..around }, &mut back);
        }
    }
    assert_eq!(checked, 100);
    assert_eq!(setup.map.len(FILE), SLOT * SLOTS, "nothing moved the end");
    for slot in 0..SLOTS {
        let found = setup.read(slot * SLOT, SLOT as usize);
        let good = wanted.remove(&slot).unwrap_or_else(|| vec![0; SLOT as usize]);
        assert_same(&found, &good, format_args!("slot {slot} at the end"));
    }
    setup.finish();
}

// 198 has asynchronous writers fill holes, and looks whether data is read where and when it was written.
// Here: 100 writes, 32 in flight, at random places of holes; each is read with its surroundings once back.
#[test]
fn xfs_generic_198_asynchronous_writes_into_holes_land_where_they_should() {
    let mut seed = Seed::from_env("generic 198");
    for unit in [1, 8, 32] {
        for execution in [Execution::Inline, Execution::Thread] {
            fill_holes(&mut seed, unit, execution);
        }
    }
}

// 240 fills parts of one filesystem block from requests that each want to zero the rest of it.
// Here: the blocks of a unit are written one by one, all at once; each survives, and what is left is zeroes.
#[test]
fn xfs_generic_240_parts_of_a_unit_leave_no_zeroed_gaps() {
    const UNITS: u64 = 4;
    let mut seed = Seed::from_env("generic 240");
    for unit in [2_u64, 8, 64] {
        for (preallocated, execution) in [
            (false, Execution::Inline),
            (true, Execution::Inline),
            (false, Execution::Thread),
            (true, Execution::Thread),
        ] {
            let mut world = World::with(&device(2 * MIB), PagePolicy::Ordinary, execution);
            world.stain(OLD);
            let options = Options {
                queue: QueueOptions { depth: 300, ..QueueOptions::default() },
                ..Options::default()
            };
            let mut setup = Setup::over(world, unit, Placement::Rising, &options);
            for round in 0..10 {
                let blocks = UNITS * unit;
                setup.map.set_len(FILE, 0);
                setup.map.set_len(FILE, blocks * 512);
                if preallocated {
                    setup.map.preallocate(FILE, FileBlock(0), BlockCount(blocks));
                }
                let mut order: Vec<u64> = (0..blocks).collect();
                seed.shuffle(&mut order);
                // In odd rounds some blocks are left out.
                order.truncate((blocks - (round % 2) * (blocks / 3)) as usize);
                let mut good = vec![0; (blocks * 512) as usize];
                for &block in &order {
                    let salt = round << 32 | block;
                    fill(&mut good[(block * 512) as usize..][..512], salt);
                    let io = write(&setup.world, block * 512, 512, salt);
                    setup.pipeline.submit(io).expect("there is room for all");
                }
                setup.pipeline.ring();
                for done in setup.pipeline.wait(order.len()) {
                    assert_eq!(done.into_bytes().expect("a write"), 512);
                }
                let found = setup.read(0, good.len());
                assert_same(&found, &good, format_args!("round {round} in units of {unit}"));
            }
            assert!(setup.pipeline.statistics().waits > 0, "they were in each other's way");
            setup.finish();
        }
    }
}

// 214 looks at preallocated extents: they read as zeroes, and writes turn into data just what they wrote.
// Here: the same on a stained device, with writes at either edge, in the middle, backwards, and over the end.
#[test]
fn xfs_generic_214_preallocated_blocks_read_as_zeroes_around_what_is_written() {
    const BYTES: u64 = 256 * KIB;
    for unit in [1, 8, 128] {
        let mut setup = Setup::new(&device(4 * MIB), unit);
        setup.world.stain(OLD);
        let mut good = vec![0; BYTES as usize];
        setup.map.set_len(FILE, BYTES);
        setup.map.preallocate(FILE, FileBlock(0), BlockCount(BYTES / 512));
        let free = setup.map.free_units();
        assert_same(&setup.read(0, good.len()), &good, format_args!("before any write"));

        let middle = BYTES / 2;
        let mut places = vec![
            (0, 512),
            (BYTES - 512, 512),
            (middle - 512, 1024),
            (middle + 8192 + 512, 64 * KIB),
            (4096, 4096),
        ];
        places.extend((0..16).rev().map(|at| (32 * KIB + at * 1024, 512)));
        for (salt, (offset, len)) in (0..).zip(places) {
            let data = bytes(len as usize, salt);
            setup.write(offset, &data);
            good[offset as usize..][..data.len()].copy_from_slice(&data);
            let found = setup.read(0, good.len());
            assert_same(&found, &good, format_args!("after {len} bytes at {offset}"));
        }
        assert_eq!(setup.map.free_units(), free, "what was preallocated was used");

        // Space beyond the end makes no file longer, until something is written there.
        setup.map.preallocate(FILE, FileBlock(BYTES / 512), BlockCount(1024));
        assert!(setup.read(BYTES, 4096).is_empty(), "no byte is there yet");
        let data = bytes(512, 99);
        setup.write(BYTES + 1024, &data);
        good.resize(BYTES as usize + 1024, 0);
        good.extend_from_slice(&data);
        let found = setup.read(0, good.len() + 4096);
        assert_same(&found, &good, format_args!("after a write beyond the end"));
        setup.finish();
    }
}

/// The files of 250 and 252: 640 chunks of 64 KiB on a device with something old on it.
const CHUNK: u64 = 64 * KIB;
const CHUNKS: u64 = 640;

fn old_device(unit: u64, execution: Execution) -> Setup {
    // Commands of 16 KiB: some of a chunk have been done when one fails.
    let device = Device { mdts: Some(16 << 10), ..device(48 * MIB) };
    let mut world = World::with(&device, PagePolicy::Ordinary, execution);
    world.stain(OLD);
    let setup = Setup::over(world, unit, Placement::Rising, &Options::default());
    setup.map.set_len(FILE, CHUNK * CHUNKS);
    setup
}

/// Every block is zeroes or one of the two: new data where there may be some.
fn assert_nothing_old(found: &[u8], data: Option<&[u8]>, what: std::fmt::Arguments<'_>) {
    for (index, block) in (0..).zip(found.as_chunks::<512>().0) {
        let new = data.is_some_and(|data| data[index * 512..][..512] == block[..]);
        let zero = block.iter().all(|byte| *byte == 0);
        assert!(zero || new, "{what}, block {index}: {:x?}", &block[..16]);
    }
}

// 250 writes into preallocated space of a device full of 0x69 that fails, and looks for 0x69 in the file.
// Here: 640 writes of 64 KiB, half of which fail at some block and read as zeroes until they are done again.
#[test]
fn xfs_generic_250_a_failed_write_into_new_blocks_uncovers_nothing_old() {
    let mut seed = Seed::from_env("generic 250");
    for (unit, preallocated) in [(8, true), (128, true), (8, false)] {
        let mut setup = old_device(unit, Execution::Inline);
        if preallocated {
            setup.map.preallocate(FILE, FileBlock(0), BlockCount(CHUNK * CHUNKS / 512));
        }
        let mut failed = Vec::new();
        // One block short at both ends, so that edges are zeroed, too.
        let (inset, len) = (512, CHUNK - 1024);
        for chunk in 0..CHUNKS {
            let fails = seed.chance(1, 2);
            if fails {
                // Space that is not preallocated is taken from the front, where a failure gives it back to.
                let at = if preallocated { chunk } else { chunk - failed.len() as u64 };
                let lba = at * CHUNK / 512 + seed.below(CHUNK / 512);
                setup.world.watcher.fail(NvmOpcode::WRITE, lba, Status::WRITE_FAULT);
            }
            let io = write(&setup.world, chunk * CHUNK + inset, len as usize, chunk);
            let done = setup.pipeline.run(io);
            setup.world.watcher.relent();
            let found = setup.read(chunk * CHUNK, CHUNK as usize);
            if fails {
                let error = done.result.expect_err("the device failed");
                assert_eq!(error.kind(), ErrorKind::Media);
                failed.push(chunk);
                assert_nothing_old(&found, None, format_args!("chunk {chunk} after its failure"));
            } else {
                assert_eq!(done.into_bytes().expect("a write"), len);
            }
        }
        assert!(!failed.is_empty(), "a coin shows both sides in 640 throws");
        for chunk in &failed {
            let io = write(&setup.world, chunk * CHUNK + inset, len as usize, *chunk);
            setup.pipeline.run(io).into_bytes().expect("the device is well again");
        }
        for chunk in 0..CHUNKS {
            let mut good = vec![0; CHUNK as usize];
            fill(&mut good[512..][..len as usize], chunk);
            let found = setup.read(chunk * CHUNK, CHUNK as usize);
            assert_same(&found, &good, format_args!("chunk {chunk} in the end"));
        }
        setup.finish();
    }
}

// 252 is 250 with asynchronous writes.
// Here: the 640 chunks go out in batches of 16, each with reads among them and a block that fails now and then.
#[test]
fn xfs_generic_252_asynchronous_writes_that_fail_uncover_nothing_old() {
    const BATCH: u64 = 16;
    const READING: u64 = 1 << 32;
    let mut seed = Seed::from_env("generic 252");
    for execution in [Execution::Inline, Execution::Thread] {
        let mut setup = old_device(8, execution);
        setup.map.preallocate(FILE, FileBlock(0), BlockCount(CHUNK * CHUNKS / 512));
        let good = |chunk| bytes(CHUNK as usize, chunk);
        let mut failed = BTreeSet::new();
        for batch in 0..CHUNKS / BATCH {
            let chunks = batch * BATCH..(batch + 1) * BATCH;
            let bad = seed.chance(3, 4).then(|| chunks.start + seed.below(BATCH));
            if let Some(chunk) = bad {
                let lba = chunk * CHUNK / 512 + seed.below(CHUNK / 512);
                setup.world.watcher.fail(NvmOpcode::WRITE, lba, Status::WRITE_FAULT);
            }
            let mut done = Vec::new();
            for chunk in chunks.clone() {
                let io = write(&setup.world, chunk * CHUNK, CHUNK as usize, chunk);
                push(&mut setup.pipeline, Io { tag: chunk, ..io }, &mut done);
                setup.pipeline.ring();
                let other = chunks.start + seed.below(BATCH);
                let io = read(&setup.world, other * CHUNK, CHUNK as usize);
                push(&mut setup.pipeline, Io { tag: READING | other, ..io }, &mut done);
            }
            setup.pipeline.ring();
            let left = setup.pipeline.inflight();
            done.extend(setup.pipeline.wait(left));
            assert_eq!(done.len() as u64, 2 * BATCH);
            setup.world.watcher.relent();
            for done in done {
                let chunk = done.tag & !READING;
                if done.tag & READING != 0 {
                    done.result.expect("reads go well");
                    let found = stream(&done.memory);
                    let what = format_args!("chunk {chunk} while it is written");
                    assert_nothing_old(&found, Some(&good(chunk)), what);
                } else if Some(chunk) == bad {
                    let error = done.result.expect_err("its device failed");
                    assert_eq!(error.kind(), ErrorKind::Media);
                    failed.insert(chunk);
                } else {
                    assert_eq!(done.into_bytes().expect("its device is well"), CHUNK);
                }
            }
        }
        assert!(!failed.is_empty(), "three of four batches have one that fails");
        for chunk in 0..CHUNKS {
            let found = setup.read(chunk * CHUNK, CHUNK as usize);
            let wanted =
                if failed.contains(&chunk) { vec![0; CHUNK as usize] } else { good(chunk) };
            assert_same(&found, &wanted, format_args!("chunk {chunk} in the end"));
        }
        setup.finish();
    }
}
