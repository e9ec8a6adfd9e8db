//! Trouble: bad blocks, stalls, fatal controllers, devices that go.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use udirect::block::{BlockDevice, Completion, ErrorKind, IoQueue, Request};
use udirect::dma::{Access, Arena, Domain, DomainOptions, IovaLimits, Mapper};
use udirect::nvme;
use udirect::open::open;
use udirect::spec::registers::offset;
use udirect::transport::vfio::Vfio;
use udirect::transport::{Doorbell, Pump, Transport};
use udirect::units::{Lba, NamespaceId, QueueId};

use crate::guest::{
    Ours, PATIENCE, address, assert_home, folder, monitor, pattern, queue, read_all, run,
    submit_read, submit_write, text, wait, wait_for, write_all,
};

/// The zoo's `media` cannot read block 4096 and cannot write block 8192.
pub(crate) fn a_bad_block_is_told_and_the_next_one_is_read() {
    let ours = Ours::take("media");
    let opened = ours.open();
    let mut queue = queue(&opened, PATIENCE);
    let block = opened.device.geometry().lba_size.bytes() as usize;
    let data = pattern(block, 3);
    for (lba, reads, writes) in
        [(4095, true, true), (4096, false, true), (8192, true, false), (8193, true, true)]
    {
        submit_write(&opened, &mut *queue, lba, &data);
        let written = wait(&mut *queue, 1).pop().expect("one").result;
        submit_read(&opened, &mut *queue, lba, block);
        let read = wait(&mut *queue, 1).pop().expect("one").result;
        assert_eq!(
            (read.is_ok(), written.is_ok()),
            (reads, writes),
            "block {lba}: {read:?}, {written:?}"
        );
        for (error, words) in [(read, "Unrecovered Read Error"), (written, "Write Fault")] {
            if let Err(error) = error {
                assert_eq!(error.kind(), ErrorKind::Media, "{error}");
                let at = format!("the medium failed at block {lba:#x}, within 1 blocks: {words}");
                assert!(error.to_string().starts_with(&at), "{error}");
            }
        }
    }
    drop(queue);
    assert_home(opened);
}

/// The zoo's `slow` executes as many commands a second as its limits say. What is overdue is aborted, and nothing is sent
/// again here; where that does not help the controller is given up.
pub(crate) fn a_command_that_takes_too_long_is_a_timeout() {
    let limit = |operations: u32| {
        monitor(&format!(
            r#"{{"execute":"qom-set","arguments":{{"path":"/objects/slow-limits","property":"limits","value":{{"iops-total":{operations}}}}}}}"#
        ));
    };
    let ours = Ours::take("slow");
    limit(1);
    let opened = ours.open_with("?resets=0&resends=0");
    let mut late = queue(&opened, Duration::from_millis(1500));
    (0..16).for_each(|nth| submit_read(&opened, &mut *late, nth, 512));
    let back = wait(&mut *late, 16);
    let failed: Vec<_> = back.iter().filter_map(|one| one.result.as_ref().err()).collect();
    assert!(!failed.is_empty(), "16 commands at one a second were on time");
    for error in failed {
        let (kind, text) = (error.kind(), error.to_string());
        assert!(matches!(kind, ErrorKind::Timeout | ErrorKind::Poisoned), "{error}");
        assert!(text.contains("within 1500 ms"), "{error}");
    }
    drop((back, late));
    assert_home(opened);
    limit(0);
    let opened = ours.open();
    let data = pattern(1 << 20, 4);
    write_all(&opened, &data);
    assert!(read_all(&opened, 1 << 20) == data, "it works again");
    assert_home(opened);
}

/// The driver does not manage zones; what a zone does not take is told with what it would have taken.
pub(crate) fn a_zone_that_is_written_out_of_order_says_so() {
    let ours = Ours::take("zoned");
    let zoned = format!("pcie:{}", address("zoned"));
    let bench = |how: &str| {
        run(
            "udirect",
            &["bench", &zoned, how, "--bs=4k", "--iodepth=1", "--number_ios=8", "--offset=8M"],
        )
    };
    let wrong = bench("--rw=randwrite");
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(said.contains("Zone Invalid Write (0x1/0xbc); the namespace is zoned"), "{said}");
    let right = bench("--rw=write");
    assert_eq!(right.status.code(), Some(0), "{}", text(&right));
    drop(ours);
}

/// With its memory space turned off a device answers with zeroes in QEMU, and completes nothing.
pub(crate) fn registers_that_read_as_zeroes_under_load_are_a_device_that_is_gone() {
    let ours = Ours::take("lba512");
    let opened = ours.open();
    let mut queue = queue(&opened, Duration::from_millis(1500));
    (0..8).for_each(|nth| submit_read(&opened, &mut *queue, nth * 8, 4096));
    wait(&mut *queue, 8).into_iter().for_each(|one| one.result.expect("a read"));
    let config =
        fs::OpenOptions::new().read(true).write(true).open(folder("lba512").join("config"));
    let config = config.expect("the configuration space");
    let mut command = [0; 2];
    config.read_exact_at(&mut command, 4).expect("a read");
    config.write_all_at(&[0; 2], 4).expect("a write");
    (0..8).for_each(|nth| submit_read(&opened, &mut *queue, nth * 8, 4096));
    let back = wait(&mut *queue, 8);
    config.write_all_at(&command, 4).expect("a write");
    for one in back {
        let error = one.result.expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::DeviceGone, "{error}");
        assert!(error.to_string().ends_with("its registers read as zeroes"), "{error}");
    }
    drop(queue);
    assert_home(opened);
    assert_home(ours.open());
}

/// Takes arenas away from a device that believes to have them.
struct Traitor {
    inner: Arc<Vfio>,
    arenas: Mutex<Vec<Arc<Arena>>>,
}

impl Traitor {
    fn betray(&self) {
        let arenas = core::mem::take(&mut *self.arenas.lock().expect("nobody panics under it"));
        arenas.iter().for_each(|arena| self.inner.unmap(arena));
    }
}

impl Mapper for Traitor {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn limits(&self) -> IovaLimits {
        self.inner.limits()
    }
    fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        self.arenas.lock().expect("nobody panics under it").push(Arc::clone(arena));
        self.inner.map(arena)
    }
    fn unmap(&self, arena: &Arena) {
        let mut arenas = self.arenas.lock().expect("nobody panics under it");
        let before = arenas.len();
        arenas.retain(|other| !core::ptr::eq(&raw const **other, arena));
        if arenas.len() < before {
            self.inner.unmap(arena);
        }
    }
}

impl Transport for Traitor {
    fn read32(&self, offset: u32) -> u32 {
        self.inner.read32(offset)
    }
    fn read64(&self, offset: u32) -> u64 {
        self.inner.read64(offset)
    }
    fn write32(&self, offset: u32, value: u32) {
        self.inner.write32(offset, value);
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
}

/// A controller that cannot read its queue any more says CSTS.CFS.
pub(crate) fn a_controller_that_fails_fatally_is_told() {
    let ours = Ours::take("lba512");
    let inner = Vfio::open(address("lba512").parse().expect("an address")).expect("the device");
    let traitor = Arc::new(Traitor { inner, arenas: Mutex::default() });
    let domain = Domain::new(DomainOptions::default());
    let transport: Arc<dyn Transport> = traitor.clone();
    // Without shadow doorbells, so that the register is written and read by the controller at once. It could not read
    // its queues after a reset either.
    let options =
        nvme::Options { shadow_doorbells: false, resets_max: 0, ..nvme::Options::default() };
    let controller = nvme::connect(&transport, &domain, options).expect("a controller");
    let device = controller.namespace(NamespaceId(1), "betrayed").expect("a namespace");
    let queue_options =
        udirect::block::QueueOptions { depth: 8, timeout: Duration::from_millis(1000) };
    let mut queue = device.open_queue(&queue_options).expect("a queue");
    traitor.betray();
    let buffer = domain.buffer(512, Access::DeviceWrites).expect("a buffer");
    queue.submit(Request::read(Lba(0), buffer, 1)).expect("a slot");
    queue.ring();
    let error = wait(&mut *queue, 1).pop().expect("one").result.expect_err("its queue is gone");
    assert!(error.to_string().contains("CSTS.CFS"), "{error}");
    drop((queue, device, controller, transport, traitor));
    assert_home(ours.open());
}

/// Somebody clears CC.EN behind the driver's back, and sixteen commands are sent to nobody: the driver brings the controller
/// up again, with shadow doorbells where it has them, and everything is done.
///
/// Nothing is in flight at that moment. With commands in flight QEMU 7.2 ends with a segmentation fault, once in three.
pub(crate) fn a_controller_that_somebody_disabled_is_reset_and_goes_on() {
    let ours = Ours::take("media");
    let transport: Arc<dyn Transport> =
        Vfio::open(address("media").parse().expect("an address")).expect("the device");
    let domain = Domain::new(DomainOptions::default());
    let controller =
        nvme::connect(&transport, &domain, nvme::Options::default()).expect("a controller");
    let device = controller.namespace(NamespaceId(1), "disabled").expect("a namespace");
    let block = device.geometry().lba_size.bytes() as usize;
    let options = udirect::block::QueueOptions { depth: 32, timeout: PATIENCE };
    let mut queue = device.open_queue(&options).expect("a queue");
    for round in 0..5_u64 {
        let submit = |queue: &mut dyn IoQueue, lba: u64, writes: bool| {
            let mut buffer = domain.buffer(block, Access::Both).expect("a buffer");
            let lba = Lba(lba);
            let request = if writes {
                buffer.copy_from_slice(&pattern(block, lba.0 << 8 | round));
                Request::write(lba, buffer, lba.0)
            } else {
                Request::read(lba, buffer, lba.0)
            };
            queue.submit(request).expect("a free slot");
            queue.ring();
        };
        let check = |done: Completion| {
            done.result.expect("it is done in the end");
            let lba = done.request.tag;
            let payload = done.request.into_payload().expect("a payload");
            let found = &payload.segments()[0];
            assert!(found[..] == pattern(block, lba << 8 | round), "block {lba} of {round}");
        };
        for writes in [true, false] {
            (0..16).for_each(|lba| submit(&mut *queue, lba, writes));
            wait(&mut *queue, 16).into_iter().for_each(check);
            if writes {
                transport.write32(offset::CC, 0);
            }
            (16..32).for_each(|lba| submit(&mut *queue, lba, writes));
            wait(&mut *queue, 16).into_iter().for_each(check);
        }
        assert_eq!(queue.counters().resets, round + 1);
    }
    drop((queue, device, controller, transport));
    assert_eq!(domain.usage().1, 0);
    assert_home(ours.open());
}

/// An orderly removal: the kernel asks, requests come back, and the device goes once we have let go of it.
pub(crate) fn a_device_that_is_asked_back_under_load_is_let_go_of() {
    let ours = Ours::take("remove");
    let opened = ours.open();
    let mut queue = queue(&opened, PATIENCE);
    monitor(r#"{"execute":"device_del","arguments":{"id":"remove"}}"#);
    let mut lba = 0;
    let error = loop {
        lba = (lba + 8) % 8192;
        submit_read(&opened, &mut *queue, lba, 4096);
        if let Err(error) = wait(&mut *queue, 1).pop().expect("one").result {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::DeviceGone, "{error}");
    assert!(error.to_string().contains("the kernel asks for"), "{error}");
    let at = address("remove");
    drop(queue);
    assert_home(opened);
    wait_for("the device is gone", || !folder("remove").exists());
    let error = open(&format!("pcie:{at}")).expect_err("it is gone");
    assert!(error.to_string().starts_with(&format!("there is no device at {at}")), "{error}");
}
