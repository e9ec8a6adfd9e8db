//! What the pipeline must not do: allocate for a request, whatever its size.
//!
//! The whole process is counted, pipeline, driver and inline controller together, so the bounds hold for
//! all of them. There is one test, since another one beside it would be counted too.

use std::alloc::System;
use std::time::{Duration, Instant};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};
use udirect::block::{
    Begun, BlockDevice, BlockError, Committed, Extent, MapBlocks, Mapping, QueueOptions, Reach,
};
use udirect::dio::{Done, Io, IoVector, Memory, Options, Pipeline, Refused};
use udirect::dma::{Access, DmaBuf, Domain, DomainOptions, PagePolicy};
use udirect::soft::{self, Controller, MediaOptions, NamespaceOptions};
use udirect::units::{BlockCount, FileBlock, Lba, LbaSize, NamespaceId};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCK: u64 = 512;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A map that allocates nothing: extents of so many blocks, with as many between them.
struct Striped {
    extent: u64,
    blocks: u64,
}

impl MapBlocks for Striped {
    type Guard = ();

    fn begin(&self, _: &Reach) -> Result<Option<Begun<()>>, BlockError> {
        Ok(Some(Begun { guard: (), size: self.blocks * BLOCK }))
    }

    fn map(&self, (): &mut (), at: FileBlock, most: BlockCount) -> Result<Mapping, BlockError> {
        let (index, skip) = (at.0 / self.extent, at.0 % self.extent);
        let blocks = BlockCount((self.extent - skip).min(most.0));
        let lba = Lba(index * 2 * self.extent + skip);
        Ok(Mapping::Mapped(Extent { lba, blocks, new: false, boundary: false }))
    }

    fn commit(&self, (): (), _: u64) -> Result<Committed, BlockError> {
        Ok(Committed::Now)
    }
}

/// Runs one request and returns its memory.
fn run(pipeline: &mut Pipeline<Striped>, io: Io) -> Memory {
    pipeline.submit(io).expect("it is taken");
    pipeline.ring();
    let deadline = Instant::now() + PATIENCE;
    let mut done: Option<Done> = None;
    while done.is_none() {
        assert!(Instant::now() < deadline, "the request comes back");
        pipeline.poll(1, &mut |one| done = Some(one));
    }
    let done = done.expect("the loop ended");
    done.result.expect("memory does not fail");
    done.memory
}

/// Does something once so that everything is warm, and counts what it takes the second time.
fn counted(mut work: impl FnMut()) -> Stats {
    work();
    let region = Region::new(ALLOCATOR);
    work();
    region.change()
}

fn assert_nothing(of: &str, taken: &Stats) {
    let Stats { allocations, reallocations, .. } = taken;
    assert_eq!((*allocations, *reallocations), (0, 0), "{of}: {taken:?}");
}

/// Reads or writes from a buffer and puts it back.
fn lap(pipeline: &mut Pipeline<Striped>, slot: &mut Option<DmaBuf>, offset: u64, writes: bool) {
    let buffer = slot.take().expect("the last lap gave it back");
    let io = if writes { Io::write(offset, buffer, 1) } else { Io::read(offset, buffer, 1) };
    *slot = run(pipeline, io).into_one();
}

/// Nothing for an aligned request on one extent, nothing for one of 128 MiB on scattered extents, nothing
/// for one of many segments, and nothing for one that is turned away.
#[test]
fn requests_of_every_size_take_no_memory_on_their_way() {
    let media = MediaOptions::Ram { bytes: 272 << 20 };
    let namespaces = vec![NamespaceOptions { media, lba_size: LbaSize::B512, metadata: None }];
    let options = soft::Options { namespaces, ..soft::Options::default() };
    let controller = Controller::new(options).expect("the options are sound");
    let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
    let connected =
        udirect::nvme::connect(&controller.transport(), &domain, udirect::nvme::Options::default());
    let device = connected.expect("a controller").namespace(NamespaceId(1), "counted");
    let device = device.expect("a namespace");
    assert_eq!(u64::from(device.geometry().lba_size.bytes()), BLOCK);
    let blocks = 128 << 11;
    let open = |extent| {
        let queue = QueueOptions { depth: 64, ..QueueOptions::default() };
        let options = Options { queue, ..Options::default() };
        Pipeline::open(&device, Striped { extent, blocks }, &options).expect("a pipeline")
    };
    let buffer = |len| Some(domain.buffer(len, Access::Both).expect("a buffer"));

    let (mut pipeline, mut small) = (open(1024), buffer(4096));
    let taken = counted(|| {
        (0..500).for_each(|n| lap(&mut pipeline, &mut small, n % 64 * 4096, n % 2 == 0));
    });
    assert_eq!(pipeline.statistics().direct, 1000, "each is one command, as it came");
    assert_nothing("aligned 4 KiB on one extent", &taken);

    // 1 MiB is 2 and 256 commands here, 128 MiB are 256 and 32768.
    for extent in [1024, 8] {
        let mut pipeline = open(extent);
        for mib in [1, 128] {
            let mut large = buffer(mib << 20);
            let taken = counted(|| {
                lap(&mut pipeline, &mut large, 0, true);
                lap(&mut pipeline, &mut large, 0, false);
            });
            assert_nothing(&format!("{mib} MiB on extents of {extent} blocks"), &taken);
        }
    }

    let mut pipeline = open(64);
    let mut vector = IoVector::new();
    for _ in 0..64 {
        vector = vector.with(domain.buffer(4096, Access::Both).expect("a buffer"));
    }
    let mut memory = Some(Memory::from(vector));
    let taken = counted(|| {
        let ready = memory.take().expect("it was put back");
        memory = Some(run(&mut pipeline, Io::read(0, ready, 1)));
    });
    assert_nothing("64 segments", &taken);

    let plain = IoVector::new().with_plain(vec![0; 1 << 20]);
    let mut memory = Some(Memory::from(plain));
    let taken = counted(|| {
        let ready = memory.take().expect("it was put back");
        memory = Some(run(&mut pipeline, Io::write(0, ready, 1)));
    });
    assert_nothing("1 MiB through bounce buffers", &taken);

    turned_away(open(8), &buffer);
}

/// A request for which there is no room comes back, and took no memory to do so.
fn turned_away(mut pipeline: Pipeline<Striped>, buffer: &dyn Fn(usize) -> Option<DmaBuf>) {
    for n in 0..64 {
        let memory = buffer(4096).expect("a buffer");
        pipeline.submit(Io::read(n * 4096, memory, n)).expect("there is room");
    }
    let mut slot = buffer(4096);
    let taken = counted(|| {
        let io = Io::read(0, slot.take().expect("it was put back"), 64);
        let Err(Refused::Full(io)) = pipeline.submit(io) else { panic!("there is no room") };
        slot = io.memory.into_one();
    });
    assert_eq!(pipeline.statistics().full, 2);
    assert_nothing("a request turned away", &taken);
}
