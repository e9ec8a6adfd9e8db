//! A device and a map that write down what is asked of them, in one order, and a device in disguise.
//!
//! Both pass everything on to the real ones. The device may say other things of itself than the one
//! underneath, and may give commands back late or in the opposite order, as a device is free to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use udirect::block::{
    Begun, BlockDevice, BlockError, Committed, Completion, Counters, DeviceInfo, Geometry, IoQueue,
    MapBlocks, Mapping, Operation, QueueOptions, Reach, Rejected, Request, Run, ScriptedGuard,
    ScriptedMap,
};
use udirect::dma::Domain;
use udirect::nvme::Namespace;
use udirect::units::{BlockCount, FileBlock};

use crate::bed::World;

/// One thing that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The map was asked about a block of the file.
    Asked(u64),
    /// The queue took a request: its name, and its memory as the device will see it.
    Sent(&'static str, Vec<Run>),
    /// The device was told.
    Rung,
    /// So many bytes were published.
    Committed(u64),
}

/// What was asked, in order; clones are the same ledger.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<Step>>>);

impl Ledger {
    pub(crate) fn take(&self) -> Vec<Step> {
        std::mem::take(&mut *self.0.lock().expect("sound"))
    }

    /// Takes the memory of all requests that were sent.
    pub(crate) fn take_memory(&self) -> Vec<Vec<Run>> {
        let memory = |step| if let Step::Sent(_, runs) = step { Some(runs) } else { None };
        self.take().into_iter().filter_map(memory).collect()
    }

    fn note(&self, step: Step) {
        self.0.lock().expect("sound").push(step);
    }
}

/// A device that passes everything on.
pub(crate) struct Guise {
    pub(crate) inner: Arc<Namespace>,
    /// What it says of itself.
    pub(crate) geometry: Geometry,
    /// Whether commands come back last one first.
    pub(crate) backwards: bool,
    /// Whether nothing comes back for the time being.
    pub(crate) is_held: Arc<AtomicBool>,
    pub(crate) ledger: Ledger,
}

impl Guise {
    pub(crate) fn of(world: &World) -> Self {
        let inner = Arc::clone(&world.device);
        let geometry = inner.geometry().clone();
        let (is_held, ledger) = (Arc::default(), Ledger::default());
        Self { inner, geometry, backwards: false, is_held, ledger }
    }
}

impl BlockDevice for Guise {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn open_queue(&self, options: &QueueOptions) -> Result<Box<dyn IoQueue>, BlockError> {
        let inner = self.inner.open_queue(options)?;
        let (ledger, backwards) = (self.ledger.clone(), self.backwards);
        let (is_held, finished) = (Arc::clone(&self.is_held), Vec::new());
        Ok(Box::new(Queue { inner, ledger, backwards, is_held, finished }))
    }

    fn max_depth(&self) -> u32 {
        self.inner.max_depth()
    }

    fn max_queues(&self) -> u32 {
        self.inner.max_queues()
    }

    fn dma(&self) -> &Arc<Domain> {
        self.inner.dma()
    }
}

struct Queue {
    inner: Box<dyn IoQueue>,
    ledger: Ledger,
    backwards: bool,
    is_held: Arc<AtomicBool>,
    /// What the device has finished and nobody has taken, last one last.
    finished: Vec<Completion>,
}

fn sent(request: &Request) -> Step {
    let runs = match &request.operation {
        Operation::Read { payload, .. } | Operation::Write { payload, .. } => {
            (0..payload.count()).map(|index| payload.run(index)).collect()
        }
        _ => Vec::new(),
    };
    Step::Sent(request.operation.name(), runs)
}

impl IoQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        let step = sent(&request);
        self.inner.submit(request).inspect(|()| self.ledger.note(step))
    }

    fn ring(&mut self) {
        self.ledger.note(Step::Rung);
        self.inner.ring();
    }

    fn poll(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize {
        if self.is_held.load(Ordering::Relaxed) {
            return 0;
        }
        if !self.backwards {
            return self.inner.poll(max, sink);
        }
        let Self { inner, finished, .. } = self;
        inner.poll(usize::MAX, &mut |completion| finished.push(completion));
        let count = finished.len().min(max);
        (0..count).filter_map(|_| finished.pop()).for_each(sink);
        count
    }

    fn inflight(&self) -> usize {
        self.inner.inflight() + self.finished.len()
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// A map that writes down what it is asked.
pub(crate) struct Noted {
    pub(crate) inner: ScriptedMap,
    pub(crate) ledger: Ledger,
}

impl MapBlocks for Noted {
    type Guard = ScriptedGuard;

    fn unit(&self) -> BlockCount {
        self.inner.unit()
    }

    fn begin(&self, reach: &Reach) -> Result<Option<Begun<ScriptedGuard>>, BlockError> {
        self.inner.begin(reach)
    }

    fn map(
        &self,
        guard: &mut ScriptedGuard,
        at: FileBlock,
        blocks: BlockCount,
    ) -> Result<Mapping, BlockError> {
        self.ledger.note(Step::Asked(at.0));
        self.inner.map(guard, at, blocks)
    }

    fn commit(&self, guard: ScriptedGuard, bytes: u64) -> Result<Committed, BlockError> {
        self.ledger.note(Step::Committed(bytes));
        self.inner.commit(guard, bytes)
    }
}
