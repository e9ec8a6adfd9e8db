//! The kernel's VFIO interface (`linux/vfio.h`): container, group, device, as typed calls.
//!
//! ```text
//!   container  /dev/vfio/vfio     an address space: DMA mappings and their limits
//!    └ group      /dev/vfio/N        all devices that the IOMMU cannot tell apart
//!       └ device     from the group     registers, configuration space, interrupts, reset
//! ```
//!
//! Devices as files of their own (`/dev/vfio/devices/*` with iommufd) would be another [`Handles`] behind the same calls.
//! The invariant: memory that a device may reach is kept alive by the handles that let it, and goes after them.

use core::ffi::{c_int, c_void};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_TYPE, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info, vfio_region_info,
};

use super::ranges;
use crate::dma::{Arena, IovaLimits};

/// The first call of VFIO.
const BASE: u8 = VFIO_BASE as u8;

/// The calls, by their place after `BASE`.
mod call {
    pub(super) const GET_API_VERSION: u8 = 0;
    pub(super) const CHECK_EXTENSION: u8 = 1;
    pub(super) const SET_IOMMU: u8 = 2;
    pub(super) const GROUP_GET_STATUS: u8 = 3;
    pub(super) const GROUP_SET_CONTAINER: u8 = 4;
    pub(super) const GROUP_GET_DEVICE_FD: u8 = 6;
    pub(super) const DEVICE_GET_REGION_INFO: u8 = 8;
    pub(super) const DEVICE_SET_IRQS: u8 = 10;
    pub(super) const IOMMU_GET_INFO: u8 = 12;
    pub(super) const IOMMU_MAP_DMA: u8 = 13;
    pub(super) const IOMMU_UNMAP_DMA: u8 = 14;
}

/// The most that the kernel says about an IOMMU: its reserved windows are few.
const INFO_BYTES_MAX: usize = 64 << 10;

/// Sends a call whose argument is a number.
fn call_with(file: &File, nr: u8, number: u64) -> io::Result<c_int> {
    // SAFETY: the calls that come this way take their argument as a number, or none.
    unsafe { call_at(file, nr, number as *mut c_void) }
}

/// Sends a call whose argument is a structure.
fn call_on<T>(file: &File, nr: u8, argument: &mut T) -> io::Result<c_int> {
    // SAFETY: the reference is exclusive, and each structure begins with its own size (`argsz`), or is the fixed one of
    // its call; the kernel reads and writes no more than that.
    unsafe { call_at(file, nr, core::ptr::from_mut(argument).cast()) }
}

/// # Safety
///
/// `argument` is what the call `nr` takes: a number, or the address of a structure that lives as long as the call.
unsafe fn call_at(file: &File, nr: u8, argument: *mut c_void) -> io::Result<c_int> {
    let request = libc::Ioctl::from(u16::from_be_bytes([VFIO_TYPE, BASE + nr]));
    // SAFETY: the descriptor is open; the argument is the caller's to vouch for.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("the kernel's structures are small")
}

/// A region of a device: where it lies in the device's file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) flags: u32,
}

/// An address space without devices.
pub(super) struct Container(File);

impl Container {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }

    pub(super) fn api_version(&self) -> io::Result<c_int> {
        call_with(&self.0, call::GET_API_VERSION, 0)
    }

    pub(super) fn has_extension(&self, extension: u32) -> io::Result<bool> {
        Ok(call_with(&self.0, call::CHECK_EXTENSION, u64::from(extension))? > 0)
    }
}

/// A group that nobody else has open.
pub(super) struct Group(File);

impl Group {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }

    /// Returns what the kernel says of it, `VFIO_GROUP_FLAGS_*`.
    pub(super) fn flags(&self) -> io::Result<u32> {
        let mut status = vfio_group_status { argsz: size::<vfio_group_status>(), flags: 0 };
        call_on(&self.0, call::GROUP_GET_STATUS, &mut status)?;
        Ok(status.flags)
    }

    /// Puts the group into an address space.
    pub(super) fn join(&self, container: &Container) -> io::Result<()> {
        let mut descriptor: c_int = container.0.as_raw_fd();
        call_on(&self.0, call::GROUP_SET_CONTAINER, &mut descriptor).map(drop)
    }

    /// Opens a device of the group by its name.
    pub(super) fn device(&self, name: &str) -> io::Result<File> {
        let name = CString::new(name)?;
        // SAFETY: the call takes the address of a string with a zero at its end, which lives until it returns.
        let descriptor = unsafe {
            call_at(&self.0, call::GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut().cast())
        }?;
        // SAFETY: the kernel has just made the descriptor for us, and nobody else knows it.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }
}

/// A device in an address space of its own, and the memory that it may reach.
pub(super) struct Handles {
    // In this order: while one of them is open, the device may reach the arenas.
    device: File,
    _group: Group,
    container: Container,
    arenas: Mutex<Vec<Arc<Arena>>>,
}

impl Handles {
    /// Takes a container that a group has joined, and turns its translation on.
    pub(super) fn set_iommu(container: &Container, kind: u32) -> io::Result<()> {
        call_with(&container.0, call::SET_IOMMU, u64::from(kind)).map(drop)
    }

    pub(super) fn new(container: Container, group: Group, device: File) -> Self {
        Self { device, _group: group, container, arenas: Mutex::default() }
    }

    /// Returns the device addresses that can be mapped; `None` where the kernel does not say.
    pub(super) fn limits(&self) -> io::Result<Option<IovaLimits>> {
        let mut buffer = vec![0_u64; size_of::<vfio_iommu_type1_info>().div_ceil(8)];
        loop {
            let bytes = buffer.len() * 8;
            buffer[0] = u64::from(bytes as u32);
            // SAFETY: the buffer is as long as its first word says, and aligned for the structure.
            unsafe {
                call_at(&self.container.0, call::IOMMU_GET_INFO, buffer.as_mut_ptr().cast())
            }?;
            let words: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let wanted = u32::from_ne_bytes([words[0], words[1], words[2], words[3]]) as usize;
            if wanted <= bytes || wanted > INFO_BYTES_MAX {
                return Ok(ranges::read(&words));
            }
            buffer.resize(wanted.div_ceil(8), 0);
        }
    }

    /// Lets the device reach an arena, at its address and with its rights.
    pub(super) fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        let access = arena.access();
        let mut flags = 0;
        flags |= if access.device_reads() { VFIO_DMA_MAP_FLAG_READ } else { 0 };
        flags |= if access.device_writes() { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size::<vfio_iommu_type1_dma_map>(),
            flags,
            vaddr: arena.host_address(),
            iova: arena.iova().0,
            size: arena.len(),
        };
        // From here on the device may write the arena's memory. It is kept below until `unmap`, or until the handles
        // are closed; references exist only to bytes that no command names (`docs/unsafe.md`).
        call_on(&self.container.0, call::IOMMU_MAP_DMA, &mut map)?;
        self.lock().push(Arc::clone(arena));
        Ok(())
    }

    /// Takes an arena away from the device.
    pub(super) fn unmap(&self, arena: &Arena) -> io::Result<()> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: size::<vfio_iommu_type1_dma_unmap>(),
            iova: arena.iova().0,
            size: arena.len(),
            ..Default::default()
        };
        // A failure leaves the arena where it is, so that the device never reaches memory of somebody else.
        call_on(&self.container.0, call::IOMMU_UNMAP_DMA, &mut unmap)?;
        self.lock().retain(|other| !core::ptr::eq(&raw const **other, arena));
        Ok(())
    }

    /// Returns how many bytes the device can reach.
    pub(super) fn mapped_bytes(&self) -> u64 {
        self.lock().iter().map(|arena| arena.len()).sum()
    }

    /// Returns the file of the device, to map its regions.
    pub(super) fn device(&self) -> &File {
        &self.device
    }

    pub(super) fn region(&self, index: u32) -> io::Result<Region> {
        let mut info =
            vfio_region_info { argsz: size::<vfio_region_info>(), index, ..Default::default() };
        call_on(&self.device, call::DEVICE_GET_REGION_INFO, &mut info)?;
        Ok(Region { offset: info.offset, len: info.size, flags: info.flags })
    }

    pub(super) fn read_region(&self, region: Region, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.device.read_exact_at(bytes, region.offset + at)
    }

    pub(super) fn write_region(&self, region: Region, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.device.write_all_at(bytes, region.offset + at)
    }

    /// Lets an interrupt of the device raise an event.
    pub(super) fn signal(&self, index: u32, event: &OwnedFd) -> io::Result<()> {
        // `vfio_irq_set` and the one descriptor that follows it.
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let descriptor = event.as_raw_fd().cast_unsigned();
        let mut words = [0, flags, index, 0, 1, descriptor];
        words[0] = size::<[u32; 6]>();
        call_on(&self.device, call::DEVICE_SET_IRQS, &mut words).map(drop)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Arena>>> {
        // Whoever panicked under it left a list of whole arenas.
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
