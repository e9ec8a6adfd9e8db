//! Random requests against a byte array.
//!
//! Requests in flight never overlap, since the order of overlapping ones is nobody's promise; everything
//! else is drawn: operation, place, length, the cut into buffers, batches, how much is reaped at once.

use std::ops::Range;
use std::sync::Arc;

use udirect::block::{Checked, Completion, Operation, Payload, Rejected, Request};
use udirect::dma::{Access, DmaBuf};
use udirect::seed::Seed;
use udirect::units::{BlockCount, Lba};

use crate::host::Host;

/// Requests of one run; `UDIRECT_REQUESTS` sets another number.
fn requests() -> u64 {
    let wanted = std::env::var("UDIRECT_REQUESTS").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(if cfg!(debug_assertions) { 2_000 } else { 20_000 })
}

pub(crate) fn random_requests_agree_with_a_byte_array(host: &mut Host) {
    let mut seed = Seed::from_env("random requests");
    play(host, &mut seed, requests());
}

/// Queues from the shallowest to deeper than most, with few slots to wait for and with many.
pub(crate) fn random_requests_agree_at_every_depth(host: &mut Host) {
    let mut seed = Seed::from_env("random requests at every depth");
    for depth in [2, 3, 33, 256, 1024] {
        let depth = depth.min(host.device.max_depth());
        let mut other = Host::with_depth(Arc::clone(&host.device), depth);
        play(&mut other, &mut seed, requests() / 10);
    }
}

fn play(host: &mut Host, seed: &mut Seed, rounds: u64) {
    let mut model = Model::new(host, seed);
    for _ in 0..rounds {
        model.submit_some();
        model.reap_some();
    }
    model.finish();
}

struct Model<'a> {
    host: &'a mut Host,
    seed: &'a mut Seed,
    /// The block that `bytes` begins with.
    first: u64,
    bytes: Vec<u8>,
    /// Which blocks a write has filled since they were last emptied.
    written: Vec<bool>,
    /// What is in flight, by tag.
    inflight: Vec<Option<InFlight>>,
}

struct InFlight {
    blocks: Range<u64>,
    /// A second range that must not change: the source of a copy.
    source: Range<u64>,
    kind: Kind,
}

enum Kind {
    Read,
    Write(Vec<u8>),
    Zero,
    Copy,
    Compare { equal: bool },
    Neutral,
}

/// The most blocks of one request.
const BLOCKS_MAX: u64 = 700;

/// How much of a device is played on, at its end.
const AREA_BYTES: u64 = 8 << 20;

impl<'a> Model<'a> {
    fn new(host: &'a mut Host, seed: &'a mut Seed) -> Self {
        let blocks = host.blocks().min(AREA_BYTES / host.block() as u64);
        let first = host.blocks() - blocks;
        // The device may hold what earlier cases left.
        host.run(Operation::WriteZeroes {
            lba: Lba(first),
            blocks: BlockCount(blocks),
            fua: false,
        })
        .result
        .expect("zeroes");
        let bytes = vec![0; blocks as usize * host.block()];
        let written = vec![false; blocks as usize];
        let inflight = (0..host.queue.depth()).map(|_| None).collect();
        Self { host, seed, first, bytes, written, inflight }
    }

    fn submit_some(&mut self) {
        for _ in 0..=self.seed.below(6) {
            let Some(tag) = self.inflight.iter().position(Option::is_none) else { break };
            self.submit(tag);
        }
        if self.seed.chance(7, 8) {
            self.host.queue.ring();
        }
    }

    fn submit(&mut self, tag: usize) {
        let blocks = self.range();
        let source = self.range();
        if self.is_busy(&blocks) || self.is_busy(&source) || overlap(&blocks, &source) {
            return;
        }
        let (operation, kind) = self.operation(&blocks, &source);
        if !self.is_offered(&operation) {
            return;
        }
        match self.host.queue.submit(Request::new(operation, tag as u64)) {
            Ok(()) => {
                let source = if matches!(kind, Kind::Copy) { source } else { 0..0 };
                self.inflight[tag] = Some(InFlight { blocks, source, kind });
            }
            Err(Rejected::QueueFull(_)) => {}
            Err(Rejected::Invalid(request, error)) => panic!("{error}: {request:?}"),
        }
    }

    /// What is not offered has a case of its own.
    fn is_offered(&self, operation: &Operation) -> bool {
        let offers = self.host.device.geometry().operations;
        match operation {
            Operation::Copy { .. } => offers.copy,
            Operation::Verify { .. } => offers.verify,
            _ => true,
        }
    }

    fn range(&mut self) -> Range<u64> {
        let most = if self.seed.chance(1, 30) { BLOCKS_MAX } else { 20 };
        let len = 1 + self.seed.below(most);
        let start = self.first + self.seed.below(self.written.len() as u64 - len + 1);
        start..start + len
    }

    fn is_busy(&self, range: &Range<u64>) -> bool {
        let hit = |other: &InFlight| overlap(range, &other.blocks) || overlap(range, &other.source);
        self.inflight.iter().flatten().any(hit)
    }

    fn operation(&mut self, blocks: &Range<u64>, source: &Range<u64>) -> (Operation, Kind) {
        let lba = Lba(blocks.start);
        let count = blocks.end - blocks.start;
        let len = count as usize * self.host.block();
        match self.seed.below(20) {
            0..7 => {
                let payload = self.payload(len, Access::DeviceWrites, None);
                (Operation::Read { lba, payload }, Kind::Read)
            }
            7..14 => {
                let mut data = vec![0; len];
                self.seed.fill(&mut data);
                let payload = self.payload(len, Access::DeviceReads, Some(&data));
                let fua = self.seed.chance(1, 9);
                (Operation::Write { lba, payload, fua }, Kind::Write(data))
            }
            14 => {
                let blocks = BlockCount(count);
                (Operation::WriteZeroes { lba, blocks, fua: self.seed.chance(1, 2) }, Kind::Zero)
            }
            15 => (Operation::Deallocate { lba, blocks: BlockCount(count) }, Kind::Zero),
            16 => {
                let fits = (source.end - source.start).min(count);
                let (source, blocks) = (Lba(source.start), BlockCount(fits));
                (Operation::Copy { source, target: lba, blocks }, Kind::Copy)
            }
            17 if self.can_compare(blocks) => {
                let mut data = self.slice(blocks).to_vec();
                let equal = self.seed.chance(1, 2);
                if !equal {
                    let at = self.seed.below(len as u64) as usize;
                    data[at] ^= 0x80;
                }
                let payload = self.payload(len, Access::DeviceReads, Some(&data));
                (Operation::Compare { lba, payload }, Kind::Compare { equal })
            }
            18 => (Operation::Verify { lba, blocks: BlockCount(count) }, Kind::Neutral),
            _ => (Operation::Flush, Kind::Neutral),
        }
    }

    /// Empty blocks have no protection information, and a device may compare that too when it is sent: QEMU's looks at
    /// nothing else.
    fn can_compare(&self, blocks: &Range<u64>) -> bool {
        let geometry = self.host.device.geometry();
        let protection = geometry.metadata.and_then(|metadata| metadata.protection);
        let is_sent = protection.is_some_and(|protection| protection.checked == Checked::Both);
        geometry.operations.compare
            && (!is_sent || self.written[self.numbers(blocks)].iter().all(|&is| is))
    }

    /// Memory of `len` bytes: one buffer, or several that end at pages.
    fn payload(&mut self, len: usize, access: Access, data: Option<&[u8]>) -> Payload {
        let mut parts: Vec<DmaBuf> = Vec::new();
        let mut at = 0;
        while at < len {
            let pages = 1 + self.seed.below(8) as usize;
            let whole = at == 0 && self.seed.chance(1, 2);
            let size = if whole { len } else { (pages * 4096).min(len - at) };
            let mut part = self.host.buffer(size, access);
            if let Some(data) = data {
                part.copy_from_slice(&data[at..at + size]);
            }
            parts.push(part);
            at += size;
        }
        match parts.len() {
            1 => parts.pop().expect("there is one").into(),
            _ => parts.into(),
        }
    }

    fn reap_some(&mut self) {
        let most = 1 + self.seed.below(16) as usize;
        let mut completions = Vec::new();
        self.host.queue.poll(most, &mut |completion| completions.push(completion));
        completions.into_iter().for_each(|completion| self.apply(completion));
    }

    fn apply(&mut self, completion: Completion) {
        let Completion { request, result } = completion;
        let entry = self.inflight[request.tag as usize].take().expect("it was in flight");
        let at = self.place(&entry.blocks);
        match entry.kind {
            Kind::Read => {
                result.expect("a read");
                let payload = request.into_payload().expect("a payload");
                let found = payload.segments().iter().flat_map(|part| part.iter());
                assert!(found.eq(&self.bytes[at]), "blocks {:?} differ", entry.blocks);
            }
            Kind::Write(data) => {
                result.expect("a write");
                self.bytes[at].copy_from_slice(&data);
                let blocks = self.numbers(&entry.blocks);
                self.written[blocks].fill(true);
            }
            Kind::Zero => {
                result.expect("zeroes");
                self.bytes[at].fill(0);
                let blocks = self.numbers(&entry.blocks);
                self.written[blocks].fill(false);
            }
            Kind::Copy => {
                result.expect("a copy");
                let (from, len) = (self.place(&entry.source), at.len());
                let len = len.min(from.len());
                self.bytes.copy_within(from.start..from.start + len, at.start);
                let (from, to) = (self.numbers(&entry.source), self.numbers(&entry.blocks));
                let blocks = len / self.host.block();
                self.written.copy_within(from.start..from.start + blocks, to.start);
            }
            Kind::Compare { equal } => assert_eq!(result.is_ok(), equal, "{:?}", entry.blocks),
            Kind::Neutral => result.expect("nothing can be wrong with it"),
        }
    }

    fn finish(&mut self) {
        self.host.queue.ring();
        let left = self.inflight.iter().flatten().count();
        let completions = self.host.wait(left);
        completions.into_iter().for_each(|completion| self.apply(completion));
        let step = 256 * self.host.block();
        for at in (0..self.bytes.len()).step_by(step) {
            let lba = self.first + (at / self.host.block()) as u64;
            let found = self.host.read(lba, step.min(self.bytes.len() - at));
            assert_eq!(found[..], self.bytes[at..at + found.len()], "from block {lba}");
        }
    }

    fn slice(&self, blocks: &Range<u64>) -> &[u8] {
        &self.bytes[self.place(blocks)]
    }

    fn place(&self, blocks: &Range<u64>) -> Range<usize> {
        let (size, blocks) = (self.host.block(), self.numbers(blocks));
        blocks.start * size..blocks.end * size
    }

    fn numbers(&self, blocks: &Range<u64>) -> Range<usize> {
        (blocks.start - self.first) as usize..(blocks.end - self.first) as usize
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}
