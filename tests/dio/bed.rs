//! The test bed: a controller in software, the driver on it, a map, and a pipeline over both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use udirect::block::{
    BlockDevice, Durability, IoQueue, MapBlocks, Operation, Placement, QueueOptions, Request,
    ScriptedMap, ScriptedOptions,
};
use udirect::dio::{Done, Io, IoVector, Memory, Options, Pipeline, Refused, Slice, Source};
use udirect::dma::{Access, DmaBuf, Domain, DomainOptions, PagePolicy};
use udirect::nvme::{self, Namespace};
use udirect::soft::{
    self, CommandContext, Controller, Execution, Interposer, MediaOptions, NamespaceOptions,
    Verdict,
};
use udirect::spec::command::{Command, NvmOpcode};
use udirect::spec::status::Status;
use udirect::units::{BlockCount, FileId, Lba, LbaSize, NamespaceId};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The file that most tests are about.
pub(crate) const FILE: FileId = FileId(1);

/// What a device is like.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) bytes: u64,
    pub(crate) lba: LbaSize,
    /// Bytes of one command, kept by the driver.
    pub(crate) transfer: Option<u64>,
    pub(crate) mdts: Option<u32>,
    pub(crate) noiob: u32,
    pub(crate) sgl: bool,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            bytes: 16 << 20,
            lba: LbaSize::B512,
            transfer: None,
            mdts: Some(1 << 20),
            noiob: 0,
            sgl: false,
        }
    }
}

/// One I/O command as the controller saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) opcode: u8,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
    pub(crate) fua: bool,
}

/// Somebody who looks at something whenever a command is about to be executed.
type Onlooker = Box<dyn Fn(Seen) + Send + Sync>;

/// Writes down every I/O command, and fails those that were asked for.
#[derive(Default)]
pub(crate) struct Watcher {
    seen: Mutex<Vec<Seen>>,
    /// Commands of such an opcode that touch such a block fail with such a status.
    fail: Mutex<Vec<(NvmOpcode, u64, Status)>>,
    failed: AtomicU64,
    onlooker: Mutex<Option<Onlooker>>,
}

impl Watcher {
    /// Fails every command of an opcode that touches a block, and no others.
    pub(crate) fn fail(&self, opcode: NvmOpcode, lba: u64, status: Status) {
        self.relent();
        self.fail_also(opcode, lba, status);
    }

    /// Fails these too.
    pub(crate) fn fail_also(&self, opcode: NvmOpcode, lba: u64, status: Status) {
        self.fail.lock().expect("sound").push((opcode, lba, status));
    }

    pub(crate) fn relent(&self) {
        self.fail.lock().expect("sound").clear();
    }

    /// Returns how many commands were failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Lets somebody look at each command before it is executed.
    pub(crate) fn look_on(&self, onlooker: impl Fn(Seen) + Send + Sync + 'static) {
        *self.onlooker.lock().expect("sound") = Some(Box::new(onlooker));
    }

    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().expect("sound"))
    }
}

fn seen(command: &Command) -> Seen {
    let moves = command.opcode != NvmOpcode::FLUSH.0;
    Seen {
        opcode: command.opcode,
        lba: command.slba(),
        blocks: if moves { u64::from(command.cdw12 & 0xffff) + 1 } else { 0 },
        fua: moves && command.cdw12 >> 30 & 1 == 1,
    }
}

impl Interposer for Watcher {
    fn on_command(&self, context: &CommandContext<'_>) -> Verdict {
        let seen = seen(context.command);
        self.seen.lock().expect("sound").push(seen);
        if let Some(onlooker) = &*self.onlooker.lock().expect("sound") {
            onlooker(seen);
        }
        let touches = |lba: u64| (seen.lba..seen.lba + seen.blocks).contains(&lba);
        let fail = self.fail.lock().expect("sound");
        match fail.iter().find(|(opcode, lba, _)| opcode.0 == seen.opcode && touches(*lba)) {
            Some((_, _, status)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                Verdict::Fail(*status)
            }
            None => Verdict::Execute,
        }
    }
}

/// A device, its controller, and a bare queue to look behind the pipeline with.
pub(crate) struct World {
    pub(crate) soft: Arc<Controller>,
    pub(crate) watcher: Arc<Watcher>,
    pub(crate) device: Arc<Namespace>,
    bare: Box<dyn IoQueue>,
}

impl World {
    pub(crate) fn new(device: &Device) -> Self {
        Self::with(device, PagePolicy::Ordinary, Execution::Inline)
    }

    /// A world whose memory is made of such pages, and whose controller lives on such time.
    pub(crate) fn with(device: &Device, pages: PagePolicy, execution: Execution) -> Self {
        let watcher = Arc::new(Watcher::default());
        let namespace = NamespaceOptions {
            media: MediaOptions::Ram { bytes: device.bytes },
            lba_size: device.lba,
            metadata: None,
        };
        let options = soft::Options {
            namespaces: vec![namespace],
            execution,
            mdts: device.mdts,
            noiob: device.noiob,
            sgl: device.sgl,
            interposer: Some(Arc::clone(&watcher) as _),
            ..soft::Options::default()
        };
        let soft = Controller::new(options).expect("the options are sound");
        let domain = Domain::new(DomainOptions { pages });
        let driver = nvme::Options { transfer_max: device.transfer, ..nvme::Options::default() };
        let controller = nvme::connect(&soft.transport(), &domain, driver).expect("a controller");
        let device = controller.namespace(NamespaceId(1), "tested").expect("a namespace");
        let bare = device.open_queue(&QueueOptions::default()).expect("a queue");
        Self { soft, watcher, device: Arc::new(device), bare }
    }

    pub(crate) fn block(&self) -> u64 {
        u64::from(self.device.geometry().lba_size.bytes())
    }

    pub(crate) fn buffer(&self, len: usize, access: Access) -> DmaBuf {
        self.device.dma().buffer(len, access).expect("a buffer")
    }

    /// Blocks of the device.
    pub(crate) fn soft_blocks(&self) -> u64 {
        self.device.geometry().blocks.0
    }

    /// Every buffer is back in the domain, but for the rings of the bare queue and the driver's own pages.
    pub(crate) fn assert_all_home(self) {
        let Self { device, bare, soft, .. } = self;
        let domain = Arc::clone(device.dma());
        drop((bare, device));
        drop(soft);
        assert_eq!(domain.usage().1, 0, "memory is still out");
    }

    /// A buffer with bytes that say where they belong.
    pub(crate) fn pattern(&self, len: usize, salt: u64) -> DmaBuf {
        let mut buffer = self.buffer(len, Access::Both);
        fill(&mut buffer, salt);
        buffer
    }

    /// Opens a pipeline over a map.
    pub(crate) fn pipeline<M: MapBlocks>(&self, map: M, options: &Options) -> Pipeline<M> {
        Pipeline::open(&*self.device, map, options).expect("a pipeline")
    }

    /// Reads blocks behind the pipeline's back.
    pub(crate) fn look(&mut self, lba: u64, blocks: u64) -> Vec<u8> {
        let len = (blocks * self.block()) as usize;
        let buffer = self.buffer(len, Access::DeviceWrites);
        let operation = Operation::Read { lba: Lba(lba), payload: buffer.into() };
        let payload = self.run_bare(operation).expect("a read has memory");
        let bytes = payload.segments()[0].to_vec();
        self.watcher.take();
        bytes
    }

    /// Writes every block of the device behind the pipeline's back.
    pub(crate) fn stain(&mut self, byte: u8) {
        let blocks = self.device.geometry().blocks.0;
        let step = (1 << 20) / self.block();
        for lba in (0..blocks).step_by(step as usize) {
            let mut buffer = self.buffer(1 << 20, Access::Both);
            buffer.fill(byte);
            let payload = buffer.into();
            self.run_bare(Operation::Write { lba: Lba(lba), payload, fua: false });
        }
        self.watcher.take();
    }

    fn run_bare(&mut self, operation: Operation) -> Option<udirect::block::Payload> {
        self.bare.submit(Request::new(operation, 0)).expect("a free slot");
        self.bare.ring();
        let deadline = Instant::now() + PATIENCE;
        let mut done = None;
        while done.is_none() {
            assert!(Instant::now() < deadline, "the bare queue answers");
            self.bare.poll(1, &mut |completion| done = Some(completion));
        }
        let completion = done.expect("one");
        completion.result.expect("the medium is sound");
        completion.request.into_payload()
    }
}

/// Fills bytes that differ from place to place and from salt to salt.
pub(crate) fn fill(bytes: &mut [u8], salt: u64) {
    fastrand::Rng::with_seed(salt).fill(bytes);
}

/// The bytes of a pattern.
pub(crate) fn bytes(len: usize, salt: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, salt);
    bytes
}

/// A map with one empty file over the whole device, in units of `unit` blocks.
pub(crate) fn map(world: &World, unit: u64, placement: Placement, answers: &[u64]) -> ScriptedMap {
    let geometry = world.device.geometry();
    let map = ScriptedMap::new(ScriptedOptions {
        unit,
        space: 0..geometry.blocks.0 / unit * unit,
        placement,
        answers: answers.to_vec(),
        block_shift: geometry.lba_size.shift(),
    });
    map.create(FILE, 0);
    map
}

/// What tests do with a pipeline.
pub(crate) trait Drive {
    /// Submits one request that is taken, waits for it.
    fn run(&mut self, io: Io) -> Done;
    /// Submits one request that must be refused, and returns why.
    fn refused(&mut self, io: Io) -> udirect::block::BlockError;
    /// Waits for `count` requests.
    fn wait(&mut self, count: usize) -> Vec<Done>;
}

impl<M: MapBlocks> Drive for Pipeline<M> {
    fn run(&mut self, io: Io) -> Done {
        self.submit(io).expect("the request is taken");
        self.ring();
        self.wait(1).pop().expect("one")
    }

    fn refused(&mut self, io: Io) -> udirect::block::BlockError {
        let (tag, len) = (io.tag, io.memory.len());
        match self.submit(io) {
            Err(Refused::Invalid(io, error)) => {
                assert_eq!((io.tag, io.memory.len()), (tag, len), "it comes back as it was");
                assert_eq!(self.inflight(), 0);
                error
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    fn wait(&mut self, count: usize) -> Vec<Done> {
        let deadline = Instant::now() + PATIENCE;
        let mut done = Vec::new();
        while done.len() < count {
            self.poll(count - done.len(), &mut |one| done.push(one));
            assert!(Instant::now() < deadline, "{} of {count} are back", done.len());
        }
        done
    }
}

/// Slices of one buffer, each an offset and a length.
pub(crate) fn cut(buffer: DmaBuf, slices: &[(u32, u32)]) -> Memory {
    let slice = |&(offset, len): &(u32, u32)| Slice { source: Source::Dma(0), offset, len };
    let slices = slices.iter().map(slice).collect();
    IoVector { dma: vec![buffer], plain: Vec::new(), slices }.into()
}

/// Gives the tested file `count` extents of `blocks` blocks each, with as many between them on the device,
/// from `lba` on.
pub(crate) fn scatter(world: &World, map: &ScriptedMap, lba: u64, count: u64, blocks: u64) {
    (0..count).for_each(|n| place(map, n * blocks, lba + 2 * n * blocks, blocks));
    map.set_len(FILE, count * blocks * world.block());
}

/// The first block and the length of each command, in order.
pub(crate) fn spans(seen: &[Seen]) -> Vec<(u64, u64)> {
    seen.iter().map(|one| (one.lba, one.blocks)).collect()
}

/// The bytes of a memory, as one stream.
pub(crate) fn stream(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len() as usize];
    memory.read(0, &mut bytes);
    bytes
}

/// A read of bytes of the tested file.
pub(crate) fn read(world: &World, offset: u64, len: usize) -> Io {
    let mut buffer = world.buffer(len, Access::Both);
    buffer.fill(0xee);
    Io::read(offset, buffer, 7).of(FILE)
}

/// A write of a pattern to the tested file.
pub(crate) fn write(world: &World, offset: u64, len: usize, salt: u64) -> Io {
    Io::write(offset, world.pattern(len, salt), 7).of(FILE)
}

/// Places whole units of the file on the device.
pub(crate) fn place(map: &ScriptedMap, at: u64, lba: u64, blocks: u64) {
    map.place(FILE, udirect::units::FileBlock(at), Lba(lba), BlockCount(blocks));
}

/// What reads have in their memory before they start.
pub(crate) const UNTOUCHED: u8 = 0xee;

/// A world with one pipeline over one map, for tests that think in bytes of the tested file.
pub(crate) struct Setup {
    pub(crate) world: World,
    pub(crate) map: ScriptedMap,
    pub(crate) pipeline: Pipeline<ScriptedMap>,
}

impl Setup {
    /// An empty file in units of `unit` blocks that lie in order.
    pub(crate) fn new(device: &Device, unit: u64) -> Self {
        Self::over(World::new(device), unit, Placement::Rising, &Options::default())
    }

    pub(crate) fn over(world: World, unit: u64, placement: Placement, options: &Options) -> Self {
        let map = map(&world, unit, placement, &[]);
        let pipeline = world.pipeline(map.clone(), options);
        Self { world, map, pipeline }
    }

    /// Writes all of some bytes.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut buffer = self.world.buffer(bytes.len(), Access::Both);
        buffer.copy_from_slice(bytes);
        let done = self.pipeline.run(Io::write(offset, buffer, 0).of(FILE));
        assert_eq!(done.into_bytes().expect("a write"), bytes.len() as u64);
    }

    /// Reads into `len` bytes of memory, and returns those that the file had.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut buffer = self.world.buffer(len, Access::Both);
        buffer.fill(UNTOUCHED);
        let done = self.pipeline.run(Io::read(offset, buffer, 0).of(FILE));
        done.result.as_ref().expect("a read");
        let mut found = stream(&done.memory);
        assert_rest(&found, done.bytes, self.world.block());
        found.truncate(done.bytes as usize);
        found
    }

    /// Ends a test: nothing is under way, and all memory comes back.
    pub(crate) fn finish(self) {
        let Self { world, map, pipeline } = self;
        assert_eq!(pipeline.inflight(), 0, "every request was answered");
        drop(pipeline);
        assert_eq!(map.under_way(), 0, "every guard is spent");
        world.assert_all_home();
    }
}

/// What follows the bytes of a read in its memory: zeroes to the end of their last block, then what was
/// there.
#[track_caller]
pub(crate) fn assert_rest(found: &[u8], bytes: u64, block: u64) {
    let end = bytes.next_multiple_of(block).min(found.len() as u64) as usize;
    let (past, beyond) = (&found[bytes as usize..end], &found[end..]);
    assert!(past.iter().all(|byte| *byte == 0), "zeroes follow the {bytes} bytes");
    let untouched = beyond.iter().all(|byte| *byte == UNTOUCHED);
    assert!(untouched, "memory past the last block of {bytes} bytes is left alone");
}

/// Says where two strings of bytes differ first, without printing them whole.
#[track_caller]
pub(crate) fn assert_same(found: &[u8], wanted: &[u8], what: std::fmt::Arguments<'_>) {
    assert_eq!(found.len(), wanted.len(), "length of {what}");
    if found != wanted {
        let at = found.iter().zip(wanted).position(|(one, other)| one != other).expect("some");
        let upto = (at + 16).min(found.len());
        panic!("{what}, byte {at}: {:x?}, not {:x?}", &found[at..upto], &wanted[at..upto]);
    }
}

/// Returns the durability of a write that is sometimes to be durable.
pub(crate) fn sometimes(durable: bool) -> Durability {
    if durable { Durability::Data } else { Durability::Lazy }
}
