//! A driver that survives its device: lost and stuck commands, completions that lie, fatal status, removal.
//!
//! Every test ends with nothing in flight, no DMA memory out and no descriptor open: the bed sees to that.
//! `UDIRECT_RECOVERIES` multiplies how often each thing happens that is counted.

use std::collections::HashSet;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use udirect::block::{
    BlockDevice, Completion, ErrorKind, IoQueue, Operation, QueueOptions, Request,
};
use udirect::dma::{Access, Arena, Domain, DomainOptions, IovaLimits, Mapper, PagePolicy};
use udirect::nvme;
use udirect::soft::{
    Controller, Event, Execution, FaultAction, FaultRule, Faults, Lie, NamespaceOptions, Options,
};
use udirect::spec::command::NvmOpcode;
use udirect::spec::registers::offset;
use udirect::spec::status::Status;
use udirect::transport::{Doorbell, Pump, Transport};
use udirect::units::{BlockCount, Lba, NamespaceId, QueueId};

const BLOCK: usize = 4096;

/// How long a command may take in tests where it never comes: short, and long beside what a reset takes.
const SHORT: Duration = Duration::from_millis(40);

/// How long one may take where it comes in the end, whatever else the machine does.
const LONG: Duration = Duration::from_secs(30);

/// Returns how often something is done: `few`, or so many times more.
fn times(few: u64) -> u64 {
    let wanted = std::env::var("UDIRECT_RECOVERIES").ok().and_then(|text| text.parse().ok());
    few * wanted.unwrap_or(1)
}

/// A controller in software that misbehaves by rules, and the driver on it.
struct World {
    /// First: the driver lets go of memory before it is counted.
    driver: Arc<nvme::Controller>,
    soft: Arc<Controller>,
    faults: Arc<Faults>,
    domain: Arc<Domain>,
    stuck: Arc<AtomicBool>,
}

/// A world that has to end well.
struct Bed {
    world: Option<World>,
    descriptors: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Bed {
    fn new() -> Self {
        Self::with(Options::default(), nvme::Options::default())
    }

    fn with(options: Options, driver: nvme::Options) -> Self {
        // One at a time, so that descriptors can be counted.
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptors = descriptors();
        Self { world: Some(World::new(options, driver)), descriptors, _turn: turn }
    }
}

impl Deref for Bed {
    type Target = World;

    fn deref(&self) -> &World {
        self.world.as_ref().expect("it is there until the end")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let Some(World { driver, soft, faults, domain, stuck }) = self.world.take() else { return };
        if std::thread::panicking() {
            return;
        }
        drop(driver);
        assert_eq!(domain.usage().1, 0, "DMA memory is still out");
        assert_eq!(Arc::strong_count(&domain), 1, "somebody holds the memory");
        assert_eq!(Arc::strong_count(&soft), 1, "somebody holds the transport");
        drop((soft, faults, domain, stuck));
        assert_eq!(descriptors(), self.descriptors, "descriptors are still open");
    }
}

impl World {
    fn new(options: Options, driver: nvme::Options) -> Self {
        let faults = Faults::new(1);
        let namespaces = vec![NamespaceOptions::default()];
        let interposer = Some(Arc::clone(&faults) as _);
        let soft = Controller::new(Options { namespaces, interposer, ..options });
        let soft = soft.expect("the options are sound");
        let stuck = Arc::new(AtomicBool::new(false));
        let wedge: Arc<dyn Transport> =
            Arc::new(Wedge { inner: soft.transport(), stuck: Arc::clone(&stuck) });
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        let driver = nvme::connect(&wedge, &domain, driver).expect("a controller");
        Self { driver, soft, faults, domain, stuck }
    }

    fn queue(&self, timeout: Duration) -> Box<dyn IoQueue> {
        let device = self.driver.namespace(NamespaceId(1), "tested").expect("a namespace");
        let options = QueueOptions { timeout, ..QueueOptions::default() };
        device.open_queue(&options).expect("a queue")
    }

    /// Reads blocks; their first is the tag.
    fn read(&self, queue: &mut dyn IoQueue, lba: u64, blocks: usize) {
        let buffer = self.domain.buffer(blocks * BLOCK, Access::DeviceWrites).expect("a buffer");
        queue.submit(Request::read(Lba(lba), buffer, lba)).expect("a free slot");
    }

    /// Writes blocks that say where they are and in which round they were written.
    fn write(&self, queue: &mut dyn IoQueue, lba: u64, blocks: usize, round: u64) {
        let mut buffer = self.domain.buffer(blocks * BLOCK, Access::Both).expect("a buffer");
        for (at, block) in (lba..).zip(buffer.chunks_mut(BLOCK)) {
            block.copy_from_slice(&content(at, round));
        }
        queue.submit(Request::write(Lba(lba), buffer, lba)).expect("a free slot");
    }

    /// Writes the first blocks of the device, so that reads find something.
    fn fill(&self, queue: &mut dyn IoQueue, blocks: u64, round: u64) {
        for from in (0..blocks).step_by(64) {
            self.write(queue, from, 64.min(blocks - from) as usize, round);
            queue.ring();
            assert_all_good(&wait(queue, 1), round);
        }
    }

    /// Reads blocks one by one and expects what a round has written.
    fn expect(&self, queue: &mut dyn IoQueue, blocks: u64, round: u64) {
        for lba in 0..blocks {
            self.read(queue, lba, 1);
            queue.ring();
            assert_all_good(&wait(queue, 1), round);
        }
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the kernel lists them").count()
}

/// What a block holds after a write: its own number and that of the round, all over.
fn content(lba: u64, round: u64) -> Vec<u8> {
    let word = (lba << 32 | round).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK).collect()
}

/// Waits for requests, each of which has to come back once.
fn wait(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut back = Vec::new();
    while back.len() < count {
        queue.poll(count - back.len(), &mut |completion| back.push(completion));
        assert!(Instant::now() < deadline, "{} of {count} are back", back.len());
    }
    let tags: HashSet<u64> = back.iter().map(|completion| completion.request.tag).collect();
    assert_eq!(tags.len(), count, "a request came back twice");
    assert_eq!(queue.inflight(), 0);
    back
}

/// Everything succeeded, and every read found what `round` has written.
fn assert_all_good(back: &[Completion], round: u64) {
    for Completion { request, result } in back {
        if let Err(error) = result {
            panic!("block {}: {error}", request.tag);
        }
        let Operation::Read { lba, payload } = &request.operation else { continue };
        for index in 0..payload.len() / BLOCK as u64 {
            let mut block = vec![0; BLOCK];
            payload.copy_out(index * BLOCK as u64, &mut block);
            assert!(block == content(lba.0 + index, round), "block {}", lba.0 + index);
        }
    }
}

fn errors(back: Vec<Completion>) -> Vec<(ErrorKind, String)> {
    let error = |completion: Completion| completion.result.expect_err("it fails");
    back.into_iter().map(error).map(|error| (error.kind(), error.to_string())).collect()
}

/// A transport whose admin queue can be stuck until the controller is disabled.
struct Wedge {
    inner: Arc<dyn Transport>,
    stuck: Arc<AtomicBool>,
}

impl Mapper for Wedge {
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

impl Transport for Wedge {
    fn read32(&self, at: u32) -> u32 {
        self.inner.read32(at)
    }
    fn read64(&self, at: u32) -> u64 {
        self.inner.read64(at)
    }
    fn write32(&self, at: u32, value: u32) {
        if at == offset::CC && value & 1 == 0 {
            self.stuck.store(false, Ordering::Release);
        }
        self.inner.write32(at, value);
    }
    fn write64(&self, at: u32, value: u64) {
        self.inner.write64(at, value);
    }
    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        self.inner.doorbell(offset)
    }
    fn pump(&self, queue: QueueId) -> Option<Box<dyn Pump>> {
        let inner = self.inner.pump(queue)?;
        match queue {
            QueueId::ADMIN => Some(Box::new(Stuck { inner, stuck: Arc::clone(&self.stuck) })),
            _ => Some(inner),
        }
    }
}

struct Stuck {
    inner: Box<dyn Pump>,
    stuck: Arc<AtomicBool>,
}

impl Pump for Stuck {
    fn pump(&mut self) {
        if !self.stuck.load(Ordering::Acquire) {
            self.inner.pump();
        }
    }
}

/// A rule for reads of one block.
fn reads_of(lba: u64, action: FaultAction) -> FaultRule {
    FaultRule::new(action).opcode(NvmOpcode::READ).blocks(Lba(lba)..Lba(lba + 1))
}

// Time.

/// The device did what it was asked and the completion was lost. Abort finds nothing to abort; the reset brings the
/// slots back, and a read done twice is a read.
#[test]
fn a_lost_completion_is_awaited_aborted_and_sent_again_after_a_reset() {
    let bed = Bed::new();
    let mut queue = bed.queue(SHORT);
    bed.fill(&mut *queue, 100, 1);
    for round in 0..times(3) {
        for lba in 0..100 {
            bed.faults.add(reads_of(lba, FaultAction::Drop).once());
        }
        let before = queue.counters();
        (0..100).for_each(|lba| bed.read(&mut *queue, lba, 1));
        queue.ring();
        assert_all_good(&wait(&mut *queue, 100), 1);
        let counted = queue.counters().since(&before);
        assert_eq!((counted.resets, counted.resends), (1, 100), "round {round}: {counted:?}");
        // ACL aborts go out; who was not aborted comes back with the reset all the same.
        assert_eq!(counted.aborts, 100);
        assert!(counted.timeouts <= 200, "{counted:?}");
    }
}

/// The device is stuck at a command, and lets go of it when it is asked to.
#[test]
fn a_stuck_command_is_aborted_and_sent_again_without_a_reset() {
    let bed = Bed::new();
    let mut queue = bed.queue(SHORT);
    bed.fill(&mut *queue, 100, 1);
    for lba in (0..98).cycle().take(times(4) as usize) {
        bed.faults.add(reads_of(lba, FaultAction::Stall).once());
        (lba..lba + 2).for_each(|lba| bed.read(&mut *queue, lba, 1));
        queue.ring();
        assert_all_good(&wait(&mut *queue, 2), 1);
    }
    let counted = queue.counters();
    assert_eq!((counted.resets, counted.violations), (0, 0));
    assert_eq!(counted.aborts, counted.resends);
    assert_eq!(counted.timeouts, counted.aborts);
}

/// A command that gets stuck each time it is sent is reported, and the device goes on.
#[test]
fn a_command_that_is_always_stuck_is_a_timeout_in_the_end() {
    let driver = nvme::Options { resends_max: 2, ..nvme::Options::default() };
    let bed = Bed::with(Options::default(), driver);
    let mut queue = bed.queue(SHORT);
    bed.faults.add(reads_of(7, FaultAction::Stall));
    bed.read(&mut *queue, 7, 1);
    queue.ring();
    let failed = errors(wait(&mut *queue, 1));
    let text = "read, sent 3 times, did not finish within 40 ms";
    assert_eq!(failed, [(ErrorKind::Timeout, text.to_owned())]);
    bed.fill(&mut *queue, 4, 1);
    bed.expect(&mut *queue, 4, 1);
    assert_eq!(queue.counters().resets, 0);
}

#[test]
fn a_stuck_admin_command_is_a_timeout_and_the_controller_goes_on() {
    let driver = nvme::Options { admin_timeout: SHORT, ..nvme::Options::default() };
    let bed = Bed::with(Options::default(), driver);
    let mut queue = bed.queue(LONG);
    bed.fill(&mut *queue, 4, 1);
    for _ in 0..times(5) {
        bed.stuck.store(true, Ordering::Release);
        let began = Instant::now();
        let error = bed.driver.events().and_then(|_| bed.driver.sanitize_status().map(drop));
        let error = error.expect_err("it is stuck");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(began.elapsed() >= SHORT, "nothing is given up early");
        bed.driver.sanitize_status().expect("it was reset");
        bed.expect(&mut *queue, 4, 1);
    }
    assert_eq!(queue.counters().resets, times(5));
}

/// A controller that nothing helps is given up, and everybody is told why.
#[test]
fn a_controller_that_no_reset_helps_is_given_up() {
    let driver = nvme::Options { resets_max: 2, resends_max: 100, ..nvme::Options::default() };
    let bed = Bed::with(Options::default(), driver);
    let mut queue = bed.queue(LONG);
    bed.faults.add(FaultRule::new(FaultAction::Fatal));
    (0..10).for_each(|lba| bed.read(&mut *queue, lba, 1));
    queue.ring();
    let back = wait(&mut *queue, 10);
    let error = back[0].result.as_ref().expect_err("it is given up");
    let dump = std::error::Error::source(error).expect("what was seen").to_string();
    for seen in ["CAP=0x", "CSTS=0x00000003"] {
        assert!(dump.contains(seen), "{dump}");
    }
    for (kind, text) in errors(back) {
        assert_eq!(kind, ErrorKind::Poisoned);
        assert!(text.contains("CSTS.CFS"), "{text}");
        assert!(text.contains("2 resets did not help"), "{text}");
    }
    let refused = bed.driver.sanitize_status().expect_err("it was given up");
    assert_eq!(refused.kind(), ErrorKind::Poisoned);
}

// Completions that lie.

/// What the controller says is held against what it can mean; after a lie it is reset, and nobody hears of it.
#[test]
fn no_lie_of_a_completion_is_believed() {
    let bed = Bed::new();
    let mut queue = bed.queue(SHORT);
    bed.fill(&mut *queue, 64, 1);
    // Bits of the slot, of the generation, of both; a queue beside this one; heads outside the window.
    let identifiers = [0x0001, 0x0040, 0x0080, 0x0400, 0x8000, 0xffff].map(Lie::Identifier);
    let others = [Lie::Twice, Lie::Queue(1), Lie::Head(100), Lie::Head(0x8000), Lie::Phase];
    for lie in identifiers.into_iter().chain(others) {
        let before = queue.counters();
        let id = bed.faults.add(reads_of(20, FaultAction::Lie(lie)).once());
        // Of many at once, so that a flipped slot is that of another request.
        (0..64).for_each(|lba| bed.read(&mut *queue, lba, 1));
        queue.ring();
        let mut back = wait(&mut *queue, 64);
        // A lie that comes last is found when the queue is used again.
        if queue.counters().since(&before).resets == 0 {
            bed.read(&mut *queue, 1, 1);
            queue.ring();
            back.extend(wait(&mut *queue, 1));
        }
        assert_eq!(bed.faults.fired(id), 1, "{lie:?}");
        assert_all_good(&back, 1);
        let counted = queue.counters().since(&before);
        assert_eq!(counted.resets, 1, "{lie:?}: {counted:?}");
        // What nobody sees is no violation; it is missed.
        assert_eq!(counted.violations, u64::from(lie != Lie::Phase), "{lie:?}: {counted:?}");
    }
}

// Resets.

/// Every queue of the device hears of its fatal status by itself, and everything in flight is done in the end.
#[test]
fn a_fatal_status_at_full_depth_ends_in_a_reset_and_every_request_is_done() {
    fail_at_full_depth(Options::default());
}

/// The same with doorbells in memory, which the controller has to be told of again.
#[test]
fn shadow_doorbells_live_through_a_reset() {
    let few = Options { doorbell_stride: 0, max_queues: 8, ..Options::default() };
    fail_at_full_depth(Options { shadow_doorbells: true, ..few });
}

fn fail_at_full_depth(options: Options) {
    let bed = Bed::with(options, nvme::Options::default());
    let mut queue = bed.queue(LONG);
    bed.fill(&mut *queue, 128, 1);
    for round in 0..times(25) {
        bed.faults.add(reads_of(round * 5 % 128, FaultAction::Fatal).once());
        (0..128).for_each(|lba| bed.read(&mut *queue, lba, 1));
        queue.ring();
        let began = Instant::now();
        assert_all_good(&wait(&mut *queue, 128), 1);
        // A tenth of a second until it is noticed, and the rest for a machine that has other things to do.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
    assert_eq!(queue.counters().resets, times(25));
}

/// Four shapes of requests of several commands: writes and reads that are cut, in flight and waiting for slots.
#[test]
fn a_split_request_begins_anew_after_a_reset() {
    let bed =
        Bed::with(Options { mdts: Some(16 << 10), ..Options::default() }, nvme::Options::default());
    let device = bed.driver.namespace(NamespaceId(1), "tested").expect("a namespace");
    let options = QueueOptions { depth: 8, timeout: LONG };
    let mut queue = device.open_queue(&options).expect("a queue");
    for round in 0..times(4) {
        // In the tenth and the twentieth command: during the first request, and during the second.
        for nth in [10, 20] {
            bed.faults.add(FaultRule::new(FaultAction::Fatal).opcode(NvmOpcode::WRITE).nth(nth));
        }
        bed.write(&mut *queue, 0, 64, round);
        queue.ring();
        assert_all_good(&wait(&mut *queue, 1), round);
        bed.write(&mut *queue, 64, 64, round);
        queue.ring();
        assert_all_good(&wait(&mut *queue, 1), round);
        bed.faults.clear();
        bed.faults.add(FaultRule::new(FaultAction::Fatal).opcode(NvmOpcode::READ).nth(20));
        bed.read(&mut *queue, 0, 128);
        queue.ring();
        assert_all_good(&wait(&mut *queue, 1), round);
        bed.faults.clear();
    }
    let counted = queue.counters();
    assert_eq!((counted.resets, counted.violations), (times(4) * 3, 0), "{counted:?}");
}

/// A copy may have been done or not, and doing it again may copy something else: whoever asked for it is told so. One
/// that the device was never told of is simply sent.
#[test]
fn what_cannot_be_repeated_is_reported_unless_it_was_never_sent() {
    let bed = Bed::new();
    let mut queue = bed.queue(LONG);
    bed.fill(&mut *queue, 16, 1);
    let copy = |queue: &mut dyn IoQueue, target: u64| {
        let (source, target) = (Lba(0), Lba(target));
        let operation = Operation::Copy { source, target, blocks: BlockCount(8) };
        queue.submit(Request::new(operation, 100 + target.0)).expect("a free slot");
    };
    bed.faults.add(FaultRule::new(FaultAction::Fatal).opcode(NvmOpcode::COPY).once());
    copy(&mut *queue, 8);
    queue.ring();
    // Not rung: the controller does not know of it.
    copy(&mut *queue, 16);
    let mut back = wait(&mut *queue, 2);
    back.sort_by_key(|completion| completion.request.tag);
    assert!(back.pop().expect("two").result.is_ok());
    let failed = errors(back);
    assert_eq!(failed[0].0, ErrorKind::Uncertain);
    assert!(
        failed[0].1.starts_with("whether copy was done is not known: the device was reset"),
        "{failed:?}"
    );
    let mut block = vec![0; BLOCK];
    bed.read(&mut *queue, 16, 1);
    queue.ring();
    let read = wait(&mut *queue, 1).pop().expect("one").request.into_payload().expect("a payload");
    read.copy_out(0, &mut block);
    assert!(block == content(0, 1), "the copy that was sent in the end");
}

/// The controller has two queues on two threads and dies under both, again and again.
#[test]
fn two_queues_on_two_threads_live_through_every_reset() {
    for execution in [Execution::Inline, Execution::Thread] {
        let bed = Bed::with(Options { execution, ..Options::default() }, nvme::Options::default());
        let rule = FaultRule::new(FaultAction::Fatal).chance(1000).times(times(8));
        let id = bed.faults.add(rule);
        let world: &World = &bed;
        std::thread::scope(|scope| {
            for half in 0..2 {
                scope.spawn(move || {
                    let mut queue = world.queue(LONG);
                    let from = half * 4096;
                    for round in 0.. {
                        (0..100).for_each(|n| world.write(&mut *queue, from + n, 1, round));
                        queue.ring();
                        assert_all_good(&wait(&mut *queue, 100), round);
                        (0..100).for_each(|n| world.read(&mut *queue, from + n, 1));
                        queue.ring();
                        assert_all_good(&wait(&mut *queue, 100), round);
                        if world.faults.fired(id) == times(8) {
                            break;
                        }
                    }
                });
            }
        });
        bed.driver.sanitize_status().expect("it works");
    }
}

/// A queue that nobody polls during a reset joins when it is polled next, and one that is opened meanwhile waits.
#[test]
fn a_queue_that_slept_through_a_reset_joins_when_it_is_polled() {
    let bed = Bed::new();
    let (mut awake, mut asleep) = (bed.queue(LONG), bed.queue(LONG));
    bed.fill(&mut *awake, 16, 1);
    (0..16).for_each(|lba| bed.read(&mut *asleep, lba, 1));
    asleep.ring();
    for _ in 0..3 {
        bed.soft.fail();
        bed.expect(&mut *awake, 16, 1);
    }
    bed.soft.fail();
    let mut third = bed.queue(LONG);
    bed.expect(&mut *third, 16, 1);
    assert_all_good(&wait(&mut *asleep, 16), 1);
    assert_eq!((awake.counters().resets, asleep.counters().resets), (3, 1));
    bed.soft.fail();
    drop((awake, asleep, third));
}

/// The device says so itself, by an event that nobody asks for.
#[test]
fn a_persistent_internal_error_is_an_event_that_resets() {
    let bed = Bed::new();
    let mut queue = bed.queue(LONG);
    bed.fill(&mut *queue, 4, 1);
    bed.soft.raise_event(Event::PersistentInternalError);
    assert_eq!(bed.driver.events().expect("it is live").len(), 1);
    bed.expect(&mut *queue, 4, 1);
    assert_eq!(queue.counters().resets, 1);
}

// Failures that pass.

#[test]
fn a_failure_that_passes_is_tried_again_and_one_that_does_not_is_not() {
    let bed = Bed::new();
    let mut queue = bed.queue(LONG);
    bed.fill(&mut *queue, 16, 1);
    let passing =
        [Status::NAMESPACE_NOT_READY, Status::INTERRUPTED, Status::TRANSIENT_TRANSPORT_ERROR];
    for status in passing {
        bed.faults.add(reads_of(3, FaultAction::Fail(status)).times(3));
        (0..8).for_each(|lba| bed.read(&mut *queue, lba, 1));
        queue.ring();
        assert_all_good(&wait(&mut *queue, 8), 1);
    }
    assert_eq!(queue.counters().resends, 9);
    // Three times again is the limit; of a part of a request, all of it.
    bed.faults.add(reads_of(3, FaultAction::Fail(Status::INTERRUPTED)).times(4));
    bed.read(&mut *queue, 3, 1);
    queue.ring();
    let (kind, text) = errors(wait(&mut *queue, 1)).remove(0);
    assert_eq!(kind, ErrorKind::Device);
    assert!(text.contains("Command Interrupted (0x0/0x21)"), "{text}");
    assert_eq!(queue.counters().resends, 12);
    bed.faults.add(reads_of(700, FaultAction::Fail(Status::INTERRUPTED)).times(2));
    bed.fill(&mut *queue, 1024, 2);
    bed.read(&mut *queue, 0, 1024);
    queue.ring();
    assert_all_good(&wait(&mut *queue, 1), 2);
    assert_eq!(queue.counters().resends, 14);
    bed.faults.add(reads_of(3, FaultAction::Fail(Status::UNRECOVERED_READ)).once());
    bed.read(&mut *queue, 3, 1);
    queue.ring();
    assert_eq!(errors(wait(&mut *queue, 1))[0].0, ErrorKind::Media);
    assert_eq!(queue.counters().resends, 14);
}

/// The device asks for 300 ms, in the first of its three delays, and a driver that counts them from 0 would wait 0 or 900.
#[test]
fn a_delay_that_the_device_asks_for_is_waited_for() {
    let bed = Bed::with(
        Options { retry_delays: [3, 0, 9], ..Options::default() },
        nvme::Options::default(),
    );
    let mut queue = bed.queue(LONG);
    bed.fill(&mut *queue, 4, 1);
    // Also after a reset, which forgets what the host has said of itself.
    for resets in 0..2 {
        bed.faults.add(reads_of(3, FaultAction::Fail(Status::NAMESPACE_NOT_READY)).once());
        let began = Instant::now();
        (0..4).for_each(|lba| bed.read(&mut *queue, lba, 1));
        queue.ring();
        let mut back = Vec::new();
        queue.poll(4, &mut |completion| back.push(completion));
        assert_eq!((back.len(), queue.inflight()), (3, 1), "the others do not wait");
        assert_all_good(&wait(&mut *queue, 1), 1);
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
        assert_eq!(queue.counters().resets, resets);
        bed.soft.fail();
        bed.expect(&mut *queue, 4, 1);
    }
}

/// One block of many cannot be read. The error names it, what lies before it has come, and finding it took no more
/// commands than halving does.
#[test]
fn the_bad_block_of_a_read_is_found_and_what_lies_before_it_is_read() {
    let bed = Bed::new();
    let mut queue = bed.queue(LONG);
    bed.fill(&mut *queue, 1024, 1);
    // Of one command of 256 blocks, which is MDTS, and of a request of four.
    for (total, most) in [(256_u64, 10), (1000, 17)] {
        for nth in 0..times(20) {
            let bad = nth * 37 % total;
            bed.faults.add(reads_of(bad, FaultAction::Fail(Status::UNRECOVERED_READ)));
            bed.faults.add(reads_of(total - 1, FaultAction::Fail(Status::UNRECOVERED_READ)));
            let before = queue.counters();
            bed.read(&mut *queue, 0, total as usize);
            queue.ring();
            let done = wait(&mut *queue, 1).pop().expect("one");
            let error = done.result.expect_err("it cannot be read");
            let expected = format!(
                "the medium failed at block {bad:#x}, within 1 blocks: Unrecovered Read Error (0x2/0x81)"
            );
            assert_eq!(error.to_string(), expected);
            let payload = done.request.into_payload().expect("a payload");
            for lba in 0..bad {
                let mut block = vec![0; BLOCK];
                payload.copy_out(lba * BLOCK as u64, &mut block);
                assert!(block == content(lba, 1), "block {lba} before {bad}");
            }
            let commands = queue.counters().since(&before).submissions;
            assert!(commands <= most, "{commands} commands for block {bad} of {total}");
            bed.faults.clear();
        }
    }
    // Read well the second time, it is no error.
    bed.faults.add(reads_of(100, FaultAction::Fail(Status::UNRECOVERED_READ)).once());
    bed.read(&mut *queue, 0, 256);
    queue.ring();
    assert_all_good(&wait(&mut *queue, 1), 1);
}

// The end.

#[test]
fn a_device_that_is_pulled_out_at_full_depth_answers_every_request_and_leaves_nothing() {
    for round in 0..times(15) {
        let bed = Bed::new();
        let mut queue = bed.queue(LONG);
        bed.faults.add(reads_of(round * 9 % 128, FaultAction::Vanish).once());
        (0..128).for_each(|lba| bed.read(&mut *queue, lba, 1));
        queue.ring();
        let began = Instant::now();
        let gone = wait(&mut *queue, 128);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let failed: Vec<Completion> = gone.into_iter().filter(|one| one.result.is_err()).collect();
        assert!(!failed.is_empty());
        for (kind, text) in errors(failed) {
            assert_eq!(kind, ErrorKind::DeviceGone);
            assert!(text.contains("its registers read as all ones"), "{text}");
        }
        let refused = bed.driver.sanitize_status().expect_err("nobody is there");
        assert_eq!(refused.kind(), ErrorKind::DeviceGone);
    }
}
