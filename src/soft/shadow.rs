//! Shadow doorbells: the two pages of memory that stand for doorbell registers.
//!
//! [`ShadowPages`] is set by Doorbell Buffer Config and gives each I/O queue its words; the admin queue keeps
//! its registers. `queue::Index` has the semantics of the words.
//! Invariant: every doorbell on offer has its place within the pages (the options are checked for that).
#![forbid(unsafe_code)]

use super::engine::Core;
use super::iommu::Purpose;
use super::queue::Index;
use crate::dma::{PAGE_BYTES, SharedBytes};
use crate::spec::status::Status;
use crate::units::Iova;

/// The pages that the host named.
#[derive(Clone)]
pub(super) struct ShadowPages {
    iovas: [u64; 2],
    values: SharedBytes,
    events: SharedBytes,
    stride: usize,
}

impl ShadowPages {
    /// Finds the pages (NVMe Base 2.0, 5.8).
    pub(super) fn new(core: &Core, values: u64, events: u64) -> Result<Self, Status> {
        if !values.is_multiple_of(4096) || !events.is_multiple_of(4096) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        let page = |at, purpose| core.iommu.share(Iova(at), PAGE_BYTES, purpose);
        let both = page(values, Purpose::FromHost).zip(page(events, Purpose::ToHost));
        let (shadow, event) = both.ok_or(Status::DATA_TRANSFER_ERROR)?;
        let stride = 4 << core.options.doorbell_stride;
        Ok(Self { iovas: [values, events], values: shadow, events: event, stride })
    }

    /// Lets a doorbell be read from memory.
    pub(super) fn apply(&self, queue: u16, completion: bool, doorbell: &mut Index) {
        let at = (2 * usize::from(queue) + usize::from(completion)) * self.stride;
        let words = self.values.part(at, 4).zip(self.events.part(at, 4));
        if let Some((value, event)) = words {
            doorbell.shadow(value, event);
        }
    }

    /// Says whether a page lies in `len` bytes at `base`.
    pub(super) fn lies_in(&self, base: u64, len: u64) -> bool {
        self.iovas.iter().any(|at| at.checked_sub(base).is_some_and(|offset| offset < len))
    }
}
