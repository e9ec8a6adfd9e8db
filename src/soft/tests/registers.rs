//! Registers: bring-up, what cannot be configured, reset, shutdown.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::host::{ACQ, AQA, ASQ, CC, CC_ENABLE, CSTS, Host, Sqe, small, threaded};
use crate::dma::Access;
use crate::soft::{Controller, MediaOptions, NamespaceOptions, Options, SoftError};
use crate::units::{LbaSize, QueueId};

const FATAL: u32 = 1 << 1;

#[test]
fn capabilities_say_what_the_options_say() {
    let host = Host::disabled(Options { max_queue_entries: 256, doorbell_stride: 2, ..small() });
    let cap = host.transport.read64(0);
    assert_eq!(cap & 0xffff, 255, "MQES");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_eq!(cap >> 32 & 0xf, 2, "DSTRD");
    assert_eq!(cap >> 37 & 0xff, 1, "CSS");
    assert_eq!(cap >> 48 & 0xff, 0, "MPSMIN, MPSMAX");
    assert_eq!(host.transport.read32(8), 0x0002_0000, "VS");
    assert_eq!(host.transport.read32(CSTS), 0);
    assert_eq!(host.transport.read32(0xffc), 0, "reserved");
    assert_eq!(host.transport.read32(u32::MAX), 0, "no panic");
    assert!(host.transport.doorbell(0x1000 + 16 * 130).is_err());
    assert!(host.transport.doorbell(0x1004).is_err(), "not at the stride");
    assert!(host.transport.doorbell(0x14).is_err(), "not a doorbell");
    assert!(host.transport.pump(QueueId::ADMIN).is_some());
}

#[test]
fn interrupt_masks_are_set_and_cleared_by_bit() {
    let host = Host::disabled(small());
    host.transport.write32(0x0c, 0b1110);
    host.transport.write32(0x10, 0b0100);
    assert_eq!((host.transport.read32(0x0c), host.transport.read32(0x10)), (0b1010, 0b1010));
}

#[test]
fn what_cannot_be_served_is_fatal_until_disabled() {
    let wrong: [(&str, u32, u32, u64, u64); 10] = [
        ("MPS", CC_ENABLE | 1 << 7, 31 | 31 << 16, 0, 0),
        ("CSS", CC_ENABLE | 6 << 4, 31 | 31 << 16, 0, 0),
        ("AMS", CC_ENABLE | 1 << 11, 31 | 31 << 16, 0, 0),
        ("IOSQES", 1 | 7 << 16 | 4 << 20, 31 | 31 << 16, 0, 0),
        ("IOCQES", 1 | 6 << 16 | 5 << 20, 31 | 31 << 16, 0, 0),
        ("AQA of one entry", CC_ENABLE, 31 << 16, 0, 0),
        ("AQA reserved bits", CC_ENABLE, 31 | 31 << 16 | 1 << 12, 0, 0),
        ("ASQ misaligned", CC_ENABLE, 31 | 31 << 16, 8, 0),
        ("ACQ misaligned", CC_ENABLE, 31 | 31 << 16, 0, 8),
        ("ACQ unmapped", CC_ENABLE, 31 | 31 << 16, 0, 1 << 45),
    ];
    for (what, cc, aqa, asq, acq) in wrong {
        let host = Host::disabled(small());
        let sq = host.domain.window(4096, 4096, Access::DeviceReads).unwrap();
        let cq = host.domain.window(4096, 4096, Access::DeviceWrites).unwrap();
        host.transport.write32(AQA, aqa);
        host.transport.write64(ASQ, sq.iova().0 + asq);
        host.transport.write64(ACQ, cq.iova().0 + acq);
        host.transport.write32(CC, cc);
        assert_eq!(host.transport.read32(CSTS) & FATAL, FATAL, "{what}");
        host.transport.write32(CC, 0);
        assert_eq!(host.transport.read32(CSTS), 0, "{what}");
        host.enable();
    }
}

#[test]
fn a_completion_queue_in_memory_that_the_device_only_reads_is_fatal() {
    let host = Host::disabled(small());
    let sq = host.domain.window(8192, 4096, Access::DeviceReads).unwrap();
    host.transport.write32(AQA, 31 | 31 << 16);
    host.transport.write64(ASQ, sq.iova().0);
    host.transport.write64(ACQ, sq.iova().0 + 4096);
    host.transport.write32(CC, CC_ENABLE);
    assert_eq!(host.transport.read32(CSTS) & FATAL, FATAL);
}

#[test]
fn ready_comes_after_the_delay() {
    let delay = Duration::from_millis(30);
    let host = Host::disabled(Options { ready_delay: delay, ..small() });
    let memory = host.memory(8192);
    host.transport.write32(AQA, 31 | 31 << 16);
    host.transport.write64(ASQ, memory.iova().0);
    host.transport.write64(ACQ, memory.iova().0 + 4096);
    let begin = Instant::now();
    host.transport.write32(CC, CC_ENABLE);
    while host.transport.read32(CSTS) == 0 {
        std::thread::yield_now();
    }
    assert!(begin.elapsed() >= delay);
    assert!(host.transport.read64(0) >> 24 & 0xff >= 1, "TO covers it");
}

#[test]
fn reset_in_the_middle_forgets_queues_and_keeps_data() {
    for options in [small(), threaded()] {
        let (host, mut admin, mut queue) = Host::with_queue(options);
        let memory = host.memory(4096);
        memory.span().fill(0x5a);
        let write = Sqe::new(1, 1).prp(memory.iova().0, 0).blocks(0, 8);
        assert_eq!(queue.run(write).status, 0);
        queue.push_all(write, 5);
        queue.ring();
        host.transport.write32(CC, 0);
        assert_eq!(host.transport.read32(CSTS), 0);
        queue.ring();
        queue.turn();
        admin.turn();
        let mut admin = host.enable();
        let mut queue = host.queue(&mut admin, 1, 16);
        memory.span().fill(0);
        assert_eq!(queue.run(Sqe::new(2, 1).prp(memory.iova().0, 0).blocks(0, 8)).status, 0);
        assert_eq!(super::host::bytes(&memory), [0x5a; 4096]);
    }
}

#[test]
fn after_a_shutdown_nothing_is_executed_until_a_reset() {
    let (host, _admin, mut queue) = Host::with_queue(small());
    host.transport.write32(CC, CC_ENABLE | 1 << 14);
    assert_eq!(host.transport.read32(CSTS) >> 2 & 3, 2, "SHST complete");
    queue.push(Sqe::new(0, 1));
    queue.ring();
    queue.turn();
    assert_eq!(queue.peek(), None);
    host.transport.write32(CC, 0);
    let mut admin = host.enable();
    assert_eq!(host.queue(&mut admin, 1, 16).run(Sqe::new(0, 1)).status, 0);
}

#[test]
fn a_subsystem_reset_disables_and_is_remembered() {
    let (host, _admin) = Host::up(small());
    host.transport.write32(0x20, 0x1234);
    assert_eq!(host.transport.read32(CSTS), 1);
    host.transport.write32(0x20, 0x4e56_4d65);
    assert_eq!(host.transport.read32(CSTS), 1 << 4);
    assert_eq!(host.transport.read32(CC), 0);
    host.transport.write32(CSTS, 1 << 4);
    assert_eq!(host.transport.read32(CSTS), 0);
}

#[test]
fn options_outside_their_limits_are_refused_with_numbers() {
    let text = |options| Controller::new(options).err().map(|e| e.to_string()).unwrap();
    let refused = text(Options { max_queue_entries: 1, ..small() });
    assert_eq!(refused, "max_queue_entries is 1, outside 2..=65536");
    let refused = text(Options { mdts: Some(5000), ..small() });
    assert_eq!(refused, "mdts is 5000 bytes, not a power of two of at least 8192");
    let media = MediaOptions::Ram { bytes: 1 << 20 };
    let namespaces = vec![NamespaceOptions {
        lba_size: LbaSize::from_bytes(65_536).unwrap(),
        media,
        ..NamespaceOptions::default()
    }];
    let refused = text(Options { mdts: Some(8192), namespaces, ..small() });
    assert_eq!(refused, "mdts is 8192, outside 65536..=4294967295");
    let refused = text(Options { shadow_doorbells: true, max_queues: 32, ..small() });
    assert_eq!(refused, "max_queues is 32, outside 1..=31");
    assert!(text(Options { serial: String::new(), ..small() }).contains("serial"));
}

fn on_file(path: &std::path::Path, bytes: Option<u64>) -> Options {
    let media = MediaOptions::File { path: path.into(), bytes };
    let namespaces =
        vec![NamespaceOptions { lba_size: LbaSize::B512, media, ..NamespaceOptions::default() }];
    Options { namespaces, ..Options::default() }
}

#[test]
fn a_file_keeps_its_data_and_belongs_to_one_controller() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk");
    let missing = Controller::new(on_file(&path, None)).err().unwrap();
    assert!(matches!(missing, SoftError::Open { .. }), "{missing}");
    {
        let (host, _admin, mut queue) = Host::with_queue(on_file(&path, Some(1 << 20)));
        let memory = host.memory(4096);
        memory.span().fill(0x77);
        let write = Sqe::new(1, 1).prp(memory.iova().0, 0).cdw([100, 0, 7 | 1 << 30]);
        assert_eq!(queue.run(write).status, 0);
        let locked = Controller::new(on_file(&path, None)).err().unwrap();
        assert!(matches!(locked, SoftError::Locked { .. }), "{locked}");
    }
    let small = Controller::new(on_file(&path, Some(2 << 20))).err().unwrap();
    assert!(matches!(small, SoftError::TooSmall { have: 0x10_0000, want: 0x20_0000, .. }));
    let new = place.path().join("new");
    let odd = Controller::new(on_file(&new, Some(1000))).err().unwrap();
    assert_eq!(odd.to_string(), "1000 bytes are not a multiple of the logical block of 512 bytes");
    assert!(!new.exists(), "what is refused leaves no file behind");
    let (host, _admin, mut queue) = Host::with_queue(on_file(&path, None));
    let memory = host.memory(4096);
    assert_eq!(queue.run(Sqe::new(2, 1).prp(memory.iova().0, 0).blocks(100, 8)).status, 0);
    assert_eq!(super::host::bytes(&memory), [0x77; 4096]);
}
