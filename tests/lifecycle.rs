//! The ends of things: shutdown on every path, commands that never come back, commands that fail.
//!
//! A transport in between writes down what the driver does to the controller and when.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use udirect::block::{BlockDevice, Completion, ErrorKind, IoQueue, QueueOptions, Request};
use udirect::dma::{Access, Arena, Domain, DomainOptions, IovaLimits, Mapper, PagePolicy};
use udirect::nvme;
use udirect::soft::{
    CommandContext, Controller, Event, Interposer, NamespaceOptions, Options, Verdict,
};
use udirect::spec::command::NvmOpcode;
use udirect::spec::registers::{Configuration, SHN_NORMAL, offset};
use udirect::spec::status::Status;
use udirect::transport::{Doorbell, Pump, Transport};
use udirect::units::{Lba, NamespaceId, QueueId};

/// What the driver did, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Mapped,
    Enabled,
    ShutDown,
    Disabled,
    Unmapped,
}

struct Witness {
    inner: Arc<dyn Transport>,
    deeds: Mutex<Vec<Deed>>,
    /// What CSTS reads as, whatever the controller says.
    status: Option<u32>,
    /// What every register reads as, once the device is gone.
    gone: OnceLock<u32>,
    /// Who is told when the device is about to be taken away.
    told: Mutex<Vec<Told>>,
}

type Told = Box<dyn FnOnce(&str) + Send>;

impl Witness {
    fn new(soft: &Arc<Controller>, status: Option<u32>) -> Arc<Self> {
        let (deeds, gone, told) = (Mutex::default(), OnceLock::new(), Mutex::default());
        Arc::new(Self { inner: soft.transport(), deeds, status, gone, told })
    }

    fn note(&self, deed: Deed) {
        let mut deeds = self.deeds.lock().expect("nobody panics under it");
        if deeds.last() != Some(&deed) {
            deeds.push(deed);
        }
    }

    fn deeds(&self) -> Vec<Deed> {
        self.deeds.lock().expect("nobody panics under it").clone()
    }
}

impl Mapper for Witness {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn limits(&self) -> IovaLimits {
        self.inner.limits()
    }
    fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        self.note(Deed::Mapped);
        self.inner.map(arena)
    }
    fn unmap(&self, arena: &Arena) {
        self.note(Deed::Unmapped);
        self.inner.unmap(arena);
    }
}

impl Transport for Witness {
    fn read32(&self, at: u32) -> u32 {
        match (self.gone.get(), self.status) {
            (Some(gone), _) => *gone,
            (None, Some(status)) if at == offset::CSTS => status,
            _ => self.inner.read32(at),
        }
    }
    fn read64(&self, offset: u32) -> u64 {
        match self.gone.get() {
            Some(gone) => u64::from(*gone) << 32 | u64::from(*gone),
            None => self.inner.read64(offset),
        }
    }
    fn write32(&self, at: u32, value: u32) {
        if at == offset::CC {
            let cc = Configuration::from_bits(value);
            self.note(match (cc.en(), cc.shn()) {
                (true, SHN_NORMAL) => Deed::ShutDown,
                (true, _) => Deed::Enabled,
                (false, _) => Deed::Disabled,
            });
        }
        self.inner.write32(at, value);
    }
    fn write64(&self, offset: u32, value: u64) {
        self.inner.write64(offset, value);
    }
    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        self.inner.doorbell(offset)
    }
    fn pump(&self, queue: QueueId) -> Option<Box<dyn Pump>> {
        self.inner.pump(queue)
    }
    fn on_removal(&self, told: Told) {
        self.told.lock().expect("nobody panics under it").push(told);
    }
}

/// A controller in software, the driver on it, and the witness between them.
struct World {
    soft: Arc<Controller>,
    witness: Arc<Witness>,
    domain: Arc<Domain>,
    driver: Arc<nvme::Controller>,
}

impl World {
    fn new(interposer: Option<Arc<dyn Interposer>>) -> Self {
        Self::with(interposer, nvme::Options::default())
    }

    /// A driver that gives its controller up at the first failure.
    fn of_no_patience(interposer: Option<Arc<dyn Interposer>>) -> Self {
        Self::with(interposer, nvme::Options { resets_max: 0, ..nvme::Options::default() })
    }

    fn with(interposer: Option<Arc<dyn Interposer>>, driver: nvme::Options) -> Self {
        let namespaces = vec![NamespaceOptions::default()];
        let options = Options { namespaces, interposer, ..Options::default() };
        let soft = Controller::new(options).expect("the options are sound");
        let witness = Witness::new(&soft, None);
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        let transport: Arc<dyn Transport> = witness.clone();
        let driver = nvme::connect(&transport, &domain, driver);
        Self { soft, witness, domain, driver: driver.expect("a controller") }
    }

    fn device(&self) -> nvme::Namespace {
        self.driver.namespace(NamespaceId(1), "tested").expect("a namespace")
    }

    fn queue(&self, timeout: Duration) -> Box<dyn IoQueue> {
        let options = QueueOptions { timeout, ..QueueOptions::default() };
        self.device().open_queue(&options).expect("a queue")
    }

    fn read(&self, queue: &mut dyn IoQueue, lba: u64) {
        let buffer = self.domain.buffer(4096, Access::DeviceWrites).expect("a buffer");
        queue.submit(Request::read(Lba(lba), buffer, lba)).expect("a free slot");
        queue.ring();
    }
}

fn wait(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut back = Vec::new();
    while back.len() < count {
        queue.poll(count, &mut |completion| back.push(completion));
        assert!(Instant::now() < deadline, "{} of {count} are back", back.len());
    }
    back
}

const SECONDS: Duration = Duration::from_secs(30);

/// Everything is shut down, then disabled, then unmapped, and no memory is out.
fn assert_clean_end(witness: &Witness, domain: &Domain) {
    let deeds = witness.deeds();
    let end = [Deed::ShutDown, Deed::Disabled, Deed::Unmapped];
    assert_eq!(deeds[deeds.len() - 3..], end, "{deeds:?}");
    assert_eq!(domain.usage().1, 0, "memory is still out");
}

#[test]
fn an_ordinary_end_shuts_the_controller_down_before_memory_goes() {
    let world = World::new(None);
    let mut queue = world.queue(SECONDS);
    world.read(&mut *queue, 3);
    wait(&mut *queue, 1);
    let (witness, domain) = (Arc::clone(&world.witness), Arc::clone(&world.domain));
    drop(queue);
    drop(world);
    assert_clean_end(&witness, &domain);
}

#[test]
fn a_panic_with_requests_in_flight_ends_as_cleanly() {
    let world = World::new(None);
    let (witness, domain) = (Arc::clone(&world.witness), Arc::clone(&world.domain));
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let mut queue = world.queue(SECONDS);
        (0..20).for_each(|lba| world.read(&mut *queue, lba));
        panic!("the caller has a bug");
    }));
    assert!(panicked.is_err());
    assert_clean_end(&witness, &domain);
}

#[test]
fn a_sink_that_panics_loses_no_memory() {
    let world = World::new(None);
    let (witness, domain) = (Arc::clone(&world.witness), Arc::clone(&world.domain));
    let mut queue = world.queue(SECONDS);
    (0..20).for_each(|lba| world.read(&mut *queue, lba));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        queue.poll(20, &mut |_| panic!("the caller has a bug"));
    }));
    assert!(panicked.is_err());
    assert_eq!(wait(&mut *queue, 19).len(), 19, "the others are delivered later");
    drop(queue);
    drop(world);
    assert_clean_end(&witness, &domain);
}

/// Does the same to every command of one opcode from the n-th on.
struct From {
    opcode: NvmOpcode,
    after: AtomicU64,
    verdict: Verdict,
}

impl From {
    fn the(n: u64, opcode: NvmOpcode, verdict: Verdict) -> Option<Arc<dyn Interposer>> {
        Some(Arc::new(Self { opcode, after: AtomicU64::new(n), verdict }))
    }
}

impl Interposer for From {
    fn on_command(&self, context: &CommandContext<'_>) -> Verdict {
        if context.command.opcode != self.opcode.0 {
            return Verdict::Execute;
        }
        let left = self.after.load(Ordering::Relaxed);
        self.after.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 0 { self.verdict } else { Verdict::Execute }
    }
}

/// Drivers that wait without a deadline hang here; buffers that come back before the controller is
/// stopped can still be written by it (spdk#2360).
#[test]
fn a_command_that_never_completes_stops_the_controller_and_comes_back() {
    let world = World::of_no_patience(From::the(2, NvmOpcode::READ, Verdict::Drop));
    let mut queue = world.queue(Duration::from_millis(80));
    (0..5).for_each(|lba| world.read(&mut *queue, lba));
    let began = Instant::now();
    let back = wait(&mut *queue, 5);
    assert!(began.elapsed() >= Duration::from_millis(80), "nothing is given up early");
    let good = back.iter().filter(|completion| completion.result.is_ok()).count();
    assert_eq!(good, 2, "what was completed is delivered");
    for completion in back.iter().filter(|completion| completion.result.is_err()) {
        let error = completion.result.as_ref().expect_err("filtered");
        assert_eq!(error.kind(), ErrorKind::Poisoned);
        assert!(error.to_string().contains("within 80 ms"), "{error}");
    }
    let deeds = world.witness.deeds();
    assert_eq!(deeds[deeds.len() - 2..], [Deed::Disabled, Deed::Unmapped], "{deeds:?}");
    // What is submitted afterwards comes back with the reason, too.
    world.read(&mut *queue, 9);
    let error = wait(&mut *queue, 1).pop().expect("one").result.expect_err("it is stopped");
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    let refused = world.device().open_queue(&QueueOptions::default()).err().expect("stopped");
    assert_eq!(refused.kind(), ErrorKind::Poisoned);
    drop((back, queue));
    let domain = Arc::clone(&world.domain);
    drop(world);
    assert_eq!(domain.usage().1, 0);
}

/// A device that has been pulled out answers with all ones; one whose memory space was turned off, with zeroes. Its
/// commands never come back, and whoever waits for them is told that it is gone and not that it is slow.
#[test]
fn a_device_whose_registers_say_nothing_is_gone() {
    for (reads, words) in [(u32::MAX, "all ones"), (0, "zeroes")] {
        let world = World::new(From::the(0, NvmOpcode::READ, Verdict::Drop));
        let mut queue = world.queue(Duration::from_millis(80));
        (0..3).for_each(|lba| world.read(&mut *queue, lba));
        world.witness.gone.set(reads).expect("it is set once");
        for completion in wait(&mut *queue, 3) {
            let error = completion.result.expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::DeviceGone);
            assert!(
                error.to_string().ends_with(&format!("its registers read as {words}")),
                "{error}"
            );
        }
        let refused = world.device().open_queue(&QueueOptions::default()).err().expect("gone");
        assert_eq!(refused.kind(), ErrorKind::DeviceGone);
        drop(queue);
        let domain = Arc::clone(&world.domain);
        drop(world);
        assert_eq!(domain.usage().1, 0);
    }
}

/// The kernel asks for the device in the middle of work: what is under way comes back, and the device is free of us
/// before anybody is told.
#[test]
fn a_device_that_is_asked_back_is_let_go_of() {
    let world = World::new(From::the(0, NvmOpcode::READ, Verdict::Drop));
    let mut queue = world.queue(SECONDS);
    (0..3).for_each(|lba| world.read(&mut *queue, lba));
    let told =
        world.witness.told.lock().expect("nobody panics under it").pop().expect("the driver");
    std::thread::scope(|scope| scope.spawn(|| told("the kernel asks for it")).join())
        .expect("told");
    for completion in wait(&mut *queue, 3) {
        let error = completion.result.expect_err("it is asked back");
        assert_eq!(error.kind(), ErrorKind::DeviceGone);
        assert_eq!(error.to_string(), "the device is gone: the kernel asks for it");
    }
    let deeds = world.witness.deeds();
    assert_eq!(deeds[deeds.len() - 2..], [Deed::Disabled, Deed::Unmapped], "{deeds:?}");
}

/// Commands of a split request and whole requests are handed back one at a time, and counted right.
#[test]
fn a_stopped_queue_hands_everything_back_one_by_one() {
    let world = World::of_no_patience(From::the(0, NvmOpcode::WRITE, Verdict::Drop));
    let mut queue = world.queue(Duration::from_millis(80));
    let buffer = world.domain.buffer(9 << 20, Access::DeviceReads).expect("a buffer");
    queue.submit(Request::write(Lba(0), buffer, 1)).expect("a free slot");
    for lba in 0..5 {
        let buffer = world.domain.buffer(4096, Access::DeviceReads).expect("a buffer");
        queue.submit(Request::write(Lba(lba), buffer, 1)).expect("a free slot");
    }
    queue.ring();
    for left in (0..6).rev() {
        let completion = wait(&mut *queue, 1).pop().expect("one");
        assert!(completion.result.is_err());
        assert_eq!(queue.inflight(), left);
    }
    drop(queue);
    let domain = Arc::clone(&world.domain);
    drop(world);
    assert_eq!(domain.usage().1, 0);
}

#[test]
fn a_command_that_fails_says_so_in_the_words_of_the_standard() {
    let world = World::new(From::the(1, NvmOpcode::READ, Verdict::Fail(Status::UNRECOVERED_READ)));
    let mut queue = world.queue(SECONDS);
    (0..2).for_each(|lba| world.read(&mut *queue, lba));
    let mut back = wait(&mut *queue, 2);
    let error = back.pop().expect("two").result.expect_err("the second fails");
    assert_eq!(error.kind(), ErrorKind::Media);
    let expected = "the medium failed at block 0x1, within 1 blocks: \
                    Unrecovered Read Error (0x2/0x81)";
    assert_eq!(error.to_string(), expected);
    assert!(back.pop().expect("two").result.is_ok());
}

#[test]
fn a_failed_part_of_a_split_request_fails_the_request_once() {
    let world = World::new(From::the(1, NvmOpcode::WRITE, Verdict::Fail(Status::WRITE_FAULT)));
    let mut queue = world.queue(SECONDS);
    let buffer = world.domain.buffer(5 << 20, Access::DeviceReads).expect("a buffer");
    queue.submit(Request::write(Lba(0), buffer, 1)).expect("a free slot");
    queue.ring();
    let completion = wait(&mut *queue, 1).pop().expect("one");
    assert_eq!(completion.result.expect_err("a part failed").kind(), ErrorKind::Media);
    assert_eq!(queue.inflight(), 0, "the other parts were awaited");
    let payload = completion.request.into_payload().expect("the buffer is back");
    assert_eq!(payload.len(), 5 << 20);
}

/// Addresses of two domains once began at the same place, and this wrote over somebody else's memory.
#[test]
fn a_buffer_of_another_domain_is_a_fault_and_no_memory_of_ours() {
    let (world, other) = (World::new(None), World::new(None));
    let mut queue = world.queue(SECONDS);
    let ours = world.domain.buffer(4096, Access::DeviceWrites).expect("a buffer");
    let foreign = other.domain.buffer(4096, Access::DeviceWrites).expect("a buffer");
    assert_ne!(ours.iova(), foreign.iova());
    queue.submit(Request::read(Lba(0), foreign, 0)).expect("a free slot");
    queue.ring();
    let error = wait(&mut *queue, 1).pop().expect("one").result.expect_err("it is out of reach");
    assert!(error.to_string().contains("Data Transfer Error"), "{error}");
}

#[test]
fn events_are_reported_one_by_one_and_again() {
    let world = World::new(None);
    assert!(world.driver.events().expect("it is live").is_empty());
    for _ in 0..3 {
        world.soft.raise_event(Event::TransientInternalError);
        let events = world.driver.events().expect("it is live");
        assert_eq!(events.len(), 1);
        let log = events[0].page();
        world.driver.log_page(log, NamespaceId::ALL, 64).expect("reading the log arms it again");
    }
}

#[test]
fn controllers_are_brought_up_side_by_side() {
    let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
    let delay = Duration::from_millis(150);
    let begin = |_| {
        let options = Options { ready_delay: delay, ..Options::default() };
        let soft = Controller::new(options).expect("the options are sound");
        let begun = nvme::BringUp::begin(&soft.transport(), &domain, nvme::Options::default());
        begun.expect("it begins")
    };
    let mut waiting: Vec<nvme::BringUp> = (0..4).map(begin).collect();
    let mut ready = Vec::new();
    let began = Instant::now();
    while !waiting.is_empty() {
        waiting.retain_mut(|bringup| match bringup.step().expect("it comes up") {
            nvme::Progress::Ready(controller) => {
                ready.push(controller);
                false
            }
            nvme::Progress::Pending => true,
        });
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(ready.len(), 4);
    // Four one after the other would take four delays; side by side they share them.
    drop(ready);
    assert_eq!(domain.usage().1, 0);
}

/// Brings a controller up whose CSTS reads as `status`, and returns why that failed.
fn bring_up_with_status(status: u32) -> String {
    let soft = Controller::new(Options::default()).expect("the options are sound");
    let witness = Witness::new(&soft, Some(status));
    let transport: Arc<dyn Transport> = witness.clone();
    let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
    let error = nvme::connect(&transport, &domain, nvme::Options::default());
    let error = error.err().expect("it never becomes ready");
    assert_eq!(witness.deeds().last(), Some(&Deed::Unmapped));
    assert_eq!(domain.usage().1, 0);
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

#[test]
fn a_bring_up_that_does_not_come_up_names_its_state_and_its_registers() {
    let text = bring_up_with_status(0);
    assert!(text.contains("waiting for CSTS.RDY = 1 (CAP=0x"), "{text}");
    assert!(text.contains("did not finish within"), "{text}");
}

#[test]
fn a_bring_up_tells_a_fatal_status_and_a_device_that_is_gone() {
    let text = bring_up_with_status(0b10);
    assert!(text.contains("CSTS.CFS"), "{text}");
    let text = bring_up_with_status(u32::MAX);
    assert!(text.contains("CSTS reads as all ones"), "{text}");
}
