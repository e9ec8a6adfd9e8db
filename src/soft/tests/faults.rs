//! Faults: each action on each medium that keeps data, each way to choose commands.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::host::{CSTS, Host, Queue, Sqe, bytes, fill, small};
use crate::dma::Window;
use crate::seed::Seed;
use crate::soft::{
    CommandContext, Disk, FaultAction, FaultRule, Faults, Interposer, Lie, MediaOptions,
    NamespaceOptions, Options, Verdict,
};
use crate::spec::command::{Command, NvmOpcode};
use crate::spec::status::Status;
use crate::units::{Lba, LbaSize, NamespaceId, QueueId};

const FUA: u32 = 1 << 30;
const LBA_OUT_OF_RANGE: u16 = 0x80;
const UNRECOVERED_READ: u16 = 0x281;

/// A controller with one queue, faults, and memory of 4 KiB.
struct Bed {
    host: Host,
    admin: Queue,
    queue: Queue,
    memory: Window,
}

impl Bed {
    fn new(media: MediaOptions, faults: &Arc<Faults>) -> Self {
        let namespaces = vec![NamespaceOptions {
            lba_size: LbaSize::B512,
            media,
            ..NamespaceOptions::default()
        }];
        let interposer = Some(Arc::clone(faults) as Arc<dyn Interposer>);
        let options = Options { namespaces, interposer, ..small() };
        let (host, admin, queue) = Host::with_queue(options);
        let memory = host.memory(4096);
        Self { host, admin, queue, memory }
    }

    fn at(&self, opcode: u8, lba: u64, count: u32) -> Sqe {
        Sqe::new(opcode, 1).prp(self.memory.iova().0, 0).blocks(lba, count)
    }

    /// Writes blocks and returns their bytes.
    fn write(&mut self, lba: u64, count: u32, seed: u8) -> Vec<u8> {
        let mut written = fill(&self.memory, seed);
        let sqe = self.at(1, lba, count);
        assert_eq!(self.queue.run(sqe).status, 0);
        assert_eq!(bytes(&self.memory), written, "the host's memory is as it was");
        written.truncate(count as usize * 512);
        written
    }

    fn read(&mut self, lba: u64, count: u32) -> Vec<u8> {
        let sqe = self.at(2, lba, count);
        assert_eq!(self.queue.run(sqe).status, 0);
        let mut read = bytes(&self.memory);
        read.truncate(count as usize * 512);
        read
    }
}

/// Runs a test on each medium that keeps data.
fn on_each_medium(seed: u64, test: impl Fn(&mut Bed, &Faults)) {
    let place = tempfile::tempdir().unwrap();
    let media = [
        MediaOptions::Ram { bytes: 1 << 20 },
        MediaOptions::File { path: place.path().join("disk"), bytes: Some(1 << 20) },
        MediaOptions::Disk(Disk::new(1 << 20, LbaSize::B512)),
    ];
    for medium in media {
        let faults = Faults::new(seed);
        test(&mut Bed::new(medium, &faults), &faults);
    }
}

fn disk() -> Arc<Disk> {
    Disk::new(1 << 20, LbaSize::B512)
}

fn on(opcode: NvmOpcode, action: FaultAction) -> FaultRule {
    FaultRule::new(action).opcode(opcode)
}

#[test]
fn commands_fail_or_never_come_back() {
    on_each_medium(0, |bed, faults| {
        let written = bed.write(0, 1, 1);
        let fail = faults.add(FaultRule::new(FaultAction::Fail(Status::UNRECOVERED_READ)));
        let (read, write) = (bed.at(2, 0, 1), bed.at(1, 0, 1));
        assert_eq!(bed.queue.run(read).status, UNRECOVERED_READ);
        fill(&bed.memory, 2);
        assert_eq!(bed.queue.run(write).status, UNRECOVERED_READ);
        faults.remove(fail);
        assert_eq!(bed.read(0, 1), written);
        let drop = faults.add(FaultRule::new(FaultAction::Drop).once());
        bed.queue.push(read);
        bed.queue.ring();
        assert_eq!(bed.queue.poll(), None);
        assert_eq!(bed.read(0, 1), written);
        assert_eq!((faults.fired(fail), faults.fired(drop)), (2, 1));
    });
}

#[test]
fn a_lost_write_is_acknowledged_and_never_done() {
    on_each_medium(0, |bed, faults| {
        let written = bed.write(0, 2, 1);
        faults.add(on(NvmOpcode::WRITE, FaultAction::Lose).once());
        bed.write(0, 2, 2);
        assert_eq!(bed.read(0, 2), written);
        let written = bed.write(0, 2, 3);
        assert_eq!(bed.read(0, 2), written);
        // A read that is lost leaves the buffer as it was.
        faults.add(on(NvmOpcode::READ, FaultAction::Lose).once());
        bed.memory.span().fill(9);
        assert_eq!(bed.read(0, 2), [9; 1024]);
    });
}

#[test]
fn a_misdirected_command_goes_elsewhere_and_says_nothing() {
    on_each_medium(0, |bed, faults| {
        let (here, there) = (bed.write(8, 2, 1), bed.write(20, 2, 2));
        faults.add(on(NvmOpcode::WRITE, FaultAction::MisdirectBy(12)).once());
        let lost = bed.write(8, 2, 3);
        assert_eq!((bed.read(8, 2), bed.read(20, 2)), (here, lost.clone()));
        assert_ne!(there, lost);
        faults.add(on(NvmOpcode::READ, FaultAction::MisdirectBy(-100)).once());
        assert_eq!(bed.read(20, 2), [0; 1024], "from block 0");
        faults.add(on(NvmOpcode::READ, FaultAction::MisdirectTo(Lba(20))).once());
        assert_eq!(bed.read(0, 2), lost);
        faults.add(on(NvmOpcode::WRITE_ZEROES, FaultAction::MisdirectTo(Lba(21))).once());
        assert_eq!(bed.queue.run(Sqe::new(8, 1).blocks(0, 1)).status, 0);
        assert_eq!(bed.read(20, 2), [&lost[..512], &[0; 512]].concat());
    });
}

#[test]
fn past_the_end_a_command_is_misdirected_to_the_last_blocks() {
    on_each_medium(0, |bed, faults| {
        faults.add(on(NvmOpcode::WRITE, FaultAction::MisdirectTo(Lba(u64::MAX))));
        let written = bed.write(0, 2, 1);
        faults.clear();
        assert_eq!((bed.read(2046, 2), bed.read(0, 2)), (written, vec![0; 1024]));
        // What is wrong with a command is not hidden.
        faults.add(on(NvmOpcode::WRITE, FaultAction::MisdirectTo(Lba(0))));
        let outside = bed.at(1, 2047, 2);
        assert_eq!(bed.queue.run(outside).status, LBA_OUT_OF_RANGE);
        assert_eq!(bed.read(0, 2), [0; 1024]);
    });
}

#[test]
fn corruption_flips_the_bits_that_were_asked_for() {
    on_each_medium(0, |bed, faults| {
        let flipped = |bytes: &[u8], byte: usize, mask: u8| {
            let mut bytes = bytes.to_vec();
            bytes[byte] ^= mask;
            bytes
        };
        let written = bed.write(0, 2, 1);
        faults.add(on(NvmOpcode::READ, FaultAction::Corrupt { byte: 700, mask: 0x81 }).once());
        assert_eq!(bed.read(0, 2), flipped(&written, 700, 0x81));
        assert_eq!(bed.read(0, 2), written, "the medium is as it was");
        let past_the_end = FaultAction::Corrupt { byte: 1024 + 3, mask: 4 };
        faults.add(on(NvmOpcode::WRITE, past_the_end).once());
        let written = bed.write(0, 2, 2);
        assert_eq!(bed.read(0, 2), flipped(&written, 3, 4));
        // Others have no data to be corrupted.
        faults.add(FaultRule::new(past_the_end));
        assert_eq!(bed.queue.run(Sqe::new(0, 1)).status, 0);
        assert_eq!(bed.host.controller.counters().failed, 0);
    });
}

#[test]
fn corruption_reaches_scattered_memory() {
    let faults = Faults::new(0);
    let mut bed = Bed::new(MediaOptions::Disk(disk()), &faults);
    let scattered = bed.host.memory(3 * 4096);
    // From the last block of the first page to the first one of the third, which comes second.
    let iova = scattered.iova().0;
    let sqe = |opcode| Sqe::new(opcode, 1).prp(iova + 3584, iova + 8192).blocks(4, 2);
    fill(&scattered, 1);
    assert_eq!(bed.queue.run(sqe(1)).status, 0);
    faults.add(on(NvmOpcode::READ, FaultAction::Corrupt { byte: 513, mask: 0xff }));
    let mut expected = bytes(&scattered);
    expected[8193] ^= 0xff;
    assert_eq!(bed.queue.run(sqe(2)).status, 0);
    assert_eq!(bytes(&scattered), expected);
}

#[test]
fn corruption_of_nothing_shows_no_bytes_of_other_commands() {
    let faults = Faults::new(0);
    let mut bed = Bed::new(MediaOptions::Null { bytes: 1 << 20 }, &faults);
    faults.add(FaultRule::new(FaultAction::Corrupt { byte: 0, mask: 1 }));
    bed.write(0, 2, 1);
    let mut expected = vec![0; 1024];
    expected[0] = 1;
    assert_eq!(bed.read(0, 2), expected);
}

#[test]
fn flipped_bits_are_single_and_come_from_the_seed() {
    let mut seed = Seed::from_env("flipped bits");
    on_each_medium(seed.u64(..), |bed, faults| {
        let written = bed.write(0, 8, 1);
        let rule = faults.add(on(NvmOpcode::READ, FaultAction::FlipBit));
        for _ in 0..20 {
            let read = bed.read(0, 8);
            let wrong = |(a, b): (&u8, &u8)| (a ^ b).count_ones();
            assert_eq!(read.iter().zip(&written).map(wrong).sum::<u32>(), 1);
        }
        assert_eq!(faults.fired(rule), 20);
    });
}

#[test]
fn barriers_can_be_taken_away() {
    let (disk, faults) = (disk(), Faults::new(0));
    let mut bed = Bed::new(MediaOptions::Disk(Arc::clone(&disk)), &faults);
    let mut fua = bed.at(1, 0, 1);
    fua.cdw[2] |= FUA;
    let strip = faults.add(FaultRule::new(FaultAction::StripFua).fua());
    let lose = faults.add(on(NvmOpcode::FLUSH, FaultAction::Lose));
    assert_eq!(bed.queue.run(fua).status, 0);
    bed.write(1, 1, 1);
    assert_eq!(bed.queue.run(Sqe::new(0, 1)).status, 0);
    assert_eq!((disk.pending().len(), disk.durable_events()), (2, 0));
    assert_eq!((faults.fired(strip), faults.fired(lose)), (1, 1));
    faults.clear();
    assert_eq!(bed.queue.run(fua).status, 0);
    assert_eq!((disk.pending().len(), disk.durable_events()), (1, 1));
    assert_eq!(bed.queue.run(Sqe::new(0, 1)).status, 0);
    assert_eq!((disk.pending().len(), disk.durable_events()), (0, 2));
}

#[test]
fn without_a_cache_there_is_no_fua_to_take_away() {
    let (disk, faults) = (disk(), Faults::new(0));
    faults.add(FaultRule::new(FaultAction::StripFua));
    let media = MediaOptions::Disk(Arc::clone(&disk));
    let namespaces =
        vec![NamespaceOptions { lba_size: LbaSize::B512, media, ..NamespaceOptions::default() }];
    let interposer = Some(faults as Arc<dyn Interposer>);
    let options = Options { namespaces, interposer, volatile_write_cache: false, ..small() };
    let (host, _admin, mut queue) = Host::with_queue(options);
    let memory = host.memory(512);
    let write = Sqe::new(1, 1).prp(memory.iova().0, 0).blocks(0, 1);
    assert_eq!(queue.run(write).status, 0);
    assert_eq!(disk.pending(), []);
}

#[test]
fn without_power_no_fault_is_asked_for() {
    let (disk, faults) = (disk(), Faults::new(0));
    let mut bed = Bed::new(MediaOptions::Disk(Arc::clone(&disk)), &faults);
    let lose = faults.add(FaultRule::new(FaultAction::Lose));
    disk.cut_power_after(1, 0);
    let statuses = [0, 1].map(|_| bed.queue.run(Sqe::new(0, 1)).status);
    assert_eq!((statuses, faults.fired(lose)), ([0, 0x05], 1));
}

fn command(opcode: NvmOpcode, nsid: u32, lba: u64, count: u32) -> Command {
    let command = Command { opcode: opcode.0, nsid, cdw12: count - 1, ..Command::default() };
    command.with_slba(lba)
}

/// Shows a command to the faults and says whether one was made.
fn strikes(faults: &Faults, queue: u16, command: Command) -> bool {
    let context = CommandContext { queue: QueueId(queue), command: &command };
    faults.on_command(&context) == Verdict::Lose
}

#[test]
fn rules_match_by_opcode_queue_namespace_blocks_and_fua() {
    let with_fua = |command: Command| Command { cdw12: command.cdw12 | FUA, ..command };
    let (read, write) = (command(NvmOpcode::READ, 1, 8, 4), command(NvmOpcode::WRITE, 1, 8, 4));
    let at = |lba| command(NvmOpcode::READ, 1, lba, 4);
    let copy = command(NvmOpcode::COPY, 1, 8, 1);
    let any = || FaultRule::new(FaultAction::Lose);
    let cases = [
        ("any", any(), 3, read, true),
        ("opcode", any().opcode(NvmOpcode::READ), 3, read, true),
        ("another opcode", any().opcode(NvmOpcode::READ), 3, write, false),
        ("queue", any().queue(QueueId(3)), 3, read, true),
        ("another queue", any().queue(QueueId(3)), 4, read, false),
        ("namespace", any().namespace(NamespaceId(1)), 3, read, true),
        ("another namespace", any().namespace(NamespaceId(2)), 3, read, false),
        ("blocks", any().blocks(Lba(8)..Lba(12)), 3, read, true),
        ("the last block", any().blocks(Lba(11)..Lba(12)), 3, read, true),
        ("the block after", any().blocks(Lba(12)..Lba(13)), 3, read, false),
        ("the first block", any().blocks(Lba(0)..Lba(9)), 3, read, true),
        ("the block before", any().blocks(Lba(0)..Lba(8)), 3, read, false),
        ("the end of all blocks", any().blocks(Lba(0)..Lba(9)), 3, at(u64::MAX), false),
        ("blocks in memory", any().blocks(Lba(0)..Lba(99)), 3, copy, false),
        ("FUA", any().fua(), 3, with_fua(write), true),
        ("no FUA", any().fua(), 3, write, false),
        ("FUA of a read", any().fua(), 3, with_fua(read), false),
        ("FUA and blocks", any().fua().blocks(Lba(9)..Lba(10)), 3, with_fua(write), true),
        ("all but one", any().fua().queue(QueueId(1)), 3, with_fua(write), false),
    ];
    for (what, rule, queue, command, expected) in cases {
        let faults = Faults::new(0);
        let id = faults.add(rule);
        assert_eq!(strikes(&faults, queue, command), expected, "{what}");
        assert_eq!(faults.fired(id), u64::from(expected), "{what}");
    }
}

#[test]
fn rules_count_the_commands_that_match() {
    let read = command(NvmOpcode::READ, 1, 0, 1);
    let any = || FaultRule::new(FaultAction::Lose);
    let cases = [
        ("always", any(), [true; 5]),
        ("once", any().once(), [true, false, false, false, false]),
        ("twice", any().times(2), [true, true, false, false, false]),
        ("after three", any().after(3), [false, false, false, true, true]),
        ("the second", any().nth(2), [false, true, false, false, false]),
        ("never", any().chance(0), [false; 5]),
        ("surely", any().chance(1_000_000).after(4), [false, false, false, false, true]),
    ];
    for (what, rule, expected) in cases {
        let faults = Faults::new(0);
        faults.add(rule.opcode(NvmOpcode::READ));
        let struck = expected.map(|_| {
            // What does not match does not count.
            assert!(!strikes(&faults, 1, command(NvmOpcode::WRITE, 1, 0, 1)));
            strikes(&faults, 1, read)
        });
        assert_eq!(struck, expected, "{what}");
    }
}

#[test]
fn the_first_rule_that_fires_decides_and_the_others_see_nothing() {
    let read = command(NvmOpcode::READ, 1, 0, 1);
    let faults = Faults::new(0);
    let first = faults.add(FaultRule::new(FaultAction::Lose).nth(2));
    let second = faults.add(FaultRule::new(FaultAction::Drop).nth(2));
    let context = CommandContext { queue: QueueId(1), command: &read };
    let verdicts = [0; 4].map(|_| faults.on_command(&context));
    let expected = [Verdict::Execute, Verdict::Lose, Verdict::Drop, Verdict::Execute];
    assert_eq!(verdicts, expected);
    assert_eq!((faults.fired(first), faults.fired(second)), (1, 1));
}

#[test]
fn chances_repeat_with_the_seed_and_no_rule_disturbs_another() {
    let mut seed = Seed::from_env("chances of faults");
    let read = command(NvmOpcode::READ, 1, 0, 1);
    let rule = || FaultRule::new(FaultAction::Lose).chance(250_000);
    let run = |number: u64, with_another: bool| {
        let faults = Faults::new(number);
        let id = faults.add(rule());
        if with_another {
            faults.add(FaultRule::new(FaultAction::Drop).chance(500_000));
        }
        let struck: Vec<bool> = (0..4000).map(|_| strikes(&faults, 1, read)).collect();
        assert_eq!(faults.fired(id), struck.iter().filter(|struck| **struck).count() as u64);
        struck
    };
    let number = seed.u64(..);
    let struck = run(number, false);
    assert_eq!(struck, run(number, true));
    assert_ne!(struck, run(number.wrapping_add(1), false));
    let hits = struck.iter().filter(|struck| **struck).count();
    assert!((800..1200).contains(&hits), "{hits} of 4000, 1000 expected");
}

fn bed_with(action: FaultAction) -> Bed {
    let faults = Faults::new(0);
    faults.add(FaultRule::new(action).opcode(NvmOpcode::READ).once());
    Bed::new(MediaOptions::Ram { bytes: 1 << 20 }, &faults)
}

#[test]
fn a_stalled_command_completes_when_it_is_aborted_and_not_before() {
    let mut bed = bed_with(FaultAction::Stall);
    let cid = bed.queue.push(bed.at(2, 0, 1));
    bed.queue.ring();
    assert_eq!(bed.queue.poll(), None);
    assert_eq!(bed.queue.run(bed.at(2, 0, 1)).status, 0, "others go on");
    let abort = |cid: u16| Sqe::new(8, 0).cdw([1 | u32::from(cid) << 16]);
    assert_eq!(bed.admin.run(abort(cid + 1)).dw0, 1, "that one is over");
    assert_eq!(bed.admin.run(abort(cid)).dw0, 0);
    let aborted = bed.queue.wait();
    assert_eq!((aborted.cid, aborted.sq_id, aborted.status), (cid, 1, 0x07));
    assert_eq!(bed.admin.run(abort(cid)).dw0, 1, "once");
}

#[test]
fn a_lie_changes_what_it_says_and_nothing_else() {
    let honest = bed_with(FaultAction::Fail(Status::SUCCESS)).queue_and_read();
    let lies = [Lie::Identifier(0x8001), Lie::Queue(3), Lie::Head(7)];
    for lie in lies {
        let told = bed_with(FaultAction::Lie(lie)).queue_and_read();
        let mut expected = honest;
        match lie {
            Lie::Identifier(bits) => expected.cid ^= bits,
            Lie::Queue(further) => expected.sq_id += further,
            Lie::Head(further) => expected.sq_head += further,
            Lie::Twice | Lie::Phase => unreachable!("they change no field"),
        }
        assert_eq!(told, expected, "{lie:?}");
    }
}

impl Bed {
    /// Returns the completion of a read.
    fn queue_and_read(mut self) -> super::host::Cqe {
        self.queue.push(self.at(2, 0, 1));
        self.queue.ring();
        self.queue.wait()
    }
}

#[test]
fn a_completion_is_posted_twice_or_where_nobody_sees_it() {
    let mut bed = bed_with(FaultAction::Lie(Lie::Twice));
    let cid = bed.queue.push(bed.at(2, 0, 1));
    bed.queue.ring();
    assert_eq!([bed.queue.wait().cid, bed.queue.wait().cid], [cid; 2]);
    assert_eq!(bed.queue.poll(), None);

    let mut bed = bed_with(FaultAction::Lie(Lie::Phase));
    for round in 0..70 {
        if round == 0 {
            bed.queue.push(bed.at(2, 0, 1));
            bed.queue.ring();
            assert_eq!(bed.queue.poll(), None);
        }
        // Across the end of the ring: phase and place are right again.
        assert_eq!(bed.queue.run(bed.at(2, 0, 1)).status, 0);
    }
}

#[test]
fn a_fatal_status_lasts_until_the_reset_and_a_removal_for_good() {
    let mut bed = bed_with(FaultAction::Fatal);
    bed.queue.push(bed.at(2, 0, 1));
    bed.queue.push(bed.at(1, 0, 1));
    bed.queue.ring();
    assert_eq!(bed.queue.poll(), None);
    assert_eq!(bed.host.transport.read32(CSTS), 0b11, "ready, and fatal");
    assert_eq!(bed.host.controller.counters().io_total(), 1, "nothing is fetched after that");
    bed.host.transport.write32(super::host::CC, 0);
    assert_eq!(bed.host.transport.read32(CSTS), 0);
    bed.admin = bed.host.enable();
    bed.queue = bed.host.queue(&mut bed.admin, 1, 16);
    assert_eq!(bed.queue.run(bed.at(2, 0, 1)).status, 0);

    let mut bed = bed_with(FaultAction::Vanish);
    bed.queue.push(bed.at(2, 0, 1));
    bed.queue.ring();
    assert_eq!(bed.queue.poll(), None);
    bed.host.transport.write32(super::host::CC, 0);
    for register in [0, CSTS, super::host::CC] {
        assert_eq!(bed.host.transport.read32(register), u32::MAX);
    }
    assert_eq!(bed.host.transport.read64(0), u64::MAX);
}
