//! What a large store costs: opening it after a crash, its memory, what a checkpoint delays, formatting.
//!
//! `cargo bench --bench store_time` makes a store of a million extents in a sparse file (in the directory that `TMPDIR`
//! names), leaves it with a full journal, and prints what was measured, one line each. With `--test`, as the tests run
//! it, the numbers are small and the same things happen. Not for comparing allocators (`extent_time`) or the path of a
//! request (`pipeline_time`).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use udirect::block::{BlockDevice, Durability, Intent, MapBlocks, Mapping, Reach};
use udirect::dma::Access;
use udirect::extent::{FormatOptions, Guard, OpenOptions, Store, StoreError, check};
use udirect::units::{BlockCount, FileBlock, FileId};
use udirect::volume::{Io, Options, Volume};

const PATIENCE: Duration = Duration::from_secs(120);
const UNIT: u64 = 4096;

struct Size {
    capacity: &'static str,
    memory: &'static str,
    huge: &'static str,
    extents: u64,
    lookups: u64,
}

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let size = if test {
        Size { capacity: "256MiB", memory: "256MiB", huge: "1GiB", extents: 10_000, lookups: 1000 }
    } else {
        Size {
            capacity: "64GiB",
            memory: "8GiB",
            huge: "16TiB",
            extents: 1_000_000,
            lookups: 1_000_000,
        }
    };
    let directory = tempfile::tempdir().expect("a directory");
    lookup(&size);
    in_memory(&size);
    format(directory.path(), &size);
    large(directory.path(), &size);
}

fn device(path: &Path, size: &str) -> Arc<dyn BlockDevice> {
    let address = format!("file:{}?size={size}", path.display());
    udirect::open::open(&address).expect("an image").device
}

fn formatted(path: &Path, size: &str) -> Arc<dyn BlockDevice> {
    let device = device(path, size);
    Store::format(&device, &FormatOptions::default()).expect("a store");
    device
}

/// A request of 4 KiB in an object of 10,000 extents: begun, mapped, ended.
fn lookup(size: &Size) {
    let device = udirect::open::open("mem:1GiB").expect("a device").device;
    Store::format(&device, &FormatOptions::default()).expect("a store");
    let store = Store::open(&device, &OpenOptions::default()).expect("a store");
    let id = store.create(Some("object")).expect("an object");
    scatter(&store, id, 10_000);
    let each = |what: &str, one: &mut dyn FnMut(u64) -> u64| {
        let (mut at, mut sum) = (0, 0);
        let began = Instant::now();
        for _ in 0..size.lookups {
            at = (at + 7919) % 10_000;
            sum += one(at * 2);
        }
        let each = began.elapsed().as_nanos() as f64 / size.lookups as f64;
        println!("4 KiB among 10,000 extents, {what}: {each:.0} ns (sum {sum})");
    };
    let mut guard = begin(&store, id, 0);
    each("mapped", &mut |unit| map(&store, &mut guard, unit));
    each("begun, mapped and ended", &mut |unit| {
        let mut guard = begin(&store, id, unit);
        let found = map(&store, &mut guard, unit);
        store.commit(guard, UNIT).expect("a read");
        found
    });
}

fn begin(store: &Store, file: FileId, unit: u64) -> Guard {
    let (intent, durability) = (Intent::Read, Durability::Lazy);
    let reach = Reach { file, offset: unit * UNIT, len: UNIT, intent, durability };
    store.begin(&reach).expect("it is there").expect("nothing is in the way").guard
}

fn map(store: &Store, guard: &mut Guard, unit: u64) -> u64 {
    match store.map(guard, FileBlock(unit), BlockCount(1)).expect("a mapping") {
        Mapping::Mapped(extent) => extent.lba.0,
        Mapping::Hole(blocks) => blocks.0,
    }
}

fn format(directory: &Path, size: &Size) {
    // Where files may be that large: on ext4 they end just below 16 TiB.
    let places = [Path::new("/dev/shm"), directory];
    let place = places.into_iter().find(|place| place.exists()).expect("the directory is there");
    let path = place.join(format!("udirect-{}.img", std::process::id()));
    let device = device(&path, size.huge);
    let began = Instant::now();
    Store::format(&device, &FormatOptions::default()).expect("a store");
    println!("formatting {} in a sparse file: {} ms", size.huge, began.elapsed().as_millis());
    drop(device);
    std::fs::remove_file(path).expect("it is there");
}

/// Gives every second unit of an object an extent of its own.
fn scatter(store: &Store, id: FileId, extents: u64) {
    for n in 0..extents {
        patiently(store, || {
            let exclusion = store.exclude(id)?.expect("nobody else is here");
            exclusion.preallocate(2 * n * UNIT..(2 * n + 1) * UNIT)
        });
    }
}

/// Changes something, and gives the store a turn each time.
fn patiently(store: &Store, mut change: impl FnMut() -> Result<(), StoreError>) {
    loop {
        let result = change();
        store.turn();
        if !matches!(result, Err(StoreError::NotYet)) {
            return result.expect("a change");
        }
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line =
        status.lines().find(|line| line.starts_with("VmRSS:")).expect("so does every process");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number")
}

/// A checkpoint where the medium costs nothing: what is left is the store's own.
fn in_memory(size: &Size) {
    let device = udirect::open::open(&format!("mem:{}", size.memory)).expect("a device").device;
    Store::format(&device, &FormatOptions::default()).expect("a store");
    let store = Store::open(&device, &OpenOptions::default()).expect("a store");
    let id = store.create(Some("large")).expect("an object");
    scatter(&store, id, size.extents);
    let mark = store.sync_all().expect("a mark");
    store.wait(mark, PATIENCE).expect("a sync");
    delays("memory", &device, &store);
}

/// A store of many extents, its checkpoints, and a crash with a full journal.
fn large(directory: &Path, size: &Size) {
    let path = directory.join("large.img");
    let device = formatted(&path, size.capacity);
    let store = Store::open(&device, &OpenOptions::default()).expect("a store");
    let id = store.create(Some("large")).expect("an object");
    scatter(&store, id, size.extents);
    let mark = store.sync_all().expect("a mark");
    store.wait(mark, PATIENCE).expect("a sync");
    delays("a file", &device, &store);
    fill_journal(&store, id);
    let (journal, used) = store.statistics().journal;
    let (tree, space) = store.heap_bytes();
    let extents = store.statistics().extents;
    println!(
        "memory of {extents} extents: {:.1} bytes each, and {space} bytes for the free space",
        tree as f64 / extents as f64
    );
    drop(store);
    drop(device);
    let percent = used * 100 / journal;
    let opened = |what: &str| {
        let device = device_of(&path);
        let before = resident_kib();
        let began = Instant::now();
        let store = Store::open(&device, &OpenOptions::default()).expect("a store");
        let elapsed = began.elapsed().as_millis();
        let grown = resident_kib().saturating_sub(before);
        println!(
            "{what}: {elapsed} ms, {} extents, {percent} % of a journal of {} MiB, {grown} KiB more resident",
            store.statistics().extents,
            journal >> 20
        );
    };
    opened("opening after a crash");
    opened("opening again");
    let report = check(&device_of(&path), PATIENCE).expect("a check");
    assert!(report.is_sound(), "{:?}", report.findings);
}

fn device_of(path: &Path) -> Arc<dyn BlockDevice> {
    udirect::open::open(&format!("file:{}", path.display())).expect("the image").device
}

/// Reads with one request in flight while a checkpoint is copied, and says how long the longest took.
fn delays(medium: &str, device: &Arc<dyn BlockDevice>, store: &Store) {
    let volume = Volume::over(Arc::clone(device), store.clone());
    let mut handle = volume.handle(&Options::default()).expect("a handle");
    let small = handle.create(Some("small")).expect("an object").id();
    handle.object(small).write_at(&[1; 4096], 0).expect("a write");
    for busy in [false, true] {
        let before = store.statistics().counts.checkpoints;
        let mut longest = Duration::ZERO;
        let mut count = 0_u64;
        let began = Instant::now();
        if busy {
            store.ask_for_checkpoint().expect("it can be written");
        }
        while (busy && store.counts().checkpoints == before)
            || (!busy && began.elapsed() < Duration::from_millis(300))
        {
            let buffer = device.dma().buffer(4096, Access::Both).expect("memory");
            let one = Instant::now();
            let done = handle.run(Io::read(0, buffer, 1).of(small));
            longest = longest.max(one.elapsed());
            done.result.expect("a read");
            count += 1;
        }
        let what = if busy { "while a checkpoint is copied" } else { "without one" };
        let (took, longest) = (began.elapsed().as_millis(), longest.as_micros());
        println!("{medium}: {count} reads of 4 KiB {what} ({took} ms), the longest {longest} us");
    }
}

/// Changes things until the journal is as full as it gets: while a checkpoint is copied, just before it ends.
fn fill_journal(store: &Store, id: FileId) {
    let (mut most, mut n) = (0, 0_u64);
    loop {
        // A record's worth with each turn: what several cores do while one copies.
        for _ in 0..100 {
            n += 1;
            let attribute = || store.set_attribute(id, &format!("key{}", n % 50), &[n as u8; 512]);
            if attribute().is_err() {
                patiently(store, attribute);
            }
        }
        store.turn();
        let (journal, used) = store.journal();
        if used < most || used * 100 >= journal * 78 {
            return;
        }
        most = used;
    }
}
