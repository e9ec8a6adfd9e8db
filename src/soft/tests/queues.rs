//! Queues: full, wrapped, shared, as deep as they get, shadowed, rung wrongly, on a thread.
#![forbid(unsafe_code)]

use super::host::{Host, Queue, Sqe, bytes, create_cq, create_sq, fill, small, threaded};
use crate::dma::{Access, Ring};
use crate::soft::{Execution, Options};
use crate::spec::registers::doorbell_offset;
use crate::units::QueueId;
use core::sync::atomic::Ordering;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Dword 0 of the event that a doorbell was rung with what cannot be: an error, its log is page 1.
const INVALID_VALUE: u32 = 1 << 16 | 1 << 8;

#[test]
fn a_full_completion_queue_stops_the_controller_until_the_head_moves() {
    let (host, mut admin) = Host::up(small());
    let mut queue = host.queue(&mut admin, 1, 8);
    let mut expected = 0;
    for round in 0..50 {
        for _ in 0..7 {
            queue.push(Sqe::new(0, 1));
        }
        queue.ring();
        queue.turn();
        queue.turn();
        let mut got = Vec::new();
        while let Some(cqe) = queue.peek() {
            assert_eq!((cqe.cid, cqe.status), (expected, 0), "round {round}");
            expected += 1;
            got.push(cqe);
        }
        assert_eq!(got.len(), 7, "round {round}");
        // Seven more fit the submission queue; none fits the completion queue until its head moves.
        queue.push_all(Sqe::new(0, 1), 7);
        queue.ring();
        queue.turn();
        assert_eq!(queue.peek(), None);
        queue.cq_bell.ring(queue.cq_head);
        for _ in 0..7 {
            assert_eq!(queue.wait().cid, expected);
            expected += 1;
        }
    }
    assert_eq!(host.controller.counters().io_total(), 50 * 14);
}

#[test]
fn two_submission_queues_share_a_completion_queue() {
    let (host, mut admin) = Host::up(small());
    let mut first = host.queue(&mut admin, 1, 16);
    let sq = host.domain.window(16 * 64, 4096, Access::DeviceReads).unwrap();
    assert_eq!(admin.run(create_sq(2, 16, sq.iova().0, 1)).status, 0);
    let ring = Ring::<8>::over(sq.bytes().clone(), 16).unwrap();
    ring.store(0, [1 << 32 | 77 << 16, 0, 0, 0, 0, 0, 0, 0]);
    host.transport.doorbell(doorbell_offset(QueueId(2), false, 4)).unwrap().ring(1);
    first.push(Sqe::new(0, 1));
    first.ring();
    let (one, two) = (first.wait(), first.wait());
    assert_eq!((one.sq_id, one.cid, one.sq_head), (1, 0, 1));
    assert_eq!((two.sq_id, two.cid, two.sq_head), (2, 77, 1));
    assert_eq!(admin.run(Sqe::new(4, 0).cdw([1])).status, 0x10c, "still fed");
    assert_eq!(admin.run(Sqe::new(0, 0).cdw([2])).status, 0);
    assert_eq!(first.run(Sqe::new(0, 1)).status, 0);
}

#[test]
fn a_queue_of_65536_entries_wraps() {
    let (host, mut admin) = Host::up(small());
    let mut queue = host.queue(&mut admin, 1, 65_536);
    let mut done = 0_u32;
    for _ in 0..3 {
        queue.push_all(Sqe::new(0, 1), 65_535);
        queue.ring();
        for _ in 0..65_535 {
            let cqe = queue.wait();
            assert_eq!((cqe.cid, cqe.status), (done as u16, 0));
            done += 1;
            assert_eq!(cqe.sq_head, done as u16);
        }
    }
}

#[test]
fn doorbells_that_cannot_be_are_told_by_events() {
    let (host, mut admin, mut queue) = Host::with_queue(small());
    for _ in 0..2 {
        admin.push(Sqe::new(0x0c, 0));
    }
    admin.ring();
    assert_eq!(admin.poll(), None);
    queue.sq_bell.ring(16);
    queue.turn();
    let told = admin.wait();
    assert_eq!((told.cid, told.dw0), (2, INVALID_VALUE));
    queue.sq_bell.ring(0);
    assert_eq!(queue.run(Sqe::new(0, 1)).status, 0, "the right value makes up for it");
    // Masked until the log page is read.
    let stray = host.transport.doorbell(doorbell_offset(QueueId(5), false, 4)).unwrap();
    stray.ring(1);
    host.transport.pump(QueueId(5)).unwrap().pump();
    assert_eq!(admin.poll(), None);
    let memory = host.memory(4096);
    let log = Sqe::new(2, u32::MAX).prp(memory.iova().0, 0).cdw([1 | 15 << 16]);
    let cid = admin.push(log);
    admin.ring();
    let (log, told) = (admin.wait(), admin.wait());
    assert_eq!((log.cid, log.status), (cid, 0));
    assert_eq!((told.cid, told.dw0), (3, 1 << 16), "invalid doorbell register");
}

#[test]
fn a_tail_that_passes_the_head_from_behind_is_refused() {
    let (host, mut admin, mut queue) = Host::with_queue(small());
    admin.push(Sqe::new(0x0c, 0));
    admin.ring();
    admin.turn();
    queue.push_all(Sqe::new(0, 1), 15);
    queue.ring();
    queue.turn();
    // The completion queue is full now, so that these ten stay where they are, from 15 to 8.
    queue.push_all(Sqe::new(0, 1), 10);
    queue.ring();
    queue.turn();
    assert_eq!(admin.poll(), None);
    queue.sq_bell.ring(15);
    queue.turn();
    assert_eq!(admin.wait().dw0, INVALID_VALUE);
    queue.sq_bell.ring(9);
    (0..25).for_each(|cid| assert_eq!(queue.wait().cid, cid));
    assert_eq!(host.controller.counters().io_total(), 25);
}

#[test]
fn a_completion_head_past_what_was_posted_is_refused() {
    let (host, mut admin, mut queue) = Host::with_queue(small());
    admin.push(Sqe::new(0x0c, 0));
    admin.ring();
    admin.turn();
    queue.push_all(Sqe::new(0, 1), 10);
    queue.ring();
    queue.turn();
    queue.cq_bell.ring(12);
    queue.push_all(Sqe::new(0, 1), 10);
    queue.ring();
    queue.turn();
    assert_eq!(admin.wait().dw0, INVALID_VALUE);
    assert_eq!(host.controller.counters().io_total(), 10);
}

#[test]
fn a_thread_serves_by_itself_and_ends_with_its_controller() {
    let (host, mut admin) = Host::up(threaded());
    assert!(host.transport.pump(QueueId(1)).is_none());
    let mut queue = host.queue(&mut admin, 1, 16);
    let memory = host.memory(512);
    for round in 0..500_u32 {
        let written = fill(&memory, round as u8);
        let lba = u64::from(round % 100);
        assert_eq!(queue.run(Sqe::new(1, 1).prp(memory.iova().0, 0).blocks(lba, 1)).status, 0);
        memory.span().fill(0);
        assert_eq!(queue.run(Sqe::new(2, 1).prp(memory.iova().0, 0).blocks(lba, 1)).status, 0);
        assert_eq!(bytes(&memory), written);
    }
    assert_eq!(host.controller.counters().io_total(), 1000);
}

#[test]
fn a_stepped_controller_moves_only_when_told() {
    let (host, mut queue) = Host::up(Options { execution: Execution::Stepped, ..small() });
    queue.push(Sqe::new(0x18, 0));
    queue.ring();
    assert_eq!(queue.poll(), None);
    assert_eq!(host.controller.step(), 1);
    assert_eq!(queue.poll().unwrap().status, 0);
    assert_eq!(host.controller.step(), 0);
}

#[test]
fn a_shadowed_queue_is_served_from_memory_when_it_was_rung() {
    let options = Options { shadow_doorbells: true, max_queues: 31, ..small() };
    let (host, mut admin, mut queue) = Host::with_queue(options);
    let (values, events) = (host.memory(4096), host.memory(4096));
    let config = Sqe::new(0x7c, 0).prp(values.iova().0, events.iova().0);
    assert_eq!(admin.run(config).status, 0);
    assert_eq!(admin.run(config.prp(values.iova().0 + 8, events.iova().0)).status, 0x13);
    let tail_at = 2 * 64;
    let mut rings = 0;
    for round in 0..100_u16 {
        let old = queue.sq_tail as u16;
        queue.push(Sqe::new(0, 1));
        values.span().store32(tail_at, queue.sq_tail, Ordering::Release);
        let event = events.span().load32(tail_at, Ordering::Acquire) as u16;
        let new = queue.sq_tail as u16;
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            queue.sq_bell.ring(queue.sq_tail);
            rings += 1;
        }
        queue.turn();
        assert_eq!(queue.peek().map(|cqe| cqe.cid), Some(round), "round {round}");
        let head = queue.cq_head;
        values.span().store32(3 * 64, head, Ordering::Release);
        queue.cq_bell.ring(head);
    }
    assert!(rings > 0);
}

#[test]
fn queues_that_cannot_be_made_say_why() {
    let (host, mut admin, _queue) =
        Host::with_queue(Options { max_queues: 4, max_queue_entries: 64, ..small() });
    let memory = host.memory(4096).iova().0;
    let reads = host.domain.window(4096, 4096, Access::DeviceReads).unwrap().iova().0;
    let plain = |sqe: Sqe| Sqe { cdw: [sqe.cdw[0], sqe.cdw[1] & !1, 0, 0, 0, 0], ..sqe };
    let wrong = [
        ("queue 0", create_cq(0, 16, memory), 0x101),
        ("queue past the last", create_cq(5, 16, memory), 0x101),
        ("queue that exists", create_cq(1, 16, memory), 0x101),
        ("too many entries", create_cq(2, 65, memory), 0x102),
        ("one entry", create_cq(2, 1, memory), 0x102),
        ("misaligned", create_cq(2, 16, memory + 8), 0x13),
        ("not contiguous", plain(create_cq(2, 16, memory)), 0x02),
        ("vector", create_cq(2, 16, memory).cdw([2 | 15 << 16, 1 | 5 << 16]), 0x108),
        ("not writable", create_cq(2, 16, reads), 0x04),
        ("unmapped", create_cq(2, 16, 4096), 0x04),
        ("submission queue that exists", create_sq(1, 16, memory, 1), 0x101),
        ("no completion queue", create_sq(2, 16, memory, 3), 0x100),
        ("admin completion queue", create_sq(2, 16, memory, 0), 0x101),
        ("completion queue past the last", create_sq(2, 16, memory, 5), 0x101),
        ("submission queue too long", create_sq(2, 65, memory, 1), 0x102),
        ("SQ not contiguous", plain(create_sq(2, 16, memory, 1)), 0x02),
        ("delete 0", Sqe::new(0, 0), 0x101),
        ("delete what is not", Sqe::new(0, 0).cdw([3]), 0x101),
        ("delete CQ that is not", Sqe::new(4, 0).cdw([3]), 0x101),
        ("delete CQ in use", Sqe::new(4, 0).cdw([1]), 0x10c),
    ];
    for (what, sqe, status) in wrong {
        assert_eq!(admin.run(sqe).status, status, "{what}");
    }
    assert_eq!(admin.run(Sqe::new(0, 0).cdw([1])).status, 0);
    assert_eq!(admin.run(Sqe::new(4, 0).cdw([1])).status, 0);
    assert_eq!(host.queue(&mut admin, 1, 64).run(Sqe::new(0, 1)).status, 0);
}

#[test]
fn completions_raise_the_vector_of_their_queue_once_a_turn() {
    let (host, mut admin) = Host::up(Options { execution: Execution::Stepped, ..small() });
    let events: Vec<OwnedFd> =
        (0..3).map(|_| eventfd(0, EventfdFlags::NONBLOCK).unwrap()).collect();
    for (vector, event) in events.iter().enumerate() {
        host.controller.route_interrupt(vector as u16, Some(event.try_clone().unwrap())).unwrap();
    }
    let raised = || {
        let mut count = [0; 8];
        let read = |event: &OwnedFd| rustix::io::read(event, &mut count).is_ok();
        events.iter().map(read).collect::<Vec<_>>()
    };
    let step = |admin: &mut Queue, sqe| {
        admin.push(sqe);
        admin.ring();
        host.controller.step();
        assert_eq!(admin.poll().map(|cqe| cqe.status), Some(0));
    };
    // The first queue asks for vector 2, the second for none.
    let (mut first, mut second) = (host.bare_queue(1, 16), host.bare_queue(2, 16));
    for (queue, id, interrupts) in [(&first, 1, 2 | 2 << 16), (&second, 2, 0)] {
        let (sq, cq) = (queue.windows.0.iova().0, queue.windows.1.iova().0);
        let size = id | 15 << 16;
        step(&mut admin, Sqe::new(0x05, 0).prp(cq, 0).cdw([size, 1 | interrupts]));
        step(&mut admin, create_sq(id as u16, 16, sq, id as u16));
    }
    assert_eq!(raised(), [true, false, false], "the admin queue has vector 0");
    for queue in [&mut first, &mut second] {
        queue.push_all(Sqe::new(0, 1), 3);
        queue.ring();
    }
    host.controller.step();
    assert_eq!(raised(), [false, false, true]);
    host.controller.step();
    assert_eq!(raised(), [false; 3], "nothing new, nothing raised");
    assert_eq!((first.wait().cid, second.wait().cid), (0, 0));
}

#[test]
fn a_controller_that_was_reset_starts_over_and_keeps_its_mappings() {
    let (host, _admin, mut queue) = Host::with_queue(threaded());
    assert_eq!(queue.run(Sqe::new(0, 1)).status, 0);
    host.controller.reset();
    let registers = [0x14, 0x1c, 0x24, 0x28].map(|at| host.transport.read32(at));
    assert_eq!(registers, [0; 4], "CC, CSTS, AQA, ASQ");
    queue.push(Sqe::new(0, 1));
    queue.ring();
    assert_eq!(queue.peek(), None);
    let mut admin = host.enable();
    let mut queue = host.queue(&mut admin, 1, 16);
    assert_eq!(queue.run(Sqe::new(0, 1)).status, 0);
}

#[test]
fn after_a_shutdown_memory_may_go_without_a_word() {
    let (mut host, _admin, _queue) = Host::with_queue(threaded());
    host.transport.write32(0x14, host.transport.read32(0x14) | 1 << 14);
    assert_eq!(host.transport.read32(0x1c) >> 2 & 3, 2, "shutdown complete");
    drop(host.attachment.take());
    assert_eq!(host.transport.read32(0x1c) >> 1 & 1, 0, "no fatal status");
    host.attachment = Some(host.domain.attach(Arc::clone(&host.transport) as _).unwrap());
    host.transport.write32(0x14, 0);
    let mut admin = host.enable();
    assert_eq!(host.queue(&mut admin, 1, 16).run(Sqe::new(0, 1)).status, 0);
    // While it works, it is an error of the host.
    drop(host.attachment.take());
    assert_eq!(host.transport.read32(0x1c) >> 1 & 1, 1, "fatal status");
}
