//! Random requests against a model of the file: what each block may hold, by the times of its writes.
//!
//! Requests overlap as they like. A block may hold the value of any write that no later one has replaced for
//! certain: a write replaces what had completed before it was submitted. A read may return what the block
//! may have held at any moment of its life. Everything is drawn from one printed seed: the device, the map,
//! the pipeline's options, place, length, memory, faults, and how often anybody polls.

use std::collections::BTreeMap;
use std::ops::Range;

use udirect::block::{Placement, QueueOptions, ScriptedMap, Twist};
use udirect::dio::{Action, Done, Io, IoVector, Memory, Options, Pipeline, Refused, Slice, Source};
use udirect::dma::Access;
use udirect::seed::Seed;
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::{BlockCount, FileBlock, LbaSize};

use crate::bed::{Device, Drive, FILE, World, map, sometimes};

/// Requests of one device.
const REQUESTS: u64 = 2_000;

/// Requests in all; `UDIRECT_REQUESTS` sets another number.
fn requests() -> u64 {
    let wanted = std::env::var("UDIRECT_DIO_REQUESTS").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(if cfg!(debug_assertions) { 20_000 } else { 200_000 })
}

/// Blocks of the file that requests reach at most.
const FILE_BLOCKS: u64 = 3000;

#[test]
fn random_requests_agree_with_a_model_of_the_file() {
    let mut seed = Seed::from_env("random direct I/O");
    for _ in 0..requests().div_ceil(REQUESTS) {
        let mut model = Model::new(&mut seed);
        for _ in 0..REQUESTS {
            model.step();
        }
        model.finish();
    }
}

/// When something happened, in steps.
type Time = u64;

/// One write of one request, as the model knows it.
#[derive(Clone, Copy, Debug)]
struct Value {
    /// Words of the block are made of this; 0 is zeroes.
    salt: u64,
    submitted: Time,
    completed: Time,
}

const ZERO: Value = Value { salt: 0, submitted: 0, completed: 0 };
const IN_FLIGHT: Time = Time::MAX;

struct Model<'a> {
    seed: &'a mut Seed,
    world: World,
    map: ScriptedMap,
    pipeline: Pipeline<ScriptedMap>,
    block: u64,
    /// What each block may hold; absent is zeroes.
    blocks: BTreeMap<u64, Vec<Value>>,
    inflight: BTreeMap<u64, Pending>,
    now: Time,
    next: u64,
    faults: bool,
}

struct Pending {
    blocks: Range<u64>,
    kind: Kind,
    submitted: Time,
}

enum Kind {
    /// With the bytes that there are to read, and what each block may turn out to hold.
    Read {
        bytes: u64,
        allowed: Vec<Vec<Value>>,
    },
    Write {
        salt: u64,
    },
    Flush,
}

impl<'a> Model<'a> {
    fn new(seed: &'a mut Seed) -> Self {
        let of =
            |seed: &mut Seed, choices: &[u64]| choices[seed.below(choices.len() as u64) as usize];
        let lba = if seed.chance(1, 2) { LbaSize::B512 } else { LbaSize::B4096 };
        let device = Device {
            bytes: 40 << 20,
            lba,
            transfer: seed.chance(1, 3).then_some(4096),
            mdts: *[None, Some(8192), Some(1 << 16), Some(1 << 20)]
                .get(seed.below(4) as usize)
                .expect("one of four"),
            noiob: of(seed, &[0, 0, 7, 8, 100, 256]) as u32,
            sgl: seed.chance(1, 2),
        };
        let mut world = World::new(&device);
        world.stain(0xaa);
        let placement = match seed.below(3) {
            0 => Placement::Rising,
            1 => Placement::Falling,
            _ => Placement::Scattered(seed.u64(..)),
        };
        let answers: Vec<u64> = (0..seed.below(4)).map(|_| 1 + seed.below(9)).collect();
        let unit = of(seed, &[1, 1, 2, 8, 64]);
        let map = map(&world, unit, placement, &answers);
        let depth = of(seed, &[2, 3, 8, 64, 128]) as u32;
        let options = Options {
            queue: QueueOptions { depth, ..QueueOptions::default() },
            requests: seed.chance(1, 3).then(|| 1 + seed.below(60) as u32),
            share: seed.chance(1, 3).then(|| 1 + seed.below(9) as u32),
            reap_every: of(seed, &[1, 3, 64]) as u32,
            bounce_bytes: of(seed, &[4096, 64 << 10, 1 << 20]) as usize,
            merge: seed.chance(1, 3),
            ..Options::default()
        };
        eprintln!("{device:?} unit {unit} {placement:?} {answers:?} {options:?}");
        let pipeline = world.pipeline(map.clone(), &options);
        let block = world.block();
        Self {
            faults: seed.chance(1, 2),
            seed,
            world,
            map,
            pipeline,
            block,
            blocks: BTreeMap::new(),
            inflight: BTreeMap::new(),
            now: 1,
            next: 1,
        }
    }

    fn step(&mut self) {
        self.now += 1;
        self.submit();
        if self.seed.chance(2, 3) {
            self.pipeline.ring();
        }
        if self.seed.chance(2, 3) {
            self.poll();
        }
        if self.seed.chance(1, 200) {
            self.drain();
            self.rearrange();
        }
    }

    /// With nothing in flight, takes units out of the file or gives it some without data.
    fn rearrange(&mut self) {
        let range = self.range();
        let (at, blocks) = (FileBlock(range.start), BlockCount(range.end - range.start));
        if self.seed.chance(1, 2) {
            self.map.preallocate(FILE, at, blocks);
            return;
        }
        self.map.punch(FILE, at, blocks);
        let unit = self.unit();
        let (start, end) = (at.0 / unit * unit, range.end.next_multiple_of(unit));
        for block in start..end {
            self.blocks.remove(&block);
        }
    }

    fn unit(&self) -> u64 {
        use udirect::block::MapBlocks;
        self.map.unit().0
    }

    fn range(&mut self) -> Range<u64> {
        let most = match self.seed.below(40) {
            0 => 1500,
            1..8 => 100,
            _ => 9,
        };
        let len = 1 + self.seed.below(most);
        // Small files meet themselves more often.
        let reach = if self.seed.chance(1, 2) { 200 } else { FILE_BLOCKS };
        let start = self.seed.below(reach);
        start..start + len
    }

    fn submit(&mut self) {
        let blocks = self.range();
        let len = ((blocks.end - blocks.start) * self.block) as usize;
        let offset = blocks.start * self.block;
        let salt = self.next;
        let action = match self.seed.below(20) {
            0 => Action::Flush,
            1 => Action::WriteZeroes {
                len: len as u64,
                durability: sometimes(self.seed.chance(1, 2)),
            },
            2 => Action::Deallocate { len: len as u64 },
            3..11 => Action::Read,
            _ => Action::Write { durability: sometimes(self.seed.chance(1, 9)) },
        };
        let memory = match action {
            Action::Read => self.memory(len, None),
            Action::Write { .. } => {
                let bytes: Vec<u8> =
                    blocks.clone().flat_map(|block| content(salt, block, self.block)).collect();
                self.memory(len, Some(&bytes))
            }
            _ => Memory::Nothing,
        };
        self.inject(&blocks);
        let size = self.map.len(FILE);
        let kind = match action {
            Action::Flush => Kind::Flush,
            Action::Read => {
                let bytes = (len as u64).min(size.saturating_sub(offset));
                let allowed = blocks.clone().map(|block| self.may_hold(block)).collect();
                Kind::Read { bytes, allowed }
            }
            Action::Write { .. } => Kind::Write { salt },
            _ => Kind::Write { salt: 0 },
        };
        let io = Io { file: FILE, offset, action, memory, excess: 0, tag: salt };
        match self.pipeline.submit(io) {
            Ok(()) => {}
            Err(Refused::Full(_)) => return,
            Err(Refused::Invalid(io, error)) => panic!("{error}: {io:?}"),
        }
        self.next += 1;
        let submitted = self.now;
        if let Kind::Write { salt } = kind {
            let value = Value { salt, submitted, completed: IN_FLIGHT };
            self.may_now_hold(&blocks, value);
        }
        self.inflight.insert(self.next - 1, Pending { blocks, kind, submitted });
    }

    /// Now and then, the map or the device is going to fail somewhere.
    fn inject(&mut self, blocks: &Range<u64>) {
        if !self.faults {
            return;
        }
        match self.seed.below(60) {
            0 => self.map.twist(self.seed.below(3), Twist::NoSpace),
            1 => self.map.twist(self.seed.below(3), Twist::TooLong),
            2 => self.map.twist(self.seed.below(3), Twist::Boundary),
            3 => {
                let opcode =
                    if self.seed.chance(1, 2) { NvmOpcode::READ } else { NvmOpcode::WRITE };
                let lba = self.seed.below(self.world.soft_blocks());
                let _ = blocks;
                self.world.watcher.fail(opcode, lba, Status::UNRECOVERED_READ);
            }
            4..10 => self.world.watcher.relent(),
            _ => {}
        }
    }

    fn may_hold(&self, block: u64) -> Vec<Value> {
        self.blocks.get(&block).cloned().unwrap_or_else(|| vec![ZERO])
    }

    /// A write was submitted: blocks may hold its value from now on, and reads in flight may see it.
    fn may_now_hold(&mut self, blocks: &Range<u64>, value: Value) {
        for block in blocks.clone() {
            self.blocks.entry(block).or_insert_with(|| vec![ZERO]).push(value);
        }
        for pending in self.inflight.values_mut() {
            let Pending { blocks: of_read, kind: Kind::Read { allowed, .. }, .. } = pending else {
                continue;
            };
            let (from, to) = (blocks.start.max(of_read.start), blocks.end.min(of_read.end));
            for block in from..to {
                allowed[(block - of_read.start) as usize].push(value);
            }
        }
    }

    /// Memory of `len` bytes in a random shape, with `data` in it if there is any.
    fn memory(&mut self, len: usize, data: Option<&[u8]>) -> Memory {
        let mut memory = match self.seed.below(8) {
            0 => self.plain(len),
            1 => self.slices_of_one(len),
            2..4 => self.list(len),
            _ => Memory::One(self.world.buffer(len, Access::Both)),
        };
        match data {
            Some(data) => memory.write(0, data),
            None => memory.write(0, &vec![0xee; len]),
        }
        memory
    }

    /// Memory that no device reaches, or some of it.
    fn plain(&mut self, len: usize) -> Memory {
        let cut = self.seed.below(len as u64) as usize;
        let mut vector = IoVector::new().with_plain(vec![0; cut]);
        vector = if self.seed.chance(1, 2) {
            vector.with_plain(vec![0; len - cut])
        } else {
            vector.with(self.world.buffer(len - cut, Access::Both))
        };
        vector.into()
    }

    /// Slices of one buffer that lie in it backwards, on dwords, on pages, or anyhow.
    fn slices_of_one(&mut self, len: usize) -> Memory {
        let grid = [1, 4, 512, 4096][self.seed.below(4) as usize];
        let (mut slices, mut left, mut room) = (Vec::new(), len, 0usize);
        while left > 0 {
            let want = grid * (1 + self.seed.below(40) as usize);
            let len = if slices.len() > 60 { left } else { want.min(left) };
            slices.push(len);
            left -= len;
            room += len.next_multiple_of(grid) + grid;
        }
        let mut at = room;
        let slices = slices.into_iter().map(|len| {
            at -= len.next_multiple_of(grid);
            let slice = Slice { source: Source::Dma(0), offset: at as u32, len: len as u32 };
            at -= grid;
            slice
        });
        let slices = slices.collect();
        let dma = vec![self.world.buffer(room, Access::Both)];
        IoVector { dma, plain: Vec::new(), slices }.into()
    }

    /// Several buffers, each whole.
    fn list(&mut self, len: usize) -> Memory {
        let grid = [4, 512, 4096][self.seed.below(3) as usize];
        let mut vector = IoVector::new();
        let mut left = len;
        while left > 0 {
            let want = grid * (1 + self.seed.below(10) as usize);
            let len = if vector.slices.len() > 60 { left } else { want.min(left) };
            vector = vector.with(self.world.buffer(len, Access::Both));
            left -= len;
        }
        vector.into()
    }

    fn poll(&mut self) {
        let most = 1 + self.seed.below(20) as usize;
        let mut done = Vec::new();
        let count = self.pipeline.poll(most, &mut |one| done.push(one));
        assert_eq!(count, done.len());
        assert!(count <= most);
        self.now += 1;
        done.into_iter().for_each(|one| self.check(one));
    }

    fn check(&mut self, done: Done) {
        let Pending { blocks, kind, submitted } =
            self.inflight.remove(&done.tag).expect("it was in flight");
        match kind {
            Kind::Flush => done.result.expect("a flush"),
            Kind::Write { salt } => self.check_write(&blocks, salt, submitted, &done),
            Kind::Read { bytes, allowed } => match &done.result {
                Ok(()) => {
                    assert_eq!(done.bytes, bytes, "of blocks {blocks:?}");
                    self.check_read(&blocks, &allowed, &done.memory, bytes);
                }
                Err(error) => {
                    assert!(self.faults, "{error}");
                    assert!(done.bytes <= bytes, "a good prefix of {} of {bytes}", done.bytes);
                    self.check_read(&blocks, &allowed, &done.memory, done.bytes);
                }
            },
        }
    }

    /// The write of `salt` has completed.
    fn check_write(&mut self, blocks: &Range<u64>, salt: u64, submitted: Time, done: &Done) {
        let failed = done.result.is_err();
        assert!(!failed || self.faults, "{:?}", done.result);
        let (now, unit) = (self.now, self.unit());
        let with_data: Vec<u64> = match failed {
            true => self.map.units(FILE).into_iter().map(|(index, _)| index).collect(),
            false => Vec::new(),
        };
        for block in blocks.clone() {
            let values = self.blocks.get_mut(&block).expect("it was written");
            let is_it = |value: &Value| value.salt == salt && value.submitted == submitted;
            for value in values.iter_mut().filter(|value| is_it(value)) {
                value.completed = now;
            }
            if !failed {
                // Whatever had completed before this one was submitted is gone.
                values.retain(|value| is_it(value) || value.completed >= submitted);
            } else if with_data.binary_search(&(block / unit)).is_err() {
                // Nothing of a write that failed is seen where there was nothing before.
                values.retain(|value| !is_it(value));
            }
        }
    }

    fn check_read(&self, blocks: &Range<u64>, allowed: &[Vec<Value>], memory: &Memory, bytes: u64) {
        let found = crate::bed::stream(memory);
        for (block, allowed) in blocks.clone().zip(allowed) {
            let at = ((block - blocks.start) * self.block) as usize;
            if at as u64 >= bytes {
                break;
            }
            let found = &found[at..at + self.block as usize];
            let fits =
                |value: &Value| content(value.salt, block, self.block).eq(found.iter().copied());
            assert!(
                allowed.iter().any(fits),
                "block {block} begins with {:x?}, and may hold {allowed:x?}",
                &found[..16]
            );
        }
    }

    fn drain(&mut self) {
        self.pipeline.ring();
        for done in self.pipeline.wait(self.inflight.len()) {
            self.now += 1;
            self.check(done);
        }
        assert_eq!(self.pipeline.inflight(), 0);
        assert_eq!(self.map.under_way(), 0, "every guard is spent");
    }

    fn finish(mut self) {
        self.drain();
        self.world.watcher.relent();
        self.faults = false;
        let (size, step) = (self.map.len(FILE), 64 * self.block);
        // A twist that was never met is met by nobody else.
        self.map.forget_twists();
        for offset in (0..size).step_by(step as usize) {
            let start = offset / self.block;
            let blocks = start..start + 64;
            let memory = Memory::One(self.world.buffer(step as usize, Access::Both));
            let done = self.pipeline.run(Io::read(offset, memory, 0).of(FILE));
            done.result.as_ref().expect("the medium is sound");
            let allowed: Vec<_> = blocks.clone().map(|block| self.may_hold(block)).collect();
            self.check_read(&blocks, &allowed, &done.memory, done.bytes);
        }
        let Self { world, pipeline, map, .. } = self;
        drop(pipeline);
        assert_eq!(map.under_way(), 0);
        world.assert_all_home();
    }
}

/// The bytes of a block that the write of `salt` has left; zeroes for 0.
fn content(salt: u64, block: u64, len: u64) -> impl Iterator<Item = u8> + Clone {
    let word = if salt == 0 { 0 } else { salt << 20 | (block & 0xf_ffff) };
    (0..len).map(move |at| (word >> (8 * (at % 8))) as u8)
}
