//! The cases. Each takes a host on a fresh queue and leaves nothing in flight.

use std::sync::Arc;
use std::thread;

use udirect::block::{ErrorKind, Operation, Payload, QueueOptions, Rejected, Request};
use udirect::dma::{Access, DmaBuf};
use udirect::units::{BlockCount, Lba};

use crate::host::{Host, fill, one};
pub(crate) use crate::model::{
    random_requests_agree_at_every_depth, random_requests_agree_with_a_byte_array,
};

fn read(lba: u64, payload: impl Into<Payload>) -> Operation {
    Operation::Read { lba: Lba(lba), payload: payload.into() }
}

fn write(lba: u64, payload: impl Into<Payload>) -> Operation {
    Operation::Write { lba: Lba(lba), payload: payload.into(), fua: false }
}

pub(crate) fn what_is_written_is_read(host: &mut Host) {
    let len = host.block() * 8;
    let data = host.pattern(len, 1);
    let data = host.write(3, data);
    assert_eq!(host.read(3, len)[..], data[..]);
    assert_eq!(host.read(4, host.block())[..], data[host.block()..2 * host.block()]);
}

pub(crate) fn a_list_of_buffers_is_one_stream_of_bytes(host: &mut Host) {
    // Whole pages, so that every backend can describe them, and of different lengths.
    let lens = [4096, 3 * 4096, 4096, 2 * 4096];
    let parts: Vec<DmaBuf> = (0u64..).zip(lens).map(|(n, len)| host.pattern(len, n)).collect();
    let expected: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    let completion = host.run(write(5, parts));
    completion.result.as_ref().expect("a write");
    let back = completion.request.into_payload().expect("a payload");
    assert_eq!(back.segments().iter().map(|part| part.len()).collect::<Vec<_>>(), lens);
    assert_eq!(host.read(5, expected.len())[..], expected[..]);
    let parts: Vec<DmaBuf> =
        lens.iter().rev().map(|&len| host.buffer(len, Access::DeviceWrites)).collect();
    let completion = host.run(read(5, parts));
    completion.result.as_ref().expect("a read");
    let back = completion.request.into_payload().expect("a payload");
    let stream: Vec<u8> = back.segments().iter().flat_map(|part| part.iter().copied()).collect();
    assert_eq!(stream, expected);
}

pub(crate) fn the_last_block_is_there_and_the_next_is_not(host: &mut Host) {
    let (last, block) = (host.blocks() - 1, host.block());
    let data = host.pattern(block, 9);
    let data = host.write(last, data);
    assert_eq!(host.read(last, block)[..], data[..]);
    let beyond = host.buffer(block * 2, Access::DeviceWrites);
    let error = host.refused(read(last, beyond));
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    let text = error.to_string();
    assert!(text.contains(&host.blocks().to_string()), "{text}");
}

pub(crate) fn ranges_that_wrap_are_out_of_range(host: &mut Host) {
    for lba in [u64::MAX, u64::MAX - 1, 1 << 63, host.blocks()] {
        let buffer = host.buffer(host.block() * 2, Access::DeviceWrites);
        assert_eq!(host.refused(read(lba, buffer)).kind(), ErrorKind::OutOfRange, "{lba:#x}");
        let blocks = BlockCount(u64::MAX);
        let zeroes = Operation::WriteZeroes { lba: Lba(lba), blocks, fua: false };
        assert_eq!(host.refused(zeroes).kind(), ErrorKind::OutOfRange, "{lba:#x}");
    }
}

pub(crate) fn lengths_and_addresses_off_the_grid_are_refused_with_their_numbers(host: &mut Host) {
    let odd = host.block() + 8;
    let buffer = host.buffer(odd, Access::Both);
    let error = host.refused(write(0, buffer));
    assert_eq!(error.kind(), ErrorKind::Misaligned);
    assert!(error.to_string().contains(&odd.to_string()), "{error}");
    // A list whose inner edges are not at pages: PRP cannot say it, SGL can.
    let half = host.block() / 2;
    let parts = vec![host.pattern(half, 1), host.pattern(half, 2)];
    if host.device.geometry().segments.page.is_some() {
        assert_eq!(host.refused(write(0, parts)).kind(), ErrorKind::Misaligned);
    } else {
        let expected: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        host.run(write(0, parts)).result.expect("a write from two halves");
        assert_eq!(host.read(0, host.block())[..], expected[..]);
    }
}

pub(crate) fn a_request_without_a_byte_is_refused(host: &mut Host) {
    assert_eq!(host.refused(read(0, Vec::new())).kind(), ErrorKind::Invalid);
    let blocks = BlockCount(0);
    let nothing = Operation::Deallocate { lba: Lba(0), blocks };
    assert_eq!(host.refused(nothing).kind(), ErrorKind::Invalid);
}

pub(crate) fn buffers_are_refused_that_the_device_may_not_touch(host: &mut Host) {
    let read_only = host.buffer(host.block(), Access::DeviceReads);
    let error = host.refused(read(0, read_only));
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("may not write"), "{error}");
    let write_only = host.buffer(host.block(), Access::DeviceWrites);
    let error = host.refused(write(0, write_only));
    assert!(error.to_string().contains("may not read"), "{error}");
}

pub(crate) fn refused_requests_come_back_with_their_buffers(host: &mut Host) {
    let data = host.pattern(host.block(), 5);
    let expected = data.to_vec();
    let request = Request::new(write(host.blocks(), data), 11);
    let Err(rejected) = host.queue.submit(request) else { panic!("not refused") };
    let request = rejected.into_request();
    assert_eq!(request.tag, 11);
    let buffer = request.into_payload().expect("a payload").into_one().expect("one buffer");
    assert_eq!(buffer[..], expected[..]);
}

pub(crate) fn large_transfers_are_split_and_whole(host: &mut Host) {
    let len = 5 << 20;
    let data = host.pattern(len, 77);
    let data = host.write(2, data);
    assert_eq!(host.read(2, len)[..], data[..]);
    // Some backends leave it to what is below them.
    let is_split = host.device.geometry().max_transfer.0 < len as u64;
    assert_eq!(host.queue.counters().splits, if is_split { 2 } else { 0 });
}

pub(crate) fn a_full_queue_is_a_value_and_nothing_is_lost(host: &mut Host) {
    let depth = host.queue.depth();
    let block = host.block();
    for n in 0..depth {
        let data = host.pattern(block, n as u64);
        host.queue.submit(Request::new(write(n as u64, data), n as u64)).expect("a free slot");
    }
    let data = host.pattern(block, 1000);
    let Err(Rejected::QueueFull(request)) = host.queue.submit(Request::new(write(0, data), 1000))
    else {
        panic!("the queue has {depth} slots")
    };
    assert_eq!(request.tag, 1000);
    host.queue.ring();
    let mut tags: Vec<u64> =
        host.wait(depth).into_iter().map(|completion| completion.request.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..depth as u64).collect::<Vec<_>>());
    for n in 0..depth {
        let mut expected = vec![0; block];
        fill(&mut expected, n as u64);
        assert_eq!(host.read(n as u64, block)[..], expected[..]);
    }
}

pub(crate) fn nothing_completes_before_the_doorbell(host: &mut Host) {
    let data = host.pattern(host.block(), 3);
    host.queue.submit(Request::new(write(0, data), 1)).expect("a free slot");
    for _ in 0..1000 {
        assert_eq!(host.queue.poll(1, &mut |_| panic!("nobody rang")), 0);
    }
    host.queue.ring();
    assert!(host.wait(1).pop().expect("one").result.is_ok());
}

pub(crate) fn flush_and_fua_succeed(host: &mut Host) {
    let data = host.pattern(host.block(), 3);
    let fua = Operation::Write { lba: Lba(1), payload: data.into(), fua: true };
    host.run(fua).result.expect("a write through the cache");
    host.run(Operation::Flush).result.expect("a flush");
}

pub(crate) fn deallocated_and_zeroed_blocks_read_as_zeroes(host: &mut Host) {
    let (block, len) = (host.block(), host.block() * 16);
    let data = host.pattern(len, 8);
    let data = host.write(0, data);
    let lba = Lba(2);
    let (zeroes, hole) = (BlockCount(3), BlockCount(5));
    host.run(Operation::WriteZeroes { lba, blocks: zeroes, fua: false }).result.expect("zeroes");
    host.run(Operation::Deallocate { lba: Lba(8), blocks: hole }).result.expect("a hole");
    let back = host.read(0, len);
    for at in 0..16 {
        let (found, written) = (&back[at * block..][..block], &data[at * block..][..block]);
        match at {
            2..5 | 8..13 => assert!(found.iter().all(|&byte| byte == 0), "block {at}"),
            _ => assert_eq!(found, written, "block {at}"),
        }
    }
}

pub(crate) fn compare_tells_equal_from_different(host: &mut Host) {
    let len = host.block() * 3;
    let data = host.pattern(len, 4);
    let mut data = host.write(6, data);
    if !host.device.geometry().operations.compare {
        let operation = Operation::Compare { lba: Lba(6), payload: data.into() };
        assert_eq!(host.refused(operation).kind(), ErrorKind::Unsupported);
        return;
    }
    let compare = |payload: DmaBuf| Operation::Compare { lba: Lba(6), payload: payload.into() };
    let completion = host.run(compare(data));
    completion.result.as_ref().expect("equal");
    data = one(completion);
    data[len - 1] ^= 1;
    let error = host.run(compare(data)).result.expect_err("different");
    assert_eq!(error.kind(), ErrorKind::Miscompare);
    assert_eq!(error.errno(), libc_eilseq());
}

fn libc_eilseq() -> i32 {
    84
}

pub(crate) fn verify_reads_without_a_buffer(host: &mut Host) {
    if !host.device.geometry().operations.verify {
        return;
    }
    let blocks = BlockCount(host.blocks());
    host.run(Operation::Verify { lba: Lba(0), blocks }).result.expect("every block is sound");
}

pub(crate) fn uncorrectable_blocks_cannot_be_read_until_they_are_written(host: &mut Host) {
    if !host.device.geometry().operations.write_uncorrectable {
        return;
    }
    let len = host.block() * 8;
    let data = host.pattern(len, 41);
    let mut data = host.write(40, data);
    let (lba, blocks) = (Lba(42), BlockCount(3));
    host.run(Operation::WriteUncorrectable { lba, blocks }).result.expect("they are spoilt");
    for bad in [42, 44] {
        let buffer = host.buffer(host.block(), Access::DeviceWrites);
        let error = host.run(read(bad, buffer)).result.expect_err("a read of a spoilt block");
        assert_eq!(error.kind(), ErrorKind::Media, "block {bad}");
    }
    let verify = Operation::Verify { lba: Lba(40), blocks: BlockCount(3) };
    if host.device.geometry().operations.verify {
        assert_eq!(host.run(verify).result.expect_err("spoilt").kind(), ErrorKind::Media);
    }
    assert_eq!(host.read(45, host.block())[..], data[5 * host.block()..6 * host.block()]);
    data = host.write(40, data);
    assert_eq!(host.read(40, len)[..], data[..]);
}

pub(crate) fn copies_arrive(host: &mut Host) {
    if !host.device.geometry().operations.copy {
        return;
    }
    let len = host.block() * 300;
    let data = host.pattern(len, 14);
    let data = host.write(0, data);
    let copy = Operation::Copy { source: Lba(0), target: Lba(1000), blocks: BlockCount(300) };
    host.run(copy).result.expect("a copy");
    assert_eq!(host.read(1000, len)[..], data[..]);
}

pub(crate) fn operations_that_are_not_offered_are_unsupported(host: &mut Host) {
    let offers = host.device.geometry().operations;
    let (lba, blocks) = (Lba(0), BlockCount(1));
    let cases = [
        (offers.deallocate, Operation::Deallocate { lba, blocks }),
        (offers.write_zeroes, Operation::WriteZeroes { lba, blocks, fua: false }),
        (offers.verify, Operation::Verify { lba, blocks }),
        (offers.copy, Operation::Copy { source: lba, target: Lba(9), blocks }),
        (offers.write_uncorrectable, Operation::WriteUncorrectable { lba: Lba(9), blocks }),
    ];
    for (offered, operation) in cases {
        if offered {
            host.run(operation).result.expect("what is offered works");
        } else {
            assert_eq!(host.refused(operation).kind(), ErrorKind::Unsupported);
        }
    }
}

pub(crate) fn queues_open_and_close_again_and_again(host: &mut Host) {
    let device = Arc::clone(&host.device);
    let (_, before) = device.dma().usage();
    for depth in 1..=40 {
        let mut other = Host::with_depth(Arc::clone(&device), depth.min(device.max_depth()));
        let data = other.pattern(other.block(), u64::from(depth));
        other.write(0, data);
    }
    assert_eq!(device.dma().usage().1, before);
    // Every queue that the device has, at once, and one more.
    let options = QueueOptions { depth: 1, ..QueueOptions::default() };
    let open: Vec<_> = (1..device.max_queues())
        .map(|_| device.open_queue(&options).expect("the device has more"))
        .collect();
    let error = device.open_queue(&options).err().expect("no queue is left");
    assert_eq!(error.kind(), ErrorKind::Busy);
    drop(open);
    assert_eq!(device.dma().usage().1, before);
}

pub(crate) fn a_queue_that_is_closed_in_flight_takes_nothing_along(host: &mut Host) {
    let device = Arc::clone(&host.device);
    let (_, before) = device.dma().usage();
    let mut other = Host::new(Arc::clone(&device));
    for n in 0..other.queue.depth() {
        let data = other.pattern(other.block(), n as u64);
        other.queue.submit(Request::new(write(n as u64, data), 0)).expect("a free slot");
        // Some are rung, some are not: both are in the slots.
        if n % 2 == 0 {
            other.queue.ring();
        }
    }
    drop(other);
    assert_eq!(device.dma().usage().1, before);
    let data = host.pattern(host.block(), 2);
    host.write(0, data);
}

pub(crate) fn two_queues_on_two_threads_do_not_meet(host: &mut Host) {
    let device = Arc::clone(&host.device);
    let half = device.geometry().blocks.0 / 2;
    let work = |host: &mut Host, start: u64| {
        let block = host.block();
        for round in 0..200 {
            let data = host.pattern(block * 4, start + round);
            let lba = start + round * 4 % (half - 4);
            let data = host.write(lba, data);
            assert_eq!(host.read(lba, block * 4)[..], data[..]);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| work(&mut Host::new(Arc::clone(&device)), 0));
        work(host, half);
    });
}

pub(crate) fn depths_beyond_the_device_are_refused(host: &mut Host) {
    for depth in [0, host.device.max_depth() + 1, u32::MAX] {
        let options = QueueOptions { depth, ..QueueOptions::default() };
        let error = host.device.open_queue(&options).err().expect("too deep");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(&depth.to_string()), "{error}");
    }
}

pub(crate) fn counters_count_what_happened(host: &mut Host) {
    let before = host.queue.counters();
    let batch = host.queue.depth().min(8);
    for n in 0..batch {
        let data = host.pattern(host.block(), n as u64);
        host.queue.submit(Request::new(write(n as u64, data), 0)).expect("a free slot");
    }
    host.queue.ring();
    host.queue.ring();
    host.wait(batch);
    let counted = host.queue.counters().since(&before);
    assert_eq!((counted.submissions, counted.completions), (batch as u64, batch as u64));
    assert!(counted.sq_doorbells <= 1, "one doorbell a batch, or none where it is shadowed");
    assert_eq!(counted.queue_full, 0);
    host.queue.poll(1, &mut |_| panic!("nothing is in flight"));
    assert!(host.queue.counters().since(&before).idle_polls >= 1);
}
