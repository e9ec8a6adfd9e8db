//! Admin commands: identify, logs, features, events, format.
#![forbid(unsafe_code)]

use super::host::{Host, Queue, Sqe, bytes, fill, small};
use crate::soft::{Event, Options, SmartOverrides};

const INVALID_FIELD: u16 = 0x02;

fn identify(host: &Host, admin: &mut Queue, cns: u32, nsid: u32) -> Result<Vec<u8>, u16> {
    let memory = host.memory(4096);
    let cqe = admin.run(Sqe::new(6, nsid).prp(memory.iova().0, 0).cdw([cns]));
    if cqe.status == 0 { Ok(bytes(&memory)) } else { Err(cqe.status) }
}

fn log(host: &Host, admin: &mut Queue, page: u32, len: u32, offset: u32) -> Result<Vec<u8>, u16> {
    let memory = host.memory(len as usize);
    let words = [page | (len / 4 - 1) << 16, 0, offset];
    let cqe = admin.run(Sqe::new(2, u32::MAX).prp(memory.iova().0, 0).cdw(words));
    if cqe.status == 0 { Ok(bytes(&memory)) } else { Err(cqe.status) }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn identify_says_what_the_options_say() {
    let options = Options { noiob: 7, awupf_blocks: 8, mdts: Some(1 << 17), ..small() };
    let (host, mut admin) = Host::up(options);
    let id = identify(&host, &mut admin, 1, 0).unwrap();
    assert_eq!(&id[4..24], b"UD0001              ");
    assert_eq!((id[77], id[512], id[513]), (5, 0x66, 0x44), "MDTS, SQES, CQES");
    assert_eq!((word(&id, 516), id[525], word(&id, 528) & 0xffff), (1, 7, 7), "NN, VWC, AWUPF");
    let ns = identify(&host, &mut admin, 0, 1).unwrap();
    assert_eq!((word(&ns, 0), ns[26], word(&ns, 46) & 0xffff), (2048, 0, 7), "NSZE, FLBAS, NOIOB");
    assert_eq!((ns[130], ns[134]), (9, 10), "LBADS of the first formats");
    assert_eq!(identify(&host, &mut admin, 0x11, 1).unwrap(), ns);
    let list = identify(&host, &mut admin, 2, 0).unwrap();
    assert_eq!((word(&list, 0), word(&list, 4)), (1, 0));
    assert_eq!(word(&identify(&host, &mut admin, 0x10, 1).unwrap(), 0), 0, "after 1");
    let ids = identify(&host, &mut admin, 3, 1).unwrap();
    assert_eq!(&ids[..2], [2, 16], "NGUID");
    assert_eq!(ids[4..20], ns[104..120]);
    assert_eq!(identify(&host, &mut admin, 8, 1).unwrap()[14], 1, "ready");
    for cns in [5, 6] {
        let nsid = u32::from(cns == 5);
        assert_eq!(identify(&host, &mut admin, cns, nsid).unwrap(), [0; 4096]);
    }
    for (cns, nsid, status) in
        [(0, 0, 0x0b), (0, 2, 0x0b), (2, u32::MAX, 0x0b), (0x77, 0, 2), (1, 1, 2)]
    {
        assert_eq!(identify(&host, &mut admin, cns, nsid), Err(status), "CNS {cns:#x}");
    }
}

#[test]
fn admin_commands_with_what_they_cannot_carry_are_refused() {
    let (host, mut admin) = Host::up(small());
    let memory = host.memory(4096);
    let good = Sqe::new(6, 0).prp(memory.iova().0, 0).cdw([1]);
    for (what, sqe, status) in [
        ("SGL", Sqe { flags: 0x40, ..good }, INVALID_FIELD),
        ("metadata", Sqe { mptr: 1, ..good }, INVALID_FIELD),
        ("opcode", Sqe { opcode: 0x55, ..good }, 0x01),
        ("shadow doorbells that are not on offer", Sqe { opcode: 0x7c, ..good }, 0x01),
        ("unmapped memory", good.prp(4096, 0), 0x04),
        ("log page", Sqe::new(2, 0).prp(memory.iova().0, 0).cdw([0x77]), 0x109),
        ("log offset", Sqe::new(2, 0).prp(memory.iova().0, 0).cdw([2, 0, 2]), INVALID_FIELD),
        (
            "log past the end",
            Sqe::new(2, 0).prp(memory.iova().0, 0).cdw([2, 0, 516]),
            INVALID_FIELD,
        ),
        ("log of a namespace", Sqe::new(2, 1).prp(memory.iova().0, 0).cdw([2]), INVALID_FIELD),
    ] {
        assert_eq!(admin.run(sqe).status, status, "{what}");
    }
    assert_eq!(admin.run(good).status, 0);
}

#[test]
fn failed_commands_are_in_the_error_log_newest_first() {
    let (host, mut admin, mut queue) = Host::with_queue(small());
    let first = queue.run(Sqe::new(2, 9).blocks(5, 1));
    let second = queue.run(Sqe::new(0x7f, 1));
    let page = log(&host, &mut admin, 1, 192, 0).unwrap();
    assert_eq!((word(&page, 0), word(&page, 64), word(&page, 128)), (2, 1, 0));
    assert_eq!(word(&page, 8), 1 | u32::from(second.cid) << 16);
    assert_eq!(word(&page, 72), 1 | u32::from(first.cid) << 16);
    assert_eq!((word(&page, 64 + 16), word(&page, 64 + 24)), (5, 9), "LBA, namespace");
    assert_eq!(word(&page, 64 + 12) >> 1 & 0x7ff, 0x0b, "status");
    assert_eq!(log(&host, &mut admin, 1, 64, 64).unwrap(), &page[64..128]);
}

#[test]
fn the_health_log_counts_what_was_done() {
    let (host, mut admin, mut queue) = Host::with_queue(small());
    let memory = host.memory(4096);
    let at = |opcode| Sqe::new(opcode, 1).prp(memory.iova().0, 0).blocks(0, 8);
    (0..3).for_each(|_| assert_eq!(queue.run(at(2)).status, 0));
    assert_eq!(queue.run(at(1)).status, 0);
    let page = log(&host, &mut admin, 2, 512, 0).unwrap();
    assert_eq!((word(&page, 64), word(&page, 80)), (3, 1), "reads, writes");
    assert_eq!((word(&page, 32), word(&page, 48)), (1, 1), "data units, rounded up");
    assert_eq!(word(&page, 1) & 0xffff, 300, "temperature");
    let firmware = log(&host, &mut admin, 3, 512, 0).unwrap();
    assert_eq!((firmware[0], &firmware[8..16]), (1, &b"1.0     "[..]));
    let effects = log(&host, &mut admin, 5, 4096, 0).unwrap();
    let supported: Vec<_> = (0..256).filter(|op| word(&effects, 1024 + op * 4) & 1 == 1).collect();
    assert_eq!(supported, [0, 1, 2, 4, 5, 8, 9, 12, 0x19]);
}

#[test]
fn features_are_set_read_and_reset() {
    let (host, mut admin) = Host::up(small());
    let set = |id: u32, value| Sqe::new(9, 0).cdw([id, value]);
    let get = |id: u32, select: u32| Sqe::new(10, 0).cdw([id | select << 8]);
    for (id, value) in
        [(1, 3), (4, 350), (5, 10), (6, 0), (8, 0x0102), (10, 1), (11, 0x1ff), (15, 0)]
    {
        let default = admin.run(get(id, 1)).dw0;
        assert_eq!(admin.run(set(id, value)).status, 0, "feature {id}");
        assert_eq!(admin.run(get(id, 0)).dw0, value, "feature {id}");
        assert_eq!(admin.run(get(id, 2)).dw0, default, "feature {id}");
        assert_eq!(admin.run(get(id, 3)).dw0, 4, "changeable, feature {id}");
    }
    for (id, value, status) in [
        (0x77, 0, INVALID_FIELD),
        (2, 1, INVALID_FIELD),
        (5, 1 << 16, INVALID_FIELD),
        (6, 2, INVALID_FIELD),
        (7, 0xffff, INVALID_FIELD),
        (9, 65, INVALID_FIELD),
        (11, 1 << 31, INVALID_FIELD),
        (15, 1000, INVALID_FIELD),
        (1 | 1 << 31, 0, 0x10d),
    ] {
        assert_eq!(admin.run(set(id, value)).status, status, "feature {id:#x} = {value:#x}");
    }
    assert_eq!(admin.run(Sqe { nsid: 1, ..set(6, 1) }).status, 0x10f);
    host.transport.write32(super::host::CC, 0);
    assert_eq!(host.enable().run(get(8, 0)).dw0, 0, "a reset restores defaults");
}

#[test]
fn queues_are_granted_before_the_first_is_made() {
    let (host, mut admin) = Host::up(Options { max_queues: 8, ..small() });
    assert_eq!(admin.run(Sqe::new(9, 0).cdw([7, 3 | 99 << 16])).dw0, 3 | 7 << 16);
    let memory = host.memory(4096);
    let sq = super::host::create_sq(5, 2, memory.iova().0, 1);
    assert_eq!(admin.run(sq).status, 0x101, "four were granted");
    host.queue(&mut admin, 4, 16);
    assert_eq!(admin.run(Sqe::new(9, 0).cdw([7, 0])).status, 0x0c, "too late");
}

#[test]
fn events_wait_for_requests_and_are_masked_until_read() {
    let (host, mut admin) = Host::up(small());
    host.controller.raise_event(Event::NamespaceChanged(1));
    let request = Sqe::new(12, 0);
    let cid = admin.push(request);
    admin.ring();
    assert_eq!(admin.poll(), None, "nobody wants it");
    assert_eq!(admin.run(Sqe::new(9, 0).cdw([11, 0x102])).status, 0);
    host.controller.raise_event(Event::NamespaceChanged(1));
    host.controller.raise_event(Event::NamespaceChanged(1));
    let told = admin.wait();
    assert_eq!((told.cid, told.dw0), (cid, 2 | 4 << 16));
    let cid = admin.push(request);
    admin.ring();
    host.controller.raise_event(Event::NamespaceChanged(1));
    assert_eq!(admin.poll(), None, "masked");
    assert_eq!(word(&log(&host, &mut admin, 4 | 1 << 15, 8, 0).unwrap(), 0), 1);
    assert_eq!(admin.poll(), None, "still masked: the page was retained");
    let memory = host.memory(4096);
    let read = admin.push(Sqe::new(2, 0).prp(memory.iova().0, 0).cdw([4 | 1023 << 16]));
    admin.ring();
    assert_eq!((admin.wait().cid, admin.wait().cid), (read, cid));
    assert_eq!(word(&bytes(&memory), 0), 1);
    assert_eq!(word(&log(&host, &mut admin, 4, 8, 0).unwrap(), 0), 0, "told once");
    admin.push(request);
    admin.ring();
    host.controller.set_smart(SmartOverrides { critical_warning: 2, ..Default::default() });
    assert_eq!(admin.wait().dw0, 1 | 1 << 8 | 2 << 16, "temperature");
    assert_eq!(log(&host, &mut admin, 2, 512, 0).unwrap()[0], 2);
}

#[test]
fn event_requests_have_a_limit_and_can_be_aborted() {
    let (_host, mut admin) = Host::up(small());
    let cids: Vec<_> = (0..8).map(|_| admin.push(Sqe::new(12, 0))).collect();
    assert_eq!(admin.run(Sqe::new(12, 0)).status, 0x105);
    let abort = |cid: u16, sq: u32| Sqe::new(8, 0).cdw([sq | u32::from(cid) << 16]);
    assert_eq!(admin.run(abort(999, 0)).dw0, 1);
    assert_eq!(admin.run(abort(cids[3], 1)).dw0, 1);
    assert_eq!(admin.run(abort(cids[3], 0)).dw0, 0);
    let aborted = admin.wait();
    assert_eq!((aborted.cid, aborted.status), (cids[3], 0x07));
}

#[test]
fn format_cuts_the_namespace_anew_and_erases_it() {
    let (host, mut admin, mut queue) = Host::with_queue(small());
    let memory = host.memory(4096);
    fill(&memory, 9);
    let at = |opcode, count| Sqe::new(opcode, 1).prp(memory.iova().0, 0).blocks(0, count);
    assert_eq!(queue.run(at(1, 8)).status, 0);
    let format = |word| Sqe::new(0x80, 1).cdw([word]);
    assert_eq!(admin.run(format(8)).status, 0x10a);
    assert_eq!(admin.run(format(3 | 1 << 5)).status, 0x10a, "protection");
    assert_eq!(admin.run(format(3 | 2 << 9)).status, INVALID_FIELD, "cryptographic erase");
    assert_eq!(admin.run(Sqe { nsid: 2, ..format(3) }).status, 0x0b);
    assert_eq!(admin.run(format(3 | 1 << 9)).status, 0);
    assert_eq!(word(&identify(&host, &mut admin, 0, 1).unwrap(), 0), 256);
    assert_eq!(queue.run(at(2, 1)).status, 0);
    assert_eq!(bytes(&memory), [0; 4096]);
}
