//! The test bed: a device, a store on it, and a pipeline over both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use udirect::block::{BlockDevice, BlockError, Durability, ErrorKind, MapBlocks};
use udirect::dio::{Action, Done, Io, Memory, Options, Pipeline, Refused};
use udirect::dma::{Access, Domain, DomainOptions};
use udirect::extent::{Exclusion, FormatOptions, OpenOptions, Store, StoreError};
use udirect::nvme;
use udirect::soft::{self, Disk, Faults, Interposer, MediaOptions, NamespaceOptions};
use udirect::units::{FileId, LbaSize, NamespaceId};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn device(address: &str) -> Arc<dyn BlockDevice> {
    udirect::open::open(address).expect("an address").device
}

pub(crate) fn formatted(address: &str) -> Arc<dyn BlockDevice> {
    let device = device(address);
    Store::format(&device, &FormatOptions::default()).expect("a store");
    device
}

/// Puts a disk behind a controller of its own.
pub(crate) fn attach(disk: &Arc<Disk>) -> Arc<dyn BlockDevice> {
    attach_with(disk, None, nvme::Options::default())
}

/// The same, where commands meet faults.
pub(crate) fn attach_faulty(disk: &Arc<Disk>, faults: &Arc<Faults>) -> Arc<dyn BlockDevice> {
    attach_with(disk, Some(Arc::clone(faults) as Arc<dyn Interposer>), nvme::Options::default())
}

/// The same as `attach`, with little memory for each opening, so that there can be a million of them.
pub(crate) fn attach_for_small_transfers(disk: &Arc<Disk>) -> Arc<dyn BlockDevice> {
    attach_with(
        disk,
        None,
        nvme::Options { transfer_max: Some(16 << 10), ..nvme::Options::default() },
    )
}

fn attach_with(
    disk: &Arc<Disk>,
    interposer: Option<Arc<dyn Interposer>>,
    driver: nvme::Options,
) -> Arc<dyn BlockDevice> {
    let media = MediaOptions::Disk(Arc::clone(disk));
    let namespaces = vec![NamespaceOptions { lba_size: disk.lba_size(), media, metadata: None }];
    let options = soft::Options { namespaces, interposer, ..soft::Options::default() };
    let controller = soft::Controller::new(options).expect("a controller");
    let domain = Domain::new(DomainOptions::default());
    let controller = nvme::connect(&controller.transport(), &domain, driver);
    let namespace = controller.expect("it comes up").namespace(NamespaceId(1), "disk:");
    Arc::new(namespace.expect("namespace 1"))
}

/// Returns every byte of a disk.
pub(crate) fn bytes_of(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.bytes() as usize];
    disk.read_now(udirect::units::Lba(0), &mut bytes);
    bytes
}

/// A clock that goes on by one with each look.
pub(crate) fn counting_clock() -> udirect::extent::Clock {
    let next = AtomicU64::new(1000);
    Arc::new(move || next.fetch_add(1, Ordering::Relaxed))
}

/// A disk of 4 MiB in blocks of 512 bytes with an empty store of small areas.
pub(crate) fn small_disk(journal: u64, checkpoint: u64) -> Arc<Disk> {
    let disk = Disk::new(4 << 20, LbaSize::B512);
    let (journal, checkpoint) = (Some(journal), Some(checkpoint));
    let options = FormatOptions { journal, checkpoint, ..FormatOptions::default() };
    Store::format(&attach(&disk), &options).expect("a store");
    disk
}

pub(crate) fn open(device: &Arc<dyn BlockDevice>) -> Result<Store, StoreError> {
    Store::open(device, &OpenOptions { clock: counting_clock(), ..OpenOptions::default() })
}

pub(crate) fn open_to_read(device: &Arc<dyn BlockDevice>) -> Result<Store, StoreError> {
    Store::open(device, &OpenOptions { read_only: true, ..OpenOptions::default() })
}

/// Makes everything durable that was done.
pub(crate) fn sync(store: &Store) {
    let mark = store.sync_all().expect("it can be written");
    store.wait(mark, PATIENCE).expect("it becomes durable");
}

/// Tries again while the journal is full, as its error asks for.
pub(crate) fn patiently<T>(
    store: &Store,
    mut act: impl FnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let since = Instant::now();
    loop {
        match act() {
            Err(StoreError::NotYet) if since.elapsed() < PATIENCE => store.turn(),
            result => return result,
        }
    }
}

/// Keeps writes out of an object, and waits for those under way.
pub(crate) fn alone(store: &Store, id: FileId) -> Exclusion {
    let since = Instant::now();
    let exclusion = loop {
        match store.exclude(id).expect("an object that can be written") {
            Some(exclusion) => break exclusion,
            None => store.turn(),
        }
        assert!(since.elapsed() < PATIENCE, "somebody keeps writes out of {id}");
    };
    while !exclusion.is_alone() {
        store.turn();
        assert!(since.elapsed() < PATIENCE, "a write to {id} does not end");
    }
    exclusion
}

pub(crate) struct Bed {
    pub(crate) store: Store,
    pub(crate) pipeline: Pipeline<Store>,
}

impl Bed {
    pub(crate) fn open(device: &Arc<dyn BlockDevice>) -> Self {
        Self::over(open(device).expect("a store"))
    }

    pub(crate) fn over(store: Store) -> Self {
        let map = store.clone();
        let pipeline =
            Pipeline::open(&**store.device(), map, &Options::default()).expect("a pipeline");
        Self { store, pipeline }
    }

    /// Does a request and waits for it; one that is refused at once is done as well.
    pub(crate) fn run(&mut self, io: Io) -> Done {
        match self.pipeline.submit(io) {
            Ok(()) => {}
            Err(Refused::Full(_)) => unreachable!("one at a time"),
            Err(Refused::Invalid(io, error)) => {
                return Done { tag: io.tag, memory: io.memory, bytes: 0, result: Err(error) };
            }
        }
        self.pipeline.ring();
        let mut found = None;
        while found.is_none() {
            self.pipeline.poll(1, &mut |done| found = Some(done));
        }
        found.expect("it was awaited")
    }

    pub(crate) fn try_write(
        &mut self,
        file: FileId,
        offset: u64,
        bytes: &[u8],
        durability: Durability,
    ) -> Result<u64, BlockError> {
        let dma = self.store.device().dma();
        let mut buffer = dma.buffer(bytes.len(), Access::Both).expect("memory");
        buffer.copy_from_slice(bytes);
        self.run(Io::write(offset, buffer, 1).of(file).with(durability)).into_bytes()
    }

    pub(crate) fn write(
        &mut self,
        file: FileId,
        offset: u64,
        bytes: &[u8],
        durability: Durability,
    ) {
        let done = self.try_write(file, offset, bytes, durability);
        assert_eq!(done.expect("a write"), bytes.len() as u64);
    }

    pub(crate) fn read(&mut self, file: FileId, offset: u64, len: usize) -> Vec<u8> {
        let buffer = self.store.device().dma().buffer(len, Access::Both).expect("memory");
        let done = self.run(Io::read(offset, buffer, 1).of(file));
        done.result.as_ref().expect("a read");
        let Memory::One(buffer) = done.memory else { panic!("one buffer") };
        buffer[..done.bytes as usize].to_vec()
    }
}

/// Tries every change that there is on a store that may not be written: an object with an attribute `key` and data at
/// its start. Returns what each was refused with.
pub(crate) fn refusals(bed: &mut Bed, id: FileId) -> Vec<(&'static str, ErrorKind, String)> {
    let store = bed.store.clone();
    let of_store = [
        ("create", store.create(Some("new")).err()),
        ("create without a name", store.create(None).err()),
        ("rename", store.rename(id, "other", true).err()),
        ("remove", store.remove(id).err()),
        ("set an attribute", store.set_attribute(id, "key", b"other").err()),
        ("remove an attribute", store.remove_attribute(id, "key").err()),
        ("exclude", store.exclude(id).err()),
        ("sync", store.sync_all().err()),
        ("checkpoint", store.checkpoint(PATIENCE).err()),
    ];
    let words = |error: Option<StoreError>| {
        let error = error.expect("it cannot be written");
        (error.kind(), error.to_string())
    };
    let mut found: Vec<_> = of_store
        .into_iter()
        .map(|(what, error)| {
            let (kind, text) = words(error);
            (what, kind, text)
        })
        .collect();
    let durability = Durability::Lazy;
    let bare = [
        ("flush", Action::Flush),
        ("zero", Action::WriteZeroes { len: 4096, durability }),
        ("deallocate", Action::Deallocate { len: 4096 }),
    ];
    let writes = [
        ("overwrite", 0, Durability::Lazy),
        ("overwrite durably", 0, Durability::Full),
        ("extend", 1 << 20, Durability::Lazy),
    ];
    for (what, action) in bare {
        let error = bed.run(Io::bare(0, action, 1).of(id)).result.expect_err(what);
        found.push((what, error.kind(), error.to_string()));
    }
    for (what, offset, durability) in writes {
        let error = bed.try_write(id, offset, &[0xee; 4096], durability).expect_err(what);
        found.push((what, error.kind(), error.to_string()));
    }
    found
}
