//! Compares reading from memory through driver and controller with copying the same bytes.
//!
//! `cargo bench --bench media_time`. Both sides read 4 KiB blocks in the same random order from as much
//! memory, into the same buffers, in rounds that alternate within one run; the ratio of the medians is
//! what to look at. With `--test`, one short round of each, as a test that it runs.
//!
//! This is not a benchmark of memory: a copy is the measure, not the subject.

use std::hint::black_box;
use std::time::{Duration, Instant};

use udirect::block::{BlockDevice, IoQueue, QueueOptions, Request};
use udirect::dma::{Access, DmaBuf, SharedBytes};
use udirect::open::open;
use udirect::units::Lba;

const BLOCK: usize = 4096;
const DEPTH: usize = 128;
const BATCH: usize = 32;

/// How much is measured.
struct Scale {
    /// The working set.
    bytes: usize,
    /// Rounds of each side.
    rounds: usize,
    /// Blocks of a round.
    blocks: u64,
}

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    let scale = match test {
        true => Scale { bytes: 8 << 20, rounds: 1, blocks: 20_000 },
        false => Scale { bytes: 256 << 20, rounds: 11, blocks: 1_000_000 },
    };
    let (mut copies, mut reads) = (Vec::new(), Vec::new());
    let mut bed = Bed::new(&scale);
    for round in 0..scale.rounds as u64 {
        copies.push(per_block(scale.blocks, || bed.copy(round, scale.blocks)));
        reads.push(per_block(scale.blocks, || bed.read(round, scale.blocks)));
    }
    let (copy, read) = (median(&mut copies), median(&mut reads));
    println!(
        "{} MiB, 4 KiB blocks in random order, medians of {} rounds",
        scale.bytes >> 20,
        scale.rounds
    );
    println!(
        "  copy              {copy:7.1} ns per block ({:.1} to {:.1})",
        copies[0],
        copies[copies.len() - 1]
    );
    println!(
        "  read through mem: {read:7.1} ns per block ({:.1} to {:.1})",
        reads[0],
        reads[reads.len() - 1]
    );
    println!("  ratio             {:7.2}", read / copy);
    println!("  bytes read twice agree: {:#018x}", bed.agree());
}

struct Bed {
    memory: SharedBytes,
    queue: Box<dyn IoQueue>,
    buffers: Vec<DmaBuf>,
    blocks: u64,
    /// Keeps the device until the queue is gone.
    _device: std::sync::Arc<dyn BlockDevice>,
}

impl Bed {
    /// Fills the memory and the device with the same bytes.
    fn new(scale: &Scale) -> Self {
        let device = open(&format!("mem:{}", scale.bytes)).expect("the device opens").device;
        let options = QueueOptions { depth: DEPTH as u32, ..QueueOptions::default() };
        let mut queue = device.open_queue(&options).expect("a queue");
        let memory = SharedBytes::anonymous(scale.bytes).expect("memory");
        let buffer = || device.dma().buffer(BLOCK, Access::Both).expect("a buffer");
        let mut buffers: Vec<DmaBuf> = (0..DEPTH).map(|_| buffer()).collect();
        let blocks = (scale.bytes / BLOCK) as u64;
        for block in 0..blocks {
            let mut data = buffers.pop().expect("one at a time");
            fastrand::Rng::with_seed(block).fill(&mut data);
            part(&memory, block).span().write_from(&data);
            queue.submit(Request::write(Lba(block), data, 0)).expect("a free slot");
            queue.ring();
            while queue.poll(1, &mut |done| buffers.push(buffer_of(done))) == 0 {}
        }
        Self { memory, queue, buffers, blocks, _device: device }
    }

    /// Copies `count` blocks in the order of `round`.
    fn copy(&mut self, round: u64, count: u64) {
        let mut order = fastrand::Rng::with_seed(round);
        for n in 0..count as usize {
            let at = order.u64(..self.blocks) as usize * BLOCK;
            let block = self.memory.span().slice(at, BLOCK).expect("within the memory");
            block.read_into(&mut self.buffers[n % DEPTH]);
        }
        black_box(&self.buffers);
    }

    /// Reads `count` blocks in the order of `round`, 32 at a time, 128 in flight.
    fn read(&mut self, round: u64, count: u64) {
        let mut order = fastrand::Rng::with_seed(round);
        let (mut submitted, mut reaped) = (0, 0);
        while reaped < count {
            let room = (count - submitted).min(BATCH as u64).min(self.buffers.len() as u64);
            for _ in 0..room {
                let buffer = self.buffers.pop().expect("there is room");
                let request = Request::read(Lba(order.u64(..self.blocks)), buffer, 0);
                self.queue.submit(request).expect("a free slot");
            }
            self.queue.ring();
            submitted += room;
            let buffers = &mut self.buffers;
            reaped += self.queue.poll(BATCH, &mut |done| buffers.push(buffer_of(done))) as u64;
        }
    }

    /// Reads a block both ways; returns its first word.
    fn agree(&mut self) -> u64 {
        let mut order = fastrand::Rng::with_seed(0);
        let block = order.u64(..self.blocks);
        self.read(0, 1);
        let read = self.buffers.last().expect("it is back");
        let mut copied = [0; BLOCK];
        part(&self.memory, block).span().read_into(&mut copied);
        assert_eq!(read[..], copied, "block {block}");
        u64::from_le_bytes(copied[..8].try_into().expect("eight bytes"))
    }
}

fn part(memory: &SharedBytes, block: u64) -> SharedBytes {
    memory.part(block as usize * BLOCK, BLOCK).expect("within the memory")
}

fn buffer_of(done: udirect::block::Completion) -> DmaBuf {
    done.result.expect("memory does not fail");
    done.request.into_payload().expect("a payload").into_one().expect("one buffer")
}

fn per_block(blocks: u64, work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    let spent: Duration = began.elapsed();
    spent.as_secs_f64() * 1e9 / blocks as f64
}

/// Sorts and returns the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
