//! An arena: one mapping, one range of device addresses, one right.

use core::ptr::NonNull;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;

use super::domain::Domain;
use super::free::FreeRanges;
use super::iova;
use super::pages::Pages;
use super::span::SharedBytes;
use super::window::Window;
use super::{DmaError, PAGE_BYTES, PageKind, PagePolicy};
use crate::units::Iova;

/// What a device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Access {
    /// The device reads: submission queues, PRP lists, data to be written.
    DeviceReads = 1,
    /// The device writes: completion queues, data to be read.
    DeviceWrites = 2,
    /// Both: buffers that are read into and then written from.
    Both = 3,
}

impl Access {
    /// Says whether the device may read.
    #[inline]
    pub fn device_reads(self) -> bool {
        self as u8 & Self::DeviceReads as u8 != 0
    }

    /// Says whether the device may write.
    #[inline]
    pub fn device_writes(self) -> bool {
        self as u8 & Self::DeviceWrites as u8 != 0
    }
}

/// One mapping of memory that devices can reach, at one range of addresses, with one right.
///
/// Every device maps an arena once, as a whole, at the same address, so that translation is one
/// subtraction and the number of mappings stays far below what the kernel allows.
pub struct Arena {
    pages: Pages,
    iova: Iova,
    access: Access,
    /// Offsets that are not handed out.
    free: Mutex<FreeRanges>,
    origin: Origin,
}

/// Where the memory of an arena comes from.
enum Origin {
    /// It was mapped for its domain, which keeps it.
    Domain,
    /// Its user mapped it; the domain forgets it once all of it has come home.
    Registered(Weak<Domain>),
    /// Another process shares it, at an address that is that process's to choose.
    Foreign,
}

impl Arena {
    /// Maps the memory of a new arena. Its addresses belong to the caller to reserve and release.
    pub(super) fn map(len: u64, policy: PagePolicy, access: Access) -> Result<Self, DmaError> {
        Ok(Self::over(Pages::map(len, policy)?, access, Origin::Domain))
    }

    /// Makes an arena of memory that somebody else mapped, for as long as it is in use.
    pub(super) fn register(
        map: MmapMut,
        access: Access,
        domain: Weak<Domain>,
    ) -> Result<Self, DmaError> {
        Ok(Self::over(Pages::adopt(map)?, access, Origin::Registered(domain)))
    }

    /// Maps memory that another process shares by a descriptor, for whoever plays the device of that process. What the
    /// device may only read is mapped read-only. No domain knows the arena, and none of it is handed out.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where address, offset and length are not whole pages, or end beyond 2^64 or the file, which would be
    /// a SIGBUS later; `Unsupported` where the descriptor is no file in memory or on a disk; the kernel's.
    pub fn foreign(
        file: File,
        offset: u64,
        len: u64,
        iova: Iova,
        access: Access,
    ) -> io::Result<Arc<Self>> {
        let pages = Pages::share(file, offset, len, access.device_writes())?;
        let whole = iova.0.is_multiple_of(PAGE_BYTES as u64) && iova.0.checked_add(len).is_some();
        if !whole {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut arena = Self::over(pages, access, Origin::Foreign);
        arena.place(iova);
        Ok(Arc::new(arena))
    }

    fn over(pages: Pages, access: Access, origin: Origin) -> Self {
        let free = Mutex::new(FreeRanges::new(0, pages.map.len() as u64));
        Self { pages, iova: Iova(0), access, free, origin }
    }

    /// Gives the arena its place in the address space; it goes back with the arena.
    pub(super) fn place(&mut self, iova: Iova) {
        self.iova = iova;
    }

    /// Returns the first device address.
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.pages.map.len() as u64
    }

    /// Says whether it has no byte, which never happens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns what devices may do with it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns the kind of its pages.
    pub fn page_kind(&self) -> PageKind {
        self.pages.kind
    }

    /// Returns the descriptor behind the memory, to be shared with a device process; registered memory has
    /// none.
    pub fn file(&self) -> Option<&File> {
        self.pages.file.as_ref()
    }

    /// Says whether the memory was mapped by somebody else and registered.
    pub fn is_registered(&self) -> bool {
        matches!(self.origin, Origin::Registered(_))
    }

    /// Returns the address of the first byte in this process, for the kernel's DMA map calls.
    pub fn host_address(&self) -> u64 {
        self.pages.map.as_mut_ptr().addr() as u64
    }

    /// Returns all of it, as a device sees it.
    ///
    /// This is the device's side: the memory behind it may belong to somebody else at the moment, and
    /// a device that reaches for memory it was not given breaks that somebody, here as in hardware.
    pub fn bytes(self: &Arc<Self>) -> SharedBytes {
        // SAFETY: the mapping lives as long as the arena, which the share keeps alive. References exist only
        // to bytes of a `DmaBuf`; a controller touches those only while they are in flight (the
        // promise of the driver, `docs/unsafe.md`), when no reference to them exists. A foreign arena that the device may
        // only read is mapped read-only: whoever plays the device keeps to `access`, or the processor stops it.
        unsafe { SharedBytes::new(self.start(), self.pages.map.len(), Arc::clone(self) as _) }
    }

    /// Takes a piece for as long as the window lives, zeroed.
    pub(super) fn carve(self: &Arc<Self>, len: usize, align: usize) -> Option<Window> {
        let offset = self.lock_free().take(len as u64, align as u64)?;
        let window = self.lease(offset, len);
        window.span().fill(0);
        Some(window)
    }

    /// Takes all of a registered arena, as it is.
    pub(super) fn whole(self: &Arc<Self>) -> Window {
        let taken = self.lock_free().take(self.len(), 1);
        assert_eq!(taken, Some(0), "registered memory is handed out once");
        self.lease(0, self.pages.map.len())
    }

    /// Makes the window of a range that was taken off the free ones.
    fn lease(self: &Arc<Self>, offset: u64, len: usize) -> Window {
        let lease = Lease { arena: Arc::clone(self), offset, len: len as u64 };
        let at = usize::try_from(offset).expect("an arena fits the address space");
        // SAFETY: the range was taken off the free ones, which lie within the mapping.
        let start = unsafe { self.start().add(at) };
        // SAFETY: the lease keeps the mapping alive and nobody else is given these offsets until it
        // drops. A `DmaBuf` that is made from the window holds the window, and never shows its bytes twice.
        let bytes = unsafe { SharedBytes::new(start, len, Arc::new(lease)) };
        Window::new(bytes, Iova(self.iova.0 + offset), self.access)
    }

    /// Returns how many bytes are not handed out.
    pub fn free_bytes(&self) -> u64 {
        self.lock_free().total()
    }

    fn start(&self) -> NonNull<u8> {
        NonNull::new(self.pages.map.as_mut_ptr()).expect("a mapping is not at address 0")
    }

    fn lock_free(&self) -> std::sync::MutexGuard<'_, FreeRanges> {
        // A panic while this is held is a bug in `FreeRanges`; the ranges it left are still disjoint.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let is_ours = !matches!(self.origin, Origin::Foreign);
        // Address 0 is never handed out: an arena without a place has none to give back.
        if is_ours && self.iova != Iova(0) {
            iova::shared().give(self.iova, self.len());
        }
    }
}

impl core::fmt::Debug for Arena {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Arena")
            .field("iova", &self.iova)
            .field("len", &self.len())
            .field("access", &self.access)
            .field("pages", &self.pages.kind)
            .finish_non_exhaustive()
    }
}

/// A range of an arena that is handed out; it goes home when dropped.
struct Lease {
    arena: Arc<Arena>,
    offset: u64,
    len: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.arena.lock_free().give(self.offset, self.len);
        if let Origin::Registered(domain) = &self.arena.origin
            && let Some(domain) = domain.upgrade()
        {
            domain.forget(&self.arena);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn memory_of_another_process_is_seen_at_the_address_that_it_says() {
        let theirs = file(16384);
        theirs.write_all_at(b"here", 4096).unwrap();
        let share = theirs.try_clone().unwrap();
        let iova = Iova(0xffff_0000);
        let arena = Arena::foreign(share, 4096, 8192, iova, Access::Both).unwrap();
        assert_eq!((arena.iova(), arena.len(), arena.is_registered()), (iova, 8192, false));
        let bytes = arena.bytes();
        let mut out = [0; 4];
        bytes.span().slice(0, 4).unwrap().read_into(&mut out);
        assert_eq!(&out, b"here");
        bytes.span().slice(8188, 4).unwrap().write_from(b"back");
        theirs.read_exact_at(&mut out, 12284).unwrap();
        assert_eq!(&out, b"back");
        // Our own space of addresses has never heard of it: dropping it gives nothing back there.
        drop((bytes, arena));
    }

    #[test]
    fn what_would_be_cut_off_or_is_no_memory_is_refused() {
        let refusal = |file, offset, len, iova| {
            Arena::foreign(file, offset, len, Iova(iova), Access::Both).unwrap_err().kind()
        };
        let invalid = io::ErrorKind::InvalidInput;
        assert_eq!(refusal(file(8192), 4096, 8192, 0), invalid, "beyond the end of its file");
        assert_eq!(refusal(file(8192), u64::MAX - 4095, 8192, 0), invalid);
        assert_eq!(refusal(file(8192), 100, 4096, 0), invalid);
        assert_eq!(refusal(file(8192), 0, 100, 0), invalid);
        assert_eq!(refusal(file(8192), 0, 0, 0), invalid);
        assert_eq!(refusal(file(8192), 0, 8192, 100), invalid);
        assert_eq!(refusal(file(8192), 0, 8192, u64::MAX - 4095), invalid);
        let null = File::open("/dev/null").unwrap();
        assert_eq!(refusal(null, 0, 4096, 0), io::ErrorKind::Unsupported);
    }
}
