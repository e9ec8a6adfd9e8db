//! A controller behind vfio-pci: its registers mapped, its memory behind an IOMMU, no other kernel driver in between.
//!
//! ```text
//!   admission   sysfs only: is it NVMe, whose is it, what else is in its group    (nothing is touched)
//!   claim       SPDK's lock on the device, so that SPDK and this never drive one at once
//!   kernel      container + group + device; arenas mapped once each, with rights
//!   ranges      the addresses that the IOMMU has, the MSI window cut out
//! ```
//!
//! Each device has an address space of its own, so that one device cannot reach what only another was given. The
//! invariant: the device masters the bus only between [`Vfio::open`] and the drop, and reaches arenas only.

mod admission;
mod claim;
mod error;
mod kernel;
mod ranges;

pub use admission::{DRIVER, admit, holder_in, holder_of};
pub use error::VfioError;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::PollFlags;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_GROUP_FLAGS_VIABLE, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_TYPE1v2_IOMMU,
};

use super::removal::{self, Removal};
use super::{Doorbell, Pump, Transport};
use crate::dma::{Arena, IovaLimits, Mapper, SharedBytes};
use crate::pci::{PciAddress, Sysfs};
use crate::units::QueueId;
use claim::Claim;
use kernel::{Container, Group, Handles};

/// The command register of the configuration space and its bits for memory and bus mastering (PCI 3.0, 6.2.2).
const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// The least that a controller's registers take: one page of registers and one of doorbells (NVMe 2.0, 3.1.3).
const REGISTERS_MIN: u64 = 0x2000;

/// The address bits of a machine whose kernel does not say which ranges its IOMMU has.
const IOVA_BITS: u32 = 39;

/// An NVMe controller behind vfio-pci.
pub struct Vfio {
    address: PciAddress,
    limits: IovaLimits,
    /// The thread ends before what it tells of goes.
    removal: Removal,
    registers: SharedBytes,
    handles: Handles,
    /// Last: nobody else may have the device before the kernel has it back.
    _claim: Claim,
}

impl Vfio {
    /// Opens a controller. It is reset by that, and stands still until the driver brings it up.
    ///
    /// # Errors
    ///
    /// [`VfioError`], with a sentence about what helps.
    pub fn open(address: PciAddress) -> Result<Arc<Self>, VfioError> {
        let group = admit(&Sysfs::default(), address)?;
        let claim = Claim::take(address)?;
        let handles = open_handles(address, group)?;
        let kernel = |what| move |source| VfioError::Kernel { address, what, source };
        let limits = handles.limits().map_err(kernel("the IOMMU's ranges cannot be read"))?;
        let registers = map_registers(address, &handles)?;
        let config = VFIO_PCI_CONFIG_REGION_INDEX;
        set_command(&handles, config, COMMAND_MEMORY | COMMAND_BUS_MASTER, 0)
            .map_err(kernel("bus mastering cannot be turned on"))?;
        let removal = watch(address).map_err(kernel("its removal cannot be watched for"))?;
        if let Err(error) = handles.signal(VFIO_PCI_REQ_IRQ_INDEX, removal.source()) {
            tracing::warn!(%address, %error, "the kernel cannot ask for the device back");
        }
        let limits = limits.unwrap_or_else(|| IovaLimits::bits(IOVA_BITS));
        Ok(Arc::new(Self { address, limits, removal, registers, handles, _claim: claim }))
    }

    /// Returns where the controller is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    fn register(&self, offset: u32, len: usize) -> Option<usize> {
        let offset = usize::try_from(offset).ok()?;
        (offset.checked_add(len)? <= self.registers.len()).then_some(offset)
    }
}

impl Drop for Vfio {
    /// The driver has stopped the controller; what is left of it cannot reach memory either.
    fn drop(&mut self) {
        let config = VFIO_PCI_CONFIG_REGION_INDEX;
        if let Err(error) = set_command(&self.handles, config, 0, COMMAND_BUS_MASTER) {
            tracing::debug!(address = %self.address, %error, "bus mastering was not turned off");
        }
    }
}

/// Waits for the kernel to ask for a device.
fn watch(address: PciAddress) -> io::Result<Removal> {
    let words = format!("the kernel asks for {address} back: it is about to be removed");
    Removal::watch(removal::event()?, PollFlags::IN, words)
}

fn open_handles(address: PciAddress, group: u32) -> Result<Handles, VfioError> {
    let kernel = |what| move |source| VfioError::Kernel { address, what, source };
    let path = PathBuf::from("/dev/vfio/vfio");
    let container = Container::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => VfioError::NoVfio { path: path.clone(), source },
        _ => not_opened(address, &path, source),
    })?;
    let version = container.api_version().map_err(kernel("the version of VFIO cannot be read"))?;
    let has_type1 = container.has_extension(VFIO_TYPE1v2_IOMMU);
    if version != VFIO_API_VERSION as i32 || !has_type1.is_ok_and(|has| has) {
        let what = format!(
            "the kernel's VFIO (version {version}) has no type 1 IOMMU, version 2: modprobe vfio_iommu_type1"
        );
        return Err(VfioError::Unusable { address, what });
    }
    let path = PathBuf::from(format!("/dev/vfio/{group}"));
    let members = Group::open(&path).map_err(|source| not_opened(address, &path, source))?;
    let flags = members.flags().map_err(kernel("the state of its IOMMU group cannot be read"))?;
    if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
        let what = format!(
            "IOMMU group {group} has a device with a driver that uses DMA: udirect doctor names it"
        );
        return Err(VfioError::Unusable { address, what });
    }
    members.join(&container).map_err(kernel("its IOMMU group cannot join an address space"))?;
    Handles::set_iommu(&container, VFIO_TYPE1v2_IOMMU).map_err(|source| {
        match source.raw_os_error() {
            Some(libc::EPERM) => VfioError::NoInterruptRemapping { address },
            _ => {
                VfioError::Kernel { address, what: "the IOMMU cannot be turned on for it", source }
            }
        }
    })?;
    let device = members.device(&address.to_string());
    let device = device.map_err(kernel("the device cannot be opened"))?;
    Ok(Handles::new(container, members, device))
}

fn not_opened(address: PciAddress, path: &Path, source: io::Error) -> VfioError {
    match source.raw_os_error() {
        Some(libc::EBUSY) => VfioError::InUse { address, holder: holder_of(path) },
        Some(libc::EACCES | libc::EPERM) => {
            let owner = std::fs::metadata(path).map_or(0, |metadata| metadata.uid());
            let user = rustix::process::geteuid().as_raw();
            VfioError::NotOurs { address, path: path.into(), owner, user }
        }
        _ => VfioError::Kernel { address, what: "its IOMMU group cannot be opened", source },
    }
}

fn map_registers(address: PciAddress, handles: &Handles) -> Result<SharedBytes, VfioError> {
    let kernel = |what| move |source| VfioError::Kernel { address, what, source };
    let bar = handles.region(VFIO_PCI_BAR0_REGION_INDEX);
    let bar = bar.map_err(kernel("its registers (BAR 0) cannot be found"))?;
    if bar.len < REGISTERS_MIN || bar.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        let (len, flags) = (bar.len, bar.flags);
        let what = format!(
            "BAR 0 has {len:#x} bytes and flags {flags:#x}, where {REGISTERS_MIN:#x} bytes to map are needed"
        );
        return Err(VfioError::Unusable { address, what });
    }
    SharedBytes::of_device(handles.device(), bar.offset, bar.len)
        .map_err(kernel("its registers (BAR 0) cannot be mapped"))
}

/// Sets and clears bits of the command register.
fn set_command(handles: &Handles, config: u32, set: u16, clear: u16) -> io::Result<()> {
    let region = handles.region(config)?;
    let mut bytes = [0; 2];
    handles.read_region(region, COMMAND, &mut bytes)?;
    let command = u16::from_le_bytes(bytes) & !clear | set;
    handles.write_region(region, COMMAND, &command.to_le_bytes())
}

impl Transport for Vfio {
    fn read32(&self, offset: u32) -> u32 {
        let at = self.register(offset, 4);
        at.map_or(u32::MAX, |at| self.registers.span().load32(at, Ordering::Acquire))
    }

    fn read64(&self, offset: u32) -> u64 {
        let at = self.register(offset, 8);
        at.map_or(u64::MAX, |at| self.registers.span().load64(at, Ordering::Acquire))
    }

    fn write32(&self, offset: u32, value: u32) {
        if let Some(at) = self.register(offset, 4) {
            self.registers.span().store32(at, value, Ordering::Release);
        }
    }

    fn write64(&self, offset: u32, value: u64) {
        if let Some(at) = self.register(offset, 8) {
            self.registers.span().store64(at, value, Ordering::Release);
        }
    }

    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        let at = self.register(offset, 4);
        let doorbell = at.and_then(|at| Doorbell::at(&self.registers, at));
        doorbell.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn pump(&self, _: QueueId) -> Option<Box<dyn Pump>> {
        None
    }

    fn on_removal(&self, told: Box<dyn FnOnce(&str) + Send>) {
        self.removal.tell(told);
    }
}

impl Mapper for Vfio {
    fn name(&self) -> String {
        self.address.to_string()
    }

    fn limits(&self) -> IovaLimits {
        self.limits.clone()
    }

    fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        self.handles.map(arena).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOMEM) => out_of_locked_memory(self.handles.mapped_bytes(), error),
            _ => error,
        })
    }

    fn unmap(&self, arena: &Arena) {
        if let Err(error) = self.handles.unmap(arena) {
            let (iova, len) = (arena.iova().0, arena.len());
            tracing::error!(device = %self.address, iova, len, %error, "memory stays mapped for the device");
        }
    }
}

/// The kernel counts every mapping against the limit of locked memory, hugepages too.
fn out_of_locked_memory(mapped: u64, error: io::Error) -> io::Error {
    use rustix::process::{Resource, getrlimit};
    let Some(limit) = getrlimit(Resource::Memlock).current else { return error };
    let what = format!(
        "{mapped} bytes are locked for it already and RLIMIT_MEMLOCK is {limit}: raise it \
         (ulimit -l unlimited, or LimitMEMLOCK=infinity in the service)"
    );
    io::Error::new(io::ErrorKind::OutOfMemory, what)
}
