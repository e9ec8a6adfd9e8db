//! I/O commands: what each does, and each way that it is refused.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::host::{Host, Queue, Sqe, bytes, fill, small};
use crate::dma::Window;
use crate::soft::{CommandContext, Interposer, MediaOptions, NamespaceOptions, Options, Verdict};
use crate::spec::status::Status;
use crate::units::LbaSize;

const INVALID_FIELD: u16 = 0x02;
const LBA_OUT_OF_RANGE: u16 = 0x80;
const UNRECOVERED_READ: u16 = 0x281;

fn write(memory: &Window, lba: u64, count: u32) -> Sqe {
    Sqe::new(1, 1).prp(memory.iova().0, 0).blocks(lba, count)
}

fn read(memory: &Window, lba: u64, count: u32) -> Sqe {
    Sqe::new(2, 1).prp(memory.iova().0, 0).blocks(lba, count)
}

fn look(host: &Host, queue: &mut Queue, lba: u64) -> Vec<u8> {
    let memory = host.memory(512);
    assert_eq!(queue.run(read(&memory, lba, 1)).status, 0);
    bytes(&memory)
}

/// Each medium that keeps data; the file lives as long as the directory.
fn keepers() -> (tempfile::TempDir, Vec<Options>) {
    let place = tempfile::tempdir().unwrap();
    let media = MediaOptions::File { path: place.path().join("disk"), bytes: Some(1 << 20) };
    let namespaces =
        vec![NamespaceOptions { lba_size: LbaSize::B512, media, ..NamespaceOptions::default() }];
    let file = Options { namespaces, ..small() };
    let through = Options { volatile_write_cache: false, ..small() };
    (place, vec![small(), file, through])
}

#[test]
fn what_is_written_is_read_back() {
    let (_place, media) = keepers();
    for options in media {
        let (host, _admin, mut queue) = Host::with_queue(options);
        let (from, to) = (host.memory(4096), host.memory(4096));
        let written = fill(&from, 7);
        assert_eq!(queue.run(write(&from, 9, 8)).status, 0);
        assert_eq!(queue.run(Sqe::new(0, 1)).status, 0);
        assert_eq!(queue.run(Sqe::new(0, u32::MAX)).status, 0);
        assert_eq!(queue.run(read(&to, 9, 8)).status, 0);
        assert_eq!(bytes(&to), written);
        let counters = host.controller.counters();
        assert_eq!((counters.bytes_written, counters.bytes_read), (4096, 4096));
        assert_eq!((counters.io_commands.of(0), counters.io_total()), (2, 4));
        assert_eq!((counters.failed, counters.dma_faults), (0, 0));
    }
}

#[test]
fn zeroes_deallocation_copy_compare_and_verify_agree() {
    let (_place, media) = keepers();
    for options in media {
        let (host, _admin, mut queue) = Host::with_queue(options);
        let memory = host.memory(4096);
        let all = fill(&memory, 3);
        assert_eq!(queue.run(write(&memory, 0, 8)).status, 0);
        let compare = |lba| Sqe { opcode: 5, ..read(&memory, lba, 1) };
        assert_eq!(queue.run(compare(0)).status, 0);
        assert_eq!(queue.run(compare(1)).status, 0x285, "compare failure");
        assert_eq!(queue.run(Sqe::new(8, 1).blocks(1, 2)).status, 0);
        assert_eq!(look(&host, &mut queue, 0), &all[..512]);
        assert_eq!(look(&host, &mut queue, 1), [0; 512]);
        assert_eq!(look(&host, &mut queue, 3), &all[3 * 512..4 * 512]);
        let ranges = host.memory(4096);
        ranges.span().store32(4, 1, core::sync::atomic::Ordering::Relaxed);
        ranges.span().store64(8, 3, core::sync::atomic::Ordering::Relaxed);
        let dsm = Sqe::new(9, 1).prp(ranges.iova().0, 0).cdw([0, 4]);
        assert_eq!(queue.run(dsm).status, 0);
        assert_eq!(look(&host, &mut queue, 3), [0; 512]);
        ranges.span().store64(8, 2048, core::sync::atomic::Ordering::Relaxed);
        assert_eq!(queue.run(dsm).status, LBA_OUT_OF_RANGE);
        let sources = host.memory(64);
        sources.span().store64(8, 4, core::sync::atomic::Ordering::Relaxed);
        sources.span().store32(16, 1, core::sync::atomic::Ordering::Relaxed);
        sources.span().store64(40, 0, core::sync::atomic::Ordering::Relaxed);
        let copy = Sqe::new(0x19, 1).prp(sources.iova().0, 0);
        assert_eq!(queue.run(copy.cdw([500, 0, 1])).status, 0);
        assert_eq!(look(&host, &mut queue, 501), &all[5 * 512..6 * 512]);
        assert_eq!(look(&host, &mut queue, 502), &all[..512]);
        assert_eq!(queue.run(copy.cdw([2046, 0, 1])).status, LBA_OUT_OF_RANGE);
        assert_eq!(queue.run(copy.cdw([0, 0, 1 | 1 << 8])).status, INVALID_FIELD, "format 1");
        assert_eq!(queue.run(Sqe::new(0x19, 1).cdw([0, 0, 128])).status, 0x183);
        assert_eq!(queue.run(Sqe::new(12, 1).blocks(0, 2048)).status, 0);
    }
}

#[test]
fn blocks_made_uncorrectable_stay_so_until_written() {
    let (host, _admin, mut queue) = Host::with_queue(small());
    let memory = host.memory(4096);
    assert_eq!(queue.run(Sqe::new(4, 1).blocks(10, 4)).status, 0);
    assert_eq!(queue.run(read(&memory, 8, 2)).status, 0);
    assert_eq!(queue.run(read(&memory, 8, 3)).status, UNRECOVERED_READ);
    assert_eq!(queue.run(Sqe::new(12, 1).blocks(13, 1)).status, UNRECOVERED_READ);
    assert_eq!(queue.run(write(&memory, 10, 3)).status, 0);
    assert_eq!(queue.run(read(&memory, 10, 3)).status, 0);
    assert_eq!(queue.run(read(&memory, 13, 1)).status, UNRECOVERED_READ);
    assert_eq!(queue.run(Sqe::new(8, 1).blocks(13, 1)).status, 0);
    assert_eq!(queue.run(read(&memory, 8, 8)).status, 0);
}

#[test]
fn wrong_commands_have_their_own_status() {
    let (host, _admin, mut queue) = Host::with_queue(Options { mdts: Some(8192), ..small() });
    let memory = host.memory(8192);
    let good = read(&memory, 0, 1);
    let at = |prp1, prp2| Sqe { dptr: [prp1, prp2], ..good };
    let with = |index: usize, word| {
        let mut sqe = good;
        sqe.cdw[index] |= word;
        sqe
    };
    let iova = memory.iova().0;
    let wrong = [
        ("opcode", Sqe { opcode: 0x7f, ..good }, 0x01),
        ("vendor opcode", Sqe { opcode: 0xff, ..good }, 0x01),
        ("namespace 0", Sqe { nsid: 0, ..good }, 0x0b),
        ("namespace 2", Sqe { nsid: 2, ..good }, 0x0b),
        ("all namespaces", Sqe { nsid: u32::MAX, ..good }, 0x0b),
        ("flush of namespace 2", Sqe::new(0, 2), 0x0b),
        ("flush with blocks", Sqe::new(0, 1).blocks(1, 1), INVALID_FIELD),
        ("first block past the end", read(&memory, 2048, 1), LBA_OUT_OF_RANGE),
        ("last block past the end", read(&memory, 2047, 2), LBA_OUT_OF_RANGE),
        ("wrapping block", read(&memory, u64::MAX, 2), LBA_OUT_OF_RANGE),
        ("longer than MDTS", read(&memory, 0, 17), INVALID_FIELD),
        ("fused", Sqe { flags: 1, ..good }, INVALID_FIELD),
        ("reserved flag", Sqe { flags: 4, ..good }, INVALID_FIELD),
        ("PSDT 3", Sqe { flags: 0xc0, ..good }, INVALID_FIELD),
        ("metadata pointer", Sqe { mptr: 8, ..good }, INVALID_FIELD),
        ("protection", with(2, 1 << 26), INVALID_FIELD),
        ("reserved dword 12", with(2, 1 << 16), INVALID_FIELD),
        ("reserved dword 13", with(3, 1 << 8), INVALID_FIELD),
        ("dword 14", with(4, 1), INVALID_FIELD),
        ("odd PRP1", at(iova + 2, 0), 0x13),
        ("superfluous PRP2", at(iova, iova + 4096), INVALID_FIELD),
        ("odd PRP2", at(iova + 4092, iova + 4096 + 4), 0x13),
        ("unmapped", at(4096, 0), 0x04),
        ("end of the address space", at(u64::MAX - 3, 0), 0x04),
    ];
    for (what, sqe, status) in wrong {
        assert_eq!(queue.run(sqe).status, status, "{what}");
    }
    assert_eq!(queue.run(good).status, 0);
    assert_eq!(host.controller.counters().failed, wrong.len() as u64);
}

#[test]
fn a_null_medium_answers_and_still_checks_memory() {
    let namespaces = vec![NamespaceOptions {
        lba_size: LbaSize::B4096,
        media: MediaOptions::Null { bytes: 1 << 50 },
        metadata: None,
    }];
    let (host, _admin, mut queue) = Host::with_queue(Options { namespaces, ..small() });
    let memory = host.memory(4096);
    let before = fill(&memory, 1);
    assert_eq!(queue.run(read(&memory, (1 << 38) - 1, 1)).status, 0);
    assert_eq!(bytes(&memory), before);
    assert_eq!(queue.run(read(&memory, 1 << 38, 1)).status, LBA_OUT_OF_RANGE);
    assert_eq!(queue.run(Sqe::new(2, 1).prp(4096, 0).blocks(0, 1)).status, 0x04);
    assert_eq!(host.controller.counters().dma_faults, 1);
}

/// Fails reads of block 1, and loses writes.
struct Meddler;

impl Interposer for Meddler {
    fn on_command(&self, context: &CommandContext<'_>) -> Verdict {
        match (context.command.opcode, context.command.slba()) {
            (2, 1) => Verdict::Fail(Status::UNRECOVERED_READ),
            (1, _) => Verdict::Drop,
            _ => Verdict::Execute,
        }
    }
}

#[test]
fn an_interposer_decides_about_commands() {
    let (host, _admin, mut queue) =
        Host::with_queue(Options { interposer: Some(Arc::new(Meddler)), ..small() });
    let memory = host.memory(512);
    assert_eq!(queue.run(read(&memory, 0, 1)).status, 0);
    assert_eq!(queue.run(read(&memory, 1, 1)).status, UNRECOVERED_READ);
    queue.push(write(&memory, 0, 1));
    queue.ring();
    assert_eq!(queue.poll(), None);
    let next = queue.run(read(&memory, 0, 1));
    assert_eq!((next.status, next.sq_head), (0, 4));
}

/// The lock is advisory: whoever does not ask can cut the file.
#[test]
fn a_file_that_was_cut_short_is_a_medium_that_fails_and_not_zeroes() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk");
    let media = MediaOptions::File { path: path.clone(), bytes: Some(1 << 20) };
    let namespaces =
        vec![NamespaceOptions { lba_size: LbaSize::B512, media, ..NamespaceOptions::default() }];
    let (host, _admin, mut queue) = Host::with_queue(Options { namespaces, ..small() });
    let memory = host.memory(4096);
    fill(&memory, 5);
    assert_eq!(queue.run(write(&memory, 100, 8)).status, 0);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(104 * 512).unwrap();
    assert_eq!(queue.run(read(&memory, 100, 4)).status, 0);
    for opcode in [2, 5, 12] {
        let refused = queue.run(Sqe { opcode, ..read(&memory, 100, 8) });
        assert_eq!(refused.status, UNRECOVERED_READ, "opcode {opcode}");
    }
}
