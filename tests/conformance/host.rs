//! A caller of one queue: submits, waits with a deadline, keeps count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use udirect::block::{
    BlockDevice, BlockError, Completion, IoQueue, Operation, QueueOptions, Rejected, Request,
};
use udirect::dma::{Access, DmaBuf};
use udirect::units::Lba;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device and a queue to it.
pub(crate) struct Host {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) queue: Box<dyn IoQueue>,
}

impl Host {
    pub(crate) fn new(device: Arc<dyn BlockDevice>) -> Self {
        let depth = device.max_depth().min(64);
        Self::with_depth(device, depth)
    }

    pub(crate) fn with_depth(device: Arc<dyn BlockDevice>, depth: u32) -> Self {
        let options = QueueOptions { depth, ..QueueOptions::default() };
        let queue = device.open_queue(&options).expect("a queue");
        Self { device, queue }
    }

    pub(crate) fn inflight(&self) -> usize {
        self.queue.inflight()
    }

    /// The size of a block in bytes.
    pub(crate) fn block(&self) -> usize {
        self.device.geometry().lba_size.bytes() as usize
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.device.geometry().blocks.0
    }

    pub(crate) fn buffer(&self, len: usize, access: Access) -> DmaBuf {
        self.device.dma().buffer(len, access).expect("a buffer")
    }

    /// A buffer of `len` bytes that say where they belong.
    pub(crate) fn pattern(&self, len: usize, salt: u64) -> DmaBuf {
        let mut buffer = self.buffer(len, Access::Both);
        fill(&mut buffer, salt);
        buffer
    }

    /// Submits one request and waits for it.
    pub(crate) fn run(&mut self, operation: Operation) -> Completion {
        self.queue.submit(Request::new(operation, 42)).expect("the request is taken");
        self.queue.ring();
        let mut completions = self.wait(1);
        let completion = completions.pop().expect("one completion");
        assert_eq!(completion.request.tag, 42);
        completion
    }

    /// Submits one request that must be refused at once, and returns why.
    pub(crate) fn refused(&mut self, operation: Operation) -> BlockError {
        match self.queue.submit(Request::new(operation, 7)) {
            Err(Rejected::Invalid(request, error)) => {
                assert_eq!(request.tag, 7);
                error
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Waits for `count` completions.
    pub(crate) fn wait(&mut self, count: usize) -> Vec<Completion> {
        let deadline = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        while completions.len() < count {
            let most = count - completions.len();
            self.queue.poll(most, &mut |completion| completions.push(completion));
            assert!(Instant::now() < deadline, "{} of {count} completions", completions.len());
        }
        completions
    }

    pub(crate) fn write(&mut self, lba: u64, buffer: DmaBuf) -> DmaBuf {
        let completion =
            self.run(Operation::Write { lba: Lba(lba), payload: buffer.into(), fua: false });
        completion.result.as_ref().expect("a write");
        one(completion)
    }

    pub(crate) fn read(&mut self, lba: u64, len: usize) -> DmaBuf {
        let buffer = self.buffer(len, Access::DeviceWrites);
        let completion = self.run(Operation::Read { lba: Lba(lba), payload: buffer.into() });
        completion.result.as_ref().expect("a read");
        one(completion)
    }
}

/// The buffer of a request that had one.
pub(crate) fn one(completion: Completion) -> DmaBuf {
    completion.request.into_payload().expect("a payload").into_one().expect("one buffer")
}

/// Fills bytes that differ from place to place and from salt to salt.
pub(crate) fn fill(bytes: &mut [u8], salt: u64) {
    let mut words = fastrand::Rng::with_seed(salt);
    words.fill(bytes);
}
