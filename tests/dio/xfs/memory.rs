//! Where the bytes of a request lie: in blocks of the device, and in pages of memory.

use udirect::block::{Cause, ErrorKind, Placement};
use udirect::dio::{Io, IoVector, Memory, Options, Slice, Source};
use udirect::dma::{Access, PageKind, PagePolicy};
use udirect::seed::Seed;
use udirect::soft::Execution;
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::LbaSize;

use crate::bed::{
    Device, Drive, FILE, Setup, UNTOUCHED, World, assert_same, bytes, read, stream, write,
};
use crate::fsx::Mix;

use super::{MIB, OLD, device};

// 704 asks whether a device with large physical blocks takes direct requests of its small logical ones.
// Here: requests of 512 bytes are taken in units of 4 KiB if the LBA has 512, and refused if it has 4096.
#[test]
fn xfs_generic_704_requests_are_as_fine_as_the_logical_block() {
    let data = bytes(64 * 1024, 6);
    let mut setup = Setup::new(&device(MIB), 8);
    setup.world.stain(OLD);
    setup.write(0, &data);
    let mut good = data.clone();
    for (salt, block) in (0..).zip([0_u64, 1, 7, 8, 15, 63, 127]) {
        let data = bytes(512, salt);
        setup.write(block * 512, &data);
        good[(block * 512) as usize..][..512].copy_from_slice(&data);
        assert_same(&setup.read(block * 512, 512), &data, format_args!("block {block}"));
    }
    assert_same(&setup.read(0, good.len()), &good, format_args!("the blocks between"));
    setup.finish();

    let mut setup = Setup::new(&Device { lba: LbaSize::B4096, ..device(MIB) }, 1);
    setup.write(0, &data);
    setup.world.watcher.take();
    for (offset, len, what, value) in [
        (512, 4096, "offset", 512),
        (0, 512, "length", 512),
        (4096, 4096 + 512, "length", 4608),
        (4096 - 512, 512, "offset", 3584),
    ] {
        for io in [read(&setup.world, offset, len), write(&setup.world, offset, len, 7)] {
            let error = setup.pipeline.refused(io);
            let Cause::Misaligned { what: named, value: found, alignment } = error.cause() else {
                panic!("{error}");
            };
            assert_eq!((*named, *found, *alignment), (what, value, 4096));
        }
    }
    assert_eq!(setup.world.watcher.take(), [], "nothing was sent");
    assert_same(&setup.read(0, data.len()), &data, format_args!("nothing was changed"));
    setup.finish();
}

/// Memory of three parts, of which the device does not reach the second.
fn partly_plain(world: &World, parts: [usize; 3], data: Option<&[u8]>) -> Memory {
    let buffer = |len| world.buffer(len, Access::Both);
    let vector =
        IoVector::new().with(buffer(parts[0])).with_plain(vec![0; parts[1]]).with(buffer(parts[2]));
    let mut memory = Memory::from(vector);
    match data {
        Some(data) => memory.write(0, data),
        None => memory.write(0, &vec![UNTOUCHED; parts.iter().sum()]),
    }
    memory
}

// 708 has part of the memory of a direct request fault midway, and asks for progress and for the right count.
// Here: part of it is bounced, by one small buffer that all have to share, and devices fail midway.
#[test]
fn xfs_generic_708_partly_plain_memory_makes_progress_and_reports_the_good_prefix() {
    const PARTS: [usize; 3] = [4096, 16_384 + 100, 12_288 - 100];
    const BYTES: u64 = 32_768;
    const REQUESTS: u64 = 24;
    let options = Options { bounce_bytes: 4096, requests: Some(64), ..Options::default() };
    for unit in [1, 8] {
        let world = World::new(&device(4 * MIB));
        let mut setup = Setup::over(world, unit, Placement::Rising, &options);
        let good: Vec<Vec<u8>> = (0..REQUESTS).map(|tag| bytes(BYTES as usize, tag)).collect();
        setup.write(0, &vec![0; (REQUESTS * BYTES) as usize]);

        // Many at once: each has to wait for the one bounce buffer, and none for ever.
        for writes in [true, false] {
            for (tag, data) in (0..).zip(&good) {
                let memory = partly_plain(&setup.world, PARTS, writes.then_some(data));
                let io = if writes { Io::write } else { Io::read };
                setup.pipeline.submit(io(tag * BYTES, memory, tag).of(FILE)).expect("room");
            }
            setup.pipeline.ring();
            for done in setup.pipeline.wait(REQUESTS as usize) {
                done.result.as_ref().expect("a request");
                assert_eq!(done.bytes, BYTES);
                let data = &good[done.tag as usize];
                assert_same(&stream(&done.memory), data, format_args!("request {}", done.tag));
            }
        }
        let counts = setup.pipeline.statistics();
        assert_eq!(counts.bounces, 2 * REQUESTS, "each of them once");
        assert!(counts.pauses > 0, "they had to share");

        // A device that fails midway: the count is where the good bytes end.
        let base = setup.map.units(FILE)[0].1.0;
        for (opcode, status) in
            [(NvmOpcode::READ, Status::UNRECOVERED_READ), (NvmOpcode::WRITE, Status::WRITE_FAULT)]
        {
            for bad in [0, 1, 9, 40, 63] {
                setup.world.watcher.fail(opcode, base + bad, status);
                let fresh = bytes(BYTES as usize, 1000 + bad);
                let writes = opcode == NvmOpcode::WRITE;
                let memory = partly_plain(&setup.world, PARTS, writes.then_some(&fresh));
                let io = if writes { Io::write } else { Io::read };
                let done = setup.pipeline.run(io(0, memory, 0).of(FILE));
                setup.world.watcher.relent();
                let error = done.result.expect_err("the device failed");
                assert_eq!(error.kind(), ErrorKind::Media);
                // Of a write up to its command, which is as long as the bounce buffer; of a read up to the block.
                let blocks = if writes { bad / 8 * 8 } else { bad };
                let prefix = (blocks * 512) as usize;
                assert_eq!(done.bytes, prefix as u64, "block {bad} is bad");
                if writes {
                    let found = setup.read(0, BYTES as usize);
                    let what = format_args!("what was written before block {bad}");
                    assert_same(&found[..prefix], &fresh[..prefix], what);
                    setup.write(0, &good[0]);
                } else {
                    let found = stream(&done.memory);
                    let what = format_args!("what was read before block {bad}");
                    assert_same(&found[..prefix], &good[0][..prefix], what);
                }
            }
        }
        setup.finish();
    }
}

// 760 runs random mixes with user memory that lies in hugepages.
// Here: mixes with all DMA memory in 2 MiB pages, and one request through slices all over one of them.
#[test]
fn xfs_generic_760_memory_in_hugepages_is_memory_like_any_other() {
    let mut seed = Seed::from_env("generic 760");
    let huge = PagePolicy::Require(PageKind::Huge2MiB);
    // A world asks for some of them; it says so if there are none.
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = free.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    let pages = if free >= 32 {
        huge
    } else {
        eprintln!("skipped: {free} hugepages are free, and 32 are needed; ordinary ones instead");
        PagePolicy::Ordinary
    };
    for (longest, sgl) in [(32_768, false), (128_000, true)] {
        let base = Mix::default();
        let device = Device { sgl, ..base.device.clone() };
        Mix { device, pages, longest, read_step: 512, size_step: 1, ..base }.run(&mut seed);
    }

    let device = Device { mdts: Some(64 << 10), ..device(8 * MIB) };
    let world = World::with(&device, pages, Execution::Inline);
    let mut setup = Setup::over(world, 8, Placement::Falling, &Options::default());
    let buffer = setup.world.buffer(2 * MIB as usize, Access::Both);
    let mut order: Vec<u32> = (0..512).collect();
    seed.shuffle(&mut order);
    let slice = |page: u32| Slice { source: Source::Dma(0), offset: page * 4096, len: 4096 };
    let mut vector = IoVector::new().with(buffer);
    vector.slices = order.into_iter().map(slice).collect();
    let mut memory = Memory::from(vector);
    let data = bytes(2 * MIB as usize, 8);
    memory.write(0, &data);
    let done = setup.pipeline.run(Io::write(0, memory, 0).of(FILE));
    done.result.as_ref().expect("a write");
    let mut memory = done.memory;
    assert_same(&setup.read(0, data.len()), &data, format_args!("pages in any order"));
    memory.write(0, &vec![UNTOUCHED; data.len()]);
    let done = setup.pipeline.run(Io::read(0, memory, 0).of(FILE));
    assert_eq!((done.bytes, done.result.is_ok()), (2 * MIB, true));
    assert_same(&stream(&done.memory), &data, format_args!("back into the same pages"));
    assert_eq!(setup.pipeline.statistics().bounces, 0, "whole pages go out as they lie");
    drop(done);
    setup.finish();
}
