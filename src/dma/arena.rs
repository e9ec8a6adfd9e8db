//! An arena: one mapping, one range of device addresses, one right.

use core::ptr::NonNull;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;

use super::domain::Domain;
use super::free::FreeRanges;
use super::iova;
use super::pages::Pages;
use super::span::SharedBytes;
use super::window::Window;
use super::{DmaError, PageKind, PagePolicy};
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
    /// Who forgets the arena once all of it has come home, where it is not kept for others.
    registered_with: Option<Weak<Domain>>,
}

impl Arena {
    /// Maps the memory of a new arena. Its addresses belong to the caller to reserve and release.
    pub(super) fn map(len: u64, policy: PagePolicy, access: Access) -> Result<Self, DmaError> {
        Ok(Self::over(Pages::map(len, policy)?, access, None))
    }

    /// Makes an arena of memory that somebody else mapped, for as long as it is in use.
    pub(super) fn register(
        map: MmapMut,
        access: Access,
        domain: Weak<Domain>,
    ) -> Result<Self, DmaError> {
        Ok(Self::over(Pages::adopt(map)?, access, Some(domain)))
    }

    fn over(pages: Pages, access: Access, registered_with: Option<Weak<Domain>>) -> Self {
        let free = Mutex::new(FreeRanges::new(0, pages.map.len() as u64));
        Self { pages, iova: Iova(0), access, free, registered_with }
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
        self.registered_with.is_some()
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
        // promise of the driver, `docs/unsafe.md`), when no reference to them exists.
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
        // Address 0 is never handed out: an arena without a place has none to give back.
        if self.iova != Iova(0) {
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
        if let Some(domain) = self.arena.registered_with.as_ref().and_then(Weak::upgrade) {
            domain.forget(&self.arena);
        }
    }
}
