//! What the path of a request must not do: allocate, read registers, ring more than once a batch.
//!
//! The whole process is counted, driver and inline controller together, so the bounds hold for both.

use std::alloc::System;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use udirect::block::{BlockDevice, Completion, IoQueue, QueueOptions, Request};
use udirect::dma::{Access, Arena, DmaBuf, Domain, DomainOptions, IovaLimits, Mapper, PagePolicy};
use udirect::soft::{Controller, NamespaceOptions, Options};
use udirect::transport::{Doorbell, Pump, Transport};
use udirect::units::{Lba, NamespaceId, QueueId};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A transport that counts register accesses.
struct Counting {
    inner: Arc<dyn Transport>,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Mapper for Counting {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn limits(&self) -> IovaLimits {
        self.inner.limits()
    }
    fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        self.inner.map(arena)
    }
    fn unmap(&self, arena: &Arena) {
        self.inner.unmap(arena);
    }
}

impl Transport for Counting {
    fn read32(&self, offset: u32) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read32(offset)
    }
    fn read64(&self, offset: u32) -> u64 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read64(offset)
    }
    fn write32(&self, offset: u32, value: u32) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.inner.write32(offset, value);
    }
    fn write64(&self, offset: u32, value: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.inner.write64(offset, value);
    }
    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        self.inner.doorbell(offset)
    }
    fn pump(&self, queue: QueueId) -> Option<Box<dyn Pump>> {
        self.inner.pump(queue)
    }
}

const BATCH: usize = 32;
const BATCHES: u64 = 1000;

/// Writes or reads a batch and takes the buffers back.
fn lap(queue: &mut dyn IoQueue, buffers: &mut Vec<DmaBuf>, round: u64) {
    for n in 0..BATCH as u64 {
        let buffer = buffers.pop().expect("all buffers are back");
        let lba = Lba((round * 31 + n * 7) % 1000);
        let request = match round % 2 {
            0 => Request::write(lba, buffer, n),
            _ => Request::read(lba, buffer, n),
        };
        queue.submit(request).expect("a free slot");
    }
    queue.ring();
    let mut back = 0;
    while back < BATCH {
        back += queue.poll(BATCH, &mut |completion| buffers.push(buffer_of(completion)));
    }
}

fn buffer_of(completion: Completion) -> DmaBuf {
    completion.result.expect("memory does not fail");
    completion.request.into_payload().expect("a payload").into_one().expect("one buffer")
}

#[test]
fn a_request_allocates_nothing_reads_no_register_and_shares_its_doorbell() {
    let options = Options { namespaces: vec![NamespaceOptions::default()], ..Options::default() };
    let controller = Controller::new(options).expect("the options are sound");
    let inner = controller.transport();
    let counting =
        Arc::new(Counting { inner, reads: AtomicU64::new(0), writes: AtomicU64::new(0) });
    let transport: Arc<dyn Transport> = counting.clone();
    let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
    let driver = udirect::nvme::connect(&transport, &domain, udirect::nvme::Options::default());
    let device = driver.expect("a controller").namespace(NamespaceId(1), "counted").expect("one");
    let mut queue = device.open_queue(&QueueOptions::default()).expect("a queue");
    let buffer = || domain.buffer(4096, Access::Both).expect("a buffer");
    let mut buffers: Vec<DmaBuf> = (0..BATCH).map(|_| buffer()).collect();
    (0..4).for_each(|round| lap(&mut *queue, &mut buffers, round));

    let before = queue.counters();
    let reads = counting.reads.load(Ordering::Relaxed);
    let writes = counting.writes.load(Ordering::Relaxed);
    let region = Region::new(ALLOCATOR);
    (0..BATCHES).for_each(|round| lap(&mut *queue, &mut buffers, round));
    let allocated = region.change();

    assert_eq!(allocated.allocations, 0, "{allocated:?}");
    assert_eq!(allocated.reallocations, 0, "{allocated:?}");
    assert_eq!(counting.reads.load(Ordering::Relaxed), reads, "registers were read");
    assert_eq!(counting.writes.load(Ordering::Relaxed), writes, "registers were written");
    let counted = queue.counters().since(&before);
    assert_eq!(counted.submissions, BATCHES * BATCH as u64);
    assert_eq!((counted.sq_doorbells, counted.cq_doorbells), (BATCHES, BATCHES));
}
