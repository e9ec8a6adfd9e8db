//! The space of addresses that devices see, handed out by us.
//!
//! Addresses are not equal to virtual ones: an emulated IOMMU has 39 bits, a real one has reserved
//! windows (the MSI window among them), and a driver has to honour both.
#![forbid(unsafe_code)]

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::DmaError;
use super::free::FreeRanges;
use crate::units::Iova;

/// A range of device addresses, both ends included, as the kernel reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
}

impl IovaRange {
    fn holds(&self, start: u64, len: u64) -> bool {
        start >= self.first && start <= self.last && len - 1 <= self.last - start
    }
}

/// The addresses that one device can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IovaLimits {
    /// Usable ranges, in rising order.
    pub ranges: Vec<IovaRange>,
}

impl IovaLimits {
    /// The limits of a device without reserved windows, `bits` of address wide.
    pub fn bits(bits: u32) -> Self {
        let last = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        Self { ranges: vec![IovaRange { first: 0, last }] }
    }

    /// Says whether all of `start..start + len` can be used.
    pub fn hold(&self, start: Iova, len: u64) -> bool {
        self.ranges.iter().any(|range| range.holds(start.0, len))
    }
}

/// Where device addresses begin: page 0 stays free, so that a zero address is always a mistake, and
/// so does the low 4 GiB, where real machines keep the MSI window.
const FIRST_IOVA: u64 = 1 << 32;

/// Where they end unless a device has less: the 39 bits of the smallest IOMMU in use.
const IOVA_BITS: u32 = 39;

/// The one space of the process: addresses of two domains never coincide, so that a buffer of one that is
/// handed to a device of the other is an address without memory there, and not somebody else's memory.
static SHARED: LazyLock<Mutex<IovaSpace>> = LazyLock::new(|| Mutex::new(IovaSpace::new()));

/// Returns the space of the process.
pub(super) fn shared() -> MutexGuard<'static, IovaSpace> {
    // Whoever panicked under the lock left the ranges disjoint.
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The free part of the address space.
#[derive(Debug)]
pub(super) struct IovaSpace {
    free: FreeRanges,
}

impl IovaSpace {
    pub(super) fn new() -> Self {
        Self { free: FreeRanges::new(FIRST_IOVA, (1 << IOVA_BITS) - FIRST_IOVA) }
    }

    /// Takes a range.
    pub(super) fn take(&mut self, len: u64, align: u64) -> Result<Iova, DmaError> {
        let exhausted =
            DmaError::IovaExhausted { len, lowest: FIRST_IOVA, highest: (1 << IOVA_BITS) - 1 };
        self.free.take(len, align).map(Iova).ok_or(exhausted)
    }

    /// Gives a range back.
    pub(super) fn give(&mut self, start: Iova, len: u64) {
        self.free.give(start.0, len);
    }

    /// Keeps to what a device can use from now on.
    pub(super) fn narrow(&mut self, limits: &IovaLimits) {
        let mut next = 0;
        for range in &limits.ranges {
            self.free.exclude(next, range.first.saturating_sub(next));
            next = range.last.saturating_add(1);
        }
        if next != u64::MAX {
            self.free.exclude(next, u64::MAX - next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_windows_of_a_device_are_not_used() {
        let mut space = IovaSpace::new();
        let ranges = vec![
            IovaRange { first: 0, last: 0xfedf_ffff },
            IovaRange { first: 0x1_4000_0000, last: 0x7f_ffff_ffff },
        ];
        space.narrow(&IovaLimits { ranges });
        assert_eq!(space.take(4096, 4096).unwrap(), Iova(0x1_4000_0000));
    }

    #[test]
    fn addresses_never_pass_what_the_narrowest_device_has() {
        let mut space = IovaSpace::new();
        space.narrow(&IovaLimits::bits(33));
        assert!(space.take(1 << 32, 4096).is_ok());
        let error = space.take(4096, 4096).unwrap_err().to_string();
        assert!(error.contains("no 4096 bytes are free"), "{error}");
    }

    #[test]
    fn limits_hold_a_range_only_as_a_whole() {
        let limits = IovaLimits::bits(32);
        assert!(limits.hold(Iova(0xffff_f000), 4096));
        assert!(!limits.hold(Iova(0xffff_f000), 4097));
    }
}
