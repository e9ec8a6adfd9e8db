//! A window: a piece of an arena that host and device share for as long as it lives.
#![forbid(unsafe_code)]

use super::arena::Access;
use super::span::{SharedBytes, Span};
use crate::units::Iova;

/// A piece of memory that host and device both see: a ring, a PRP list, an identify page.
///
/// Cloning makes another share; the memory goes home to its arena with the last one.
#[derive(Clone)]
pub struct Window {
    bytes: SharedBytes,
    iova: Iova,
    access: Access,
}

impl Window {
    pub(super) fn new(bytes: SharedBytes, iova: Iova, access: Access) -> Self {
        Self { bytes, iova, access }
    }

    /// Returns where the device sees the first byte.
    #[inline]
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// Returns what the device may do with it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns the length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Says whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Looks at the bytes.
    #[inline]
    pub fn span(&self) -> Span<'_> {
        self.bytes.span()
    }

    /// Returns the bytes as shared memory, for whoever plays the device.
    pub fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }
}

impl core::fmt::Debug for Window {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Window")
            .field("iova", &self.iova)
            .field("len", &self.len())
            .field("access", &self.access)
            .finish()
    }
}
