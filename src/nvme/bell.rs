//! Telling the controller of a new index: by register, or by shadow doorbell where it offers them.
#![forbid(unsafe_code)]

use core::sync::atomic::{Ordering, fence};

use crate::dma::{SharedBytes, Window};
use crate::transport::Doorbell;

/// One queue's way to publish an index.
pub(super) enum Bell {
    /// Every new index is written to the register.
    Register(Doorbell),
    /// The index goes to memory; the register is written only when the controller asked for it
    /// (NVMe Base 2.0, 5.8 and B.5).
    Shadow {
        /// Where the host writes the index.
        shadow: SharedBytes,
        /// Where the controller writes the index at which it wants to be told.
        event: SharedBytes,
        /// The register behind them.
        register: Doorbell,
    },
}

impl Bell {
    /// A bell with its words in the shadow doorbell buffers, at the register's offset among the doorbells.
    ///
    /// Made before the queue is.
    pub(super) fn shadow(
        buffers: &ShadowBuffers,
        offset: usize,
        register: Doorbell,
    ) -> Option<Self> {
        let shadow = buffers.doorbells.bytes().part(offset, 4)?;
        let event = buffers.events.bytes().part(offset, 4)?;
        let bell = Self::Shadow { shadow, event, register };
        bell.clear();
        Some(bell)
    }

    /// Forgets what was published. To be called before the controller learns of the queue: the queue that had this
    /// identifier before has left its indices here, and the controller looks at them at once.
    pub(super) fn clear(&self) {
        if let Self::Shadow { shadow, event, .. } = self {
            shadow.span().store32(0, 0, Ordering::Relaxed);
            event.span().store32(0, 0, Ordering::Relaxed);
        }
    }

    /// Publishes `new`, which follows `old`; says whether the register was written.
    #[inline]
    pub(super) fn ring(&self, old: u32, new: u32) -> bool {
        match self {
            Self::Register(register) => {
                register.ring(new);
                true
            }
            Self::Shadow { shadow, event, register } => {
                // Release: the entries before the index that announces them.
                shadow.span().store32(0, new, Ordering::Release);
                // The index must be visible before the event index is read. Otherwise both sides could
                // see the other's old value, and the controller would sleep over a full queue.
                fence(Ordering::SeqCst);
                let wanted = event.span().load32(0, Ordering::Acquire);
                let needed = passes(wanted, old, new);
                if needed {
                    register.ring(new);
                }
                needed
            }
        }
    }
}

/// The two pages of shadow doorbells.
pub(super) struct ShadowBuffers {
    /// The host writes indices, the controller reads them; some write those of the admin queue.
    pub(super) doorbells: Window,
    /// The controller writes event indices, the host reads them.
    pub(super) events: Window,
}

impl ShadowBuffers {
    /// Returns where the controller finds them.
    pub(super) fn addresses(&self) -> [u64; 2] {
        [self.doorbells.iova().0, self.events.iova().0]
    }
}

/// Says whether going from `old` to `new` reaches or passes `wanted`, in 16-bit arithmetic.
///
/// At `wanted == new` the register is written although the controller has seen nothing past it: a
/// harmless superset of the rule, and what controllers in use expect.
fn passes(wanted: u32, old: u32, new: u32) -> bool {
    let distance = |to: u32, from: u32| to.wrapping_sub(from) as u16;
    distance(new, wanted) <= distance(new, old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_is_written_only_when_the_event_index_is_passed() {
        assert!(passes(4, 4, 5), "the controller waits for the first new entry");
        assert!(passes(5, 4, 9));
        assert!(!passes(3, 4, 9), "it is awake and has looked past 3 already");
        assert!(!passes(20, 4, 9), "it wants to hear of 20");
    }

    #[test]
    fn the_rule_holds_across_the_wrap_of_the_ring() {
        assert!(passes(1023, 1023, 1));
        assert!(passes(0, 1022, 3));
        assert!(!passes(1000, 1022, 3));
    }
}
