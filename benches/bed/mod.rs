//! The test bed of the benches: the driver on a controller that works only when it is told to.
//!
//! The controller is stepped outside of what is measured, so that a figure is the driver's alone.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use udirect::block::{BlockDevice, Completion, Identity, IoQueue, QueueOptions, Request};
use udirect::dio::{Done, Io, Pipeline};
use udirect::dma::{Access, DmaBuf, Domain, DomainOptions, PagePolicy};
use udirect::nvme;
use udirect::soft::{Controller, Execution, MediaOptions, NamespaceOptions, Options};
use udirect::units::{Lba, NamespaceId};

/// I/Os of one batch, as in the budget of the driver.
pub(crate) const BATCH: usize = 32;

/// Slots of the queue, as in the budget of the driver.
pub(crate) const DEPTH: u32 = 128;

/// A queue pair, the controller behind it, and buffers to read into.
pub(crate) struct Bed {
    pub(crate) queue: Box<dyn IoQueue>,
    pub(crate) controller: Arc<Controller>,
    buffers: Vec<DmaBuf>,
    done: Vec<Completion>,
    next: u64,
}

impl Bed {
    /// A queue to a device of no media; buffers of `bytes` each.
    pub(crate) fn new(bytes: usize, sgl: bool) -> Self {
        let (controller, device) = device(sgl);
        let depth = queue_options();
        let queue = stepping(&controller, || device.open_queue(&depth)).expect("a queue");
        let buffer = || device.dma().buffer(bytes, Access::DeviceWrites).expect("a buffer");
        let buffers = (0..DEPTH).map(|_| buffer()).collect();
        let done = Vec::with_capacity(DEPTH as usize);
        Self { queue, controller, buffers, done, next: 0 }
    }

    /// Makes a batch of reads, in the order in which buffers came back.
    pub(crate) fn requests(&mut self) -> Vec<Request> {
        let back = self.done.drain(..).map(buffer_of);
        self.buffers.extend(back);
        let buffers = self.buffers.drain(..BATCH);
        buffers
            .map(|buffer| {
                self.next += 1;
                Request::read(Lba(self.next * 997 % (1 << 20)), buffer, self.next)
            })
            .collect()
    }

    /// Submits a batch and rings: one half of what is measured.
    #[inline(never)]
    pub(crate) fn submit(&mut self, requests: Vec<Request>) {
        // Not a `for`: that copies each request through an `Option`, and the queue waits for the copy.
        requests.into_iter().for_each(|one| self.queue.submit(one).expect("a free slot"));
        self.queue.ring();
    }

    /// Polls a batch: the other half. The sink keeps the completion for later, which every caller does
    /// in some form.
    #[inline(never)]
    pub(crate) fn poll(&mut self) -> usize {
        let Self { queue, done, .. } = self;
        queue.poll(BATCH, &mut |completion| done.push(completion))
    }

    /// One batch there and back, so that caches, pages and predictors have seen it.
    pub(crate) fn lap(&mut self) {
        let requests = self.requests();
        self.submit(requests);
        self.controller.step();
        assert_eq!(self.poll(), BATCH);
    }
}

/// The pipeline over such a queue, and a raw volume's map.
pub(crate) struct PipelineBed {
    pub(crate) pipeline: Option<Pipeline<Identity>>,
    pub(crate) controller: Arc<Controller>,
    buffers: Vec<DmaBuf>,
    done: Vec<Done>,
    next: u64,
}

impl PipelineBed {
    /// A pipeline to a device of no media; buffers of `bytes` each.
    pub(crate) fn new(bytes: usize) -> Self {
        let (controller, device) = device(true);
        let options = udirect::dio::Options { queue: queue_options(), ..Default::default() };
        let map = Identity::new(device.geometry());
        let pipeline = stepping(&controller, || Pipeline::open(&device, map, &options));
        let buffer = || device.dma().buffer(bytes, Access::DeviceWrites).expect("a buffer");
        let buffers = (0..DEPTH).map(|_| buffer()).collect();
        let (pipeline, done) = (Some(pipeline.expect("a pipeline")), Vec::with_capacity(256));
        Self { pipeline, controller, buffers, done, next: 0 }
    }

    /// Makes a batch of reads, in the order in which buffers came back.
    pub(crate) fn requests(&mut self) -> Vec<Io> {
        let back = self.done.drain(..).map(|done| {
            done.result.expect("a read of no media succeeds");
            done.memory.into_one().expect("it was one buffer")
        });
        self.buffers.extend(back);
        let buffers = self.buffers.drain(..BATCH);
        buffers
            .map(|buffer| {
                self.next += 1;
                Io::read((self.next * 997 % (1 << 20)) << 12, buffer, self.next)
            })
            .collect()
    }

    /// Submits a batch and rings.
    #[inline(never)]
    pub(crate) fn submit(&mut self, requests: Vec<Io>) {
        let pipeline = self.pipeline.as_mut().expect("it is open");
        for request in requests {
            pipeline.submit(request).expect("there is room");
        }
        pipeline.ring();
    }

    /// Polls a batch; the sink keeps what comes back for later.
    #[inline(never)]
    pub(crate) fn poll(&mut self) -> usize {
        let Self { pipeline, done, .. } = self;
        let pipeline = pipeline.as_mut().expect("it is open");
        pipeline.poll(BATCH, &mut |one| done.push(one))
    }

    /// One batch there and back.
    pub(crate) fn lap(&mut self) {
        let requests = self.requests();
        self.submit(requests);
        self.controller.step();
        assert_eq!(self.poll(), BATCH);
    }
}

impl Drop for PipelineBed {
    fn drop(&mut self) {
        let controller = Arc::clone(&self.controller);
        let pipeline = self.pipeline.take();
        stepping(&controller, || drop(pipeline));
    }
}

/// A controller without media that works when it is told to, and the driver on it.
fn device(sgl: bool) -> (Arc<Controller>, nvme::Namespace) {
    let media = MediaOptions::Null { bytes: 1 << 40 };
    let namespace = NamespaceOptions { media, ..NamespaceOptions::default() };
    let options = Options {
        namespaces: vec![namespace],
        execution: Execution::Stepped,
        sgl,
        ..Options::default()
    };
    let controller = Controller::new(options).expect("the options are sound");
    let device = stepping(&controller, || connect(&controller));
    (controller, device)
}

fn queue_options() -> QueueOptions {
    QueueOptions { depth: DEPTH, ..QueueOptions::default() }
}

fn buffer_of(completion: Completion) -> DmaBuf {
    completion.result.expect("a read of no media succeeds");
    let payload = completion.request.into_payload().expect("a read has a payload");
    payload.into_one().expect("it was one buffer")
}

fn connect(controller: &Arc<Controller>) -> nvme::Namespace {
    let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
    let transport = controller.transport();
    let connected = nvme::connect(&transport, &domain, nvme::Options::default());
    let connected = connected.expect("a controller");
    connected.namespace(NamespaceId(1), "bench").expect("a namespace")
}

/// Does something that waits for the controller, which another thread steps meanwhile.
fn stepping<T>(controller: &Controller, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                controller.step();
                thread::yield_now();
            }
        });
        let result = work();
        done.store(true, Ordering::Release);
        result
    })
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Deleting the queue and shutting down are commands too.
        let controller = Arc::clone(&self.controller);
        let queue = std::mem::replace(&mut self.queue, Box::new(Closed));
        stepping(&controller, || drop(queue));
    }
}

/// What is left of the queue once it is closed.
struct Closed;

impl IoQueue for Closed {
    fn submit(&mut self, request: Request) -> Result<(), udirect::block::Rejected> {
        Err(udirect::block::Rejected::QueueFull(request))
    }
    fn ring(&mut self) {}
    fn poll(&mut self, _: usize, _: &mut dyn FnMut(Completion)) -> usize {
        0
    }
    fn inflight(&self) -> usize {
        0
    }
    fn depth(&self) -> usize {
        0
    }
    fn counters(&self) -> udirect::block::Counters {
        udirect::block::Counters::default()
    }
}
