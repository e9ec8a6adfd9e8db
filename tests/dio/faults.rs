//! What happens when something is wrong: with the request, with the map, with the device.
//!
//! Each wrong thing is an error of its own with its numbers in it. Whenever one shows, all memory is back
//! with the caller, nothing is in flight, and nothing stale can be read.

use udirect::block::{
    Begun, BlockDevice, BlockError, Cause, Committed, Durability, ErrorKind, Event, Identity,
    MapBlocks, Mapping, Placement, Reach, ScriptedMap, Twist,
};
use udirect::dio::{
    Action, Io, IoVector, Memory, MemoryPolicy, OpenError, Options, Pipeline, SEGMENTS_MAX, Slice,
    Source,
};
use udirect::dma::Access;
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::{BlockCount, FileBlock, Lba};

use crate::bed::{
    Device, Drive, FILE, World, bytes, cut, map, place, read, scatter, stream, write,
};

const BLOCK: u64 = 512;
const UNIT: u64 = 8 * BLOCK;

fn world() -> World {
    World::new(&Device::default())
}

fn strict() -> Options {
    Options { memory: MemoryPolicy::Strict, ..Options::default() }
}

/// Opens a raw pipeline.
fn raw(world: &World, options: &Options) -> Pipeline<Identity> {
    world.pipeline(Identity::new(world.device.geometry()), options)
}

/// A request that is refused has told neither the map nor the device of anything.
fn refusal(pipeline: &mut Pipeline<Identity>, io: Io) -> (ErrorKind, String) {
    let error = pipeline.refused(io);
    assert_eq!((pipeline.counters().submissions, pipeline.statistics().mappings), (0, 0));
    (error.kind(), error.to_string())
}

// The request.

#[test]
fn an_offset_or_a_length_off_the_block_is_refused_with_its_numbers() {
    let world = World::new(&Device { lba: udirect::units::LbaSize::B4096, ..Device::default() });
    let mut pipeline = raw(&world, &Options::default());
    let buffer = |len| world.buffer(len, Access::Both);
    let misaligned = |text: &str| (ErrorKind::Misaligned, text.to_owned());
    let found = refusal(&mut pipeline, Io::read(512, buffer(4096), 1));
    assert_eq!(found, misaligned("offset 512 is not a multiple of 4096"));
    let found = refusal(&mut pipeline, Io::write(4096, buffer(6144), 1));
    assert_eq!(found, misaligned("length 6144 is not a multiple of 4096"));
    let zeroes = Action::WriteZeroes { len: 4097, durability: Durability::Lazy };
    let found = refusal(&mut pipeline, Io::bare(0, zeroes, 1));
    assert_eq!(found, misaligned("length 4097 is not a multiple of 4096"));
    let found = refusal(&mut pipeline, Io::bare(1, Action::Deallocate { len: 4096 }, 1));
    assert_eq!(found, misaligned("offset 1 is not a multiple of 4096"));
}

#[test]
fn memory_that_the_device_does_not_reach_is_refused_by_a_strict_pipeline_with_its_numbers() {
    let world = world();
    let mut pipeline = raw(&world, &strict());
    let slices = |slices: &[(u32, u32)]| {
        let buffer = world.buffer(16384, Access::Both);
        (buffer.iova().0, cut(buffer, slices))
    };
    let (start, memory) = slices(&[(2, 512)]);
    let text = format!("memory address {} is not a multiple of 4", start + 2);
    assert_eq!(refusal(&mut pipeline, Io::read(0, memory, 1)), (ErrorKind::Misaligned, text));
    let (_, memory) = slices(&[(0, 510), (4096, 514)]);
    let text = "length of a memory segment 510 is not a multiple of 4".into();
    assert_eq!(refusal(&mut pipeline, Io::read(0, memory, 1)), (ErrorKind::Misaligned, text));
    // Whole dwords, but a block of them that a page list cannot say.
    let (_, memory) = slices(&[(0, 256), (4096, 256)]);
    let text = "length of a memory segment between others 256 is not a multiple of 4096".into();
    assert_eq!(refusal(&mut pipeline, Io::read(0, memory, 1)), (ErrorKind::Misaligned, text));
    let plain = Memory::plain(vec![0; 512]);
    let (kind, text) = refusal(&mut pipeline, Io::write(0, plain, 1));
    assert_eq!(kind, ErrorKind::Unsupported);
    assert_eq!(text, "the device does not support memory that is not registered with it (strict)");
    // The same is bounced by any other.
    let mut pipeline = raw(&world, &Options::default());
    for slices in [vec![(2, 512)], vec![(0, 510), (4096, 514)], vec![(0, 256), (4096, 256)]] {
        let memory = cut(world.buffer(16384, Access::Both), &slices);
        pipeline.run(Io::read(0, memory, 1)).result.expect("a sound read");
    }
    assert_eq!(pipeline.statistics().bounces, 3);
}

#[test]
fn a_range_past_the_end_of_a_raw_volume_is_refused_and_a_read_is_clipped() {
    let world = world();
    let capacity = world.soft_blocks();
    let mut pipeline = raw(&world, &Options::default());
    let end = capacity * BLOCK;
    let out = |lba: u64, blocks: u64| {
        let text =
            format!("blocks {lba:#x}+{blocks} do not lie within the device's {capacity} blocks");
        (ErrorKind::OutOfRange, text)
    };
    let buffer = |len| world.buffer(len, Access::Both);
    let found = refusal(&mut pipeline, Io::write(end - BLOCK, buffer(1024), 1));
    assert_eq!(found, out(capacity - 1, 2));
    let found = refusal(&mut pipeline, Io::write(end, buffer(512), 1));
    assert_eq!(found, out(capacity, 1));
    let zeroes = Action::WriteZeroes { len: end, durability: Durability::Data };
    assert_eq!(refusal(&mut pipeline, Io::bare(BLOCK, zeroes, 1)), out(1, capacity));
    let deallocate = Action::Deallocate { len: BLOCK };
    assert_eq!(refusal(&mut pipeline, Io::bare(end, deallocate, 1)), out(capacity, 1));
    for (before, bytes) in [(2 * BLOCK, 2 * BLOCK), (BLOCK, BLOCK), (0, 0)] {
        let done = pipeline.run(Io::read(end - before, buffer(4096), 1));
        assert_eq!(done.into_bytes().expect("a read is clipped"), bytes);
    }
    assert_eq!(world.watcher.take().len(), 2);
}

/// The last block that 64 bits can name, and one more: the sum wraps to a small number, which nobody may
/// take for the end. Plain requests once skipped the check that all others had.
#[test]
fn a_range_that_64_bits_cannot_say_is_refused() {
    let world = world();
    let map = map(&world, 8, Placement::Rising, &[]);
    let mut pipeline = world.pipeline(map.clone(), &Options::default());
    let capacity = world.soft_blocks();
    for (offset, len) in [(u64::MAX - 4095, 4096), (u64::MAX - 4095, 8192), (u64::MAX - 511, 4096)]
    {
        for io in [write(&world, offset, len, 1), read(&world, offset, len)] {
            let error = pipeline.refused(io);
            let expected = format!(
                "blocks {:#x}+{} do not lie within the device's {capacity} blocks",
                offset / BLOCK,
                len / 512
            );
            assert_eq!(error.to_string(), expected);
        }
    }
    assert_eq!((map.under_way(), map.take_events(), map.len(FILE)), (0, vec![], 0));
}

#[test]
fn a_list_of_segments_is_neither_empty_nor_longer_than_1024() {
    let world = world();
    let mut pipeline = raw(&world, &Options::default());
    let invalid = |text: &str| (ErrorKind::Invalid, text.to_owned());
    for io in [Io::read(0, IoVector::new(), 1), Io::write(0, Memory::Nothing, 1)] {
        assert_eq!(refusal(&mut pipeline, io), invalid("segments: 0 is outside 1..=1024"));
    }
    let segments = |count: u32| {
        let slices: Vec<_> = (0..count).map(|n| (n * 512, 512)).collect();
        cut(world.buffer(1025 * 512, Access::Both), &slices)
    };
    let found = refusal(&mut pipeline, Io::read(0, segments(1025), 1));
    assert_eq!(found, invalid("segments: 1025 is outside 1..=1024"));
    let done = pipeline.run(Io::read(0, segments(SEGMENTS_MAX as u32), 1));
    assert_eq!(done.into_bytes().expect("as many as may be"), 1024 * BLOCK);
}

#[test]
fn segments_that_lie_over_each_other_may_be_written_from_and_not_read_into() {
    let world = world();
    let mut pipeline = raw(&world, &Options::default());
    let memory =
        || cut(world.pattern(8192, 1), &[(4096, 512), (0, 1024), (2048, 512), (512, 1024)]);
    let (kind, text) = refusal(&mut pipeline, Io::read(0, memory(), 1));
    assert_eq!(kind, ErrorKind::Invalid);
    assert_eq!(text, "segments 1 and 3 of a read share 512 bytes of memory");
    let twice = Slice { source: Source::Plain(0), offset: 3, len: 512 };
    let vector = IoVector { dma: vec![], plain: vec![vec![0; 600]], slices: vec![twice, twice] };
    let (_, text) = refusal(&mut pipeline, Io::read(0, vector, 1));
    assert_eq!(text, "segments 0 and 1 of a read share 512 bytes of memory");
    let neighbours = cut(world.buffer(8192, Access::Both), &[(512, 512), (0, 512), (1024, 0)]);
    pipeline.run(Io::read(0, neighbours, 1)).result.expect("they only touch");
    let expected = stream(&memory());
    pipeline.run(Io::write(0, memory(), 1)).result.expect("a sound write");
    let done = pipeline.run(Io::read(0, world.buffer(3072, Access::Both), 1));
    assert_eq!(stream(&done.memory), expected);
}

#[test]
fn a_segment_beyond_its_buffer_is_refused() {
    let world = world();
    let mut pipeline = raw(&world, &Options::default());
    let mut refused = |slice: Slice| {
        let dma = vec![world.buffer(512, Access::Both)];
        let vector = IoVector { dma, plain: vec![vec![0; 100]], slices: vec![slice] };
        refusal(&mut pipeline, Io::write(0, vector, 1))
    };
    let (dma, plain) = (Source::Dma(0), Source::Plain(0));
    let invalid = |text: &str| (ErrorKind::Invalid, text.to_owned());
    let found = refused(Slice { source: dma, offset: 256, len: 512 });
    assert_eq!(found, invalid("end of a segment in its buffer: 768 is outside 0..=512"));
    let found = refused(Slice { source: plain, offset: 0, len: 512 });
    assert_eq!(found, invalid("end of a segment in its buffer: 512 is outside 0..=100"));
    let found = refused(Slice { source: dma, offset: u32::MAX, len: 512 });
    assert_eq!(found, invalid("end of a segment in its buffer: 4294967807 is outside 0..=512"));
    let found = refused(Slice { source: Source::Dma(3), offset: 0, len: 512 });
    assert_eq!(found, invalid("buffer of a segment: 3 is outside 0..=0"));
}

#[test]
fn memory_that_is_mapped_the_other_way_is_refused() {
    let world = world();
    let mut pipeline = raw(&world, &Options::default());
    for lists in [false, true] {
        let memory = |access| {
            let buffer = world.buffer(4096, access);
            let iova = buffer.iova().0;
            (iova, if lists { cut(buffer, &[(0, 4096)]) } else { Memory::One(buffer) })
        };
        let text = |iova, verb| {
            format!("the buffer at {iova:#x} is mapped so that the device may not {verb} it")
        };
        let (iova, memory_to_read) = memory(Access::DeviceReads);
        let found = refusal(&mut pipeline, Io::read(0, memory_to_read, 1));
        assert_eq!(found, (ErrorKind::Invalid, text(iova, "write")));
        let (iova, memory_to_write) = memory(Access::DeviceWrites);
        let found = refusal(&mut pipeline, Io::write(0, memory_to_write, 1));
        assert_eq!(found, (ErrorKind::Invalid, text(iova, "read")));
    }
}

/// A map whose units are not a power of two.
struct Odd(u64);

impl MapBlocks for Odd {
    type Guard = ();

    fn unit(&self) -> BlockCount {
        BlockCount(self.0)
    }

    fn begin(&self, _: &Reach) -> Result<Option<Begun<()>>, BlockError> {
        panic!("nobody begins with a map like this")
    }

    fn map(&self, (): &mut (), _: FileBlock, _: BlockCount) -> Result<Mapping, BlockError> {
        panic!("nor asks it")
    }

    fn commit(&self, (): (), _: u64) -> Result<Committed, BlockError> {
        panic!("nor tells it")
    }
}

#[test]
fn no_pipeline_opens_over_a_map_with_an_impossible_unit_or_with_impossible_options() {
    let world = world();
    for unit in [0, 3, 4096] {
        let opened = Pipeline::open(&*world.device, Odd(unit), &Options::default());
        let Err(OpenError::Device(error)) = opened else { panic!("a unit of {unit}") };
        let what = "blocks of an allocation unit, a power of two:";
        assert_eq!(error.to_string(), format!("{what}: {unit} is outside 1..=2048"));
    }
    let none = Options { requests: Some(0), ..Options::default() };
    let many = Options { requests: Some(65_536), ..Options::default() };
    let share = Options { share: Some(0), ..Options::default() };
    let texts =
        ["requests: 0 is outside 1..=65535", "requests: 65536 is outside 1..=65535", "share: 0 is"];
    for (options, text) in [none, many, share].iter().zip(texts) {
        let map = Identity::new(world.device.geometry());
        let Err(OpenError::Device(error)) = Pipeline::open(&*world.device, map, options) else {
            panic!("{options:?}")
        };
        assert!(error.to_string().starts_with(text), "{error}");
    }
}

// The map.

/// A file of four extents, and how it was.
struct Filed {
    world: World,
    map: ScriptedMap,
    pipeline: Pipeline<ScriptedMap>,
    free: u64,
}

fn filed() -> Filed {
    let mut world = world();
    world.stain(0x69);
    let map = map(&world, 8, Placement::Rising, &[]);
    scatter(&world, &map, 80, 4, 8);
    let pipeline = world.pipeline(map.clone(), &Options::default());
    let free = map.free_units();
    Filed { world, map, pipeline, free }
}

impl Filed {
    /// Runs a request whose answer `after` more is twisted; returns the error and the good prefix.
    fn twisted(&mut self, after: u64, twist: &Twist, io: Io) -> (BlockError, u64) {
        let len = io.memory.len();
        let (size, units) = (self.map.len(FILE), self.map.units(FILE));
        self.map.take_events();
        self.map.twist(after, twist.clone());
        let done = self.pipeline.run(io);
        assert_eq!(done.memory.len(), len, "the memory is back");
        assert_eq!((self.pipeline.inflight(), self.map.under_way()), (0, 0), "{twist:?}");
        let is_drop = matches!(self.map.take_events().last(), Some(Event::Dropped { .. }));
        assert!(is_drop, "{twist:?}: the guard was dropped");
        assert_eq!(self.map.free_units(), self.free, "{twist:?}: the space is back");
        assert_eq!((self.map.len(FILE), self.map.units(FILE)), (size, units), "{twist:?}");
        (done.result.expect_err("the map has lied"), done.bytes)
    }
}

/// For requests that are plain and for those that walk, at the first answer and at a later one, for reads
/// and for writes to blocks that there are and to blocks that there are not.
#[test]
fn an_answer_that_breaks_the_contract_ends_the_request_with_its_numbers() {
    let mut filed = filed();
    let capacity = filed.world.soft_blocks();
    let far = Lba(u64::MAX - 3);
    let twists = [
        (Twist::Empty, "it covers nothing"),
        (Twist::TooLong, "it covers more than was asked for"),
        (Twist::At(Lba(capacity - 7)), "it does not lie within the device"),
        (Twist::At(Lba(capacity)), "it does not lie within the device"),
        (Twist::At(far), "it does not lie within the device"),
    ];
    for (twist, problem) in &twists {
        // Block of the file, blocks, which answer, and whether it writes.
        for (at, blocks, after, writes) in [
            (0, 8, 0, false),
            (0, 8, 0, true),
            (2, 3, 0, true),
            (0, 32, 2, false),
            (0, 32, 2, true),
            (64, 8, 0, true),
            (66, 3, 0, true),
        ] {
            let len = (blocks * BLOCK) as usize;
            let io = match writes {
                true => write(&filed.world, at * BLOCK, len, 1),
                false => read(&filed.world, at * BLOCK, len),
            };
            let (error, bytes) = filed.twisted(after, twist, io);
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert_eq!(bytes, after * UNIT, "{twist:?} of {blocks} at {at}");
            let (unit, end) = (at / 8 * 8 + 8 * after, (at + blocks).next_multiple_of(8));
            let asked = end - unit;
            let begins =
                format!("asked for {asked} blocks from file block {unit}, the map answered");
            assert!(error.to_string().starts_with(&begins), "{error}");
            let Cause::Mapping { lba, blocks, problem: found, .. } = *error.cause() else {
                panic!("another error: {error}")
            };
            assert_eq!(found, *problem, "{error}");
            match twist {
                Twist::Empty => assert_eq!(blocks.0, 0),
                Twist::TooLong => assert_eq!(blocks.0, asked + 8),
                Twist::At(wanted) => assert_eq!(lba, *wanted),
                _ => unreachable!("it is none of these"),
            }
        }
    }
}

/// A plain write whose first answer was a hole once passed it like a reader: it succeeded, was published,
/// and its data was nowhere.
#[test]
fn a_write_that_is_told_of_a_hole_fails() {
    let mut filed = filed();
    for (at, blocks, after) in [(0, 8, 0), (2, 3, 0), (0, 32, 2), (64, 8, 0), (66, 3, 0)] {
        let io = write(&filed.world, at * BLOCK, (blocks * BLOCK) as usize, 1);
        let (error, bytes) = filed.twisted(after, &Twist::Hole, io);
        assert_eq!((error.kind(), bytes), (ErrorKind::Corrupt, after * UNIT));
        let text = error.to_string();
        assert!(
            text.ends_with("the map answered 8 from 0x0: a write was told of a hole"),
            "{text}"
        );
    }
}

#[test]
fn a_write_for_which_there_is_no_space_gives_back_what_it_had() {
    let mut filed = filed();
    for (at, blocks, after) in [(64, 8, 0), (66, 3, 0), (0, 48, 4)] {
        let io = write(&filed.world, at * BLOCK, (blocks * BLOCK) as usize, 1);
        let (error, bytes) = filed.twisted(after, &Twist::NoSpace, io);
        assert_eq!(error.to_string(), "no space: the script says so");
        assert_eq!(bytes, after * UNIT);
    }
}

// Whoever goes away, and the device.

/// Requests in every state: plain, of many commands, walking, with bounced memory, waiting for their turn,
/// with the device told and not told. Then the pipeline is dropped.
#[test]
fn a_pipeline_dropped_with_requests_in_flight_gives_everything_back() {
    for told in [false, true] {
        let Filed { world, map, pipeline, free } = filed();
        drop(pipeline);
        let options = Options { share: Some(3), bounce_bytes: 4096, ..Options::default() };
        let mut pipeline = world.pipeline(map.clone(), &options);
        let plain = |salt| Memory::plain(bytes(UNIT as usize, salt));
        for io in [
            read(&world, 0, UNIT as usize),
            read(&world, 0, 4 * UNIT as usize),
            write(&world, 8 * UNIT, 6 * UNIT as usize, 1),
            write(&world, 20 * UNIT, UNIT as usize, 2),
            Io::write(UNIT, plain(3), 3).of(FILE),
            Io::write(UNIT, plain(4), 4).of(FILE),
            Io::bare(0, Action::Flush, 5).of(FILE),
        ] {
            pipeline.submit(io).expect("it is taken");
        }
        assert_eq!((pipeline.inflight(), map.under_way()), (7, 5));
        assert_eq!(pipeline.statistics().waits, 1, "the second append waits for the first");
        assert!(map.free_units() < free, "something was made");
        if told {
            pipeline.ring();
        }
        map.take_events();
        drop(pipeline);
        let events = map.take_events();
        let is_drop = |event: &Event| matches!(event, Event::Dropped { .. });
        assert!(events.len() == 5 && events.iter().all(is_drop), "{events:?}");
        assert_eq!((map.under_way(), map.free_units()), (0, free));
        assert_eq!((map.len(FILE), map.units(FILE).len()), (4 * UNIT, 4), "nothing is published");
        world.assert_all_home();
    }
}

#[test]
fn a_guard_dropped_unspent_frees_the_way_for_those_that_wait() {
    let Filed { mut world, map, mut pipeline, .. } = filed();
    let mut doomed = world.pipeline(map.clone(), &Options::default());
    doomed.submit(write(&world, 4 * UNIT, UNIT as usize, 1)).expect("it is taken");
    pipeline.submit(write(&world, 5 * UNIT, UNIT as usize, 2)).expect("it is taken");
    assert_eq!(pipeline.statistics().waits, 1);
    map.take_events();
    drop(doomed);
    let dropped = Event::Dropped { file: FILE, offset: 4 * UNIT, units: 1 };
    assert_eq!(map.take_events(), [dropped]);
    assert_eq!(pipeline.wait(1).pop().expect("one").bytes, UNIT);
    let (index, lba) = map.units(FILE)[4];
    assert_eq!((index, map.len(FILE)), (5, 6 * UNIT), "the hole before it is a hole");
    assert_eq!(world.look(lba.0, 8), bytes(UNIT as usize, 2));
}

#[test]
fn a_device_error_in_the_middle_of_a_large_read_keeps_the_prefix() {
    for (backwards, bounced) in [(false, false), (true, false), (false, true)] {
        let Filed { world, map, .. } = filed();
        let guise = crate::ledger::Guise { backwards, ..crate::ledger::Guise::of(&world) };
        let mut pipeline =
            Pipeline::open(&guise, map.clone(), &Options::default()).expect("a pipeline");
        world.watcher.fail(NvmOpcode::READ, 80 + 2 * 16 + 5, Status::UNRECOVERED_READ);
        let memory = vec![0xee; 4 * UNIT as usize];
        let io = match bounced {
            true => Io::read(0, Memory::plain(memory), 7).of(FILE),
            false => read(&world, 0, memory.len()),
        };
        let done = pipeline.run(io);
        // Two units, and five blocks of the third.
        let prefix = 2 * UNIT + 5 * 512;
        assert_eq!((done.tag, done.bytes, done.memory.len()), (7, prefix, 4 * UNIT));
        let found = stream(&done.memory);
        assert!(found[..prefix as usize].iter().all(|byte| *byte == 0x69), "the good prefix");
        let error = done.result.expect_err("the medium has failed");
        let Cause::Media { lba, blocks } = *error.cause() else { panic!("{error}") };
        assert_eq!((lba, blocks), (Lba(80 + 2 * 16 + 5), BlockCount(1)));
        // Four of the file, all awaited, and four that find one of eight blocks.
        assert_eq!(world.watcher.take().len(), 4 + 4);
        assert_eq!((pipeline.inflight(), map.under_way()), (0, 0));
        // What the failed request used serves the next one.
        world.watcher.relent();
        assert_eq!(pipeline.run(read(&world, 0, 4 * UNIT as usize)).bytes, 4 * UNIT);
        drop((pipeline, guise, done.memory));
        world.assert_all_home();
    }
}

/// Every command of a write over data, a hole, blocks without data and the end of the file fails in turn.
/// What was there may hold old or new data, and nothing else; what was not there still is not.
#[test]
fn a_device_error_in_the_middle_of_a_large_write_leaves_nothing_stale() {
    for (failing, backwards) in (0..6).map(|unit| (unit, unit % 2 == 1)) {
        let mut world = world();
        world.stain(0x69);
        let map = map(&world, 8, Placement::Rising, &[1]);
        place(&map, 0, 160, 8);
        place(&map, 16, 320, 8);
        map.preallocate(FILE, FileBlock(24), BlockCount(8));
        map.set_len(FILE, 4 * UNIT);
        let free = map.free_units();
        let guise = crate::ledger::Guise { backwards, ..crate::ledger::Guise::of(&world) };
        let mut pipeline =
            Pipeline::open(&guise, map.clone(), &Options::default()).expect("a pipeline");
        // Where each unit of the file lies or is going to, and where its command begins: the last two units
        // are made side by side and share one.
        let lba = [160, 8, 320, 0, 16, 24][failing];
        let (start, prefix) = if failing == 5 { (16, 4) } else { (lba, failing as u64) };
        world.watcher.fail(NvmOpcode::WRITE, lba, Status::WRITE_FAULT);
        let done = pipeline.run(write(&world, 0, 5 * UNIT as usize + 1024, 1));
        assert_eq!((done.bytes, done.memory.len()), (prefix * UNIT, 5 * UNIT + 1024));
        let error = done.result.expect_err("the medium has failed");
        let Cause::Media { lba: found, .. } = *error.cause() else { panic!("{error}") };
        assert_eq!(found, Lba(start), "{error}");
        world.watcher.relent();
        assert_eq!((pipeline.inflight(), map.under_way()), (0, 0));
        assert_eq!((map.free_units(), map.len(FILE)), (free, 4 * UNIT), "nothing is published");
        map.set_len(FILE, 6 * UNIT);
        let done = pipeline.run(read(&world, 0, 6 * UNIT as usize));
        let found = stream(&done.memory);
        let written = bytes(6 * UNIT as usize, 1);
        for (unit, found) in found.chunks(UNIT as usize).enumerate() {
            let new = &written[unit * UNIT as usize..][..UNIT as usize];
            let fits = match unit {
                0 | 2 => found == new || found.iter().all(|byte| *byte == 0x69),
                _ => found.iter().all(|byte| *byte == 0),
            };
            assert!(fits, "unit {unit}, after unit {failing} failed, begins {:x?}", &found[..8]);
        }
    }
}

/// A caller's bug costs the one request that it was handed, and neither room nor memory.
#[test]
fn a_sink_that_panics_loses_no_request_and_no_room() {
    let world = World::new(&Device::default());
    let map = Identity::new(world.device.geometry());
    let mut pipeline = world.pipeline(map, &Options::default());
    for n in 0..8u64 {
        // Half of them plain, half of them not.
        let memory = match n % 2 {
            0 => Memory::One(world.pattern(4096, n)),
            _ => Memory::list([world.pattern(4096, n), world.pattern(4096, n)]),
        };
        pipeline.submit(Io::write(n * 8192, memory, n)).expect("there is room");
    }
    pipeline.ring();
    for left in (0..8).rev() {
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while pipeline.poll(1, &mut |_| panic!("the caller has a bug")) == 0 {}
        }));
        assert!(polled.is_err());
        assert_eq!(pipeline.inflight(), left);
    }
    assert_eq!(pipeline.poll(8, &mut |done| panic!("nothing is left, but {done:?}")), 0);
    drop(pipeline);
    world.assert_all_home();
}
