//! The software IOMMU: which device addresses lead where, and with what right.
//!
//! [`Iommu`] is the table, written by the host's mapper calls; a [`Tlb`] is one completion queue's memory
//! of it, so that a translation is a compare and a subtraction. Neighbours: `data` walks PRPs and
//! SGLs through a `Tlb`; `engine` maps and unmaps.
//! Invariant: a `Tlb` lives under its queues' lock, and `unmap` visits every such lock, so that no entry
//! outlives its mapping and no access is under way when `unmap` returns.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use crate::dma::{Access, Arena, SharedBytes, Span};
use crate::units::Iova;

/// An access outside every mapping, or against the right of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault;

/// What an access is for. Each purpose has its own place in a [`Tlb`], since the host keeps such
/// memory in different arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Data from the host: the device reads memory.
    FromHost,
    /// Data to the host: the device writes memory.
    ToHost,
    /// PRP lists and SGL segments: the device reads memory.
    List,
}

impl Purpose {
    fn allowed_by(self, access: Access) -> bool {
        match self {
            Self::ToHost => access.device_writes(),
            Self::FromHost | Self::List => access.device_reads(),
        }
    }
}

/// A range of device addresses and the memory behind it.
#[derive(Clone)]
struct Mapping {
    base: u64,
    access: Access,
    bytes: SharedBytes,
}

impl Mapping {
    fn holds(&self, iova: u64) -> bool {
        iova.checked_sub(self.base).is_some_and(|offset| offset < self.len())
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn overlaps(&self, base: u64, len: u64) -> bool {
        base < self.base + self.len() && self.base < base + len
    }
}

/// The table of mappings.
#[derive(Default)]
pub(super) struct Iommu {
    mappings: RwLock<Vec<Mapping>>,
}

impl Iommu {
    /// Maps an arena at its own address.
    pub(super) fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        let mapping =
            Mapping { base: arena.iova().0, access: arena.access(), bytes: arena.bytes() };
        let mut mappings = self.mappings.write().unwrap_or_else(PoisonError::into_inner);
        if mappings.iter().any(|old| old.overlaps(mapping.base, mapping.len())) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        mappings.push(mapping);
        Ok(())
    }

    /// Forgets an arena. The caller then clears every [`Tlb`].
    pub(super) fn unmap(&self, arena: &Arena) {
        let mut mappings = self.mappings.write().unwrap_or_else(PoisonError::into_inner);
        mappings.retain(|mapping| mapping.base != arena.iova().0);
    }

    /// Returns a share of `len` bytes that lie within one mapping, for a queue to live in.
    pub(super) fn share(&self, iova: Iova, len: usize, purpose: Purpose) -> Option<SharedBytes> {
        let mapping = self.find(iova.0, purpose)?;
        let offset = usize::try_from(iova.0 - mapping.base).ok()?;
        mapping.bytes.part(offset, len)
    }

    #[cold]
    fn find(&self, iova: u64, purpose: Purpose) -> Option<Mapping> {
        let mappings = self.mappings.read().unwrap_or_else(PoisonError::into_inner);
        mappings.iter().find(|m| m.holds(iova) && purpose.allowed_by(m.access)).cloned()
    }
}

/// The last mapping that was hit for one purpose.
#[derive(Default)]
struct Entry {
    base: u64,
    /// 0 where there is no entry, so that one compare answers both questions.
    len: u64,
    bytes: Option<SharedBytes>,
}

/// One completion queue's memory of the table: the last hit for each purpose.
#[derive(Default)]
pub(super) struct Tlb {
    entries: [Entry; 3],
    /// Accesses that were refused.
    pub(super) faults: u64,
}

impl Tlb {
    /// Forgets everything, so that no mapping is kept alive from here.
    pub(super) fn clear(&mut self) {
        self.entries = Default::default();
    }

    /// Returns the memory at `iova`: at least one byte, at most `len`, up to the end of the mapping.
    #[inline]
    pub(super) fn reach(
        &mut self,
        iommu: &Iommu,
        iova: u64,
        len: usize,
        purpose: Purpose,
    ) -> Result<Span<'_>, Fault> {
        let entry = &self.entries[purpose as usize];
        if iova.wrapping_sub(entry.base) >= entry.len {
            self.fill(iommu, iova, purpose)?;
        }
        let entry = &self.entries[purpose as usize];
        let offset = iova.wrapping_sub(entry.base);
        let len = (entry.len - offset).min(len as u64);
        let span = entry.bytes.as_ref().and_then(|b| b.span().slice(offset as usize, len as usize));
        span.ok_or(Fault)
    }

    #[cold]
    fn fill(&mut self, iommu: &Iommu, iova: u64, purpose: Purpose) -> Result<(), Fault> {
        let Some(mapping) = iommu.find(iova, purpose) else {
            self.faults += 1;
            return Err(Fault);
        };
        let (base, len) = (mapping.base, mapping.len());
        self.entries[purpose as usize] = Entry { base, len, bytes: Some(mapping.bytes) };
        Ok(())
    }
}
