//! Random mixes of everything that one file can be put through, each read held against an array of bytes.
//!
//! One request at a time: what overlapping ones may do is the affair of `model`. Here sizes need not be
//! blocks, files shrink and grow, units are punched out and preallocated, and memory has every
//! shape. At the end the device itself is looked at: past the end of the file its blocks hold zeroes.

use udirect::block::{Placement, ScriptedMap};
use udirect::dio::{Action, Io, IoVector, Memory, Options, Slice, Source};
use udirect::dma::{Access, PagePolicy};
use udirect::seed::Seed;
use udirect::soft::Execution;
use udirect::units::{BlockCount, FileBlock};

use crate::bed::{
    Device, Drive, FILE, Setup, UNTOUCHED, World, assert_rest, assert_same, fill, map, sometimes,
    stream,
};

/// What a run is like. Bytes throughout.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    pub(crate) device: Device,
    pub(crate) pages: PagePolicy,
    /// Blocks of an allocation unit.
    pub(crate) unit: u64,
    pub(crate) placement: Placement,
    /// Units that one answer of the map covers at most, in turn.
    pub(crate) answers: &'static [u64],
    pub(crate) operations: u64,
    /// The largest file.
    pub(crate) file: u64,
    /// The longest request.
    pub(crate) longest: u64,
    /// What reads, writes and sizes are multiples of.
    pub(crate) read_step: u64,
    pub(crate) write_step: u64,
    pub(crate) size_step: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            device: Device { bytes: 4 << 20, mdts: Some(32 << 10), ..Device::default() },
            pages: PagePolicy::Ordinary,
            unit: 8,
            placement: Placement::Rising,
            answers: &[],
            operations: 10_000,
            file: 500_000,
            longest: 32_768,
            read_step: 512,
            write_step: 512,
            size_step: 512,
        }
    }
}

impl Mix {
    /// Runs it.
    pub(crate) fn run(&self, seed: &mut Seed) {
        eprintln!("{self:?}");
        let mut world = World::with(&self.device, self.pages, Execution::Inline);
        world.stain(0xaa);
        let map = map(&world, self.unit, self.placement, self.answers);
        let pipeline = world.pipeline(map.clone(), &Options::default());
        let setup = Setup { world, map, pipeline };
        let free = setup.map.free_units();
        let mut run = Run { mix: self, setup, seed, good: Vec::new() };
        for _ in 0..self.operations {
            run.step();
        }
        run.finish(free);
    }
}

/// A run: the file, and what has to be in it.
struct Run<'a> {
    mix: &'a Mix,
    setup: Setup,
    seed: &'a mut Seed,
    /// As long as the file.
    good: Vec<u8>,
}

impl Run<'_> {
    fn step(&mut self) {
        match self.seed.below(100) {
            0..35 => self.read(),
            35..60 => self.write(),
            60..68 => self.append(),
            68..78 => self.resize(),
            78..86 => self.punch(),
            86..92 => self.preallocate(),
            92..98 => self.zero(),
            _ => self.flush(),
        }
        assert_eq!(self.setup.map.len(FILE), self.size(), "the size of the file");
    }

    fn size(&self) -> u64 {
        self.good.len() as u64
    }

    fn block(&self) -> u64 {
        self.setup.world.block()
    }

    fn unit(&self) -> u64 {
        self.mix.unit * self.block()
    }

    /// A place and a length, multiples of `step`, that end within `most`.
    fn range(&mut self, step: u64, most: u64) -> (u64, u64) {
        let steps = most / step;
        let start = self.seed.below(steps);
        // Half of all requests are short, or none would meet the edge of a unit.
        let longest = if self.seed.chance(1, 2) { 4 * step } else { self.mix.longest };
        let len = 1 + self.seed.below((longest / step).max(1));
        (start * step, len.min(steps - start) * step)
    }

    fn read(&mut self) {
        // Now and then past the end.
        let most = (self.size() + self.size() / 8 + self.mix.longest).min(self.mix.file);
        let (offset, len) = self.range(self.mix.read_step, most);
        let mut memory = self.memory(len as usize);
        memory.write(0, &vec![UNTOUCHED; len as usize]);
        let done = self.setup.pipeline.run(Io::read(offset, memory, 0).of(FILE));
        done.result.as_ref().expect("a read");
        assert_eq!(done.bytes, len.min(self.size().saturating_sub(offset)), "at {offset}");
        let found = stream(&done.memory);
        let bytes = done.bytes as usize;
        let start = (offset as usize).min(self.good.len());
        let wanted = &self.good[start..start + bytes];
        assert_same(&found[..bytes], wanted, format_args!("{len} bytes read at {offset}"));
        assert_rest(&found, done.bytes, self.block());
    }

    fn write(&mut self) {
        let (offset, len) = self.range(self.mix.write_step, self.mix.file);
        self.write_at(offset, len);
    }

    /// Writes from the last block on, or from just behind it.
    fn append(&mut self) {
        let step = self.mix.write_step;
        let end = self.size() / step * step;
        let offset = end + if self.seed.chance(1, 2) { 0 } else { step };
        let (_, len) = self.range(step, self.mix.file);
        let len = len.min((self.mix.file / step * step).saturating_sub(offset));
        if len > 0 {
            self.write_at(offset, len);
        }
    }

    fn write_at(&mut self, offset: u64, len: u64) {
        let mut data = vec![0; len as usize];
        fill(&mut data, self.seed.u64(..));
        let mut memory = self.memory(data.len());
        memory.write(0, &data);
        let mut io = Io::write(offset, memory, 0).of(FILE);
        if self.seed.chance(1, 16) {
            io = io.durable();
        }
        let done = self.setup.pipeline.run(io);
        assert!(stream(&done.memory) == data, "a write leaves its memory alone");
        assert_eq!(done.into_bytes().expect("a write"), len);
        let end = (offset + len) as usize;
        self.good.resize(self.good.len().max(end), 0);
        self.good[offset as usize..end].copy_from_slice(&data);
    }

    /// Makes the file shorter or longer. What a filesystem does about the rest of the last unit has to be
    /// done here: the next one to grow the file would uncover it.
    fn resize(&mut self) {
        let to = self.seed.below(self.mix.file / self.mix.size_step + 1) * self.mix.size_step;
        let (block, unit) = (self.block(), self.unit());
        let has_data = |map: &ScriptedMap| map.units(FILE).iter().any(|(at, _)| *at == to / unit);
        if to < self.size() && !to.is_multiple_of(unit) && has_data(&self.setup.map) {
            let (start, end) = (to / block * block, to.next_multiple_of(unit));
            let mut tail = self.good[start as usize..to as usize].to_vec();
            tail.resize((end - start) as usize, 0);
            self.setup.write(start, &tail);
        }
        self.setup.map.set_len(FILE, to);
        self.good.resize(to as usize, 0);
    }

    /// Takes whole units out, and zeroes what is left of the range.
    fn punch(&mut self) {
        let (offset, len) = self.range(self.mix.write_step, self.mix.file);
        let (block, unit) = (self.block(), self.unit());
        let end = offset + len;
        let (from, to) = (offset.next_multiple_of(unit), end / unit * unit);
        if from >= to {
            self.zero_device(offset, len);
        } else {
            self.zero_device(offset, from - offset);
            self.zero_device(to, end - to);
            self.setup.map.punch(FILE, FileBlock(from / block), BlockCount((to - from) / block));
        }
        self.zero_good(offset, end);
    }

    fn preallocate(&mut self) {
        let (offset, len) = self.range(self.mix.write_step, self.mix.file);
        let (at, blocks) = (FileBlock(offset / self.block()), BlockCount(len / self.block()));
        self.setup.map.preallocate(FILE, at, blocks);
    }

    fn zero(&mut self) {
        let (offset, len) = self.range(self.mix.write_step, self.mix.file);
        self.zero_device(offset, len);
        self.zero_good(offset, offset + len);
    }

    fn zero_device(&mut self, offset: u64, len: u64) {
        let action = Action::WriteZeroes { len, durability: sometimes(self.seed.chance(1, 8)) };
        let done = self.setup.pipeline.run(Io::bare(offset, action, 0).of(FILE));
        assert_eq!(done.into_bytes().expect("zeroes"), len);
    }

    fn zero_good(&mut self, from: u64, to: u64) {
        let (from, to) = (from.min(self.size()) as usize, to.min(self.size()) as usize);
        self.good[from..to].fill(0);
    }

    fn flush(&mut self) {
        let done = self.setup.pipeline.run(Io::bare(0, Action::Flush, 0).of(FILE));
        done.result.expect("a flush");
    }

    /// Memory of a random shape.
    fn memory(&mut self, len: usize) -> Memory {
        match self.seed.below(8) {
            0..4 => Memory::One(self.setup.world.buffer(len, Access::Both)),
            4 => self.whole_buffers(len),
            5 | 6 => self.slices(len),
            _ => self.partly_plain(len),
        }
    }

    /// Several buffers, each as a whole.
    fn whole_buffers(&mut self, len: usize) -> Memory {
        let grid = [512, 4096][self.seed.below(2) as usize];
        let (mut buffers, mut left) = (Vec::new(), len);
        while left > 0 {
            let wanted = grid * (1 + self.seed.below(8) as usize);
            let here = if buffers.len() > 100 { left } else { wanted.min(left) };
            buffers.push(self.setup.world.buffer(here, Access::Both));
            left -= here;
        }
        Memory::list(buffers)
    }

    /// Two halves of one buffer in the wrong order, somewhere in it.
    fn slices(&mut self, len: usize) -> Memory {
        let grid = [1, 4, 512, 4096][self.seed.below(4) as usize];
        let front = grid * self.seed.below(9) as usize;
        let cut = self.seed.below(len as u64 / grid as u64 + 1) as usize * grid;
        let gap = grid * self.seed.below(3) as usize;
        let buffer = self.setup.world.buffer(front + len + gap, Access::Both);
        let mut vector = IoVector::new().with(buffer);
        let slice = |offset: usize, len: usize| Slice {
            source: Source::Dma(0),
            offset: offset as u32,
            len: len as u32,
        };
        let rest = len - cut;
        vector.slices = vec![slice(front + rest + gap, cut), slice(front, rest)];
        vector.into()
    }

    /// Some of it is memory that no device reaches.
    fn partly_plain(&mut self, len: usize) -> Memory {
        let cut = self.seed.below(len as u64) as usize;
        let buffer = self.setup.world.buffer(len - cut, Access::Both);
        IoVector::new().with_plain(vec![0; cut]).with(buffer).into()
    }

    fn finish(mut self, free: u64) {
        let (size, block, unit) = (self.size() as usize, self.block() as usize, self.unit());
        if size > 0 {
            let found = self.setup.read(0, size.next_multiple_of(block));
            assert_same(&found, &self.good, format_args!("the whole file"));
        }
        // Behind the pipeline's back: whatever grows the file next must find zeroes past its end.
        let units = self.setup.map.units(FILE);
        self.good.resize(size.next_multiple_of(unit as usize), 0);
        for (index, lba) in units {
            let found = self.setup.world.look(lba.0, self.mix.unit);
            let start = (index * unit) as usize;
            let wanted = &self.good[start..start + unit as usize];
            assert_same(&found, wanted, format_args!("unit {index} of {size} bytes on the device"));
        }
        self.setup.map.punch(FILE, FileBlock(0), BlockCount(u64::MAX));
        assert_eq!(self.setup.map.free_units(), free, "every unit went back");
        self.setup.finish();
    }
}
