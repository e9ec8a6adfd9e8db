//! What the tests of a grown filesystem look for, asked of the pipeline.
//!
//! Each test takes its number from the generic group of xfstests, and says in two lines what the original
//! looks for and how that is put here. Requests are whole blocks; the map plays the filesystem. `holes` has
//! those about blocks that hold nothing of the file yet, `memory` those about where a request's bytes lie.

mod holes;
mod memory;

use std::collections::BTreeMap;
use std::ops::Range;

use udirect::block::Placement;
use udirect::dio::{Done, Io, IoVector, Memory, Options, Pipeline, Refused};
use udirect::dma::{Access, PagePolicy};
use udirect::seed::Seed;
use udirect::soft::Execution;
use udirect::units::{BlockCount, FileBlock, FileId};

use crate::bed::{
    Device, Drive, FILE, Setup, UNTOUCHED, World, assert_rest, assert_same, bytes, read, stream,
    write,
};
use crate::fsx::Mix;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a device holds that somebody used before.
const OLD: u8 = 0x69;

/// A device of so many bytes in blocks of 512.
fn device(bytes: u64) -> Device {
    Device { bytes, ..Device::default() }
}

/// Submits a request, however often the pipeline has to be polled first; keeps what comes back meanwhile.
fn push<M: udirect::block::MapBlocks>(pipeline: &mut Pipeline<M>, io: Io, done: &mut Vec<Done>) {
    let mut io = io;
    loop {
        io = match pipeline.submit(io) {
            Ok(()) => return,
            Err(Refused::Full(io)) => io,
            Err(Refused::Invalid(io, error)) => panic!("{error}: {io:?}"),
        };
        pipeline.ring();
        done.extend(pipeline.wait(1));
    }
}

/// Fills each block with one word that says whose it is.
fn words(len: u64, word: u64) -> Vec<u8> {
    word.to_le_bytes().repeat(len as usize / 8)
}

/// The word that all of a block is made of.
#[track_caller]
fn word_of(block: &[u8]) -> u64 {
    let (words, rest) = block.as_chunks::<8>();
    assert!(rest.is_empty());
    assert!(words.iter().all(|word| *word == words[0]), "a block is made of one word");
    u64::from_le_bytes(words[0])
}

// 091 mixes direct reads, writes, sizes and holes at random, for several request lengths and alignments.
// Here: the same mixes, over units, placements and answers of the map that differ as well.
#[test]
fn xfs_generic_091_random_mixes_of_direct_requests_agree_with_an_array() {
    let mut seed = Seed::from_env("generic 091");
    let scattered = Placement::Scattered(seed.u64(..));
    let mixes = [
        (8192, 4096, 512, 512, 8, Placement::Rising),
        (8192, 512, 512, 512, 1, scattered),
        (32_768, 4096, 512, 512, 64, Placement::Falling),
        (32_768, 512, 512, 1, 8, scattered),
        (128_000, 4096, 4096, 4096, 8, Placement::Rising),
        (128_000, 512, 512, 512, 2, Placement::Falling),
    ];
    for (longest, read_step, write_step, size_step, unit, placement) in mixes {
        let answers: &[u64] = if unit == 8 { &[1, 3, 7] } else { &[] };
        let steps = Mix { read_step, write_step, size_step, ..Mix::default() };
        Mix { longest, unit, placement, answers, ..steps }.run(&mut seed);
    }
}

// 113 keeps many asynchronous requests in flight over several files, in order and at random, and checks data.
// Here: four files get that from many in flight, four others from one at a time; all read the same.
#[test]
fn xfs_generic_113_many_in_flight_do_what_one_at_a_time_does() {
    const RECORD: u64 = 64 * KIB;
    const RECORDS: u64 = 32;
    const FILES: u64 = 4;
    let mut seed = Seed::from_env("generic 113");
    let device = Device { mdts: Some(16 << 10), ..device(32 * MIB) };
    let world = World::with(&device, PagePolicy::Ordinary, Execution::Thread);
    let placement = Placement::Scattered(seed.u64(..));
    let mut setup = Setup::over(world, 16, placement, &Options::default());
    let (asynchronous, synchronous) = (|file| FileId(0x10 + file), |file| FileId(0x20 + file));

    let mut places: Vec<(u64, u64)> =
        (0..FILES * RECORDS).map(|at| (at % FILES, at / FILES)).collect();
    let mut salts = BTreeMap::new();
    for phase in 0..6_u64 {
        if phase >= 2 {
            seed.shuffle(&mut places);
        }
        let writes = phase % 2 == 0;
        let mut done = Vec::new();
        for (tag, (file, record)) in (0..).zip(&places) {
            let (offset, salt) = (record * RECORD, phase << 32 | tag);
            let io = if writes {
                salts.insert((*file, *record), salt);
                Io::write(offset, setup.world.pattern(RECORD as usize, salt), tag)
            } else {
                Io { tag, ..read(&setup.world, offset, RECORD as usize) }
            };
            push(&mut setup.pipeline, io.of(asynchronous(*file)), &mut done);
            if seed.chance(1, 8) {
                setup.pipeline.ring();
            }
        }
        setup.pipeline.ring();
        let left = setup.pipeline.inflight();
        done.extend(setup.pipeline.wait(left));
        assert_eq!(done.len(), places.len());
        done.sort_by_key(|done| done.tag);
        for (done, (file, record)) in done.into_iter().zip(&places) {
            done.result.as_ref().expect("a request");
            assert_eq!(done.bytes, RECORD, "phase {phase}, record {record} of file {file}");
            let salt = salts[&(*file, *record)];
            let offset = record * RECORD;
            let io = if writes {
                Io::write(offset, setup.world.pattern(RECORD as usize, salt), 0)
            } else {
                let found = stream(&done.memory);
                let what = format_args!("record {record} of file {file}, many in flight");
                assert_same(&found, &bytes(RECORD as usize, salt), what);
                read(&setup.world, offset, RECORD as usize)
            };
            let alone = setup.pipeline.run(io.of(synchronous(*file)));
            assert_eq!(stream(&done.memory), stream(&alone.memory), "the same one at a time");
            assert_eq!(alone.into_bytes().expect("a request"), RECORD);
        }
    }
    for file in 0..FILES {
        let sizes = [asynchronous(file), synchronous(file)].map(|file| setup.map.len(file));
        assert_eq!(sizes, [RECORD * RECORDS; 2]);
    }
    setup.finish();
}

// 130 walks through the calls of direct I/O once: sparse files, their ends, appends, and vectors of segments.
// Here: the same walk, with a device that was stained before and vectors of up to 1024 segments.
#[test]
fn xfs_generic_130_vectors_holes_ends_and_appends() {
    for unit in [1, 8] {
        let mut setup = Setup::new(&device(16 * MIB), unit);
        setup.world.stain(OLD);

        // A sparse file: data far out, nothing before it.
        let data = bytes(8192, 1);
        setup.write(MIB, &data);
        assert_eq!(setup.map.len(FILE), MIB + 8192);
        let found = setup.read(MIB - 4096, 16_384);
        assert_same(&found[..4096], &[0; 4096], format_args!("the hole before the data"));
        assert_same(&found[4096..], &data, format_args!("the data up to the end"));

        // A vector out, and in again through segments of other lengths.
        let data = bytes(1024 * 512, 2);
        let blocks = data.as_chunks::<512>().0;
        let buffers = blocks.iter().map(|block| {
            let mut buffer = setup.world.buffer(512, Access::Both);
            buffer.copy_from_slice(block);
            buffer
        });
        let io = Io::write(0, Memory::list(buffers), 0).of(FILE);
        assert_eq!(setup.pipeline.run(io).into_bytes().expect("a vector"), 1024 * 512);
        let mut vector = IoVector::new();
        for len in [4096, 512, 100 * 512, 8192, 787 * 512, 1536 * 64] {
            let mut buffer = setup.world.buffer(len, Access::Both);
            buffer.fill(UNTOUCHED);
            vector = vector.with(buffer);
        }
        let done = setup.pipeline.run(Io::read(0, vector, 0).of(FILE));
        assert_eq!((done.bytes, done.result.is_ok()), (done.memory.len(), true));
        let mut wanted = data.clone();
        wanted.resize(done.memory.len() as usize, 0);
        assert_same(
            &stream(&done.memory),
            &wanted,
            format_args!("a vector, and the hole after it"),
        );
        drop(done);

        // The end, from before it, at it, and past it, into a vector.
        for (before, wanted) in [(512, 512), (0, 0)] {
            let offset = MIB + 8192 - before;
            let mut vector = IoVector::new();
            for len in [512, 4096] {
                let mut buffer = setup.world.buffer(len, Access::Both);
                buffer.fill(UNTOUCHED);
                vector = vector.with(buffer);
            }
            let done = setup.pipeline.run(Io::read(offset, vector, 0).of(FILE));
            assert_rest(&stream(&done.memory), done.bytes, 512);
            assert_eq!(done.into_bytes().expect("a read"), wanted);
        }

        // Cut to nothing and written again block by block, nothing of before comes back.
        setup.map.set_len(FILE, 0);
        let mut good = Vec::new();
        for round in 0..20 {
            let data = bytes(512 * (1 + round % 3), 100 + round as u64);
            setup.write(good.len() as u64, &data);
            good.extend_from_slice(&data);
            let found = setup.read(0, good.len() + 8192);
            assert_same(&found, &good, format_args!("append {round}"));
        }
        setup.map.set_len(FILE, MIB);
        good.resize(MIB as usize, 0);
        assert_same(&setup.read(0, MIB as usize), &good, format_args!("grown without data"));
        setup.finish();
    }
}

// 210 reads 4 KiB of a file whose last block has 300 bytes, and asks for 300.
// Here: the same, with the file alone in its unit or at the end of a longer one, and all memory checked.
#[test]
fn xfs_generic_210_the_last_block_of_300_bytes_reads_as_300() {
    for unit in [1, 8] {
        for before in [0, 512, 4096, 64 * KIB] {
            let mut setup = Setup::new(&device(MIB), unit);
            let data = bytes(before as usize + 512, 3);
            setup.write(0, &data);
            let size = before + 300;
            setup.map.set_len(FILE, size);
            // `read` looks at the rest of the memory.
            let found = setup.read(before, 4096);
            let wanted = &data[before as usize..size as usize];
            assert_same(&found, wanted, format_args!("300 bytes after {before}"));
            assert!(setup.read(before + 512, 4096).is_empty(), "at the end");
            assert!(setup.read(before + 4096, 4096).is_empty(), "past the end");
            setup.finish();
        }
    }
}

// 450 reads at, over and past the end of files, and asks for the bytes that there are or 0, never less.
// Here: ten such cases, each one by one and all of them in flight together.
#[test]
fn xfs_generic_450_reads_at_and_past_the_end_return_what_there_is() {
    // Size, offset, length, bytes.
    const CASES: [(u64, u64, usize, u64); 10] = [
        (0, 0, 4096, 0),
        (300, 0, 4096, 300),
        (300, 512, 4096, 0),
        (300, 4096, 4096, 0),
        (4096, 0, 4096, 4096),
        (4096, 4096, 4096, 0),
        (4096, MIB, 4096, 0),
        (4096 + 300, 0, 16_384, 4396),
        (4096 + 300, 4096, 512, 300),
        (4096 + 512, 4096, 16_384, 512),
    ];
    let data = bytes(8192, 4);
    for unit in [1, 8] {
        let mut setup = Setup::new(&device(2 * MIB), unit);
        let ios = |setup: &Setup| {
            let io = |(index, (_, offset, len, _)): (u64, &(u64, u64, usize, u64))| {
                let io = read(&setup.world, *offset, *len);
                Io { tag: index, ..io }.of(FileId(10 + index))
            };
            (0_u64..).zip(&CASES).map(io).collect::<Vec<Io>>()
        };
        for (index, (size, ..)) in (0..).zip(&CASES) {
            let file = FileId(10 + index);
            let mut buffer = setup.world.buffer(data.len(), Access::Both);
            buffer.copy_from_slice(&data);
            let written = setup.pipeline.run(Io::write(0, buffer, 0).of(file));
            assert_eq!(written.into_bytes().expect("a write"), 8192);
            setup.map.set_len(file, *size);
        }
        let alone: Vec<Done> = ios(&setup).into_iter().map(|io| setup.pipeline.run(io)).collect();
        for io in ios(&setup) {
            setup.pipeline.submit(io).expect("there is room");
        }
        setup.pipeline.ring();
        let together = setup.pipeline.wait(CASES.len());
        for done in alone.into_iter().chain(together) {
            let case = CASES[done.tag as usize];
            let (_, offset, _, wanted) = case;
            done.result.as_ref().expect("a read");
            assert_eq!(done.bytes, wanted, "{case:?}");
            let found = stream(&done.memory);
            let (from, bytes) = (offset as usize, wanted as usize);
            if bytes > 0 {
                assert_same(&found[..bytes], &data[from..from + bytes], format_args!("{case:?}"));
            }
            assert_rest(&found, wanted, 512);
        }
        setup.finish();
    }
}

// 263 mixes short requests, and long ones, over sizes that are no pages.
// Here: one mix of at most 8 KiB and one of up to 128 kB, on a device with boundaries and SGLs.
#[test]
fn xfs_generic_263_short_and_long_mixes_agree_with_an_array() {
    let mut seed = Seed::from_env("generic 263");
    for longest in [8192, 128_000] {
        let base = Mix::default();
        let device = Device { noiob: 24, sgl: true, ..base.device.clone() };
        let placement = Placement::Scattered(seed.u64(..));
        Mix { device, longest, placement, size_step: 1, unit: 4, ..base }.run(&mut seed);
    }
}

// 406 sends a direct request so large that it is split again and again, and checks that all of it is done.
// Here: 128 MiB out and in, as exactly 128 commands of MDTS, never more in flight than a request may have.
#[test]
fn xfs_generic_406_a_request_of_128_mib_is_split_and_bounded() {
    const BYTES: u64 = 128 * MIB;
    const SHARE: u32 = 8;
    let mut setup = {
        let device = Device { mdts: Some(1 << 20), ..device(130 * MIB) };
        let options = Options { share: Some(SHARE), ..Options::default() };
        Setup::over(World::new(&device), 2048, Placement::Rising, &options)
    };
    let mut buffer = setup.world.buffer(BYTES as usize, Access::Both);
    let mark = |block: &mut [u8], index: u64| {
        let word = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        block[..8].copy_from_slice(&word);
        block[504..].copy_from_slice(&word);
    };
    for (index, block) in (0..).zip(buffer.as_chunks_mut::<512>().0) {
        mark(block, index);
    }
    // Its unit is there already: nothing but its own block is written below.
    let small = bytes(4096, 5);
    let first = setup.world.pattern(4096, 4);
    setup.pipeline.run(Io::write(0, first, 0).of(FileId(2))).into_bytes().expect("a write");
    for pass in ["out", "in"] {
        setup.world.watcher.take();
        let before = setup.pipeline.counters();
        let io = match pass {
            "out" => Io::write(0, buffer, 1).of(FILE),
            _ => Io::read(0, buffer, 1).of(FILE),
        };
        setup.pipeline.submit(io).expect("it is taken");
        // A small request finds room beside it.
        let beside = setup.world.pattern(4096, 5);
        setup.pipeline.submit(Io::write(0, beside, 2).of(FileId(2))).expect("there is room");
        setup.pipeline.ring();
        let mut order = Vec::new();
        let mut large = None;
        while large.is_none() {
            let counters = setup.pipeline.counters();
            let inflight = counters.submissions - counters.completions;
            assert!(inflight <= u64::from(SHARE) + 1, "{inflight} commands are in flight");
            for done in setup.pipeline.wait(1) {
                done.result.as_ref().expect("a request");
                order.push(done.tag);
                if done.tag == 1 {
                    large = Some(done);
                }
            }
        }
        assert_eq!(order, [2, 1], "the small request did not wait for the large one");
        let large = large.expect("it has come back");
        assert_eq!(large.bytes, BYTES);
        let sent = setup.pipeline.counters().since(&before);
        assert_eq!((sent.submissions, sent.splits), (BYTES / MIB + 1, 0));
        let seen = setup.world.watcher.take();
        assert!(seen.iter().all(|seen| seen.blocks == 2048 || seen.blocks == 8), "{seen:?}");
        buffer = large.memory.into_one().expect("the buffer comes back");
        if pass == "out" {
            buffer.fill(0);
        }
    }
    let mut wanted = [0; 512];
    for (index, block) in (0..).zip(buffer.as_chunks::<512>().0) {
        mark(&mut wanted, index);
        let ends = block[..8] == wanted[..8] && block[504..] == wanted[504..];
        assert!(ends, "block {index}: {:x?}", &block[..8]);
    }
    drop(buffer);
    let found = setup.pipeline.run(read(&setup.world, 0, 4096).of(FileId(2)));
    assert_same(&stream(&found.memory), &small, format_args!("the small file"));
    drop(found);
    setup.finish();
}

// 551 has up to 64 asynchronous writes overlap at random, and asks whose data each block ends up with.
// Here: 100 rounds; each block is all of one word, that of a write of this round that covers it.
#[test]
fn xfs_generic_551_overlapping_writes_leave_whole_blocks_of_one_of_them() {
    const BLOCKS: u64 = 256;
    let mut seed = Seed::from_env("generic 551");
    for (unit, execution) in
        [(1, Execution::Inline), (8, Execution::Thread), (64, Execution::Thread)]
    {
        let device = Device { mdts: Some(8192), ..device(MIB) };
        let world = World::with(&device, PagePolicy::Ordinary, execution);
        let placement = Placement::Scattered(seed.u64(..));
        let mut setup = Setup::over(world, unit, placement, &Options::default());
        let mut before = vec![0; BLOCKS as usize];
        for round in 1..=100_u64 {
            if round % 10 == 1 {
                // From a hole again: then the map lets only some of them at it at once.
                setup.map.set_len(FILE, 0);
                setup.map.set_len(FILE, BLOCKS * 512);
                before.fill(0);
            }
            let count = 1 + seed.below(64);
            let (mut writes, mut done): (Vec<Range<u64>>, Vec<Done>) = Default::default();
            for index in 0..count {
                let start = seed.below(BLOCKS);
                let end = (start + 1 + seed.below(40)).min(BLOCKS);
                let len = (end - start) * 512;
                let mut buffer = setup.world.buffer(len as usize, Access::Both);
                buffer.copy_from_slice(&words(len, round << 8 | index));
                let io = Io::write(start * 512, buffer, index).of(FILE);
                // In small commands, 64 requests may be more than the queue is deep.
                push(&mut setup.pipeline, io, &mut done);
                writes.push(start..end);
                if seed.chance(1, 4) {
                    setup.pipeline.ring();
                }
            }
            setup.pipeline.ring();
            let left = setup.pipeline.inflight();
            done.extend(setup.pipeline.wait(left));
            assert_eq!(done.len() as u64, count);
            for done in done {
                let range = &writes[done.tag as usize];
                let wanted = (range.end - range.start) * 512;
                assert_eq!(done.into_bytes().expect("a write"), wanted);
            }
            let found = setup.read(0, (BLOCKS * 512) as usize);
            for (block, bytes) in (0..).zip(found.as_chunks::<512>().0) {
                let word = word_of(bytes);
                let mut of = writes.iter().enumerate().filter(|(_, range)| range.contains(&block));
                let before = &mut before[block as usize];
                let fits = match of.clone().next() {
                    Some(_) => of.any(|(index, _)| word == round << 8 | index as u64),
                    None => word == *before,
                };
                assert!(fits, "round {round}, block {block} holds {word:#x}");
                *before = word;
            }
        }
        setup.finish();
    }
}

// 586 lets an asynchronous write beyond the end race with a preallocation, and asks for the larger size.
// Here: 100 times, with the preallocation before, between and after the steps of the write.
#[test]
fn xfs_generic_586_an_append_and_a_preallocation_make_a_file_of_two_blocks() {
    const HALF: u64 = 4096;
    let mut seed = Seed::from_env("generic 586");
    for (unit, execution) in
        [(1, Execution::Inline), (8, Execution::Inline), (8, Execution::Thread)]
    {
        let mut world = World::with(&device(MIB), PagePolicy::Ordinary, execution);
        world.stain(OLD);
        let mut setup = Setup::over(world, unit, Placement::Rising, &Options::default());
        let free = setup.map.free_units();
        for round in 0..100 {
            setup.map.set_len(FILE, 0);
            assert_eq!(setup.map.free_units(), free, "an empty file has no units");
            let when = seed.below(4);
            let halves = 1 + seed.below(2);
            let map = setup.map.clone();
            let preallocate = |step: u64| {
                if step == when {
                    map.preallocate(FILE, FileBlock(0), BlockCount(halves * HALF / 512));
                    // It makes a shorter file longer, and never a longer one shorter.
                    if map.len(FILE) < HALF {
                        map.set_len(FILE, HALF);
                    }
                }
            };
            preallocate(0);
            let io = write(&setup.world, HALF, HALF as usize, round);
            setup.pipeline.submit(io).expect("there is room");
            preallocate(1);
            setup.pipeline.ring();
            preallocate(2);
            let done = setup.pipeline.wait(1).pop().expect("one");
            assert_eq!(done.into_bytes().expect("a write"), HALF);
            preallocate(3);
            assert_eq!(setup.map.len(FILE), 2 * HALF, "round {round}, step {when}");
            let mut good = vec![0; HALF as usize];
            good.extend(bytes(HALF as usize, round));
            let found = setup.read(0, 4 * HALF as usize);
            assert_same(&found, &good, format_args!("round {round}, step {when}"));
        }
        setup.finish();
    }
}
