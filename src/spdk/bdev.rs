//! One block device of SPDK's: opened, described, and closed by the environment's thread.

use core::ffi::{CStr, c_void};
use core::ptr::{self, NonNull};
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::address::Target;
use super::environment::{Environment, EnvironmentOptions, no_space, refused};
use super::memory::Memory;
use super::queue::Queue;
use super::sys;
use crate::block::bounds::Bounds;
use crate::block::{
    BlockDevice, BlockError, Cause, DeviceInfo, Geometry, IoQueue, Operation, Operations,
    QueueOptions, SegmentRules,
};
use crate::dma::{Access, Attachment, Domain, DomainOptions};
use crate::units::{BlockCount, ByteLen, LbaSize};

/// The most requests of one queue.
const DEPTH_MAX: u32 = 4096;

/// The most queues of one device: what the environment has bounce buffers for.
const QUEUES_MAX: u32 = 64;

/// Requests are not cut here, and SPDK says lengths in bytes with 32 bits at places: this is the most, in whole pages.
const TRANSFER_MAX: u64 = (1 << 32) - 4096;

/// As many segments as any request of the pipeline has; longer lists are taken too.
const SEGMENTS_MAX: u32 = 1024;

/// A block device of SPDK's.
pub struct Bdev {
    info: DeviceInfo,
    geometry: Geometry,
    shared: Arc<Shared>,
}

/// What a device and its queues hold together; dropping the last share closes the device.
pub(super) struct Shared {
    pub(super) descriptor: Descriptor,
    pub(super) bounds: Bounds,
    pub(super) abilities: Abilities,
    pub(super) memory: Arc<Memory>,
    events: Arc<Events>,
    queues: AtomicU32,
    environment: Arc<Environment>,
    target: Target,
    domain: Arc<Domain>,
    /// Emptied when the device is closed.
    attachment: Option<Attachment>,
}

/// What of SPDK's a device can do that the waist does not ask for by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    pub(super) write_cache: bool,
    pub(super) flush: bool,
    pub(super) reset: bool,
}

/// What SPDK tells about an open device.
#[derive(Default)]
struct Events {
    is_gone: AtomicBool,
}

/// An open block device, as SPDK has it, and a share of its events that goes back when it is closed.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) pointer: NonNull<sys::spdk_bdev_desc>,
    events: *const Events,
}

// SAFETY: SPDK takes a descriptor on any of its threads, and only the environment's thread opens and closes it.
unsafe impl Send for Descriptor {}
// SAFETY: as above; what is behind it is SPDK's to guard.
unsafe impl Sync for Descriptor {}

/// A device as it was opened.
struct Found {
    descriptor: Descriptor,
    events: Arc<Events>,
    product: String,
    geometry: Geometry,
    abilities: Abilities,
}

impl Bdev {
    /// Opens a device, after making it where the target says so; `address` is what it was opened by.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none of that name, `Busy` when somebody else writes to it, `Unsupported` for what SPDK refuses
    /// and for formats that cannot be used, and those of [`Environment::start`].
    pub fn open(
        target: Target,
        address: &str,
        options: &EnvironmentOptions,
    ) -> Result<Self, BlockError> {
        let options = EnvironmentOptions { pci: options.pci || target.is_pci(), ..options.clone() };
        let environment = Environment::start(&options)?;
        if let Some(call) = target.making() {
            environment.call(call)?;
        }
        let name = target.bdev();
        let wanted = name.clone();
        let found = environment.run("opening a block device of SPDK", move || find(&wanted));
        let found = match found.and_then(|found| found) {
            Ok(found) => found,
            Err(error) => {
                unmake(&environment, &target);
                return Err(error);
            }
        };
        let Found { descriptor, events, product, geometry, abilities } = found;
        let memory = Memory::new(format!("SPDK's {name}"), target.is_pci());
        let bounds = Bounds {
            lba_size: geometry.lba_size,
            capacity: geometry.blocks,
            alignment: geometry.segments.alignment,
            operations: geometry.operations,
        };
        let domain = Domain::new(DomainOptions::default());
        let mut shared = Shared {
            descriptor,
            bounds,
            abilities,
            memory: Arc::clone(&memory),
            events,
            queues: AtomicU32::new(0),
            environment,
            target,
            domain: Arc::clone(&domain),
            attachment: None,
        };
        let attachment = domain.attach(memory);
        let attachment =
            attachment.map_err(|error| no_space("memory that SPDK is to reach").with_source(error));
        shared.attachment = Some(attachment?);
        let (model, firmware) = (product, release());
        let info = DeviceInfo { address: address.into(), model, serial: name, firmware };
        Ok(Self { info, geometry, shared: Arc::new(shared) })
    }

    /// Returns the environment that the device is in.
    pub fn environment(&self) -> &Arc<Environment> {
        &self.shared.environment
    }
}

impl BlockDevice for Bdev {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn open_queue(&self, options: &QueueOptions) -> Result<Box<dyn IoQueue>, BlockError> {
        if !(1..=DEPTH_MAX).contains(&options.depth) {
            let (value, most) = (u64::from(options.depth), u64::from(DEPTH_MAX));
            return Err(Cause::Invalid { what: "queue depth", value, least: 1, most }.into());
        }
        let place = Place::take(&self.shared)?;
        Ok(Box::new(Queue::open(place, options)?))
    }

    fn max_depth(&self) -> u32 {
        DEPTH_MAX
    }

    fn max_queues(&self) -> u32 {
        QUEUES_MAX
    }

    fn dma(&self) -> &Arc<Domain> {
        &self.shared.domain
    }
}

/// A queue's share of its device; dropped after everything of the queue's.
pub(super) struct Place {
    shared: Arc<Shared>,
}

impl Place {
    fn take(shared: &Arc<Shared>) -> Result<Self, BlockError> {
        shared.check_presence()?;
        let one_more = |open| (open < QUEUES_MAX).then_some(open + 1);
        match shared.queues.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) {
            Ok(_) => Ok(Self { shared: Arc::clone(shared) }),
            Err(open) => {
                let what = format!("all {open} queues of the device are open").into();
                Err(Cause::Busy { what }.into())
            }
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Keeps the device open until the process ends: SPDK has memory that is reached through it.
    pub(super) fn keep_for_ever(&self) {
        core::mem::forget(Arc::clone(&self.shared));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.queues.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    /// Checks everything about a request that needs no device.
    pub(super) fn check(&self, operation: &Operation) -> Result<(), BlockError> {
        let (lba, payload, needed) = match operation {
            Operation::Read { lba, payload } => (*lba, payload, Access::DeviceWrites),
            // SPDK makes a compare of a read where the device has none.
            Operation::Write { lba, payload, .. } | Operation::Compare { lba, payload } => {
                (*lba, payload, Access::DeviceReads)
            }
            other => return self.bounds.check_without_data(other).map(drop),
        };
        self.bounds.check_data(lba, payload, needed).map(drop)
    }

    /// Says whether SPDK has taken the device away.
    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        self.events.is_gone.load(Ordering::Acquire)
    }

    /// # Errors
    ///
    /// `DeviceGone`.
    pub(super) fn check_presence(&self) -> Result<(), BlockError> {
        if self.is_gone() { Err(self.absence()) } else { Ok(()) }
    }

    #[cold]
    pub(super) fn absence(&self) -> BlockError {
        let what = format!("SPDK has taken {} away", self.target.bdev()).into();
        Cause::DeviceGone { what }.into()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let descriptor = self.descriptor;
        let closed =
            self.environment.run("closing a block device of SPDK", move || close(descriptor));
        if let Err(error) = closed {
            tracing::warn!(%error, bdev = self.target.bdev(), "the device stays open");
        }
        self.attachment = None;
        unmake(&self.environment, &self.target);
    }
}

/// Takes away what was made for the target.
fn unmake(environment: &Environment, target: &Target) {
    let Some(call) = target.unmaking() else { return };
    if let Err(error) = environment.call(call) {
        tracing::warn!(%error, bdev = target.bdev(), "what was made for the device stays");
    }
}

/// Opens a block device. To be called by the environment's thread.
fn find(name: &str) -> Result<Found, BlockError> {
    let not_found = || {
        let what = format!("block device {name}: SPDK has none of that name").into();
        BlockError::from(Cause::NotFound { what })
    };
    let c_name = CString::new(name).map_err(|_| not_found())?;
    let events = Arc::new(Events::default());
    let context = Arc::into_raw(Arc::clone(&events));
    let mut pointer = ptr::null_mut();
    // SAFETY: the name is ended by 0; `context` stays until `close`, which is the last that SPDK hears of it.
    let code = unsafe {
        sys::spdk_bdev_open_ext(
            c_name.as_ptr(),
            true,
            Some(told),
            context as *mut c_void,
            &raw mut pointer,
        )
    };
    let Some(pointer) = NonNull::new(pointer).filter(|_| code == 0) else {
        // SAFETY: it was made above, and nothing was opened that could be told.
        drop(unsafe { Arc::from_raw(context) });
        return Err(match -code {
            libc::ENODEV => not_found(),
            libc::EPERM => {
                let what = format!("{name}: somebody else in this process writes to it").into();
                Cause::Busy { what }.into()
            }
            _ => refused("to open the device", code),
        });
    };
    let descriptor = Descriptor { pointer, events: context };
    match describe(descriptor, name) {
        Ok((product, geometry, abilities)) => {
            Ok(Found { descriptor, events, product, geometry, abilities })
        }
        Err(error) => {
            close(descriptor);
            Err(error)
        }
    }
}

/// Closes a block device. To be called by the environment's thread, once.
fn close(descriptor: Descriptor) {
    // SAFETY: it is open, this thread opened it, and no channel of it is left.
    unsafe { sys::spdk_bdev_close(descriptor.pointer.as_ptr()) };
    // SAFETY: the share that `find` made; SPDK tells nothing of a device that is closed.
    drop(unsafe { Arc::from_raw(descriptor.events) });
}

/// What SPDK calls when something happens to an open device.
extern "C" fn told(kind: sys::spdk_bdev_event_type, _: *mut sys::spdk_bdev, context: *mut c_void) {
    // SAFETY: the share that `find` made, which `close` takes back on this same thread.
    let events = unsafe { &*context.cast_const().cast::<Events>() };
    if kind == sys::SPDK_BDEV_EVENT_REMOVE {
        events.is_gone.store(true, Ordering::Release);
    }
}

/// Reads what an open device is like.
fn describe(
    descriptor: Descriptor,
    name: &str,
) -> Result<(String, Geometry, Abilities), BlockError> {
    // SAFETY: the device is open, and stays so while this thread does nothing else.
    let bdev = unsafe { sys::spdk_bdev_desc_get_bdev(descriptor.pointer.as_ptr()) };
    // SAFETY (of all calls below): `bdev` is valid as long as its descriptor, and none of them keeps it.
    macro_rules! get {
        ($function:ident $(, $argument:expr)*) => {
            // SAFETY: as said above.
            unsafe { sys::$function(bdev $(, $argument)*) }
        };
    }
    let unusable = |problem: String| Cause::Format { what: format!("{name} {problem}").into() };
    let bytes = get!(spdk_bdev_get_block_size);
    let metadata = get!(spdk_bdev_get_md_size);
    if metadata != 0 {
        let problem = format!(
            "keeps {metadata} bytes of metadata beside each block, which `spdk:` does not move"
        );
        return Err(unusable(problem).into());
    }
    if get!(spdk_bdev_is_zoned) {
        return Err(unusable("is zoned, which `spdk:` does not drive".into()).into());
    }
    let lba_size = LbaSize::from_bytes(bytes.into()).ok_or_else(|| {
        unusable(format!("has blocks of {bytes} bytes, and not a power of two from 512 to 65536"))
    })?;
    let blocks = BlockCount(get!(spdk_bdev_get_num_blocks));
    let fits = blocks.to_bytes(lba_size).is_some();
    if blocks.0 == 0 || !fits {
        return Err(unusable(format!("has {blocks} blocks of {lba_size}")).into());
    }
    let offers = |kind| get!(spdk_bdev_io_type_supported, kind);
    let write_cache = get!(spdk_bdev_has_write_cache);
    let boundary = u64::from(get!(spdk_bdev_get_optimal_io_boundary));
    let alignment = get!(spdk_bdev_get_buf_align);
    let geometry = Geometry {
        lba_size,
        blocks,
        max_transfer: ByteLen(TRANSFER_MAX),
        optimal_boundary: (boundary > 0).then_some(BlockCount(boundary)),
        atomic_write: BlockCount(1),
        atomic_boundary: None,
        volatile_write_cache: write_cache,
        operations: Operations {
            deallocate: offers(sys::SPDK_BDEV_IO_TYPE_UNMAP),
            // These three are made of reads and writes where the device has none of its own.
            write_zeroes: offers(sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES),
            compare: true,
            copy: offers(sys::SPDK_BDEV_IO_TYPE_COPY),
            verify: false,
            write_uncorrectable: false,
            fua: true,
        },
        metadata: None,
        segments: SegmentRules {
            // What is not as SPDK wants it is copied there: these are dwords, as NVMe wants them.
            alignment: u32::try_from(alignment).unwrap_or(4).clamp(1, 4),
            page: None,
            max_segments: SEGMENTS_MAX,
        },
    };
    let product = get!(spdk_bdev_get_product_name);
    // SAFETY: a text of the device's module, ended by 0, that lives as long as the device.
    let product = unsafe { CStr::from_ptr(product) }.to_string_lossy().into_owned();
    let abilities = Abilities {
        write_cache,
        flush: offers(sys::SPDK_BDEV_IO_TYPE_FLUSH),
        reset: offers(sys::SPDK_BDEV_IO_TYPE_RESET),
    };
    Ok((product, geometry, abilities))
}

/// The release that was linked.
fn release() -> String {
    format!("{}.{:02}", sys::SPDK_VERSION_MAJOR, sys::SPDK_VERSION_MINOR)
}
