//! Images: what a power cut may have left, opened by a controller and a store of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use udirect::block::BlockDevice;
use udirect::dma::{Domain, DomainOptions, PagePolicy};
use udirect::extent::{OpenOptions, Store, StoreError, check};
use udirect::nvme;
use udirect::seed::Seed;
use udirect::soft::{self, Controller, Disk, Interposer, MediaOptions, NamespaceOptions};
use udirect::units::{Lba, NamespaceId};

use super::content;
use super::model::{Found, Model, Object, Sizes, Unit, Value};

/// How long anything may take before a run is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One image in so many is checked as a whole, and one in so many is cut again while it is opened.
const CHECKED: u64 = 8;
const NESTED: u64 = 4;

/// Cuts within cuts.
const DEPTH: u32 = 3;

/// Commands of a recovery: a cut comes before one of them, or a little later.
const RECOVERY_COMMANDS: u64 = 14;

/// How the device of a disk is driven.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drive {
    /// Whether the disk has a volatile cache.
    pub(crate) cache: bool,
    /// The most bytes of a command.
    pub(crate) transfer: Option<u64>,
}

/// Memory for controllers, and what was counted of them.
#[derive(Clone)]
pub(crate) struct Bench {
    domain: Arc<Domain>,
    devices: Arc<AtomicU64>,
}

impl Default for Bench {
    fn default() -> Self {
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        Self { domain, devices: Arc::default() }
    }
}

impl Bench {
    /// Puts a controller before a disk, and the driver before that.
    pub(crate) fn device(
        &self,
        disk: &Arc<Disk>,
        drive: Drive,
        interposer: Option<Arc<dyn Interposer>>,
    ) -> Arc<dyn BlockDevice> {
        let media = MediaOptions::Disk(Arc::clone(disk));
        let options = soft::Options {
            namespaces: vec![NamespaceOptions { lba_size: disk.lba_size(), media, metadata: None }],
            max_queue_entries: 64,
            max_queues: 8,
            volatile_write_cache: drive.cache,
            interposer,
            ..soft::Options::default()
        };
        let controller = Controller::new(options).expect("the options are sound");
        let options = nvme::Options {
            queues: 8,
            transfer_max: drive.transfer,
            shadow_doorbells: false,
            ..nvme::Options::default()
        };
        let controller = nvme::connect(&controller.transport(), &self.domain, options);
        let controller = controller.expect("a controller in software comes up");
        // No two devices of a memory have the same address: the store knows them apart by it.
        let address = format!("disk {}", self.devices.fetch_add(1, Ordering::Relaxed));
        Arc::new(controller.namespace(NamespaceId(1), &address).expect("it has one namespace"))
    }

    /// Opens the store of a disk.
    pub(crate) fn open(&self, disk: &Arc<Disk>, drive: Drive) -> Result<Store, StoreError> {
        Store::open(&self.device(disk, drive, None), &open_options(1))
    }

    /// Returns the memory of this thread. Mapping it takes longer than ten images do.
    pub(crate) fn of_thread() -> Self {
        thread_local!(static BENCH: Bench = Bench::default());
        BENCH.with(Self::clone)
    }
}

/// Options that leave nothing to the time of day: the clock begins at `time`, and moves when it is looked at.
pub(crate) fn open_options(time: u64) -> OpenOptions {
    let count = AtomicU64::new(time);
    OpenOptions {
        timeout: PATIENCE,
        commit_interval: Duration::MAX,
        clock: Arc::new(move || count.fetch_add(1, Ordering::Relaxed)),
        ..OpenOptions::default()
    }
}

/// Reads all that a store holds, its blocks from the disk below it.
pub(crate) fn dump(store: &Store, disk: &Disk, sizes: Sizes) -> Result<Found, String> {
    let mut found = Found::default();
    for info in store.list() {
        let id = info.id;
        let mut object = Object {
            name: info.name,
            size: info.size,
            created: info.created,
            modified: info.modified,
            ..Object::default()
        };
        let attributes = store.attributes(id).map_err(|error| error.to_string())?;
        let values = attributes.into_iter().map(|(key, value)| (key, Value::of(&value)));
        object.attributes.extend(values);
        for segment in store.segments(id).map_err(|error| error.to_string())? {
            let unit_bytes = sizes.unit * sizes.block;
            let first = segment.offset / unit_bytes;
            let mut bytes = vec![0; segment.len as usize];
            if segment.written {
                disk.read_now(Lba(segment.device / sizes.block), &mut bytes);
            }
            for (unit, bytes) in (first..).zip(bytes.chunks(unit_bytes as usize)) {
                if segment.written {
                    object.units.insert(unit, Unit::Written(found.contents.len()));
                    found.contents.push(read_unit(bytes, id.0, unit, sizes)?);
                } else {
                    object.units.insert(unit, Unit::Unwritten);
                }
            }
        }
        found.objects.insert(id.0, object);
    }
    Ok(found)
}

fn read_unit(bytes: &[u8], id: u64, unit: u64, sizes: Sizes) -> Result<Vec<u64>, String> {
    let blocks = (unit * sizes.unit..).zip(bytes.chunks(sizes.block as usize));
    let read = |(block, bytes)| {
        content::read(bytes, id, block).map_err(|found| {
            format!("object {id}, block {block} holds what was never written to it: {found:x?}")
        })
    };
    blocks.map(read).collect()
}

/// Opens images, and holds what is found against a model.
pub(crate) struct Examiner {
    pub(crate) bench: Bench,
    pub(crate) seed: Seed,
    pub(crate) drive: Drive,
    pub(crate) images: u64,
    /// Folds what was found, so that two runs can be compared.
    pub(crate) trace: u64,
}

impl Examiner {
    pub(crate) fn new(seed: u64, drive: Drive) -> Self {
        let (bench, seed) = (Bench::of_thread(), Seed::from_u64(seed));
        Self { bench, seed, drive, images: 0, trace: 0 }
    }

    /// Returns an examiner that goes on from here, beside this one.
    pub(crate) fn again(&self) -> Self {
        let Self { drive, images, trace, .. } = *self;
        Self { bench: self.bench.clone(), seed: self.seed.clone(), drive, images, trace }
    }

    /// Folds a number into the trace.
    pub(crate) fn note(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    }

    /// Opens an image that is not used otherwise, and says what is on it and which point of the history that is.
    pub(crate) fn examine(
        &mut self,
        image: &Arc<Disk>,
        model: &Model,
    ) -> Result<(Found, u64), String> {
        self.images += 1;
        if self.seed.chance(1, CHECKED) {
            self.check(&image.fork())?;
        }
        let again = self.seed.chance(1, NESTED).then(|| image.fork());
        let found = self.read(image, model.sizes)?;
        let position = model.explain(&found)?;
        self.note(position);
        if let Some(again) = again {
            let nested = self.cut_within(again, DEPTH, model.sizes)?;
            if let Some(what) = nested.difference(&found) {
                return Err(format!("a cut within recovery makes a difference: {what}"));
            }
        }
        Ok((found, position))
    }

    fn read(&mut self, image: &Arc<Disk>, sizes: Sizes) -> Result<Found, String> {
        let opened = self.bench.open(image, self.drive);
        let store = opened.map_err(|error| format!("an image cannot be opened: {error}"))?;
        dump(&store, image, sizes)
    }

    fn check(&mut self, image: &Arc<Disk>) -> Result<(), String> {
        let device = self.bench.device(image, self.drive, None);
        let report = check(&device, PATIENCE).map_err(|error| error.to_string())?;
        match report.findings.first() {
            Some(finding) => Err(format!("the check of an image finds {finding}")),
            None => Ok(()),
        }
    }

    /// Cuts the power while an image is opened, and opens what is left.
    fn cut_within(&mut self, image: Arc<Disk>, deep: u32, sizes: Sizes) -> Result<Found, String> {
        let mut image = image;
        for _ in 0..1 + self.seed.below(deep.into()) {
            image.cut_power_after(self.seed.below(RECOVERY_COMMANDS), self.seed.u64(..));
            let opened = self.bench.open(&image, self.drive);
            if let (Err(error), false) = (&opened, image.power_is_cut()) {
                return Err(format!("an image cannot be opened: {error}"));
            }
            drop(opened);
            image = image.after_cut().unwrap_or_else(|| image.crash(&mut self.seed));
            self.images += 1;
        }
        self.read(&image, sizes)
    }
}
