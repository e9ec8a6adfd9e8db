//! Format NVM and Sanitize: what they refuse, what they leave, and who has to wait meanwhile.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::host::{Host, Queue, Sqe, bytes, fill, small};
use crate::seed::Seed;
use crate::soft::{Disk, MediaOptions, NamespaceOptions, Options};
use crate::units::LbaSize;

const INVALID_FIELD: u16 = 0x02;
const IN_PROGRESS: u16 = 0x1d;
const FAILED: u16 = 0x1c;

fn sanitize(dword10: u32, pattern: u32) -> Sqe {
    Sqe::new(0x84, 0).cdw([dword10, pattern])
}

/// Reads the sanitize status page: SPROG, SSTAT, SCDW10.
fn status(host: &Host, admin: &mut Queue) -> (u16, u16, u32) {
    let memory = host.memory(512);
    let read = Sqe::new(2, u32::MAX).prp(memory.iova().0, 0).cdw([0x81 | 127 << 16]);
    assert_eq!(admin.run(read).status, 0);
    let page = bytes(&memory);
    let half = |at| u16::from_le_bytes([page[at], page[at + 1]]);
    assert_eq!(page[8..32], [0xff; 24], "no time is estimated");
    (half(0), half(2), u32::from(half(4)) | u32::from(half(6)) << 16)
}

fn at(opcode: u8, memory: u64, count: u32) -> Sqe {
    Sqe::new(opcode, 1).prp(memory, 0).blocks(0, count)
}

#[test]
fn nothing_was_ever_sanitized_and_identify_says_what_there_is() {
    let (host, mut admin) = Host::up(small());
    assert_eq!(status(&host, &mut admin), (0xffff, 0, 0));
    let memory = host.memory(4096);
    assert_eq!(admin.run(Sqe::new(6, 0).prp(memory.iova().0, 0).cdw([1])).status, 0);
    assert_eq!(bytes(&memory)[328..332], [0x06, 0, 0, 0x40], "SANICAP");
}

#[test]
fn a_block_erase_leaves_zeroes_and_heals() {
    let (host, mut admin, mut queue) = Host::with_queue(small());
    let memory = host.memory(4096);
    fill(&memory, 9);
    assert_eq!(queue.run(at(1, memory.iova().0, 8)).status, 0);
    assert_eq!(queue.run(Sqe::new(4, 1).blocks(4, 1)).status, 0, "spoilt");
    assert_eq!(admin.run(sanitize(2, 0)).status, 0);
    assert_eq!(status(&host, &mut admin), (0xffff, 1, 2));
    assert_eq!(queue.run(at(2, memory.iova().0, 8)).status, 0);
    assert_eq!(bytes(&memory), [0; 4096]);
}

#[test]
fn an_overwrite_goes_on_turn_by_turn_and_keeps_io_out() {
    let (host, mut admin, mut queue) = Host::with_queue(small());
    let memory = host.memory(4096);
    // Four passes, each inverting the one before; the first is made in the turn of the command.
    let command = 3 | 4 << 4 | 1 << 8;
    assert_eq!(admin.run(sanitize(command, 0x1122_3344)).status, 0);
    for opcode in [0, 1, 2, 8] {
        let sqe = if opcode == 0 { Sqe::new(0, 1) } else { at(opcode, memory.iova().0, 1) };
        assert_eq!(queue.run(sqe).status, IN_PROGRESS, "opcode {opcode}");
    }
    assert_eq!(admin.run(sanitize(2, 0)).status, IN_PROGRESS);
    let (progress, state, asked) = status(&host, &mut admin);
    // A turn for each admin command: two passes are done when the page is made.
    assert_eq!((progress, state, asked), (0x8000, 2 | 2 << 3, command));
    assert_eq!(admin.run(Sqe::new(0x80, 1).cdw([3])).status, IN_PROGRESS, "format");
    let ended = status(&host, &mut admin);
    assert_eq!(ended, (0xffff, 1 | 4 << 3, command));
    assert_eq!(queue.run(at(2, memory.iova().0, 8)).status, 0);
    assert_eq!(bytes(&memory), (!0x1122_3344_u32).to_le_bytes().repeat(1024));
}

#[test]
fn a_reset_does_not_end_a_sanitize() {
    let (host, mut admin) = Host::up(small());
    assert_eq!(admin.run(sanitize(3, 7)).status, 0);
    host.transport.write32(super::host::CC, 0);
    let mut admin = host.enable();
    let (_, state, _) = status(&host, &mut admin);
    assert_eq!(state & 7, 2);
    while status(&host, &mut admin).1 & 7 == 2 {}
    assert_eq!(status(&host, &mut admin).1, 1 | 16 << 3);
}

#[test]
fn the_end_of_a_sanitize_is_an_event() {
    let (host, mut admin) = Host::up(small());
    let request = admin.push(Sqe::new(12, 0));
    let command = admin.push(sanitize(2, 0));
    admin.ring();
    assert_eq!(admin.wait().cid, command);
    let told = admin.wait();
    assert_eq!((told.cid, told.dw0), (request, 6 | 1 << 8 | 0x81 << 16));
    status(&host, &mut admin);
}

#[test]
fn what_a_sanitize_cannot_be_is_refused() {
    let (host, mut admin) = Host::up(small());
    for (what, sqe) in [
        ("no action", sanitize(0, 0)),
        ("crypto erase", sanitize(4, 0)),
        ("an action that is none", sanitize(5, 0)),
        ("reserved bits", sanitize(2 | 1 << 10, 0)),
        ("passes of a block erase", sanitize(2 | 1 << 4, 0)),
        ("inversion of a block erase", sanitize(2 | 1 << 8, 0)),
        ("a pattern of a block erase", sanitize(2, 1)),
        ("a namespace", Sqe { nsid: 1, ..sanitize(2, 0) }),
        ("a reserved word", Sqe::new(0x84, 0).cdw([2, 0, 1])),
    ] {
        assert_eq!(admin.run(sqe).status, INVALID_FIELD, "{what}");
    }
    assert_eq!(status(&host, &mut admin), (0xffff, 0, 0), "nothing was started");
    assert_eq!(admin.run(sanitize(1, 0)).status, 0, "there is no failure to leave");
}

/// A controller whose disk has lost its power, so that nothing can be erased.
fn without_power() -> (Host, Queue, Queue, Arc<Disk>) {
    let disk = Disk::new(64 << 10, LbaSize::B512);
    let media = MediaOptions::Disk(Arc::clone(&disk));
    let namespaces = vec![NamespaceOptions { lba_size: LbaSize::B512, media, metadata: None }];
    let (host, admin, queue) = Host::with_queue(Options { namespaces, ..small() });
    disk.cut_power(&mut Seed::from_u64(1));
    (host, admin, queue, disk)
}

#[test]
fn a_failure_of_the_restricted_kind_is_left_by_another_sanitize_only() {
    let (host, mut admin, mut queue, _disk) = without_power();
    assert_eq!(admin.run(sanitize(2, 0)).status, 0);
    assert_eq!(status(&host, &mut admin), (0xffff, 3, 2));
    assert_eq!(queue.run(Sqe::new(0, 1)).status, FAILED);
    assert_eq!(admin.run(Sqe::new(0x80, 1).cdw([0])).status, FAILED, "format");
    assert_eq!(admin.run(sanitize(1, 0)).status, FAILED, "exit");
    assert_eq!(admin.run(sanitize(2 | 1 << 3, 0)).status, FAILED, "unrestricted");
    assert_eq!(admin.run(sanitize(2, 0)).status, 0, "restricted");
}

#[test]
fn a_failure_of_the_unrestricted_kind_can_be_left() {
    let (host, mut admin, mut queue, _disk) = without_power();
    assert_eq!(admin.run(sanitize(2 | 1 << 3, 0)).status, 0);
    assert_eq!(queue.run(Sqe::new(0, 1)).status, FAILED);
    assert_eq!(admin.run(sanitize(1, 0)).status, 0);
    assert_eq!(status(&host, &mut admin).1, 3, "it has failed all the same");
    assert_eq!(queue.run(Sqe::new(0, 1)).status, 0x05, "the power is still off");
}

#[test]
fn a_format_that_would_leave_no_block_that_moves_is_refused() {
    let media = MediaOptions::Ram { bytes: 32 << 10 };
    let namespaces = vec![NamespaceOptions { lba_size: LbaSize::B512, media, metadata: None }];
    let options = Options { namespaces, mdts: Some(16 << 10), ..small() };
    let (_host, mut admin) = Host::up(options);
    let format = |word| Sqe::new(0x80, 1).cdw([word]);
    assert_eq!(admin.run(format(6)).status, 0x10a, "32 KiB do not fit a command");
    assert_eq!(admin.run(format(7)).status, 0x10a, "64 KiB do not fit the medium");
    assert_eq!(admin.run(Sqe::new(0x80, 1).cdw([3, 1])).status, INVALID_FIELD, "reserved word");
    assert_eq!(admin.run(format(5)).status, 0);
}
