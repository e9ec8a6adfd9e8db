//! A raw volume: bytes anywhere, from several cores, blocking and as futures.

use std::future::Future;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use udirect::block::{ErrorKind, Identity, MapBlocks};
use udirect::dma::{Access, DmaBuf};
use udirect::open::open;
use udirect::seed::Seed;
use udirect::units::FileId;
use udirect::volume::{
    Action, AsyncHandle, Done, Handle, Io, IoVector, Memory, Options, Refused, Slice, Source,
    Volume,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn volume(address: &str) -> Volume {
    Volume::raw(open(address).expect("the address is sound").device)
}

fn handle(volume: &Volume) -> Handle<Identity> {
    volume.handle(&Options::default()).expect("a handle")
}

fn buffer(volume: &Volume, bytes: &[u8]) -> DmaBuf {
    let mut buffer = volume.device().dma().buffer(bytes.len(), Access::Both).expect("a buffer");
    buffer.copy_from_slice(bytes);
    buffer
}

fn pattern(len: usize, salt: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(salt).fill(&mut bytes);
    bytes
}

fn stream(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len() as usize];
    memory.read(0, &mut bytes);
    bytes
}

fn wait<M: MapBlocks>(handle: &mut Handle<M>, count: usize) -> Vec<Done> {
    let deadline = Instant::now() + PATIENCE;
    let mut done = Vec::new();
    while done.len() < count {
        handle.poll(count - done.len(), &mut |one| done.push(one));
        assert!(Instant::now() < deadline, "{} of {count} are back", done.len());
    }
    done
}

/// Every kind of device that an edge may look different on.
const DEVICES: [&str; 4] = [
    "mem:8MiB?lba=512&sgl=0",
    "mem:8MiB?lba=4096&sgl=0&max_transfer=4k",
    "mem:8MiB?lba=512&noiob=7&mdts=8k",
    "mem:8MiB?lba=4096&thread",
];

#[test]
fn bytes_anywhere_are_written_and_read() {
    for address in DEVICES {
        let volume = volume(address);
        let mut handle = handle(&volume);
        let mut model = vec![0; 8 << 20];
        let mut seed = Seed::from_env(address);
        for round in 0..400 {
            let most = if seed.chance(1, 20) { 700_000 } else { 9000 };
            let len = seed.below(most) as usize;
            let offset = seed.below((8 << 20) - len as u64) as usize;
            if seed.chance(1, 2) {
                let bytes = pattern(len, round);
                handle.write_at(&bytes, offset as u64).expect("it fits");
                model[offset..offset + len].copy_from_slice(&bytes);
            } else {
                let mut found = vec![0xee; len];
                let count = handle.read_at(&mut found, offset as u64).expect("it is there");
                assert_eq!(count, len);
                assert!(found == model[offset..offset + len], "{len} bytes at {offset}");
            }
        }
        assert_eq!(handle.inflight(), 0);
    }
}

/// Requests in flight that share blocks at their edges, and no byte: none may undo another.
#[test]
fn neighbours_in_one_block_do_not_undo_each_other() {
    for address in DEVICES {
        let volume = volume(address);
        let mut handle = handle(&volume);
        let mut seed = Seed::from_env(address);
        for round in 0..30 {
            let mut model = pattern(60_000, round);
            handle.write_at(&model, 1 << 20).expect("it fits");
            let (mut at, mut inflight) = (0, 0);
            while at < model.len() {
                let len = (1 + seed.below(1500) as usize).min(model.len() - at);
                let bytes = pattern(len, 1000 * round + at as u64);
                model[at..at + len].copy_from_slice(&bytes);
                let memory = match seed.below(3) {
                    0 => Memory::plain(bytes),
                    1 => two_halves(&volume, &bytes, &mut seed),
                    _ => buffer(&volume, &bytes).into(),
                };
                let mut io = Io::write((1 << 20) + at as u64, memory, at as u64);
                loop {
                    match handle.submit(io) {
                        Ok(()) => break,
                        Err(Refused::Full(back)) => {
                            io = back;
                            handle.ring();
                            handle.poll(8, &mut |done| {
                                done.result.expect("a write");
                                inflight -= 1;
                            });
                        }
                        Err(Refused::Invalid(io, error)) => panic!("{error}: {io:?}"),
                    }
                }
                inflight += 1;
                at += len;
            }
            handle.ring();
            for done in wait(&mut handle, inflight) {
                done.result.expect("a write");
            }
            let mut found = vec![0; model.len()];
            handle.read_at(&mut found, 1 << 20).expect("it is there");
            assert!(found == model, "round {round} on {address}");
        }
        assert!(handle.edge_counts().waits > 0, "nobody met anybody");
        assert_eq!(handle.inflight(), 0);
    }
}

/// The same bytes as slices of one buffer, the second half first.
fn two_halves(volume: &Volume, bytes: &[u8], seed: &mut Seed) -> Memory {
    let cut = seed.below(bytes.len() as u64) as usize;
    let swapped = [&bytes[cut..], &bytes[..cut]].concat();
    let slice = |offset: usize, len: usize| Slice {
        source: Source::Dma(0),
        offset: offset as u32,
        len: len as u32,
    };
    let slices = vec![slice(bytes.len() - cut, cut), slice(0, bytes.len() - cut)];
    IoVector { dma: vec![buffer(volume, &swapped)], plain: Vec::new(), slices }.into()
}

#[test]
fn writers_of_one_block_on_several_threads_take_turns() {
    let volume = volume("mem:8MiB?lba=4096");
    thread::scope(|scope| {
        for part in 0..2u64 {
            let volume = volume.clone();
            scope.spawn(move || {
                let mut handle = handle(&volume);
                for round in 0..600u64 {
                    // Every eighth of the block belongs to one of them.
                    let at = 8192 + 512 * (2 * (round % 4) + part);
                    let byte = (1 + part * 100 + round % 100) as u8;
                    handle.write_at(&[byte; 512], at).expect("it fits");
                    let mut back = [0; 512];
                    handle.read_at(&mut back, at).expect("it is there");
                    assert_eq!(back, [byte; 512], "round {round} of {part} was undone");
                }
            });
        }
    });
}

#[test]
fn vectors_are_one_stream() {
    let volume = volume("mem:8MiB?lba=512");
    let mut handle = handle(&volume);
    let (first, second) = (pattern(700, 1), pattern(5000, 2));
    let slices = [IoSlice::new(&first), IoSlice::new(&[]), IoSlice::new(&second)];
    handle.write_vectored_at(&slices, 333).expect("it fits");
    let (mut low, mut high) = (vec![0; 4000], vec![0; 1700]);
    let mut slices = [IoSliceMut::new(&mut low), IoSliceMut::new(&mut high)];
    assert_eq!(handle.read_vectored_at(&mut slices, 333).expect("it is there"), 5700);
    assert_eq!([low, high].concat(), [first, second].concat());
}

#[test]
fn reads_end_with_the_volume_and_writes_do_not_pass_it() {
    let volume = volume("mem:1MiB?lba=512");
    let mut handle = handle(&volume);
    let end = 1 << 20;
    handle.write_at(&[7; 100], end - 100).expect("the last bytes are there");
    let mut bytes = vec![1; 1000];
    assert_eq!(handle.read_at(&mut bytes, end - 100).expect("a short read"), 100);
    assert_eq!((&bytes[..100], bytes[100]), (&[7; 100][..], 1));
    assert_eq!(handle.read_at(&mut bytes, end).expect("nothing"), 0);
    assert_eq!(handle.read_at(&mut bytes, end + 12_345).expect("nothing"), 0);
    let error = handle.write_at(&[0; 101], end - 100).expect_err("it does not fit");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert_eq!(handle.read_at(&mut bytes[..100], end - 100).expect("untouched"), 100);
    assert_eq!(bytes[..100], [7; 100]);
    let io = Io::read(u64::MAX - 3, Memory::plain(vec![0; 100]), 0);
    let error = handle.run(io).result.expect_err("the end passes 2^64");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
}

#[test]
fn control_requests_want_whole_blocks() {
    let volume = volume("mem:1MiB?lba=512");
    let mut handle = handle(&volume);
    handle.write_at(&[7; 4096], 0).expect("it fits");
    handle.write_zeroes(512, 1024).expect("whole blocks");
    handle.deallocate(2048, 512).expect("whole blocks");
    handle.flush().expect("a flush");
    let mut bytes = [1; 4096];
    handle.read_at(&mut bytes, 0).expect("it is there");
    let expected: Vec<u8> =
        (0..8).flat_map(|b| [if [1, 2, 4].contains(&b) { 0 } else { 7 }; 512]).collect();
    assert_eq!(bytes[..], expected[..]);
    let error = handle.write_zeroes(100, 512).expect_err("not at a block");
    assert!(error.to_string().contains("offset 100 is not a multiple of 512"), "{error}");
    let error = handle.deallocate(0, 100).expect_err("no whole block");
    assert!(error.to_string().contains("length 100 is not a multiple of 512"), "{error}");
    let error = handle.deallocate(1 << 20, 512).expect_err("beyond the end");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
}

#[test]
fn tags_above_the_callers_own_are_refused() {
    let volume = volume("mem:1MiB");
    let mut handle = handle(&volume);
    let io = Io::read(0, buffer(&volume, &[0; 4096]), 1 << 63);
    match handle.submit(io) {
        Err(Refused::Invalid(io, error)) => {
            assert_eq!(io.tag, 1 << 63);
            assert!(error.to_string().contains("tag"), "{error}");
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// A blocking call in the middle does not lose the answers to others.
#[test]
fn a_blocking_call_keeps_the_answers_of_others() {
    let volume = volume("mem:8MiB?lba=512");
    let mut handle = handle(&volume);
    for n in 0..20u64 {
        let io = Io::write(n * 1000, Memory::plain(vec![n as u8; 1000]), n);
        handle.submit(io).expect("there is room");
    }
    let mut bytes = [0; 100];
    handle.read_at(&mut bytes, 4 << 20).expect("it is there");
    let mut tags: Vec<u64> = wait(&mut handle, 20).iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..20).collect::<Vec<_>>());
    assert_eq!(handle.inflight(), 0);
}

/// Dropped in the middle of everything, a handle takes no memory along and leaves no block locked.
#[test]
fn a_handle_dropped_in_flight_leaves_nothing_behind() {
    let volume = volume("mem:8MiB?lba=4096");
    let before = volume.device().dma().usage().1;
    let mut first = handle(&volume);
    for n in 0..10u64 {
        first.submit(Io::write(n * 100, Memory::plain(vec![1; 100]), n)).expect("there is room");
    }
    first.ring();
    drop(first);
    assert_eq!(volume.device().dma().usage().1, before);
    let mut second = handle(&volume);
    second.write_at(&[2; 100], 50).expect("nobody holds the block any more");
}

/// Writes, then reads back, ten requests side by side.
async fn ten_side_by_side(handle: AsyncHandle<Identity>, volume: Volume) {
    let write = |n: u64| {
        let memory = buffer(&volume, &pattern(3000, n));
        handle.submit(Io::write(10_000 * n + 17, memory, n))
    };
    for (n, done) in all((0..10).map(write).collect()).await.into_iter().enumerate() {
        assert_eq!(done.tag, n as u64);
        done.result.expect("a write");
    }
    let read = |n: u64| handle.submit(Io::read(10_000 * n + 17, Memory::plain(vec![0; 3000]), n));
    for (n, done) in all((0..10).map(read).collect()).await.into_iter().enumerate() {
        done.result.expect("a read");
        assert_eq!(stream(&done.memory), pattern(3000, n as u64));
    }
}

/// Polls every future until all are done.
async fn all<F: Future<Output = Done> + Unpin>(futures: Vec<F>) -> Vec<Done> {
    use std::pin::Pin;
    use std::task::Poll;
    let mut futures: Vec<(F, Option<Done>)> = futures.into_iter().map(|f| (f, None)).collect();
    std::future::poll_fn(move |context| {
        for (future, done) in futures.iter_mut().filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(output) = Pin::new(future).poll(context) {
                *done = Some(output);
            }
        }
        if futures.iter().any(|(_, done)| done.is_none()) {
            return Poll::Pending;
        }
        Poll::Ready(futures.drain(..).filter_map(|(_, done)| done).collect())
    })
    .await
}

#[test]
fn futures_run_under_a_plain_loop() {
    let volume = volume("mem:8MiB?lba=512");
    let handle = AsyncHandle::new(handle(&volume));
    handle.block_on(ten_side_by_side(handle.clone(), volume.clone()));
    assert_eq!(handle.inflight(), 0);
}

#[test]
fn futures_run_under_tokio() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let runtime = runtime.expect("a runtime");
    let volume = volume("mem:8MiB?lba=512");
    let handle = AsyncHandle::new(handle(&volume));
    runtime.block_on(async move {
        let driver = tokio::spawn(handle.driver());
        let tasks: Vec<_> = (0..4)
            .map(|_| tokio::spawn(ten_side_by_side(handle.clone(), volume.clone())))
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        drop(handle);
        driver.await.expect("the driver ends with the last handle");
    });
}

#[test]
fn more_futures_than_there_is_room_for_wait_for_each_other() {
    let volume = volume("mem:8MiB");
    let options = Options { requests: Some(3), ..Options::default() };
    let handle = AsyncHandle::new(volume.handle(&options).expect("a handle"));
    let futures = (0..50u64)
        .map(|n| handle.submit(Io::write(4096 * n, buffer(&volume, &[n as u8; 4096]), n)))
        .collect();
    let done = handle.block_on(all(futures));
    assert!(done.iter().all(|done| done.result.is_ok()));
    assert_eq!(done.len(), 50);
}

/// A future that is dropped leaves its memory with the device until the request is finished.
#[test]
fn a_dropped_future_takes_no_memory_from_the_device() {
    let volume = volume("mem:8MiB");
    let handle = AsyncHandle::new(handle(&volume));
    let domain = Arc::clone(volume.device().dma());
    let before = domain.usage().1;
    let mut future = Box::pin(handle.submit(Io::read(0, buffer(&volume, &[0; 4096]), 0)));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_pending());
    drop(future);
    assert_eq!(domain.usage().1, before + 4096, "the device may still write it");
    let deadline = Instant::now() + PATIENCE;
    while handle.inflight() > 0 {
        handle.drive();
        assert!(Instant::now() < deadline);
    }
    assert_eq!(domain.usage().1, before);
}

#[test]
fn what_can_never_be_carried_out_ends_at_once() {
    let volume = volume("mem:1MiB");
    let handle = AsyncHandle::new(handle(&volume));
    let io = Io::write(1 << 20, buffer(&volume, &[0; 4096]), 5);
    let done = handle.block_on(handle.submit(io));
    assert_eq!((done.tag, done.memory.len()), (5, 4096));
    assert_eq!(done.result.expect_err("beyond the end").kind(), ErrorKind::OutOfRange);
    let io = Io { file: FileId(0), ..Io::bare(0, Action::Flush, 6) };
    handle.block_on(handle.submit(io)).result.expect("a flush");
}

/// Memory that the caller has mapped, for a cache or for another process, is read into where it lies.
#[test]
fn memory_of_the_callers_own_mapping_is_used_where_it_lies() {
    let volume = volume("mem:8MiB?lba=512");
    let mut handle = handle(&volume);
    let data = pattern(16_384, 5);
    handle.write_at(&data, 4096).expect("it fits");
    let map = memmap2::MmapMut::map_anon(32_768).expect("memory");
    let mine = map.as_ptr().addr();
    let buffer = volume.device().dma().register(map, Access::Both).expect("whole pages");
    let slice = Slice { source: Source::Dma(0), offset: 8192, len: 16_384 };
    let vector = IoVector { dma: vec![buffer], plain: Vec::new(), slices: vec![slice] };
    let done = handle.run(Io::read(4096, vector, 0));
    done.result.expect("it is there");
    let vector = done.memory.into_vector().expect("it was one");
    assert_eq!(vector.dma[0].as_ptr().addr(), mine, "nothing was moved");
    assert_eq!(vector.bytes(slice), data);
    assert_eq!(handle.statistics().bounces, 0);
}
