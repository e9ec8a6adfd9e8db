//! Objects of a volume: any bytes, any shape, against an array of bytes; and several cores at one object.

use std::sync::Arc;
use std::time::Duration;

use udirect::block::{BlockDevice, Durability, ErrorKind};
use udirect::dma::Access;
use udirect::extent::{FormatOptions, OpenOptions, Store, StoreError, check};
use udirect::seed::Seed;
use udirect::units::FileId;
use udirect::volume::{Handle, Io, Options, Volume};

const PATIENCE: Duration = Duration::from_secs(20);

/// The largest size that the random runs reach.
const SIZE_MAX: u64 = 200_000;

fn formatted(address: &str, unit: u64) -> Arc<dyn BlockDevice> {
    let device = udirect::open::open(address).expect("an address").device;
    let options = FormatOptions { unit, ..FormatOptions::default() };
    Store::format(&device, &options).expect("a store");
    device
}

fn opened(device: &Arc<dyn BlockDevice>) -> Volume<Store> {
    Volume::open(Arc::clone(device), &OpenOptions::default()).expect("a store")
}

fn handle(volume: &Volume<Store>) -> Handle<Store> {
    volume.handle(&Options::default()).expect("a handle")
}

/// An object, and the bytes that it should have.
struct Mirror {
    seed: Seed,
    device: Arc<dyn BlockDevice>,
    volume: Option<Volume<Store>>,
    handles: Vec<Handle<Store>>,
    id: FileId,
    bytes: Vec<u8>,
    serial: u8,
}

impl Mirror {
    fn new(seed: Seed, address: &str, unit: u64) -> Self {
        let device = formatted(address, unit);
        let volume = opened(&device);
        let mut handles = vec![handle(&volume), handle(&volume)];
        let id = handles[0].create(Some("mirror")).expect("an object").id();
        Self { seed, device, volume: Some(volume), handles, id, bytes: Vec::new(), serial: 0 }
    }

    fn range(&mut self, end: u64) -> (u64, u64) {
        let at = self.seed.below(end + 1);
        let len = match self.seed.below(4) {
            0 => self.seed.below(20),
            1 => self.seed.below(9000),
            2 => self.seed.below(8) * 4096,
            _ => self.seed.below(60_000),
        };
        let at = if self.seed.chance(1, 3) { at / 4096 * 4096 } else { at };
        (at, len.min(SIZE_MAX - at.min(SIZE_MAX)))
    }

    fn data(&mut self, len: u64) -> Vec<u8> {
        self.serial = self.serial % 250 + 1;
        let serial = self.serial;
        (0..len).map(|at| serial ^ (at / 61) as u8 | 1).collect()
    }

    fn put(&mut self, at: u64, data: &[u8]) {
        let end = at as usize + data.len();
        if end > self.bytes.len() && !data.is_empty() {
            self.bytes.resize(end, 0);
        }
        self.bytes[at as usize..end].copy_from_slice(data);
    }

    fn step(&mut self) {
        let which = self.seed.below(2) as usize;
        let id = self.id;
        let size = self.bytes.len() as u64;
        let durability = match self.seed.below(20) {
            0 => Durability::Data,
            1 => Durability::Full,
            _ => Durability::Lazy,
        };
        match self.seed.below(20) {
            0..7 => {
                let (at, len) = self.range(SIZE_MAX - 1);
                let data = self.data(len);
                let mut object = self.handles[which].object(id).with(durability);
                object.write_at(&data, at).expect("a write");
                if len > 0 {
                    self.put(at, &data);
                }
            }
            7..9 => {
                let (_, len) = self.range(0);
                let data = self.data(len.min(SIZE_MAX - size));
                let mut object = self.handles[which].object(id).with(durability);
                let at = object.append(&data).expect("an append");
                assert_eq!(at, size, "an append begins at the end");
                self.put(size, &data);
            }
            9..12 => {
                let (at, len) = self.range(SIZE_MAX);
                self.look(which, at, len);
            }
            12..14 => {
                let size =
                    if self.seed.chance(1, 2) { self.seed.below(SIZE_MAX) } else { size / 2 };
                self.handles[which].object(id).set_len(size).expect("a size");
                self.bytes.resize(size as usize, 0);
            }
            14..16 => {
                let (at, len) = self.range(SIZE_MAX);
                self.handles[which].object(id).punch(at..at + len).expect("a hole");
                let (from, to) = (at.min(size) as usize, (at + len).min(size) as usize);
                self.bytes[from..to].fill(0);
            }
            16 => {
                let (at, len) = self.range(SIZE_MAX - 1);
                let keep = self.seed.chance(1, 2);
                let mut object = self.handles[which].object(id);
                object.preallocate(at..at + len, keep).expect("space");
                if !keep && at + len > size && len > 0 {
                    self.bytes.resize((at + len) as usize, 0);
                }
            }
            17 => self.handles[which].object(id).sync().expect("a sync"),
            18 if self.seed.chance(1, 4) => self.reopen(),
            _ => self.look(which, 0, SIZE_MAX),
        }
        let len = self.handles[which].object(id).len().expect("it is there");
        assert_eq!(len, self.bytes.len() as u64);
    }

    fn look(&mut self, which: usize, at: u64, len: u64) {
        let mut found = vec![0xee; len as usize];
        let count = self.handles[which].object(self.id).read_at(&mut found, at).expect("a read");
        let from = at.min(self.bytes.len() as u64) as usize;
        let to = (at + len).min(self.bytes.len() as u64) as usize;
        assert_eq!(count, to - from, "bytes at {at}+{len} of {}", self.bytes.len());
        let differs = (0..count).find(|index| found[*index] != self.bytes[from + index]);
        let text = |index: usize| (at + index as u64, found[index], self.bytes[from + index]);
        assert_eq!(differs.map(text), None, "(byte, found, expected) of {}", self.bytes.len());
    }

    /// Closes the store, durably or with a checkpoint, and opens it again.
    fn reopen(&mut self) {
        let store = self.volume.take().expect("it is open");
        if self.seed.chance(1, 2) {
            store.store().checkpoint(PATIENCE).expect("a checkpoint");
        }
        self.handles[0].sync_all().expect("a sync");
        self.handles.clear();
        drop(store);
        let volume = opened(&self.device);
        self.handles = vec![handle(&volume), handle(&volume)];
        self.volume = Some(volume);
        self.look(0, 0, SIZE_MAX);
    }

    fn finish(mut self) {
        self.reopen();
        self.handles.clear();
        drop(self.volume.take());
        let report = check(&self.device, PATIENCE).expect("a check");
        assert!(report.is_sound(), "{:?}", report.findings);
    }
}

#[test]
fn any_bytes_of_an_object_agree_with_an_array() {
    let mut seed = Seed::from_env("objects against an array");
    for (address, unit) in [
        ("mem:8MiB?lba=512", 4096),
        ("mem:8MiB?lba=512", 512),
        ("mem:8MiB?lba=4096", 4096),
        ("mem:16MiB?lba=512", 65_536),
    ] {
        let mut mirror = Mirror::new(Seed::from_u64(seed.u64(..)), address, unit);
        for _ in 0..2500 {
            mirror.step();
        }
        mirror.finish();
    }
}

/// Two threads append to one object; a third reads it meanwhile.
#[test]
fn appends_of_several_cores_follow_each_other_whole() {
    let device = formatted("mem:64MiB?lba=512", 4096);
    let volume = opened(&device);
    let id = handle(&volume).create(Some("log")).expect("an object").id();
    const APPENDS: usize = 300;
    // Records of odd lengths: length in the first byte, then that byte again and again.
    let append = |start: u8| {
        let mut handle = handle(&volume);
        for n in 0..APPENDS {
            let len = start + (n % 60) as u8;
            handle.object(id).append(&vec![len; usize::from(len)]).expect("an append");
        }
    };
    let check_all = |bytes: &[u8]| {
        let (mut at, mut records) = (0, 0);
        while at < bytes.len() {
            let len = usize::from(bytes[at]);
            let record = &bytes[at..at + len];
            assert!(record.iter().all(|byte| usize::from(*byte) == len), "record at {at}");
            (at, records) = (at + len, records + 1);
        }
        records
    };
    let all = |handle: &mut Handle<Store>| {
        let mut bytes = vec![0; 1 << 20];
        let count = handle.object(id).read_at(&mut bytes, 0).expect("a read");
        bytes.truncate(count);
        bytes
    };
    std::thread::scope(|scope| {
        let one = scope.spawn(|| append(10));
        let two = scope.spawn(|| append(150));
        let mut reader = handle(&volume);
        while !(one.is_finished() && two.is_finished()) {
            // Rule 35: whatever there is, is whole.
            check_all(&all(&mut reader));
        }
    });
    assert_eq!(check_all(&all(&mut handle(&volume))), 2 * APPENDS);
}

#[test]
fn what_an_object_cannot_do_is_said() {
    let device = formatted("mem:2MiB", 4096);
    let volume = opened(&device);
    let mut handle = handle(&volume);
    let mut object = handle.create(Some("a")).expect("an object");
    let beyond = object.write_at(&[1], i64::MAX as u64).expect_err("it is too large");
    assert_eq!(beyond.kind(), ErrorKind::Invalid);
    assert!(matches!(object.set_len(1 << 63), Err(StoreError::TooLarge { .. })));
    object.set_len(i64::MAX as u64).expect("a sparse object");
    object.set_len(0).expect("none of it");
    let full = object.write_at(&vec![1; 4 << 20], 0).expect_err("it does not fit");
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    let full = object.preallocate(0..4 << 20, false).expect_err("it does not fit");
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    let id = object.id();
    handle.remove(id).expect("removal works on a full store");
    handle.sync_all().expect("a sync");
    assert_eq!(volume.store().statistics().leaving, 0);
    let mut gone = handle.object(id);
    assert_eq!(gone.write_at(&[1], 0).expect_err("it is gone").kind(), ErrorKind::NotFound);
    assert_eq!(gone.append(&[1]).expect_err("it is gone").kind(), ErrorKind::NotFound);
    assert_eq!(gone.read_at(&mut [1], 0).expect_err("it is gone").kind(), ErrorKind::NotFound);
    assert!(matches!(gone.set_len(0), Err(StoreError::NoObject(_))));
    assert_eq!(gone.sync().expect_err("it is gone").kind(), ErrorKind::NotFound);
}

/// What a durable write costs: one write of data through the cache, one record; many at once share it.
#[test]
fn durable_writes_at_once_share_a_record() {
    let device = formatted("mem:64MiB", 4096);
    let volume = opened(&device);
    let mut handle = handle(&volume);
    let id = handle.create(Some("a")).expect("an object").id();
    handle.object(id).set_len(4 << 20).expect("a size");
    handle.sync_all().expect("a sync");
    let before = volume.store().statistics().counts;
    let commands = handle.counters().submissions;
    for tag in 0..64 {
        let buffer = device.dma().buffer(4096, Access::Both).expect("memory");
        let io = Io::write(tag * 8192, buffer, tag).of(id).with(Durability::Full);
        handle.submit(io).expect("it is taken");
    }
    handle.ring();
    let mut done = 0;
    while done < 64 {
        done += handle.poll(64, &mut |done| done.result.expect("a write"));
    }
    let after = volume.store().statistics().counts;
    assert_eq!(handle.counters().submissions - commands, 64, "one write of data each, no flush");
    assert_eq!(after.flushes, before.flushes, "the data went through the cache");
    let records = after.records - before.records;
    assert!(records * 16 <= 64, "{records} records for 64 operations");
    assert_eq!(after.operations - before.operations, 64);

    // Overwriting them is no business of the metadata.
    for tag in 0..64 {
        let buffer = device.dma().buffer(4096, Access::Both).expect("memory");
        let io = Io::write(tag * 8192, buffer, tag).of(id).with(Durability::Data);
        handle.submit(io).expect("it is taken");
    }
    handle.ring();
    let mut done = 0;
    while done < 64 {
        done += handle.poll(64, &mut |done| done.result.expect("a write"));
    }
    assert_eq!(volume.store().statistics().counts, after);
}

/// A read that is under way when its object is removed, the space is freed durably, and somebody else writes over all
/// that is free. The device has not begun with it: it reads what was there, not what others have put there.
#[test]
fn dio_rule_33_space_in_use_by_a_request_is_not_reused_before_it_ends() {
    let device = formatted("mem:4MiB", 4096);
    let volume = opened(&device);
    let (mut reader, mut other) = (handle(&volume), handle(&volume));
    let id = other.create(Some("old")).expect("an object").id();
    other.object(id).write_at(&[7; 65_536], 0).expect("a write");
    for shape in ["removed", "cut off", "punched"] {
        let id = other.create(Some(shape)).expect("an object").id();
        other.object(id).write_at(&[7; 65_536], 0).expect("a write");
        other.sync_all().expect("a sync");
        let buffer = device.dma().buffer(65_536, Access::Both).expect("memory");
        reader.submit(Io::read(0, buffer, 1).of(id)).expect("it is taken");
        match shape {
            "removed" => other.remove(id).expect("it is there"),
            "cut off" => other.object(id).set_len(0).expect("a size"),
            _ => other.object(id).punch(0..65_536).expect("a hole"),
        }
        other.sync_all().expect("a sync");
        // The record is durable; the request is still there.
        assert_eq!(volume.store().statistics().leaving, 16, "{shape}");
        let free = volume.store().statistics().free.free_units;
        let mut greedy = other.create(None).expect("an object");
        greedy.write_at(&vec![9; free as usize * 4096], 0).expect("all there is");
        let greedy = greedy.id();
        reader.ring();
        let mut found = None;
        while found.is_none() {
            reader.poll(1, &mut |done| found = Some(done));
        }
        let done = found.expect("it was awaited");
        let memory = done.memory.into_one().expect("one buffer");
        assert_eq!(done.bytes, 65_536);
        assert!(memory.iter().all(|byte| *byte == 7), "{shape}: somebody else's bytes");
        other.remove(greedy).expect("it is there");
        other.sync_all().expect("a sync");
        other.sync_all().expect("another turn");
        assert_eq!(volume.store().statistics().leaving, 0, "{shape}: it comes back in the end");
    }
}

/// Writes under way keep whoever changes the shape of their object waiting, and nobody else.
#[test]
fn dio_rule_33_shapes_wait_for_writes_and_reads_wait_for_nobody() {
    let device = formatted("mem:8MiB", 4096);
    let volume = opened(&device);
    let (mut writer, mut other) = (handle(&volume), handle(&volume));
    let id = other.create(Some("a")).expect("an object").id();
    other.object(id).write_at(&[1; 8192], 0).expect("a write");
    let buffer = device.dma().buffer(4096, Access::Both).expect("memory");
    writer.submit(Io::write(0, buffer, 1).of(id)).expect("it is taken");
    let exclusion = volume.store().exclude(id).expect("it is there").expect("nobody else is");
    assert!(!exclusion.is_alone(), "a write is under way");
    assert!(volume.store().exclude(id).expect("it is there").is_none(), "one at a time");
    let mut found = [0; 1];
    assert_eq!(other.object(id).read_at(&mut found, 8191).expect("a read"), 1, "reads go on");
    // A second write is kept out until the shape is changed.
    let buffer = device.dma().buffer(4096, Access::Both).expect("memory");
    other.submit(Io::write(4096, buffer, 2).of(id)).expect("it is taken");
    other.ring();
    writer.ring();
    let mut none = |done: udirect::volume::Done| panic!("{done:?} was kept out");
    (0..100).for_each(|_| assert_eq!(other.poll(8, &mut none), 0));
    let mut ended = 0;
    while ended == 0 {
        ended += writer.poll(1, &mut |done| done.result.expect("a write"));
    }
    assert!(exclusion.is_alone());
    exclusion.set_len(4096).expect("a size");
    drop(exclusion);
    let mut ended = 0;
    while ended == 0 {
        ended += other.poll(1, &mut |done| done.result.expect("a write"));
    }
    assert_eq!(other.object(id).len().expect("it is there"), 8192, "the write came after");
}
