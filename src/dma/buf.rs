//! A buffer that takes turns: plain bytes while you hold it, the device's while it is in flight.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use std::sync::Arc;

use super::arena::Access;
use super::pool::Home;
use super::window::Window;
use crate::units::Iova;

/// Owned memory that a device can reach.
///
/// While you hold it, it is plain `&mut [u8]`. A request takes it, and the completion gives it
/// back; in between nobody can name its bytes. Dropped, it goes home to its pool, from whatever core.
pub struct DmaBuf {
    /// First byte; `len` bytes from here are ours alone.
    start: NonNull<u8>,
    iova: Iova,
    len: u32,
    class: u8,
    access: Access,
    home: Arc<Home>,
}

// Small, since it moves with every request.
const _: () = assert!(size_of::<DmaBuf>() == 32);

// SAFETY: a buffer is the only way to its bytes, like a `Box<[u8]>`; `Home` is `Send` and `Sync`.
unsafe impl Send for DmaBuf {}
// SAFETY: `&DmaBuf` gives `&[u8]` only.
unsafe impl Sync for DmaBuf {}

/// A buffer at rest in its pool: the place without the ownership.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) start: NonNull<u8>,
    pub(super) iova: Iova,
    pub(super) class: u8,
}

// SAFETY: a place is an address; only `DmaBuf::at`, which is unsafe, turns it into access.
unsafe impl Send for Place {}

impl DmaBuf {
    /// Makes the owner of a place.
    ///
    /// # Safety
    ///
    /// `place` lies in memory that `home` keeps mapped, is at least `len` bytes long, and belongs to
    /// nobody else until the buffer has given it back to `home`.
    #[inline]
    pub(super) unsafe fn at(place: Place, len: u32, access: Access, home: Arc<Home>) -> Self {
        let Place { start, iova, class } = place;
        Self { start, iova, len, class, access, home }
    }

    /// Makes a buffer of a whole window; the memory goes home when it drops.
    pub(super) fn alone(window: Window) -> Self {
        let (iova, access) = (window.iova(), window.access());
        let len = u32::try_from(window.len()).expect("the caller checked the length");
        let start = window.span().as_ptr();
        let place = Place { start, iova, class: 0 };
        // SAFETY: the window moves into the home, which is the only share of it.
        unsafe { Self::at(place, len, access, Arc::new(Home::single(window))) }
    }

    /// Returns where the device sees the first byte.
    #[inline]
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// Returns what the device may do with it.
    #[inline]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns the most that [`set_len`](Self::set_len) accepts.
    pub fn capacity(&self) -> usize {
        self.home.class_bytes(self.class)
    }

    /// Changes the length; the bytes keep their values.
    ///
    /// # Panics
    ///
    /// If `len` is larger than the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = u32::try_from(len).expect("a class is below 4 GiB");
    }

    /// Returns the address of the first byte, for a loan, which writes bytes that nobody has a reference to.
    pub(super) fn as_shared_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Takes the buffer apart without sending it home.
    pub(super) fn into_place(self) -> (Place, Arc<Home>) {
        let buffer = ManuallyDrop::new(self);
        let place = buffer.place();
        // SAFETY: `buffer` is never used or dropped again, so the share is read out exactly once.
        let home = unsafe { core::ptr::read(&raw const buffer.home) };
        (place, home)
    }

    fn place(&self) -> Place {
        Place { start: self.start, iova: self.iova, class: self.class }
    }
}

impl Deref for DmaBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` bytes (`at`), initialised since mappings start as zeroes, and
        // while `self` is borrowed the buffer cannot be in flight.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for DmaBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len as usize) }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        self.home.welcome(self.place());
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaBuf")
            .field("iova", &self.iova)
            .field("len", &self.len)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}
