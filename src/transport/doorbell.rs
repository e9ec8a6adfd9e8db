//! A doorbell: one 32-bit register that is only ever written, thousands of times a second.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use crate::dma::SharedBytes;

/// One doorbell register of one queue.
pub struct Doorbell {
    register: SharedBytes,
}

impl Doorbell {
    /// The register at `offset` in a mapped register space, or `None` if it does not lie within or is not
    /// aligned.
    pub fn at(space: &SharedBytes, offset: usize) -> Option<Self> {
        let register = space.part(offset, size_of::<u32>())?;
        offset.is_multiple_of(size_of::<u32>()).then_some(Self { register })
    }

    /// Publishes an index.
    ///
    /// The store is a release: the entries that were written before it are in memory before the
    /// controller can see the new index. On x86-64 this holds for uncached registers too, since a
    /// store to them never passes older stores; other architectures need an I/O barrier here before
    /// this drives hardware.
    #[inline]
    pub fn ring(&self, index: u32) {
        self.register.span().store32(0, index, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doorbell_is_one_word_of_the_register_space() {
        let space = SharedBytes::anonymous(4096).unwrap();
        assert!(Doorbell::at(&space, 4096).is_none());
        assert!(Doorbell::at(&space, 2).is_none());
        Doorbell::at(&space, 8).unwrap().ring(77);
        assert_eq!(space.span().load32(8, Ordering::Acquire), 77);
        assert_eq!(space.span().load32(12, Ordering::Acquire), 0);
    }
}
