//! The disk behind a controller: what flush, FUA and the lack of a cache make durable, and power cuts.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use std::sync::Arc;

use super::host::{Host, Queue, Sqe, bytes, fill, small};
use crate::dma::Window;
use crate::seed::Seed;
use crate::soft::{Disk, Execution, MediaOptions, NamespaceOptions, Options, SoftError};
use crate::units::{Lba, LbaSize};

const FUA: u32 = 1 << 30;
const POWER_LOSS: u16 = 0x05;

fn on(disk: &Arc<Disk>) -> Options {
    let media = MediaOptions::Disk(Arc::clone(disk));
    let namespaces =
        vec![NamespaceOptions { lba_size: LbaSize::B512, media, ..NamespaceOptions::default() }];
    Options { namespaces, ..small() }
}

fn disk() -> Arc<Disk> {
    Disk::new(1 << 20, LbaSize::B512)
}

fn write(memory: &Window, lba: u64, count: u32) -> Sqe {
    Sqe::new(1, 1).prp(memory.iova().0, 0).blocks(lba, count)
}

fn with_fua(mut sqe: Sqe) -> Sqe {
    sqe.cdw[2] |= FUA;
    sqe
}

/// A command that gives `count` blocks from `lba` back; its one range lies in `memory`.
fn deallocate(memory: &Window, lba: u64, count: u32) -> Sqe {
    memory.span().store32(4, count, Ordering::Relaxed);
    memory.span().store64(8, lba, Ordering::Relaxed);
    Sqe::new(9, 1).prp(memory.iova().0, 0).cdw([0, 4])
}

fn flush() -> Sqe {
    Sqe::new(0, 1)
}

fn bytes_at(disk: &Disk, lba: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * 512];
    disk.read_now(Lba(lba), &mut bytes);
    bytes
}

/// Returns what is left if a power cut keeps nothing of the cache.
fn least(disk: &Disk, lba: u64, count: usize) -> Vec<u8> {
    bytes_at(&disk.crash_by(&mut |_| false), lba, count)
}

/// Runs commands in one batch and returns their statuses.
fn batch(queue: &mut Queue, commands: &[Sqe]) -> Vec<u16> {
    for command in commands {
        queue.push(*command);
    }
    queue.ring();
    commands.iter().map(|_| queue.wait().status).collect()
}

#[test]
fn a_write_is_seen_at_once_and_durable_after_a_flush() {
    let disk = disk();
    let (host, _admin, mut queue) = Host::with_queue(on(&disk));
    let memory = host.memory(4096);
    let written = fill(&memory, 1);
    assert_eq!(queue.run(write(&memory, 3, 8)).status, 0);
    assert_eq!(bytes_at(&disk, 3, 8), written);
    assert_eq!(least(&disk, 3, 8), [0; 4096]);
    let read = Sqe { opcode: 2, ..write(&memory, 3, 8) };
    memory.span().fill(0);
    assert_eq!(queue.run(read).status, 0);
    assert_eq!(bytes(&memory), written);
    assert_eq!(queue.run(flush()).status, 0);
    assert_eq!(least(&disk, 3, 8), written);
    let counters = disk.counters();
    assert_eq!((counters.reads, counters.writes, counters.flushes), (1, 1, 1));
    assert_eq!((counters.fua_writes, disk.durable_events()), (0, 1));
    assert_eq!(host.controller.counters().bytes_written, 4096);
}

#[test]
fn a_flush_does_not_cover_a_write_of_its_own_batch() {
    let disk = disk();
    let (host, _admin, mut queue) = Host::with_queue(on(&disk));
    let memory = host.memory(512);
    fill(&memory, 1);
    assert_eq!(batch(&mut queue, &[write(&memory, 0, 1), flush()]), [0, 0]);
    assert_eq!((disk.pending().len(), disk.durable_events()), (1, 1));
    // A later flush covers that write, and not the one that came with it.
    assert_eq!(batch(&mut queue, &[write(&memory, 1, 1), flush(), write(&memory, 2, 1)]), [0; 3]);
    let pending: Vec<_> = disk.pending().iter().map(|write| write.first.0).collect();
    assert_eq!(pending, [1, 2]);
    assert_eq!(queue.run(Sqe::new(0, u32::MAX)).status, 0);
    assert_eq!(disk.pending(), []);
}

#[test]
fn a_flush_covers_what_another_queue_has_completed() {
    let disk = disk();
    let (host, mut admin) = Host::up(on(&disk));
    let (mut one, mut two) = (host.queue(&mut admin, 1, 16), host.queue(&mut admin, 2, 16));
    let memory = host.memory(512);
    // The flush was sent first and is fetched later.
    two.push(flush());
    two.ring();
    assert_eq!(one.run(write(&memory, 0, 1)).status, 0);
    assert_eq!(disk.pending().len(), 1);
    assert_eq!(two.wait().status, 0);
    assert_eq!(disk.pending(), []);
}

#[test]
fn fua_makes_its_own_blocks_durable_and_overtakes_older_writes() {
    let disk = disk();
    let (host, _admin, mut queue) = Host::with_queue(on(&disk));
    let memory = host.memory(4096);
    fill(&memory, 1);
    assert_eq!(queue.run(write(&memory, 0, 8)).status, 0);
    let newer = fill(&memory, 2);
    assert_eq!(queue.run(with_fua(write(&memory, 2, 2))).status, 0);
    assert_eq!(least(&disk, 2, 2), newer[..1024]);
    assert_eq!((least(&disk, 0, 2), least(&disk, 4, 4)), (vec![0; 1024], vec![0; 2048]));
    assert_eq!(bytes_at(&disk.crash_by(&mut |_| true), 2, 2), newer[..1024]);
    assert_eq!((disk.counters().fua_writes, disk.durable_events()), (1, 1));
}

#[test]
fn zeroes_deallocations_and_copies_wait_in_the_cache_too() {
    let disk = Disk::filled(1 << 20, LbaSize::B512, |lba, bytes| bytes.fill(lba.0 as u8));
    let (host, _admin, mut queue) = Host::with_queue(on(&disk));
    let (ranges, sources) = (host.memory(4096), host.memory(64));
    sources.span().store64(8, 100, Ordering::Relaxed);
    let copy = Sqe::new(0x19, 1).prp(sources.iova().0, 0).cdw([30, 0, 0]);
    let changes = [Sqe::new(8, 1).blocks(10, 1), deallocate(&ranges, 20, 1), copy];
    for (change, (lba, new)) in changes.into_iter().zip([(10, 0), (20, 0), (30, 100)]) {
        assert_eq!(queue.run(change).status, 0);
        assert_eq!(bytes_at(&disk, lba, 1), [new; 512]);
        assert_eq!(least(&disk, lba, 1), [lba as u8; 512]);
    }
    assert_eq!(queue.run(with_fua(changes[0])).status, 0);
    assert_eq!(queue.run(with_fua(changes[2])).status, 0);
    assert_eq!((least(&disk, 10, 1), least(&disk, 30, 1)), (vec![0; 512], vec![100; 512]));
    assert_eq!(disk.pending().len(), 1);
    let compare = Sqe { opcode: 5, ..write(&ranges, 20, 1) };
    ranges.span().fill(0);
    assert_eq!(queue.run(compare).status, 0);
    ranges.span().fill(1);
    assert_eq!(queue.run(compare).status, 0x285);
    assert_eq!(queue.run(Sqe::new(12, 1).blocks(0, 64)).status, 0);
}

#[test]
fn without_a_cache_every_change_is_durable_when_it_completes() {
    let with_option =
        |disk: &Arc<Disk>| Host::with_queue(Options { volatile_write_cache: false, ..on(disk) });
    let with_feature = |disk: &Arc<Disk>| {
        let (host, mut admin, queue) = Host::with_queue(on(disk));
        assert_eq!(admin.run(Sqe::new(9, 0).cdw([6, 0])).status, 0);
        (host, admin, queue)
    };
    for up in [&with_option as &dyn Fn(&Arc<Disk>) -> _, &with_feature] {
        let disk = disk();
        let (host, _admin, mut queue): (Host, Queue, Queue) = up(&disk);
        let memory = host.memory(4096);
        let written = fill(&memory, 1);
        assert_eq!(queue.run(write(&memory, 0, 8)).status, 0);
        assert_eq!(least(&disk, 0, 8), written);
        assert_eq!(queue.run(Sqe::new(8, 1).blocks(1, 2)).status, 0);
        assert_eq!(queue.run(deallocate(&memory, 4, 2)).status, 0);
        assert_eq!(disk.pending(), []);
        assert_eq!((least(&disk, 1, 2), least(&disk, 4, 2)), (vec![0; 1024], vec![0; 1024]));
        assert_eq!((disk.counters().writes, disk.counters().fua_writes), (3, 3));
    }
}

#[test]
fn a_write_in_many_pieces_of_memory_is_one_write() {
    let disk = disk();
    let (host, _admin, mut queue) = Host::with_queue(on(&disk));
    let memory = host.memory(8192);
    let written = fill(&memory, 4);
    // Two SGL descriptors that cut a block apart.
    let list = host.memory(4096);
    let pieces = [(memory.iova().0, 700_u64), (memory.iova().0 + 700, 324)];
    for (index, (iova, len)) in pieces.into_iter().enumerate() {
        list.span().store64(index * 16, iova, Ordering::Relaxed);
        list.span().store64(index * 16 + 8, len, Ordering::Relaxed);
    }
    let last_segment = 32 | 3 << 60;
    let sgl = Sqe { flags: 1 << 6, ..write(&memory, 9, 2) }.prp(list.iova().0, last_segment);
    assert_eq!(queue.run(sgl).status, 0);
    assert_eq!(bytes_at(&disk, 9, 2), written[..1024]);
    assert_eq!(disk.pending().len(), 1);
    // Memory that is not there: nothing reaches the disk, not even the piece that is.
    list.span().store64(16, 4096, Ordering::Relaxed);
    fill(&memory, 5);
    assert_eq!(queue.run(sgl).status, 0x04);
    assert_eq!(bytes_at(&disk, 9, 2), written[..1024]);
    assert_eq!(queue.run(Sqe { flags: 0x14, ..sgl }).status, 0x02, "reserved flags");
}

/// Four writes, reads, a flush and a write with FUA.
fn script(memory: &Window) -> [Sqe; 8] {
    let read = Sqe { opcode: 2, ..write(memory, 0, 1) };
    [
        write(memory, 0, 2),
        read,
        flush(),
        write(memory, 1, 2),
        with_fua(write(memory, 8, 1)),
        read,
        Sqe::new(8, 1).blocks(0, 1),
        write(memory, 9, 1),
    ]
}

#[test]
fn the_power_goes_before_any_command_that_is_asked_for() {
    let mut seed = Seed::from_env("power cut before each command");
    for cut in 0..8 {
        let (disk, other) = (disk(), disk());
        let (host, _admin, mut queue) = Host::with_queue(on(&disk));
        let (other_host, _other_admin, mut other_queue) = Host::with_queue(on(&other));
        let memory = host.memory(1024);
        let other_memory = other_host.memory(1024);
        fill(&memory, 6);
        fill(&other_memory, 6);
        let number = seed.u64(..);
        disk.cut_power_after(cut as u64, number);
        for (index, command) in script(&memory).into_iter().enumerate() {
            assert!(!disk.power_is_cut() || index > cut);
            let status = queue.run(command).status;
            assert_eq!(status, if index < cut { 0 } else { POWER_LOSS }, "{cut} {index}");
        }
        // A disk that did only what came before the cut leaves the same.
        for command in &script(&other_memory)[..cut] {
            assert_eq!(other_queue.run(*command).status, 0);
        }
        let expected = other.crash(&mut Seed::from_u64(number));
        assert_eq!(bytes_at(&disk.after_cut().unwrap(), 0, 64), bytes_at(&expected, 0, 64));
        assert_eq!(bytes_at(&disk, 0, 64), bytes_at(&other, 0, 64));
    }
}

#[test]
fn without_power_every_io_command_fails_and_the_controller_can_be_shut_down() {
    let mut seed = Seed::from_env("commands without power");
    let disk = disk();
    let (host, mut admin, mut queue) = Host::with_queue(on(&disk));
    let memory = host.memory(4096);
    disk.cut_power(&mut seed);
    let at = |opcode| Sqe { opcode, ..write(&memory, 0, 1) };
    let commands = [at(1), at(2), Sqe::new(4, 1).blocks(0, 1), at(5), Sqe::new(8, 1).blocks(0, 1)];
    for command in commands {
        assert_eq!(queue.run(command).status, POWER_LOSS, "opcode {}", command.opcode);
    }
    let rest = [flush(), Sqe::new(0, u32::MAX), deallocate(&memory, 0, 1), Sqe::new(12, 1)];
    for command in rest {
        assert_eq!(queue.run(command).status, POWER_LOSS, "opcode {}", command.opcode);
    }
    assert_eq!(admin.run(Sqe::new(0x80, 1)).status, POWER_LOSS, "Format NVM");
    host.transport.write32(0x14, 1 | 6 << 16 | 4 << 20 | 1 << 14);
    assert_eq!(host.transport.read32(0x1c) >> 2 & 3, 2, "shut down");
}

#[test]
fn the_image_of_a_power_cut_serves_the_next_controller() {
    let mut seed = Seed::from_env("the next controller");
    let disk = disk();
    let (host, _admin, mut queue) = Host::with_queue(on(&disk));
    let memory = host.memory(512);
    let written = fill(&memory, 8);
    assert_eq!(queue.run(with_fua(write(&memory, 7, 1))).status, 0);
    disk.cut_power(&mut seed);
    let left = disk.after_cut().unwrap();
    let (host, _admin, mut queue) = Host::with_queue(on(&left));
    let memory = host.memory(512);
    assert_eq!(queue.run(Sqe { opcode: 2, ..write(&memory, 7, 1) }).status, 0);
    assert_eq!(bytes(&memory), written);
}

#[test]
fn a_shutdown_empties_the_cache_and_a_reset_does_not() {
    let disk = disk();
    let (host, _admin, mut queue) = Host::with_queue(on(&disk));
    let memory = host.memory(512);
    assert_eq!(queue.run(write(&memory, 0, 1)).status, 0);
    host.transport.write32(0x14, 0);
    assert_eq!(disk.pending().len(), 1);
    let mut admin = host.enable();
    let mut queue = host.queue(&mut admin, 1, 16);
    assert_eq!(queue.run(write(&memory, 1, 1)).status, 0);
    host.transport.write32(0x14, 1 | 6 << 16 | 4 << 20 | 1 << 14);
    assert_eq!(disk.pending(), []);
}

#[test]
fn a_disk_keeps_the_size_of_its_blocks() {
    let large = Disk::new(1 << 20, LbaSize::B4096);
    let refused = crate::soft::Controller::new(on(&large)).err();
    assert!(matches!(refused, Some(SoftError::Blocks { disk: 4096, block: 512 })), "{refused:?}");
    let disk = disk();
    disk.overwrite(Lba(0), &[1; 512]);
    let (_host, mut admin, _queue) = Host::with_queue(on(&disk));
    assert_eq!(admin.run(Sqe::new(0x80, 1).cdw([3])).status, 0x10a, "invalid format");
    assert_eq!(bytes_at(&disk, 0, 1), [1; 512]);
    assert_eq!(admin.run(Sqe::new(0x80, 1)).status, 0);
    assert_eq!(least(&disk, 0, 1), [0; 512]);
}

#[test]
fn a_controller_with_a_thread_serves_a_disk_too() {
    let disk = disk();
    let options = Options { execution: Execution::Thread, ..on(&disk) };
    let (host, _admin, mut queue) = Host::with_queue(options);
    let memory = host.memory(512);
    for lba in 0..100 {
        let written = fill(&memory, lba as u8);
        assert_eq!(queue.run(write(&memory, lba, 1)).status, 0);
        assert_eq!(queue.run(flush()).status, 0);
        assert_eq!(least(&disk, lba, 1), written);
    }
}
